//! The master seed: 32 random bytes, written as 24 words, from which root keys and identities come back.

use shadowmesh_crypto::{Error, Label, Secret, Zeroizing, kdf, sign::SigningKey};

use crate::NetworkId;

/// The master seed. What is derived from it: root keys and identities. What never is: leaf, ephemeral and session
/// keys, because erasing those would then erase nothing.
#[derive(Debug)]
pub struct Seed(Secret<32>);

/// Why words are not a master seed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SeedError {
    /// Not 24 words.
    #[error("a seed has 24 words, these are {0}")]
    WordCount(usize),
    /// A word that is not on the list. Counted from 1; the word itself is not repeated, as it may be nearly right.
    #[error("word {0} is not on the list of 2048 English words (BIP-39): check its spelling")]
    UnknownWord(usize),
    /// Every word is on the list, but together they are not a seed.
    #[error("the words do not fit together: two may be swapped, or one replaced by another")]
    Checksum,
}

impl Seed {
    /// Draws a new seed.
    pub fn random() -> Self {
        Seed(Secret::random())
    }

    /// Takes a seed from the store.
    pub fn new(secret: Secret<32>) -> Self {
        Seed(secret)
    }

    /// The bytes, for the store.
    pub fn secret(&self) -> &Secret<32> {
        &self.0
    }

    /// The 24 words (BIP-39, English), with single spaces.
    pub fn words(&self) -> Zeroizing<String> {
        let mnemonic =
            bip39::Mnemonic::from_entropy(self.0.expose()).expect("BIP-39 takes 32 bytes, whatever they are");
        let mut words = Zeroizing::new(String::with_capacity(24 * 9));
        for word in mnemonic.words() {
            if !words.is_empty() {
                words.push(' ');
            }
            words.push_str(word);
        }
        words
    }

    /// Takes the 24 words back, in any case and with any white space between them.
    ///
    /// # Errors
    ///
    /// [`SeedError`], a sentence to show.
    pub fn from_words(text: &str) -> Result<Self, SeedError> {
        let count = text.split_whitespace().count();
        if count != 24 {
            return Err(SeedError::WordCount(count));
        }
        let text = Zeroizing::new(text.to_lowercase());
        let mnemonic = bip39::Mnemonic::parse_in_normalized(bip39::Language::English, &text).map_err(
            |error| match error {
                bip39::Error::UnknownWord(at) => SeedError::UnknownWord(at + 1),
                _ => SeedError::Checksum,
            },
        )?;
        let (entropy, len) = mnemonic.to_entropy_array();
        let entropy = Zeroizing::new(entropy);
        match (entropy.first_chunk::<32>(), len) {
            (Some(bytes), 32) => Ok(Seed(Secret::new(*bytes))),
            _ => Err(SeedError::Checksum),
        }
    }

    /// Root key number `n`.
    ///
    /// # Errors
    ///
    /// As [`SigningKey::from_seed`].
    pub fn root_key(&self, n: u32) -> Result<SigningKey, Error> {
        self.key(Label::SeedRoot, &n.to_be_bytes())
    }

    /// The identity in one network. `n` counts incarnations: a node that was revoked can join again under another
    /// NodeId.
    ///
    /// # Errors
    ///
    /// As [`SigningKey::from_seed`].
    pub fn identity_key(&self, network: &NetworkId, n: u32) -> Result<SigningKey, Error> {
        self.key(Label::SeedIdentity, &[&network.0[..], &n.to_be_bytes()].concat())
    }

    /// The identity of a relay, which is in no network.
    ///
    /// # Errors
    ///
    /// As [`SigningKey::from_seed`].
    pub fn relay_identity(&self) -> Result<SigningKey, Error> {
        self.key(Label::SeedRelay, &[])
    }

    fn key(&self, label: Label, context: &[u8]) -> Result<SigningKey, Error> {
        SigningKey::from_seed(&kdf::derive(label, &[], &[self.0.expose()], context))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_bring_the_seed_back() {
        let seed = Seed::random();
        let words = seed.words();
        assert_eq!(words.split(' ').count(), 24);
        assert_eq!(Seed::from_words(&words).unwrap().secret(), seed.secret());
        let shouted = format!("  {}\n", words.to_uppercase().replace(' ', "\t \n"));
        assert_eq!(Seed::from_words(&shouted).unwrap().secret(), seed.secret());
    }

    #[test]
    fn known_words() {
        // BIP-39's published vectors for 32 bytes of 00 and of 7f.
        let zero = Seed::new(Secret::new([0; 32]));
        assert_eq!(*zero.words(), format!("{}art", "abandon ".repeat(23)));
        let words = "legal winner thank year wave sausage worth useful legal winner thank year wave sausage worth \
                     useful legal winner thank year wave sausage worth title";
        assert_eq!(Seed::from_words(words).unwrap().secret(), &Secret::new([0x7F; 32]));
    }

    #[test]
    fn wrong_words_say_what_is_wrong() {
        let words = Seed::new(Secret::new([0; 32])).words();
        assert_eq!(Seed::from_words("abandon art").unwrap_err(), SeedError::WordCount(2));
        let unknown = words.replacen("abandon abandon", "abandon abandom", 1);
        assert_eq!(Seed::from_words(&unknown).unwrap_err(), SeedError::UnknownWord(2));
        let swapped = words.replace("art", "ability");
        assert_eq!(Seed::from_words(&swapped).unwrap_err(), SeedError::Checksum);
    }

    #[test]
    fn keys_are_separate_and_repeatable() {
        let seed = Seed::new(Secret::new([5; 32]));
        let again = Seed::new(Secret::new([5; 32]));
        let (a, b) = (NetworkId([1; 32]), NetworkId([2; 32]));
        let all = |seed: &Seed| {
            [
                seed.root_key(0),
                seed.root_key(1),
                seed.identity_key(&a, 0),
                seed.identity_key(&a, 1),
                seed.identity_key(&b, 0),
                seed.relay_identity(),
            ]
            .map(|key| crate::NodeId::of(key.unwrap().public()))
        };
        assert_eq!(all(&seed), all(&again));
        assert_eq!(std::collections::BTreeSet::from(all(&seed)).len(), 6);
        assert_eq!(format!("{seed:?}"), "Seed(Secret(..))");
    }
}
