//! What the stored facts mean: who is an admin, what is void, who is revoked, which certificate counts.
//!
//! In three layers, none of which looks back: the root's facts always stand; they make the admins and say what of
//! theirs is void; what stands of the admins' facts, and the root's, makes and ends the members.

use std::{cmp::Reverse, collections::BTreeSet};

use super::{Admin, Entry, Roster, Slot};
use crate::{
    NodeId,
    fact::{Fact, Kind, Roles},
};

impl Roster {
    /// Computes anew what the facts about these subjects mean, and about all if an admin is not what it was.
    /// Returns the members that are not what they were.
    pub(super) fn evaluate(&mut self, mut subjects: BTreeSet<NodeId>) -> Vec<NodeId> {
        let mut offices_changed = false;
        for subject in &subjects {
            let admin = self.admin(*subject);
            let before = match admin {
                Some(admin) => self.admins.insert(*subject, admin),
                None => self.admins.remove(subject),
            };
            offices_changed |= before != admin;
        }
        if offices_changed {
            subjects.extend(self.slots.keys().map(|slot| slot.subject));
            self.pending = self.ids.iter().filter(|(_, f)| !self.is_held(f)).map(|(id, _)| *id).collect();
        }
        subjects.into_iter().filter(|subject| self.evaluate_member(*subject)).collect()
    }

    /// An admin is who the root's newest certificate calls one, revoked or not: what it signed before may stand.
    fn admin(&self, subject: NodeId) -> Option<Admin> {
        let newest =
            |kind| self.slots.get(&Slot { subject, kind, signer: self.root }).and_then(|v| v.first());
        let certificate = newest(Kind::Certificate)?.certificate()?;
        if !certificate.roles.contains(Roles::ADMIN) {
            return None;
        }
        let void_after = newest(Kind::Tombstone)
            .and_then(|fact| fact.tombstone().map(|t| t.void_after.unwrap_or(fact.seq())));
        Some(Admin { not_after: certificate.not_after, void_after })
    }

    /// Whether the signer's office covers this fact: it counts, and so may be offered to others. Void facts do, so
    /// that all rosters agree on what is there.
    pub(super) fn is_held(&self, fact: &Fact) -> bool {
        match fact.kind() {
            Kind::Certificate | Kind::Tombstone | Kind::Access => {
                fact.signer() == self.root || self.admins.contains_key(&fact.signer())
            }
            Kind::Leaf => self
                .versions(fact.subject(), Kind::Certificate)
                .any(|c| c.signer() == self.root || self.admins.contains_key(&c.signer())),
            Kind::RelayLeaf => false,
        }
    }

    /// Whether a fact by the root or an admin counts: it is the root's; or its admin was in office when it signed,
    /// and had not been ended.
    pub(super) fn stands(&self, fact: &Fact) -> bool {
        fact.signer() == self.root
            || self.admins.get(&fact.signer()).is_some_and(|admin| {
                fact.issued() < admin.not_after && admin.void_after.is_none_or(|last| fact.seq() <= last)
            })
    }

    /// Of facts by several signers the one that counts: the highest sequence, the root's at equality, then the
    /// smaller signer.
    pub(super) fn rank(&self, fact: &Fact) -> (u64, bool, Reverse<NodeId>) {
        (fact.seq(), fact.signer() == self.root, Reverse(fact.signer()))
    }

    /// Computes one member anew, and says whether that changed anything.
    fn evaluate_member(&mut self, subject: NodeId) -> bool {
        // Rank binds downwards: about an admin only the root's facts count.
        let is_admin = self.admins.contains_key(&subject);
        let counts = |fact: &&Fact| (fact.signer() == self.root || !is_admin) && self.stands(fact);
        let certificate = self
            .versions(subject, Kind::Certificate)
            .filter(counts)
            .max_by_key(|fact| self.rank(fact))
            .cloned();
        let void =
            certificate.is_none() && self.versions(subject, Kind::Certificate).any(|fact| self.is_held(fact));
        let revoked = self
            .versions(subject, Kind::Tombstone)
            .filter(counts)
            .max_by_key(|fact| self.rank(fact))
            .cloned();
        let entry = Entry { certificate, void, revoked };

        let before = self.members.get(&subject).cloned().unwrap_or_default();
        if before == entry {
            return false;
        }
        self.index(subject, &before, false);
        self.index(subject, &entry, true);
        if entry == Entry::default() {
            self.members.remove(&subject);
        } else {
            self.members.insert(subject, entry);
        }
        true
    }

    /// Enters a member's name and IPv4 address into the indexes, or takes them out. A revoked member has neither.
    fn index(&mut self, subject: NodeId, entry: &Entry, present: bool) {
        let (Some(fact), None) = (&entry.certificate, &entry.revoked) else { return };
        let Some(certificate) = fact.certificate() else { return };
        let set = |ids: &mut BTreeSet<NodeId>| {
            if present {
                ids.insert(subject)
            } else {
                ids.remove(&subject)
            };
            ids.is_empty()
        };
        if set(self.names.entry(certificate.name.clone()).or_default()) {
            self.names.remove(&certificate.name);
        }
        if let Some(ipv4) = certificate.ipv4
            && set(self.claims4.entry(ipv4).or_default())
        {
            self.claims4.remove(&ipv4);
        }
    }
}
