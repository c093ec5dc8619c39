//! The facts of one network, merged to the same state in whatever order they come.
//!
//! # Why order cannot matter
//!
//! What is stored is a function of the *set* of facts seen. [P-MERGE] Facts stand in slots, one for each (signer, kind,
//! subject), and of each slot a fixed number is kept: the highest by (sequence, id), or the lowest for tombstones by
//! admins. Of each signer a fixed number of slots is kept, those of lowest hash. Each is a maximum over a set, so
//! merging is commutative, associative and idempotent. What the facts *mean* (who is an admin, what is void, who is
//! revoked, which certificate counts) is computed from what is stored, root before admins before members, and never
//! depends on the time: only [`Roster::is_valid`] looks at a clock.
//!
//! Several versions of what an admin signed are kept because a tombstone can void the newest later, and the one
//! before must then count again.
//!
//! Facts whose signer has no office here (yet) are stored, not shown and not offered to others; at most
//! [`MAX_PENDING`] of them. Facts whose signer's key is not known wait unverified, at most [`MAX_WAITING`]. Beyond
//! these two bounds a fact is forgotten, and anti-entropy brings it again.

mod authority;
mod sync;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use shadowmesh_crypto::{Hash, Label, kdf, sign};

pub use sync::BUCKETS;
pub use view::{Invalid, Member};

use crate::{
    Genesis, Name, NetworkId, NodeId,
    fact::{Fact, Kind, Roles, Verified},
};

/// The most certificates of one signer: members it admitted.
pub const MAX_CERTIFICATES: usize = 4096;
/// The most tombstones of one signer.
pub const MAX_TOMBSTONES: usize = 4096;
/// The most relays of one signer.
pub const MAX_RELAYS: usize = 64;
/// How many versions of one certificate or access secret by an admin are kept.
pub const VERSIONS: usize = 4;
/// How many leaves of one member are kept: this week's and the next.
pub const LEAVES: usize = 2;
/// The most verified facts kept of signers without office.
pub const MAX_PENDING: usize = 256;
/// The most unverified facts kept until their signer's key is known.
pub const MAX_WAITING: usize = 64;

/// What became of a fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    /// It is the first of its slot.
    Added,
    /// It is newer than what its slot had.
    Replaced,
    /// It is older than the newest of its slot, and kept in case that one is void.
    Kept,
    /// It is kept, and counts as soon as its signer has the office for it.
    Pending,
    /// It was here before.
    Known,
    /// Newer ones have taken its place.
    Stale,
    /// It can never count.
    Refused(Refusal),
}

/// Why a fact can never count here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is about another network, or none.
    #[error("the fact belongs to another network")]
    OtherNetwork,
    /// Somebody other than the root made an admin.
    #[error("only the root makes admins")]
    AdminByAdmin,
    /// The root key is no member and cannot be ended.
    #[error("the fact is about the root key")]
    AboutRoot,
    /// The signer has signed more than anybody may.
    #[error("its signer has signed more facts of this kind than are kept")]
    TooMany,
}

/// What [`Roster::merge`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// What became of the fact itself.
    pub outcome: Merge,
    /// Facts that are gone because of it: the store can forget them.
    pub dropped: Vec<Hash>,
    /// Members whose certificate, revocation or leaf is another now. A session with one that
    /// [`Roster::is_valid`] refuses is to be cut at once.
    pub changed: Vec<NodeId>,
}

impl Merged {
    /// Whether the fact is in the roster now and was not before, so that the store should have it too.
    pub fn is_stored(&self) -> bool {
        matches!(self.outcome, Merge::Added | Merge::Replaced | Merge::Kept | Merge::Pending)
    }
}

/// One statement's place: the latest one in it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Slot {
    subject: NodeId,
    kind: Kind,
    signer: NodeId,
}

impl Slot {
    fn of(fact: &Fact) -> Self {
        Slot { subject: fact.subject(), kind: fact.kind(), signer: fact.signer() }
    }

    /// Which slots stay when a signer has too many: those of lowest rank.
    fn rank(&self) -> Hash {
        kdf::hash(Label::RosterRank, &[&self.signer.0, &[self.kind as u8], &self.subject.0])
    }
}

/// An admin, from its newest certificate by the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Admin {
    not_after: u64,
    /// From the root's tombstone: what it signed with a higher sequence is void.
    void_after: Option<u64>,
}

/// What all facts about one member together say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Entry {
    /// The certificate that counts.
    certificate: Option<Fact>,
    /// There are certificates, and all are void.
    void: bool,
    /// The tombstone that binds.
    revoked: Option<Fact>,
}

