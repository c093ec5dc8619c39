//! What the data half forwards by: who is a peer, by which lane and route, and which MACs are behind it.

use super::Node;
use super::session::Session;
use crate::Table;
use crate::snapshot::{Forward, Guard, PeerId, Route, Snapshot};
use shadowmesh_identity::fact::ANY_MAC;
use shadowmesh_identity::{Member, NodeId};
use std::sync::Arc;

impl Node {
    /// Puts what the data half forwards by into a new snapshot, if anything of it has changed.
    pub(super) fn publish(&mut self) {
        if !self.dirty {
            return;
        }
        self.dirty = false;
        for p in 0..self.peers.len() {
            let reachable = self.is_live(&self.peers[p].node) && self.ways(p as PeerId).next().is_some();
            self.peers[p].reachable = reachable;
        }
        let mut peers = Table::default();
        let (mut macs, mut flood, mut bridges, mut unreached) = (Table::default(), vec![], vec![], false);
        for p in &self.peers {
            let Some(member) = self.roster.member(&p.node).filter(|_| self.is_live(&p.node)) else {
                continue;
            };
            let route = self.route(p);
            let lanes = p.current().and_then(Session::lanes).filter(|_| !self.is_former(route));
            let bridge = &member.certificate.bridge;
            match (lanes, route) {
                (Some(_), Some(_)) => {
                    flood.push(p.id);
                    if bridge.is_any() {
                        bridges.push(p.id);
                    }
                }
                _ => unreached = true,
            }
            let forward = Forward {
                peer: p.id,
                lanes: route.and(lanes),
                route: route.unwrap_or(Route::Relay { relay: u32::MAX, handle: 0 }),
                mtu: p.path.size_on(route),
                segment: p.path.segment_on(route),
                guard: guard(&member),
            };
            peers.insert(p.id, forward);
        }
        // A member's MAC is nobody else's, also when it is none any more: what is for it must not end on some LAN.
        let of = |id: &NodeId| self.by_node.get(id).copied().unwrap_or(PeerId::MAX);
        macs.extend(self.roster.members().filter(|m| m.id != self.id).map(|m| (m.mac, of(&m.id))));
        for p in (0..self.peers.len() as PeerId).filter_map(|p| peers.get(&p)) {
            let named = p.guard.bridge.iter().flat_map(|b| &b.macs).filter(|m| **m != ANY_MAC);
            for mac in named {
                macs.entry(*mac).or_insert(p.peer);
            }
        }
        let known = |(mac, p): &([u8; 6], PeerId)| peers.contains_key(p) && !macs.contains_key(mac);
        let stations = self.stations.iter().filter(known).collect();
        let old = &self.snapshot;
        let own = self.roster.member(&self.id).map_or_else(|| old.own.clone(), |m| guard(&m));
        let bridge = own.bridge.filter(|_| self.config.bridge);
        self.snapshot = Arc::new(Snapshot {
            version: old.version + 1,
            mtu: old.mtu,
            prefixes: old.prefixes,
            own: Guard { bridge, ..own },
            peers,
            macs,
            stations,
            bridges,
            flood,
            unreached,
        });
    }
}

/// What a member may send.
fn guard(member: &Member<'_>) -> Guard {
    let bridge = Some(&member.certificate.bridge).filter(|b| !b.is_empty());
    let bridge = bridge.map(|b| Arc::new(b.clone()));
    Guard { mac: member.mac, ipv4: member.ipv4, ipv6: member.ipv6, bridge }
}
