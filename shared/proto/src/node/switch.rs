//! The part of the switch that thinks: ARP and neighbour discovery from the roster, first frames to peers without a
//! session. (Forwarding itself is the sealer's and opener's, by the snapshot.)

use super::Node;
use crate::Time;
use crate::frame::{self, Outline, Resolution};
use crate::snapshot::PeerId;
use shadowmesh_identity::NodeId;
use shadowmesh_wire::DropReason;

impl Node {
    /// A frame from the device: unicast without a session, ARP, neighbour discovery, or a group frame that somebody
    /// without a session should have too.
    pub(super) fn switch_frame(&mut self, now: Time, frame: &[u8]) -> Result<(), DropReason> {
        let o = Outline::read(frame)?;
        if o.src != self.snapshot.mac {
            return Err(DropReason::SourceMac);
        }
        if let Some(r) = frame::resolution(frame, &o) {
            return self.resolve(now, frame, &o, &r);
        }
        if o.is_group() {
            self.reach_the_rest(now, frame);
            return Ok(());
        }
        let p = self.snapshot.macs.get(&o.dst).copied().ok_or(DropReason::UnknownDestination)?;
        if self.peers[p as usize].sending.is_some() {
            // The snapshot was late: the session stands by now.
            self.send_frame(p, frame);
        } else {
            self.queue_frame(now, p, frame);
        }
        Ok(())
    }

    /// Answers for live members; what somebody could object to is never answered here. [P-ARP]
    fn resolve(&mut self, now: Time, frame: &[u8], o: &Outline, r: &Resolution) -> Result<(), DropReason> {
        let owner = match *r {
            // An ARP probe, a gratuitous ARP and DAD must reach whoever could object.
            Resolution::Ask4 { sender, target } if !sender.is_unspecified() && sender != target => {
                self.roster.by_ipv4(target).map(|m| m.id)
            }
            Resolution::Ask6 { sender, target } if !sender.is_unspecified() => self.owner6(target),
            _ => None,
        };
        if let Some(owner) = owner.filter(|n| self.is_live(n)) {
            if let Some(answer) = frame::answer(frame, o, r, owner.mac()) {
                self.frames.push_back(answer);
            }
            // Whoever asks is about to send.
            if let Some(p) = self.by_node.get(&owner).copied() {
                self.want(now, p);
            }
            return Ok(());
        }
        if !o.is_group() {
            let p = self.snapshot.macs.get(&o.dst).copied().ok_or(DropReason::UnknownDestination)?;
            if self.peers[p as usize].sending.is_some() {
                self.send_frame(p, frame);
            } else {
                self.queue_frame(now, p, frame);
            }
            return Ok(());
        }
        for p in self.snapshot.flood.clone() {
            self.send_frame(p, frame);
        }
        self.reach_the_rest(now, frame);
        Ok(())
    }

    fn owner6(&self, target: std::net::Ipv6Addr) -> Option<NodeId> {
        let p = self.snapshot.peers.values().find(|f| f.guard.ipv6 == target)?;
        Some(self.peers[p.peer as usize].node)
    }

    /// Sessions are made when first needed: a group frame waits for those that are not there yet.
    fn reach_the_rest(&mut self, now: Time, frame: &[u8]) {
        /// Sessions that one broadcast may begin.
        const AT_ONCE: usize = 64;
        let rest: Vec<PeerId> = self
            .peers
            .iter()
            .filter(|p| p.sending.is_none() && self.is_live(&p.node) && self.route(p).is_some())
            .map(|p| p.id)
            .take(AT_ONCE)
            .collect();
        for p in rest {
            self.queue_frame(now, p, frame);
        }
    }
}
