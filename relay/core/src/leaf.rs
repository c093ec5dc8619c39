//! The relay's leaves: the KEM keys that clients open their sessions with. Seven days each, the next a day ahead, two
//! accepted, erased when they end. [P-RELAY-LEAF]

use crate::durable::SavedLeaf;
use shadowmesh_crypto::kdf::Hash;
use shadowmesh_crypto::sign::SigningKey;
use shadowmesh_crypto::{Error, kem};
use shadowmesh_identity::fact::{Body, FactError, MAX_LEAF_LIFETIME};
use shadowmesh_identity::{DAY, Fact, Leaf, NetworkId, NodeId};
use shadowmesh_proto::handshake::suite_mask;
use std::sync::Arc;

/// Leaves accepted at once.
const MAX_LEAVES: usize = 2;
/// The next leaf is made that long before the end of the last.
const AHEAD: u64 = DAY;
/// A leaf begins so long ago when it is made: clients' clocks may be a little behind.
const BACKDATED: u64 = 3600;

struct Own {
    fact: Fact,
    not_before: u64,
    not_after: u64,
}

/// Leaves with their keys, the newest first.
pub(crate) struct Leaves {
    own: Vec<Own>,
    /// As the responder takes them; in the order of `own`.
    pub keys: Vec<(Hash, Arc<kem::SecretKey>)>,
    /// What clients pull: identity key, newest leaf.
    pub bundle: Vec<u8>,
}

impl Leaves {
    /// Those that were stored; what is damaged is left out, and made anew.
    pub fn restore(saved: &[SavedLeaf]) -> Self {
        let mut out = Leaves { own: vec![], keys: vec![], bundle: vec![] };
        for s in saved.iter().take(MAX_LEAVES) {
            let (Ok(fact), Ok(key)) = (Fact::parse(&s.fact), kem::SecretKey::from_bytes(&s.key)) else {
                continue;
            };
            let Some(leaf) = fact.leaf().filter(|l| *l.key == *key.public()) else { continue };
            let (not_before, not_after) = (leaf.not_before, leaf.not_after);
            out.keys.push((fact.id(), Arc::new(key)));
            out.own.push(Own { fact, not_before, not_after });
        }
        out
    }

    /// As they are stored.
    pub fn save(&self) -> Result<Vec<SavedLeaf>, Error> {
        let one =
            |(o, (_, key)): (&Own, &(Hash, Arc<kem::SecretKey>))| -> Result<SavedLeaf, shadowmesh_crypto::Error> {
                Ok(SavedLeaf { fact: o.fact.bytes().to_vec(), key: key.to_bytes()? })
            };
        self.own.iter().zip(&self.keys).map(one).collect()
    }

    /// When the newest begins, Unix seconds.
    pub fn begins(&self) -> u64 {
        self.own.first().map_or(0, |l| l.not_before)
    }

    /// When [`Leaves::refresh`] has something to do next, Unix seconds.
    pub fn due(&self) -> u64 {
        let renew = self.own.first().map_or(0, |l| l.not_after.saturating_sub(AHEAD));
        self.own.iter().map(|l| l.not_after).min().map_or(renew, |end| end.min(renew))
    }

    /// Erases what has ended and makes the next when it is time; gives (something changed, something was erased).
    pub fn refresh(
        &mut self,
        unix: u64,
        identity: &SigningKey,
        suites: &[shadowmesh_crypto::aead::Suite],
    ) -> Result<(bool, bool), FactError> {
        let before = self.own.len();
        let mut alive = self.own.iter().map(|l| l.not_after > unix);
        self.keys.retain(|_| alive.next().unwrap_or(false));
        self.own.retain(|l| l.not_after > unix);
        let mut erased = self.own.len() < before;
        // A leaf that begins in the future is of no use to anybody: the clock was ahead when it was made.
        let good = self.own.first().is_some_and(|l| l.not_before <= unix && l.not_after > unix + AHEAD);
        if !good {
            let key = kem::SecretKey::generate().map_err(FactError::Crypto)?;
            let not_before = unix.saturating_sub(BACKDATED);
            let not_after = not_before + MAX_LEAF_LIFETIME;
            let body = Body::RelayLeaf(Leaf {
                key: Box::new(key.public().clone()),
                not_before,
                not_after,
                suites: suite_mask(suites),
                locations: vec![],
            });
            let id = NodeId::of(identity.public());
            let fact = Fact::sign(identity, NetworkId::NONE, id, unix, unix, &body)?.fact().clone();
            self.keys.insert(0, (fact.id(), Arc::new(key)));
            self.own.insert(0, Own { fact, not_before, not_after });
            erased |= self.own.len() > MAX_LEAVES;
            self.own.truncate(MAX_LEAVES);
            self.keys.truncate(MAX_LEAVES);
        }
        self.bundle = identity.public().as_bytes().to_vec();
        if let Some(newest) = self.own.first() {
            self.bundle.extend_from_slice(newest.fact.bytes());
        }
        Ok((erased || !good, erased))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shadowmesh_crypto::aead::Suite;
    use shadowmesh_identity::Seed;
    use shadowmesh_identity::chain::verify_relay_leaf;

    /// A month, hour by hour: the bundle always verifies, two keys at most, none past its end. [P-RELAY-LEAF]
    #[test]
    fn a_leaf_is_always_valid_and_no_key_outlives_it() {
        let identity = Seed::random().relay_identity().unwrap();
        let id = NodeId::of(identity.public());
        let mut leaves = Leaves::restore(&[]);
        let (mut made, mut erased, start) = (0, 0, 1_900_000_000);
        for hour in 0..30 * 24 {
            let unix = start + hour * 3600;
            if hour > 0 && unix < leaves.due() {
                continue;
            }
            let (changed, gone) = leaves.refresh(unix, &identity, &Suite::ALL).unwrap();
            made += u32::from(changed);
            erased += u32::from(gone);
            let (key, fact) = leaves.bundle.split_at(shadowmesh_crypto::sign::PUBLIC_KEY_LEN);
            for at in [unix, leaves.due().saturating_sub(1)] {
                let leaf = verify_relay_leaf(&id, key, fact, at).unwrap();
                assert_eq!(leaf.fact().id(), leaves.keys[0].0);
            }
            assert!(leaves.keys.len() <= 2 && leaves.own.iter().all(|l| l.not_after > unix));
            leaves = Leaves::restore(&leaves.save().unwrap());
            leaves.refresh(unix, &identity, &Suite::ALL).unwrap();
        }
        assert!((5..=12).contains(&made) && erased >= 3, "{made} {erased}");
        // A clock that was set back by a year.
        assert!(leaves.begins() > start - 365 * DAY);
        assert!(leaves.refresh(start - 365 * DAY, &identity, &Suite::ALL).unwrap().0);
    }
}