/// The facts of one network.
#[derive(Debug)]
pub struct Roster {
    genesis: Genesis,
    network: NetworkId,
    root: NodeId,
    /// Each slot's versions, the one that counts first.
    slots: BTreeMap<Slot, Vec<Fact>>,
    /// Each signer's slots of a kind, by rank.
    ranks: BTreeMap<(NodeId, Kind), BTreeMap<Hash, Slot>>,
    /// All facts of the slots, by id.
    ids: BTreeMap<Hash, Fact>,
    /// The stored facts whose signer has no office, and perhaps some that were so before.
    pending: BTreeSet<Hash>,
    /// Unverified facts whose signer's key is not known.
    waiting: BTreeMap<Hash, Fact>,
    // Computed from the slots:
    admins: BTreeMap<NodeId, Admin>,
    members: BTreeMap<NodeId, Entry>,
    names: BTreeMap<Name, BTreeSet<NodeId>>,
    claims4: BTreeMap<Ipv4Addr, BTreeSet<NodeId>>,
}

impl Roster {
    /// An empty roster of a network.
    pub fn new(genesis: Genesis) -> Self {
        Roster {
            network: genesis.id(),
            root: genesis.root_id(),
            genesis,
            slots: BTreeMap::new(),
            ranks: BTreeMap::new(),
            ids: BTreeMap::new(),
            pending: BTreeSet::new(),
            waiting: BTreeMap::new(),
            admins: BTreeMap::new(),
            members: BTreeMap::new(),
            names: BTreeMap::new(),
            claims4: BTreeMap::new(),
        }
    }

    /// A roster from the store. Everything is verified again, signers before what they signed. Also returns how
    /// many facts were not taken.
    pub fn restore(genesis: Genesis, stored: impl IntoIterator<Item = Vec<u8>>) -> (Self, usize) {
        let mut roster = Self::new(genesis);
        let mut refused = 0;
        let mut facts: Vec<Fact> = Vec::new();
        for bytes in stored {
            match Fact::parse(&bytes) {
                Ok(fact) => facts.push(fact),
                Err(_) => refused += 1,
            }
        }
        let root = roster.root;
        facts.sort_by_key(|fact| (fact.signer() != root, fact.kind()));
        for fact in facts {
            let verified = roster.signer_key(&fact).and_then(|key| fact.verify(&key).ok());
            match verified.map(|verified| roster.merge(verified)) {
                Some(merged) if merged.is_stored() || merged.outcome == Merge::Known => {}
                _ => refused += 1,
            }
        }
        (roster, refused)
    }

    /// The network's genesis.
    pub fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    /// The network's id.
    pub fn network(&self) -> NetworkId {
        self.network
    }

    /// The key a fact must verify under; `None` when its signer was never heard of.
    pub fn signer_key(&self, fact: &Fact) -> Option<sign::PublicKey> {
        if fact.signer() == self.root {
            return Some(self.genesis.root.clone());
        }
        // Any certificate will do, as the NodeId commits to the key; the fact may be its own, a certificate's not.
        let certificate = self.versions(fact.signer(), Kind::Certificate).next()?;
        certificate.certificate().map(|certificate| certificate.key.clone())
    }

    /// Takes a verified fact.
    pub fn merge(&mut self, verified: Verified) -> Merged {
        let fact = verified.into_fact();
        let (id, slot) = (fact.id(), Slot::of(&fact));
        let mut merged = Merged { outcome: Merge::Known, dropped: Vec::new(), changed: Vec::new() };
        if let Err(refusal) = self.admissible(&fact) {
            merged.outcome = Merge::Refused(refusal);
            return merged;
        }
        if self.ids.contains_key(&id) {
            return merged;
        }
        let mut touched = BTreeSet::from([slot.subject]);
        if let Some(crowded_out) = self.make_room(slot) {
            if crowded_out == slot {
                merged.outcome = Merge::Refused(Refusal::TooMany);
                return merged;
            }
            touched.insert(crowded_out.subject);
            // Its leaves may count no more; `drop_surplus_pending` looks.
            let leaves: Vec<Hash> = self.leaves(crowded_out.subject).iter().map(Fact::id).collect();
            self.pending.extend(leaves);
            for old in self.slots.remove(&crowded_out).unwrap_or_default() {
                self.ids.remove(&old.id());
                merged.dropped.push(old.id());
            }
        }

        let by_root = slot.signer == self.root;
        let versions = self.slots.entry(slot).or_default();
        let before = versions.first().map(Fact::id);
        versions.push(fact.clone());
        versions.sort_by(|a, b| match slot.kind {
            // An admin cannot take its first word back by later, void ones.
            Kind::Tombstone if !by_root => (a.seq(), a.id()).cmp(&(b.seq(), b.id())),
            _ => (b.seq(), b.id()).cmp(&(a.seq(), a.id())),
        });
        let first = versions.first().map(Fact::id);
        let surplus = versions.split_off(depth(slot.kind, by_root).min(versions.len()));
        self.ids.insert(id, fact.clone());
        for old in &surplus {
            self.ids.remove(&old.id());
            if old.id() == id {
                merged.outcome = Merge::Stale;
                return merged;
            }
            merged.dropped.push(old.id());
        }

        merged.changed = self.evaluate(touched);
        let held = self.is_held(&fact);
        if !held {
            self.pending.insert(id);
        }
        if held && slot.kind == Kind::Leaf && first == Some(id) && !merged.changed.contains(&slot.subject) {
            merged.changed.push(slot.subject);
        }
        merged.dropped.extend(self.drop_surplus_pending());
        merged.outcome = match (held, first == Some(id), before) {
            (false, ..) if !self.ids.contains_key(&id) => Merge::Stale,
            (false, ..) => Merge::Pending,
            (true, true, None) => Merge::Added,
            (true, true, Some(_)) => Merge::Replaced,
            (true, false, _) => Merge::Kept,
        };
        merged.dropped.retain(|dropped| *dropped != id);
        merged
    }

