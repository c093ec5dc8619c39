//! What anti-entropy needs: digests, ids and facts; and the room where facts wait for their signer's key.

use shadowmesh_crypto::{Hash, Label, kdf};

use super::{MAX_WAITING, Roster};
use crate::{
    NodeId,
    fact::{Fact, Kind},
};

/// Into how many buckets the facts are divided, by the first six bits of the NodeId that they are about.
///
/// Not by their own id: signatures are randomised, ids with them, and what two rosters say to each other should follow
/// from what they hold alone.
pub const BUCKETS: usize = 64;

impl Roster {
    /// A hash of the whole roster: equal if, and only if, two rosters hold the same facts.
    pub fn digest(&self) -> Hash {
        let ids: Vec<u8> = self.held().flat_map(Fact::id).collect();
        kdf::hash(Label::RosterDigest, &[&self.network.0, &ids])
    }

    /// For each of the [`BUCKETS`] the first 64 bits of a hash of its ids: where two rosters differ.
    pub fn bucket_digests(&self) -> [u64; BUCKETS] {
        let mut ids: [Vec<u8>; BUCKETS] = std::array::from_fn(|_| Vec::new());
        for fact in self.held() {
            if let Some(bucket) = ids.get_mut(usize::from(bucket_of(fact))) {
                bucket.extend_from_slice(&fact.id());
            }
        }
        ids.map(|ids| {
            let [a, b, c, d, e, f, g, h, ..] = kdf::hash(Label::RosterBucket, &[&self.network.0, &ids]);
            u64::from_be_bytes([a, b, c, d, e, f, g, h])
        })
    }

    /// The ids of the facts in a bucket (0 to 63): certificates first, which others wait for; by member, the oldest
    /// first. None for other numbers.
    pub fn ids_in_bucket(&self, bucket: u8) -> Vec<Hash> {
        let mut facts: Vec<&Fact> = self.held().filter(|fact| bucket_of(fact) == bucket).collect();
        facts.sort_by_key(|fact| order(fact));
        facts.into_iter().map(Fact::id).collect()
    }

    /// A fact to give to others.
    pub fn get(&self, id: &Hash) -> Option<&Fact> {
        self.ids.get(id).filter(|fact| self.is_held(fact))
    }

    /// Whether a fact need not be asked for: it is here, counting or not, or waits for its signer.
    pub fn knows(&self, id: &Hash) -> bool {
        self.ids.contains_key(id) || self.waiting.contains_key(id)
    }

    /// All facts that count, by id.
    pub fn held(&self) -> impl Iterator<Item = &Fact> {
        self.ids.values().filter(|fact| self.is_held(fact))
    }

    /// All verified facts, for the store: those whose signer has no office included.
    pub fn facts(&self) -> impl Iterator<Item = &Fact> {
        self.ids.values()
    }

    /// Keeps an unverified fact until its signer's key is known, and says whether there was room: of too many, those
    /// of lowest id stay. Facts that can never count are not kept.
    pub fn wait(&mut self, fact: Fact) -> bool {
        if self.admissible(&fact).is_err() || self.ids.contains_key(&fact.id()) {
            return false;
        }
        let id = fact.id();
        self.waiting.insert(id, fact);
        while self.waiting.len() > MAX_WAITING {
            self.waiting.pop_last();
        }
        self.waiting.contains_key(&id)
    }

    /// Takes out the waiting facts that can be verified now, in the order of a bucket. To be asked after each certificate
    /// that was merged.
    pub fn ready(&mut self) -> Vec<Fact> {
        let mut ready: Vec<Fact> =
            self.waiting.values().filter(|fact| self.signer_key(fact).is_some()).cloned().collect();
        ready.sort_by_key(order);
        for fact in &ready {
            self.waiting.remove(&fact.id());
        }
        ready
    }
}

fn order(fact: &Fact) -> (Kind, NodeId, u64) {
    (fact.kind(), fact.subject(), fact.seq())
}

fn bucket_of(fact: &Fact) -> u8 {
    fact.subject().0[0] >> 2
}
