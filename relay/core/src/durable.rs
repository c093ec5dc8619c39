//! What survives a restart: three secrets, the epoch of the slots, the networks, the tokens that were used, the leaves.
//!
//! A **registration token** is 8 random bytes and a MAC over them, so that tokens are made without telling the running
//! relay; only those that were used are kept.

use shadowmesh_crypto::kdf::{Label, ct_eq, mac16};
use shadowmesh_crypto::secret::Secret;
use shadowmesh_proto::Rng;
use shadowmesh_wire::{Reader, WireError, Writer};
use std::collections::BTreeSet;
use zeroize::Zeroizing;

const VERSION: u8 = 2;
/// Networks and used tokens that a state may claim to hold: beyond it, it is damaged.
const MAX_ENTRIES: u32 = 1 << 20;
/// Former access secrets of one network: of more rotations, who missed them all is out.
pub(crate) const MAX_FORMER: usize = 8;
const MAX_LEAVES: usize = 4;
const MAX_BLOB: u32 = 64 << 10;

/// The bytes are not the state of a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the relay's state is damaged, or of a version that this program does not know")]
pub struct BadState;

impl From<WireError> for BadState {
    fn from(_: WireError) -> Self {
        BadState
    }
}

/// A registered network.
pub(crate) struct Network {
    /// Hash of the owner secret; the first half of it is what clients show.
    pub tag: [u8; 32],
    /// What clients prove to know.
    pub access: Secret<32>,
    /// What they proved to know before, the latest first.
    pub former: Vec<Former>,
}

/// An access secret that was rotated out.
pub(crate) struct Former {
    pub secret: Secret<32>,
    /// Who slept through the rotation may fetch the new one until then, Unix seconds.
    pub until: u64,
}

impl Network {
    /// Another access secret; the one before is a former one until then.
    pub fn rotate(&mut self, access: Secret<32>, now: u64, until: u64) {
        let secret = std::mem::replace(&mut self.access, access);
        let current = &self.access;
        self.former.retain(|f| f.until > now && f.secret != *current);
        self.former.insert(0, Former { secret, until });
        self.former.truncate(MAX_FORMER);
    }
}

/// A leaf as stored: the signed fact and its secret key.
pub(crate) struct SavedLeaf {
    pub fact: Vec<u8>,
    pub key: Zeroizing<Vec<u8>>,
}

/// The durable part of a relay.
pub struct Durable {
    /// Makes handles out of pseudonyms.
    pub(crate) handles: Secret<32>,
    /// Makes reset tokens out of slots.
    pub(crate) resets: Secret<32>,
    /// Makes registration tokens.
    tokens: Secret<32>,
    /// Of the slots that are given out now.
    pub(crate) epoch: u64,
    /// Numbers of the tokens that were used.
    pub(crate) spent: BTreeSet<[u8; 8]>,
    /// In the order of registration.
    pub(crate) networks: Vec<Network>,
    /// The newest first.
    pub(crate) leaves: Vec<SavedLeaf>,
}

impl Durable {
    /// The state of a relay that never ran.
    pub fn new(rng: &mut Rng) -> Self {
        Durable {
            handles: Secret::new(rng.bytes()),
            resets: Secret::new(rng.bytes()),
            tokens: Secret::new(rng.bytes()),
            epoch: 0,
            spent: BTreeSet::new(),
            networks: vec![],
            leaves: vec![],
        }
    }

