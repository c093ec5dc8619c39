//! What is this node's own: leaf keys and their facts, pseudonym keys.

use super::{Event, Node};
use crate::Time;
use shadowmesh_crypto::Hash;
use shadowmesh_crypto::kem;
use shadowmesh_identity::fact::Body;
use shadowmesh_identity::{DAY, Fact, Leaf, Location};
use std::sync::Arc;
use zeroize::Zeroizing;

/// A leaf lives that long.
const LEAF_LIFETIME: u64 = 7 * DAY;
/// And the next one is published that long before its end.
const LEAF_AHEAD: u64 = DAY;

/// A leaf key as stored.
pub struct SavedLeaf {
    /// Hash of the leaf that holds its public key.
    pub leaf: Hash,
    /// When the leaf ends, Unix seconds; then the key is erased.
    pub not_after: u64,
    /// The secret key.
    pub key: Zeroizing<Vec<u8>>,
}

/// Keys as stored.
#[derive(Default)]
pub struct OwnKeys {
    /// Leaf keys, the newest first.
    pub leaves: Vec<SavedLeaf>,
    /// Pseudonym keys, by relay.
    pub pseudonyms: Vec<([u8; 32], Zeroizing<Vec<u8>>)>,
}

/// The keys in use.
pub(super) struct Own {
    /// Newest first: leaf hash, its end, key.
    leaves: Vec<(Hash, u64, Arc<kem::SecretKey>)>,
    pseudonyms: Vec<([u8; 32], Arc<kem::SecretKey>)>,
}

impl Own {
    pub fn new(saved: &OwnKeys) -> Self {
        let key = |bytes: &[u8]| kem::SecretKey::from_bytes(bytes).ok().map(Arc::new);
        Own {
            leaves: saved.leaves.iter().filter_map(|l| Some((l.leaf, l.not_after, key(&l.key)?))).collect(),
            pseudonyms: saved.pseudonyms.iter().filter_map(|(r, k)| Some((*r, key(k)?))).collect(),
        }
    }

    pub fn save(&self) -> OwnKeys {
        let bytes = |k: &kem::SecretKey| k.to_bytes().ok();
        OwnKeys {
            leaves: self
                .leaves
                .iter()
                .filter_map(|(leaf, not_after, k)| {
                    Some(SavedLeaf { leaf: *leaf, not_after: *not_after, key: bytes(k)? })
                })
                .collect(),
            pseudonyms: self.pseudonyms.iter().filter_map(|(r, k)| Some((*r, bytes(k)?))).collect(),
        }
    }

    pub fn leaf_key(&self, leaf: &Hash) -> Option<Arc<kem::SecretKey>> {
        self.leaves.iter().find(|(h, ..)| h == leaf).map(|(_, _, k)| k.clone())
    }

    /// What the responder opens ct1 with.
    pub fn keys(&self) -> Vec<(Hash, Arc<kem::SecretKey>)> {
        self.leaves.iter().map(|(h, _, k)| (*h, k.clone())).collect()
    }

    /// The pseudonym at a relay; made at first use. `true`: it is new.
    pub fn pseudonym(&mut self, relay: &[u8; 32]) -> Option<(Arc<kem::SecretKey>, bool)> {
        if let Some((_, k)) = self.pseudonyms.iter().find(|(r, _)| r == relay) {
            return Some((k.clone(), false));
        }
        let key = Arc::new(kem::SecretKey::generate().ok()?);
        self.pseudonyms.push((*relay, key.clone()));
        Some((key, true))
    }
}

impl Node {
    /// Erases leaf keys past their end; makes a new leaf when there is none, when its end is near, or when where this
    /// node is found has changed.
    pub(super) fn refresh_own(&mut self, now: Time) {
        let unix = self.unix(now);
        let before = self.own.leaves.len();
        self.own.leaves.retain(|(_, not_after, _)| *not_after > unix);
        let mut changed = self.own.leaves.len() != before;
        let locations = self.locations();
        let current = self.roster.member(&self.id).and_then(|m| m.leaf_fact(unix).cloned());
        let usable = current.as_ref().filter(|f| self.own.leaf_key(&f.id()).is_some());
        let good = usable.and_then(Fact::leaf).is_some_and(|l| {
            l.not_after > unix + LEAF_AHEAD && (locations.is_empty() || l.locations == locations)
        });
        if !good && self.roster.member(&self.id).is_some() {
            // The same key while it lasts, when only the place has changed: nobody has to learn a key anew.
            let kept = usable
                .and_then(Fact::leaf)
                .filter(|l| l.not_after > unix + LEAF_AHEAD)
                .and_then(|l| Some((self.own.leaf_key(&usable?.id())?, l.not_before, l.not_after)));
            changed |= self.issue_leaf(now, unix, locations, kept);
        }
        if changed {
            self.events.push_back(Event::SaveKeys);
            self.refresh_bundle(now);
        }
    }

    fn issue_leaf(
        &mut self,
        now: Time,
        unix: u64,
        locations: Vec<Location>,
        kept: Option<(Arc<kem::SecretKey>, u64, u64)>,
    ) -> bool {
        let (key, not_before, not_after) = match kept {
            Some(k) => k,
            None => match kem::SecretKey::generate() {
                // An hour back: the others' clocks may be a little behind.
                Ok(k) => (Arc::new(k), unix.saturating_sub(3600), unix - 3600.min(unix) + LEAF_LIFETIME),
                Err(_) => return false,
            },
        };
        let body = Body::Leaf(Leaf {
            key: Box::new(key.public().clone()),
            not_before,
            not_after,
            suites: crate::handshake::suite_mask(&self.config.suites),
            locations,
        });
        let seq = self.roster.next_leaf_seq(&self.id);
        let signed = Fact::sign(&self.config.identity, self.roster.network(), self.id, seq, unix, &body);
        let Ok(fact) = signed else { return false };
        self.own.leaves.insert(0, (fact.fact().id(), not_after, key));
        self.own.leaves.truncate(4);
        self.merge(now, fact, None);
        true
    }

    /// Where this node is found: its handle at up to two relays.
    fn locations(&self) -> Vec<Location> {
        self.links.iter().filter_map(super::relays::Link::location).take(2).collect()
    }
}