    /// What can be said of a fact by itself: rules that hold whatever else is known.
    fn admissible(&self, fact: &Fact) -> Result<(), Refusal> {
        if fact.network() != self.network {
            return Err(Refusal::OtherNetwork);
        }
        if fact.subject() == self.root {
            return Err(Refusal::AboutRoot);
        }
        let makes_admin = fact.certificate().is_some_and(|c| c.roles.contains(Roles::ADMIN));
        if makes_admin && fact.signer() != self.root {
            return Err(Refusal::AdminByAdmin);
        }
        Ok(())
    }

    /// Enters a slot among its signer's, and returns the one that must go when there are too many.
    fn make_room(&mut self, slot: Slot) -> Option<Slot> {
        let cap = match slot.kind {
            Kind::Certificate => MAX_CERTIFICATES,
            Kind::Tombstone => MAX_TOMBSTONES,
            Kind::Access => MAX_RELAYS,
            Kind::Leaf | Kind::RelayLeaf => 1,
        };
        let ranks = self.ranks.entry((slot.signer, slot.kind)).or_default();
        ranks.insert(slot.rank(), slot);
        if ranks.len() > cap { ranks.pop_last().map(|(_, last)| last) } else { None }
    }

    /// Forgets facts of signers without office, those of highest id, until there are no more than allowed.
    fn drop_surplus_pending(&mut self) -> Vec<Hash> {
        if self.pending.len() <= MAX_PENDING {
            return Vec::new();
        }
        let suspects = std::mem::take(&mut self.pending);
        let still = |id: &Hash| self.ids.get(id).is_some_and(|fact| !self.is_held(fact));
        let mut pending: Vec<Hash> = suspects.into_iter().filter(still).collect();
        let surplus = pending.split_off(MAX_PENDING.min(pending.len()));
        self.pending = pending.into_iter().collect();
        for id in &surplus {
            self.remove(id);
        }
        surplus
    }

    /// Takes out a fact that means nothing at the moment.
    fn remove(&mut self, id: &Hash) {
        let Some(fact) = self.ids.remove(id) else { return };
        let slot = Slot::of(&fact);
        let Some(versions) = self.slots.get_mut(&slot) else { return };
        versions.retain(|version| version.id() != *id);
        if versions.is_empty() {
            self.slots.remove(&slot);
            if let Some(ranks) = self.ranks.get_mut(&(slot.signer, slot.kind)) {
                ranks.remove(&slot.rank());
                if ranks.is_empty() {
                    self.ranks.remove(&(slot.signer, slot.kind));
                }
            }
        }
    }

    /// All versions of all signers' facts of one kind about one subject.
    fn versions(&self, subject: NodeId, kind: Kind) -> impl Iterator<Item = &Fact> {
        let first = Slot { subject, kind, signer: NodeId([0; 32]) };
        let last = Slot { subject, kind, signer: NodeId([0xFF; 32]) };
        self.slots.range(first..=last).flat_map(|(_, versions)| versions)
    }
}

/// How many versions a slot keeps.
fn depth(kind: Kind, by_root: bool) -> usize {
    match kind {
        Kind::Leaf | Kind::RelayLeaf => LEAVES,
        // Nothing voids the root's word, so its last one is enough; and of an admin's tombstones the first.
        _ if by_root => 1,
        Kind::Tombstone => 1,
        Kind::Certificate | Kind::Access => VERSIONS,
    }
}
