//! What a roster says about its members.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use shadowmesh_crypto::Hash;

use super::{Entry, Roster, Slot};
use crate::{
    HostPort, NodeId, address,
    fact::{Access, Certificate, Fact, Kind, Leaf, Roles},
};

/// A member, as the roster knows it.
#[derive(Clone, Debug)]
pub struct Member<'a> {
    /// Its id.
    pub id: NodeId,
    /// The certificate that counts, with its envelope.
    pub fact: &'a Fact,
    /// The certificate that counts.
    pub certificate: &'a Certificate,
    /// The tombstone that ended it.
    pub revoked: Option<&'a Fact>,
    /// Its overlay MAC address.
    pub mac: [u8; 6],
    /// Its overlay IPv6 address.
    pub ipv6: Ipv6Addr,
    /// Its overlay IPv4 address; `None` when a smaller NodeId claims the same, or it is revoked.
    pub ipv4: Option<Ipv4Addr>,
    leaves: &'a [Fact],
}

impl<'a> Member<'a> {
    /// Its name.
    pub fn name(&self) -> &'a str {
        self.certificate.name.as_str()
    }

    /// What it may do.
    pub fn roles(&self) -> Roles {
        self.certificate.roles
    }

    /// Its leaves, the newest first, expired ones included.
    pub fn leaves(&self) -> impl Iterator<Item = &'a Fact> + use<'a> {
        self.leaves.iter()
    }

    /// The newest leaf that is valid at `now` (unix seconds), with its envelope; where the clock is behind all of them,
    /// the newest.
    pub fn leaf_fact(&self, now: u64) -> Option<&'a Fact> {
        let first = |good: fn(&Leaf, u64) -> bool| {
            self.leaves.iter().find(move |fact| fact.leaf().is_some_and(|leaf| good(leaf, now)))
        };
        first(Leaf::is_current).or_else(|| first(|leaf, now| !leaf.is_over(now)))
    }

    /// The newest leaf that is valid at `now` (unix seconds).
    pub fn leaf(&self, now: u64) -> Option<&'a Leaf> {
        self.leaf_fact(now).and_then(Fact::leaf)
    }
}

/// Why a node is no member in good standing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// There is no certificate.
    #[error("it is not a member of this network")]
    Unknown,
    /// A tombstone ended it.
    #[error("it was revoked")]
    Revoked,
    /// Who admitted it was revoked, and this admission is void.
    #[error("the admin who admitted it was revoked")]
    IssuerRevoked,
    /// Its certificate begins later.
    #[error("its certificate begins only at {from} (unix seconds): is this clock right?")]
    NotYet {
        /// Unix seconds.
        from: u64,
    },
    /// Its certificate has ended.
    #[error("its certificate ended at {since} (unix seconds)")]
    Expired {
        /// Unix seconds.
        since: u64,
    },
}

