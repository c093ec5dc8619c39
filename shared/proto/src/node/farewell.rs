//! A revoked member that comes back hears why nobody takes it: the tombstone itself, in a session that carries nothing
//! else. It may have slept through its revocation, or lost the last words of the session that was cut.

use super::Node;
use super::aside::Aside;
use crate::Time;
use crate::batch::Plain;
use crate::handshake::Opened;
use crate::pull::serve;
use shadowmesh_identity::{Fact, NodeId};
use shadowmesh_wire::DropReason;
use shadowmesh_wire::control::{Control, MAX_TEXT};
use shadowmesh_wire::data::Kind;
use std::time::Duration;

/// Served at once.
const MAX_FAREWELLS: usize = 16;
/// And for how long: five chunks, a few losses.
const LIFETIME: Duration = Duration::from_secs(8);
/// Between two of one member.
const EVERY: Duration = Duration::from_secs(2);

/// A revoked member that is being told so.
pub(super) struct Farewell {
    aside: Aside,
    node: NodeId,
    tombstone: Fact,
}

impl Node {
    /// A member that was revoked has shown its certificate and leaf: it proves them by confirming, and is told. Costs
    /// what any member's opening costs, within the same limits. [P-FAREWELL]
    pub(super) fn bid_farewell(
        &mut self,
        now: Time,
        opened: Box<Opened>,
        node: NodeId,
        tombstone: Fact,
        leaf: &Fact,
    ) -> Result<(), DropReason> {
        self.farewells_expire(now);
        let lately = |f: &Farewell| f.node == node && now.since(f.aside.since) < EVERY;
        if self.farewells.len() >= MAX_FAREWELLS || self.farewells.iter().any(lately) {
            return Err(DropReason::NotMember);
        }
        let key = (*leaf.leaf().ok_or(DropReason::NotMember)?.key).clone();
        let (certificate, hash) = opened.credential.split_at(32);
        let (certificate, hash) = (certificate.to_vec(), hash.to_vec());
        let aside = self.open_aside(now, opened, Some(&key), &[&certificate, &hash])?;
        self.farewells.push(Farewell { aside, node, tombstone });
        Ok(())
    }

    pub(super) fn farewells_expire(&mut self, now: Time) {
        while let Some(i) = self.farewells.iter().position(|f| now.since(f.aside.since) >= LIFETIME) {
            let text = "this member was revoked".chars().take(MAX_TEXT).collect();
            self.farewell_send(i, &Control::Refused(text));
            let over = self.farewells.swap_remove(i);
            self.close_aside(&over.aside);
        }
    }

    fn farewell_send(&mut self, i: usize, c: &Control) {
        let source = self.farewells[i].aside.source;
        if let Some(packet) = self.farewells[i].aside.seal(c) {
            self.send_typed(&source, packet);
        }
    }

    /// What a revoked member says in such a session; `None` when the session is none. It is answered pulls of the
    /// tombstone, and nothing else that it says is listened to.
    pub(super) fn handle_farewell(&mut self, plain: &Plain) -> Option<Result<(), DropReason>> {
        let i = self.farewells.iter().position(|f| f.aside.session == plain.session)?;
        if plain.kind != Kind::Control {
            return Some(Err(DropReason::NotMember));
        }
        let id = self.farewells[i].tombstone.id();
        Some(match Control::parse(&plain.body) {
            Ok(Control::Confirm { sid_r, lanes, .. }) => {
                let confirmed = self.farewells[i].aside.confirmed(sid_r, &lanes);
                if confirmed.is_ok() {
                    self.farewell_send(i, &Control::Have(vec![id]));
                }
                confirmed
            }
            Ok(Control::Pull { hash, chunk }) if hash == id => {
                let reply = serve(Some(self.farewells[i].tombstone.bytes()), hash, chunk);
                self.farewell_send(i, &reply);
                Ok(())
            }
            _ => Err(DropReason::NotMember),
        })
    }
}