    /// As bytes, for the store.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let leaves: usize = self.leaves.iter().map(|l| l.fact.len() + l.key.len() + 8).sum();
        let networks: usize = self.networks.iter().map(|n| 65 + n.former.len() * 40).sum();
        let size = 128 + self.spent.len() * 8 + networks + leaves;
        // Room for all of it, so that no half-written copy of a secret is left behind by growing.
        let mut out = Zeroizing::new(Vec::with_capacity(size));
        let mut w = Writer(&mut out);
        w.u8(VERSION);
        for secret in [&self.handles, &self.resets, &self.tokens] {
            w.bytes(secret.expose());
        }
        w.u64(self.epoch).u32(self.spent.len() as u32);
        for token in &self.spent {
            w.bytes(token);
        }
        w.u32(self.networks.len() as u32);
        for n in &self.networks {
            w.bytes(&n.tag).bytes(n.access.expose()).u8(n.former.len() as u8);
            for f in &n.former {
                w.bytes(f.secret.expose()).u64(f.until);
            }
        }
        w.u8(self.leaves.len() as u8);
        for l in &self.leaves {
            w.u32(l.fact.len() as u32).bytes(&l.fact).u32(l.key.len() as u32).bytes(&l.key);
        }
        out
    }

    /// From bytes.
    ///
    /// # Errors
    /// [`BadState`].
    pub fn parse(bytes: &[u8]) -> Result<Self, BadState> {
        let mut r = Reader::new(bytes);
        if r.u8()? != VERSION {
            return Err(BadState);
        }
        let (handles, resets, tokens) =
            (Secret::new(r.array()?), Secret::new(r.array()?), Secret::new(r.array()?));
        let epoch = r.u64()?;
        let count = |r: &mut Reader<'_>| {
            let n = r.u32()?;
            if n > MAX_ENTRIES { Err(BadState) } else { Ok(n) }
        };
        let mut spent = BTreeSet::new();
        for _ in 0..count(&mut r)? {
            spent.insert(r.array()?);
        }
        let mut networks = vec![];
        for _ in 0..count(&mut r)? {
            let (tag, access, mut former) = (r.array()?, Secret::new(r.array()?), vec![]);
            let n = usize::from(r.u8()?);
            if n > MAX_FORMER {
                return Err(BadState);
            }
            for _ in 0..n {
                former.push(Former { secret: Secret::new(r.array()?), until: r.u64()? });
            }
            networks.push(Network { tag, access, former });
        }
        let n = usize::from(r.u8()?);
        if n > MAX_LEAVES {
            return Err(BadState);
        }
        let blob = |r: &mut Reader<'_>| {
            let len = r.u32()?;
            if len > MAX_BLOB { Err(BadState) } else { Ok(r.bytes(len as usize)?.to_vec()) }
        };
        let mut leaves = vec![];
        for _ in 0..n {
            leaves.push(SavedLeaf { fact: blob(&mut r)?, key: Zeroizing::new(blob(&mut r)?) });
        }
        r.finish()?;
        Ok(Durable { handles, resets, tokens, epoch, spent, networks, leaves })
    }

    /// What was read is the version before the last one: epochs that may have been used since are passed over, so that
    /// no slot is given twice. (A token that was used in the last moment may be used again.)
    pub fn restored_from_backup(&mut self) {
        self.epoch += 16;
    }

    /// A token that registers one network.
    pub fn mint(&self, rng: &mut Rng) -> Secret<16> {
        let number: [u8; 8] = rng.bytes();
        let mut token = [0; 16];
        let (head, mac) = token.split_at_mut(8);
        head.copy_from_slice(&number);
        mac.copy_from_slice(&self.token_mac(&number));
        Secret::new(token)
    }

    fn token_mac(&self, number: &[u8; 8]) -> [u8; 8] {
        let mac = mac16(&self.tokens, Label::RelayToken, &[number]);
        let mut short = [0; 8];
        short.copy_from_slice(&mac[..8]);
        short
    }

    /// The number of a token that this relay made.
    pub(crate) fn token_number(&self, token: &[u8; 16]) -> Option<[u8; 8]> {
        let (number, mac) = token.split_first_chunk::<8>()?;
        ct_eq(&self.token_mac(number), mac).then_some(*number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Durable {
        let mut rng = Rng::from_seed([1; 32]);
        let mut d = Durable::new(&mut rng);
        d.epoch = 7;
        d.spent.insert([1; 8]);
        let former = vec![Former { secret: Secret::new([6; 32]), until: 9 }];
        d.networks.push(Network { tag: [2; 32], access: Secret::new([3; 32]), former });
        d.leaves.push(SavedLeaf { fact: vec![4; 900], key: Zeroizing::new(vec![5; 700]) });
        d
    }

    #[test]
    fn round_trips_and_refuses_every_cut() {
        let bytes = full().encode();
        let back = Durable::parse(&bytes).unwrap();
        assert_eq!(back.encode(), bytes);
        assert_eq!((back.epoch, back.networks[0].tag), (7, [2; 32]));
        for cut in 0..bytes.len() {
            assert!(Durable::parse(&bytes[..cut]).is_err(), "{cut} bytes were taken");
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert!(Durable::parse(&longer).is_err());
    }

    #[test]
    fn only_this_relays_tokens_hold() {
        let mut rng = Rng::from_seed([2; 32]);
        let (d, other) = (full(), Durable::new(&mut rng));
        let token = *d.mint(&mut rng).expose();
        assert!(d.token_number(&token).is_some());
        assert!(other.token_number(&token).is_none());
        for bit in 0..128 {
            let mut bad = token;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(d.token_number(&bad).is_none());
        }
    }
}