impl Roster {
    /// A member, revoked or not; `None` when no certificate counts for it.
    pub fn member(&self, id: &NodeId) -> Option<Member<'_>> {
        self.members.get_key_value(id).and_then(|(id, entry)| self.view(*id, entry))
    }

    /// All members, revoked ones included, by NodeId.
    pub fn members(&self) -> impl Iterator<Item = Member<'_>> {
        self.members.iter().filter_map(|(id, entry)| self.view(*id, entry))
    }

    /// The member of a name, not a revoked one. When two have one name, the smaller NodeId.
    pub fn by_name(&self, name: &str) -> Option<Member<'_>> {
        self.names.get(&name.parse().ok()?)?.first().and_then(|id| self.member(id))
    }

    /// The member that an overlay IPv4 address belongs to.
    pub fn by_ipv4(&self, address: Ipv4Addr) -> Option<Member<'_>> {
        self.claims4.get(&address)?.first().and_then(|id| self.member(id))
    }

    /// What people call a signer: a member's name, `the network's root`, or the beginning of its NodeId.
    pub fn name_of(&self, id: &NodeId) -> String {
        match self.member(id) {
            Some(member) => member.name().to_owned(),
            None if *id == self.root => "the network's root".into(),
            None => id.short(),
        }
    }

    /// Whether a node is a member in good standing at `now` (unix seconds).
    ///
    /// # Errors
    ///
    /// [`Invalid`], a sentence to show.
    pub fn is_valid(&self, id: &NodeId, now: u64) -> Result<(), Invalid> {
        let entry = self.members.get(id).ok_or(Invalid::Unknown)?;
        if entry.revoked.is_some() {
            return Err(Invalid::Revoked);
        }
        let certificate = entry.certificate.as_ref().and_then(Fact::certificate);
        match certificate {
            None if entry.void => Err(Invalid::IssuerRevoked),
            None => Err(Invalid::Unknown),
            Some(c) if now < c.not_before => Err(Invalid::NotYet { from: c.not_before }),
            Some(c) if now >= c.not_after => Err(Invalid::Expired { since: c.not_after }),
            Some(_) => Ok(()),
        }
    }

    /// Whether a node may sign certificates and tombstones at `now`: an admin in good standing.
    pub fn is_admin(&self, id: &NodeId, now: u64) -> bool {
        self.admins.contains_key(id) && self.is_valid(id, now).is_ok()
    }

    /// The relays that the network may use, by NodeId: for each the access secret that counts.
    pub fn relays(&self) -> Vec<(NodeId, &Access)> {
        self.accesses().into_iter().filter_map(|fact| Some((fact.subject(), fact.access()?))).collect()
    }

    /// The facts that say so, by relay.
    pub fn accesses(&self) -> Vec<&Fact> {
        let mut best: Vec<&Fact> = vec![];
        let stored = self.slots.iter().filter(|(slot, _)| slot.kind == Kind::Access);
        for fact in stored.flat_map(|(_, versions)| versions).filter(|fact| self.stands(fact)) {
            match best.last_mut() {
                Some(known) if known.subject() == fact.subject() => {
                    if self.rank(fact) > self.rank(known) {
                        *known = fact;
                    }
                }
                _ => best.push(fact),
            }
        }
        best
    }

    /// The tombstone that ended a member: its own, or that of the admin whose word it was a member by. `None` while it
    /// is one.
    pub fn ending(&self, id: &NodeId) -> Option<&Fact> {
        let entry = self.members.get(id)?;
        if entry.revoked.is_some() {
            return entry.revoked.as_ref();
        }
        if !entry.void || entry.certificate.is_some() {
            return None;
        }
        let of_admin = |admin| Slot { subject: admin, kind: Kind::Tombstone, signer: self.root };
        let signers = self.versions(*id, Kind::Certificate).map(Fact::signer);
        signers.filter_map(|admin| self.slots.get(&of_admin(admin))?.first()).next()
    }

    /// Ids of the tombstones that count, ascending.
    pub fn tombstones(&self) -> BTreeSet<Hash> {
        self.members.values().filter_map(|entry| entry.revoked.as_ref()).map(Fact::id).collect()
    }

    /// Ids of the tombstones that count, the newest first, at most so many.
    pub fn newest_tombstones(&self, most: usize) -> Vec<Hash> {
        let mut ended: Vec<&Fact> =
            self.members.values().filter_map(|entry| entry.revoked.as_ref()).collect();
        ended.sort_by_key(|fact| std::cmp::Reverse((fact.seq(), fact.id())));
        ended.into_iter().take(most).map(Fact::id).collect()
    }

    /// Where a relay listens, if the network may use it.
    pub fn relay_address(&self, relay: &NodeId) -> Option<&HostPort> {
        self.relays().into_iter().find(|(id, _)| id == relay).map(|(_, access)| &access.address)
    }

    /// A free IPv4 address for a node that is about to get a certificate: [`address::assign_ipv4`].
    pub fn free_ipv4(&self, node: &NodeId) -> Option<Ipv4Addr> {
        let own = |address| self.claims4.get(&address).is_some_and(|ids| ids.iter().all(|id| id == node));
        let taken = |address| self.claims4.contains_key(&address) && !own(address);
        address::assign_ipv4(self.genesis.subnet4, node, taken).map(|(address, _)| address)
    }

    /// The roster's version: the highest sequence number among the facts that count, leaves aside.
    pub fn version(&self) -> u64 {
        self.standing().map(Fact::seq).max().unwrap_or(0)
    }

    /// The sequence number for the next fact signed by the root or an admin here.
    pub fn next_seq(&self) -> u64 {
        self.version().saturating_add(1)
    }

    /// The sequence number for a node's next leaf.
    pub fn next_leaf_seq(&self, id: &NodeId) -> u64 {
        self.leaves(*id).first().map_or(1, |fact| fact.seq().saturating_add(1))
    }

    /// When the newest fact by the root or an admin was signed (unix seconds): no honest clock is behind it.
    pub fn newest_admin_fact_time(&self) -> u64 {
        self.standing().map(Fact::issued).max().unwrap_or(0)
    }

    fn standing(&self) -> impl Iterator<Item = &Fact> {
        self.ids.values().filter(|fact| fact.kind() != Kind::Leaf && self.stands(fact))
    }

    pub(super) fn leaves(&self, subject: NodeId) -> &[Fact] {
        self.slots.get(&Slot { subject, kind: Kind::Leaf, signer: subject }).map_or(&[], Vec::as_slice)
    }

    fn view<'a>(&'a self, id: NodeId, entry: &'a Entry) -> Option<Member<'a>> {
        let fact = entry.certificate.as_ref()?;
        let certificate = fact.certificate()?;
        let keeps = |address: &Ipv4Addr| self.claims4.get(address).and_then(|ids| ids.first()) == Some(&id);
        Some(Member {
            id,
            fact,
            certificate,
            revoked: entry.revoked.as_ref(),
            mac: id.mac(),
            ipv6: id.ipv6(&self.network),
            ipv4: certificate.ipv4.filter(keeps),
            leaves: self.leaves(id),
        })
    }
}
