//! Rotation of the access secrets: who was revoked is to be out at the relays, too.
//!
//! At a relay whose owner secret is kept here, the access secret should be a function of the owner secret and of the
//! tombstones that count. Where the roster says another one, it is registered at the relay, then said to the members.
//! That is all the state there is: killed between the two, this node does the same again, and the relay answers as it did.

use super::{Event, Node};
use crate::Time;
use shadowmesh_crypto::kdf::{Label, hash};
use shadowmesh_crypto::secret::Secret;
use shadowmesh_identity::fact::Body;
use shadowmesh_identity::{Access, Fact, HostPort, NodeId};
use std::time::Duration;

/// Several revocations in a row are one rotation.
const QUIET: Duration = Duration::from_secs(1);
/// Between attempts at a relay that does not answer.
const RETRY: Duration = Duration::from_secs(30);

/// A relay that is to get another access secret.
pub(super) struct Rotation {
    relay: NodeId,
    access: Secret<32>,
    pub due: Time,
}

impl Node {
    /// Compares what the relays should know with what the roster says they do. [P-ROTATE]
    pub(super) fn refresh_rotations(&mut self, now: Time) {
        if self.config.owners.is_empty() {
            return;
        }
        let ended = self.roster.tombstones();
        if self.revoked_self || ended.is_empty() || !self.roster.is_admin(&self.id, self.unix(now)) {
            self.rotations.clear();
            return;
        }
        let ended: Vec<u8> = ended.into_iter().flatten().collect();
        let mut rotations = vec![];
        for (relay, known) in self.roster.relays() {
            let Some((_, owner)) = self.config.owners.iter().find(|(r, _)| *r == relay) else { continue };
            let access = Secret::new(hash(Label::AccessRotation, &[owner.expose(), &relay.0, &ended]));
            if known.secret == access {
                continue;
            }
            let due = self.rotations.iter().find(|r| r.relay == relay && r.access == access).map(|r| r.due);
            rotations.push(Rotation { relay, access, due: due.unwrap_or(now + QUIET) });
        }
        self.rotations = rotations;
    }

    /// Asks for what is due.
    pub(super) fn rotate(&mut self, now: Time) {
        for r in &mut self.rotations {
            let place = self.roster.relay_address(&r.relay).cloned();
            let owner = self.config.owners.iter().find(|(relay, _)| *relay == r.relay);
            let (Some(place), Some((_, owner)), true) = (place, owner, r.due <= now) else { continue };
            r.due = now + RETRY;
            let (owner, access) = (owner.duplicate(), r.access.duplicate());
            self.events.push_back(Event::Rotate { relay: r.relay, place, owner, access });
        }
    }

    /// Relays that still take an access secret that a revoked member knows, and where they are.
    pub fn rotations(&self) -> impl Iterator<Item = (NodeId, Option<&HostPort>)> {
        self.rotations.iter().map(|r| (r.relay, self.roster.relay_address(&r.relay)))
    }

    /// A relay has taken an access secret ([`Event::Rotate`]): the members are told, whether or not it is the one that is
    /// wanted now, since nothing else opens there. What the relay did not answer is asked for again by itself.
    pub fn rotated(&mut self, now: Time, relay: &NodeId, access: Secret<32>) {
        let found = self.roster.relays().into_iter().find(|(r, _)| r == relay);
        let Some((_, known)) = found.filter(|(_, a)| a.secret != access) else { return };
        let ended = u32::try_from(self.roster.tombstones().len()).unwrap_or(u32::MAX);
        let body =
            Body::Access(Access { address: known.address.clone(), tag: known.tag, secret: access, ended });
        let (seq, unix) = (self.roster.next_seq(), self.unix(now));
        let signed = Fact::sign(&self.config.identity, self.roster.network(), *relay, seq, unix, &body);
        if let Ok(fact) = signed {
            self.merge(now, fact, None);
            self.publish();
        }
    }

    /// May this be told to others? An access secret not before all tombstones that it was drawn after are here: they may
    /// end one of those who would hear it. [P-ROTATE]
    pub(super) fn may_tell(&self, fact: &Fact) -> bool {
        fact.access().is_none_or(|a| a.ended as usize <= self.roster.tombstones().len())
    }
}
