//! The claim: how a joiner, inside the anonymous session with its inviter, asks for a certificate.

use shadowmesh_crypto::{Error as CryptoError, Hash, Label, sign};

use crate::{
    Name, NetworkId, NodeId, ParseError,
    codec::{Put, Reader},
};

/// The joiner's identity and the name it wishes, bound to the network and to one handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The network to join.
    pub network: NetworkId,
    /// The joiner's signing key.
    pub key: sign::PublicKey,
    /// The name it would like; the inviter decides.
    pub name: Name,
    signature: sign::Signature,
}

impl Claim {
    /// The longest encoding, in bytes.
    pub const MAX_LEN: usize = 32 + sign::PUBLIC_KEY_LEN + 64 + sign::SIGNATURE_LEN;

    /// Makes a claim. `h2` is the transcript of the handshake it is sent in, so that it means nothing in another.
    ///
    /// # Errors
    ///
    /// As [`sign::SigningKey::sign`].
    pub fn sign(
        key: &sign::SigningKey,
        network: NetworkId,
        name: Name,
        h2: &Hash,
    ) -> Result<Self, CryptoError> {
        let signature = key.sign(Label::SigClaim, &signed(&network, &name, h2))?;
        Ok(Claim { network, key: key.public().clone(), name, signature })
    }

    /// Checks that the holder of the key made this claim in the handshake with transcript `h2`.
    ///
    /// # Errors
    ///
    /// [`CryptoError::BadSignature`].
    pub fn verify(&self, h2: &Hash) -> Result<(), CryptoError> {
        self.key.verify(Label::SigClaim, &signed(&self.network, &self.name, h2), &self.signature)
    }

    /// The joiner's NodeId.
    pub fn node(&self) -> NodeId {
        NodeId::of(&self.key)
    }

    /// Network, key, name (u8 length, text), signature.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::MAX_LEN);
        out.put(&self.network.0);
        out.put(self.key.as_bytes());
        self.name.write(&mut out);
        out.put(self.signature.as_bytes());
        out
    }

    /// Takes a claim from the wire; its signature is not looked at.
    ///
    /// # Errors
    ///
    /// [`ParseError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut reader = Reader::new(bytes);
        let network = NetworkId(reader.array()?);
        let key = sign::PublicKey::from_bytes(reader.take(sign::PUBLIC_KEY_LEN)?)
            .map_err(|_| ParseError::Invalid("the claim's key is malformed"))?;
        let name = Name::read(&mut reader)?;
        let signature = sign::Signature::from_bytes(reader.take(sign::SIGNATURE_LEN)?)
            .map_err(|_| ParseError::Invalid("the claim's signature is malformed"))?;
        reader.finish()?;
        Ok(Claim { network, key, name, signature })
    }
}

/// Network and transcript have fixed lengths and the name is last, so the encoding is injective.
fn signed(network: &NetworkId, name: &Name, h2: &Hash) -> Vec<u8> {
    [&network.0[..], h2, name.as_str().as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use shadowmesh_crypto::Secret;

    #[test]
    fn a_claim_is_bound_to_everything_in_it() {
        let key = sign::SigningKey::from_seed(&Secret::new([1; 32])).unwrap();
        let other = sign::SigningKey::from_seed(&Secret::new([2; 32])).unwrap();
        let claim = Claim::sign(&key, NetworkId([1; 32]), "laptop".parse().unwrap(), &[9; 32]).unwrap();
        let parsed = Claim::parse(&claim.encode()).unwrap();
        assert_eq!(parsed, claim);
        assert_eq!(parsed.verify(&[9; 32]), Ok(()));
        assert_eq!(parsed.node(), NodeId::of(key.public()));
        assert!(parsed.verify(&[8; 32]).is_err());
        for bad in [
            Claim { network: NetworkId([2; 32]), ..claim.clone() },
            Claim { name: "laptop2".parse().unwrap(), ..claim.clone() },
            Claim { key: other.public().clone(), ..claim.clone() },
        ] {
            assert!(bad.verify(&[9; 32]).is_err());
        }
        let bytes = claim.encode();
        assert_eq!(Claim::parse(&[&bytes[..], &[0]].concat()), Err(ParseError::Trailing));
        assert!((0..bytes.len()).step_by(7).all(|len| Claim::parse(&bytes[..len]).is_err()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_claim_or_an_error(bytes: Vec<u8>, fill: u8, len in 0..7500usize) {
            let _ = Claim::parse(&bytes);
            let _ = Claim::parse(&[vec![fill; len], bytes].concat());
        }
    }
}
