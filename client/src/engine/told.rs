//! What the node tells: stored, logged, or handed to who does it.

use super::{Loop, Pong};
use shadowmesh_identity::NodeId;
use shadowmesh_proto::{Event, Route};
use tracing::{info, warn};

/// Why a session ended, in the node's words, when the peer would not have it.
const REFUSED: &str = "it refuses this node";

impl Loop {
    pub(super) fn unsaved(&self) -> bool {
        self.unsaved_facts || self.unsaved_keys || self.unsaved_invites
    }

    /// Stores what has changed; durable when it returns, or noted to be tried again. An invite is marked used before the
    /// certificate that it led to is stored: the other way round, a crash between would let a second one in.
    pub(super) fn save(&mut self) {
        let node = &self.endpoint.node;
        let mut result = Ok(());
        if self.unsaved_invites {
            result = self.files.save_invites(node.invites());
            self.unsaved_invites = result.is_err();
        }
        if self.unsaved_keys && result.is_ok() {
            result = self.files.save_keys(&node.own_keys());
            self.unsaved_keys = result.is_err();
        }
        if self.unsaved_facts && result.is_ok() {
            result = self.files.save_facts(node.facts());
            self.unsaved_facts = result.is_err();
        }
        match result {
            Ok(()) => self.trouble = None,
            Err(e) => {
                let text = e.to_string();
                if self.trouble.as_deref() != Some(&text) {
                    warn!(network = %self.files.name(), "{text}");
                }
                self.trouble = Some(text);
            }
        }
    }

    pub(super) fn tell(&mut self, event: Event) {
        match &event {
            Event::PeerUp(peer, _) => {
                self.refused.remove(peer);
            }
            Event::PeerDown(peer, REFUSED) => {
                self.refused.insert(*peer);
            }
            _ => {}
        }
        let network = self.files.name();
        match event {
            Event::SaveRoster | Event::SaveKeys | Event::SaveInvites => {}
            Event::Admitted { node, name } => {
                info!(%network, peer = %name, node = %node.short(), "member was admitted")
            }
            Event::Renewed(peer) => info!(%network, peer = %self.name_of(&peer), "certificate was renewed"),
            Event::Resolve { relay, host, port } => self.resolve(relay, host, port),
            Event::Rotate { relay, place, owner, access } => self.rotate(relay, place, owner, access),
            Event::PeerUp(peer, _) => info!(%network, peer = %self.name_of(&peer), "peer is up"),
            Event::Punch { to, packets } => self.punch(to, &packets),
            Event::PathChanged { peer, route, why, validated, moved } => {
                let path = match route {
                    Route::Udp(address) => format!("direct {address}"),
                    Route::Relay { .. } => "relay".to_owned(),
                };
                let (validated_us, moved_us) = (validated.as_micros() as u64, moved.as_micros() as u64);
                info!(%network, peer = %self.name_of(&peer), path, why, validated_us, moved_us, "path changed");
            }
            Event::PeerDown(peer, why) => info!(%network, peer = %self.name_of(&peer), why, "peer is down"),
            Event::Pong { peer: _, id, rtt, source } => {
                if let Some(to) = self.pongs.remove(&id) {
                    let _asker_went_away = to.try_send(Pong { id, rtt, source });
                }
            }
            Event::RelayUp(relay) => info!(%network, relay = %relay.short(), "relay is up"),
            Event::RelayDown(relay) => warn!(%network, relay = %relay.short(), "relay is down"),
            Event::Revoked(peer) => info!(%network, peer = %self.name_of(&peer), "member was revoked"),
            Event::SelfRevoked => {
                let node = &self.endpoint.node;
                let by = node.roster().ending(&node.id()).map(|t| node.roster().name_of(&t.signer()));
                warn!(%network, by = by.unwrap_or_default(), "this machine was revoked; it is no member any more");
                (self.revoked, self.ending) = (true, true);
            }
        }
    }

    fn name_of(&self, node: &NodeId) -> String {
        self.endpoint.node.roster().member(node).map_or_else(|| node.short(), |m| m.name().to_owned())
    }
}
