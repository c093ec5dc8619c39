//! Certificates are renewed by an admin's node while their members are there: nobody has to think of it in a year.

use super::{Event, Node};
use crate::Time;
use shadowmesh_identity::fact::Body;
use shadowmesh_identity::{Certificate, DAY, Fact, NodeId, Roles};

/// A certificate that an admin signs lives a year.
pub(super) const CERTIFICATE_LIFETIME: u64 = 365 * DAY;
/// It is renewed when so much of it is left, seconds.
const AHEAD: u64 = 60 * DAY;
/// Signed in one turn: a few milliseconds, and a few facts that all are told of.
const AT_ONCE: usize = 4;

impl Node {
    /// Renews what ends soon, of this node and of members that it has a session with: who has not been seen for a
    /// year's end is not kept alive. Only the root renews admins. [P-RENEW]
    pub(super) fn renew_certificates(&mut self, now: Time) {
        let unix = self.unix(now);
        if self.revoked_self || !self.roster.is_admin(&self.id, unix) {
            return;
        }
        let there = |n: &NodeId| {
            *n == self.id || self.by_node.get(n).is_some_and(|p| self.peers[*p as usize].sending.is_some())
        };
        let ends: Vec<(NodeId, Certificate)> = self
            .roster
            .members()
            .filter(|m| m.certificate.not_after < unix + AHEAD && there(&m.id))
            .filter(|m| self.roster.is_valid(&m.id, unix).is_ok())
            .filter(|m| !m.roles().contains(Roles::ADMIN) || self.config.root.is_some())
            .map(|m| (m.id, m.certificate.clone()))
            .take(AT_ONCE)
            .collect();
        for (node, certificate) in ends {
            let by_root = certificate.roles.contains(Roles::ADMIN);
            let key = if by_root { self.config.root.clone() } else { Some(self.config.identity.clone()) };
            let Some(key) = key else { continue };
            let body = Body::Certificate(Certificate {
                not_before: unix.saturating_sub(DAY),
                not_after: unix + CERTIFICATE_LIFETIME,
                ..certificate
            });
            let seq = self.roster.next_seq();
            if let Ok(fact) = Fact::sign(&key, self.roster.network(), node, seq, unix, &body) {
                self.merge(now, fact, None);
                self.events.push_back(Event::Renewed(node));
            }
        }
    }
}
