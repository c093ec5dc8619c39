//! The part of the switch that thinks: ARP and neighbour discovery from the roster, first frames to peers without a
//! session. (Forwarding itself is the sealer's and opener's, by the snapshot.)

use super::Node;
use crate::Time;
use crate::frame::{self, Outline, Resolution};
use crate::snapshot::{Forward, PeerId, Snapshot};
use shadowmesh_identity::NodeId;
use shadowmesh_wire::DropReason;

impl Node {
    /// A frame from the device: ARP and neighbour discovery, unicast without a session, or what the sealer, `by` its
    /// snapshot, could not send to all whom it is for.
    pub(super) fn switch_frame(&mut self, now: Time, frame: &[u8], by: &Snapshot) -> Result<(), DropReason> {
        let o = Outline::read(frame)?;
        if o.src != self.snapshot.own.mac {
            self.snapshot.check_source(frame, None)?;
        }
        if let Some(r) = frame::resolution(frame, &o) {
            return self.resolve(now, frame, &o, &r);
        }
        let sent = match o.is_group() {
            true => &by.flood[..],
            false if by.is_unknown(&o.dst) => &by.bridges,
            false => &[],
        };
        self.forward(now, frame, &o, sent)
    }

    /// A frame to whoever has its destination, or to all who may have it, but for those that it was sent to already
    /// (in ascending order).
    fn forward(&mut self, now: Time, frame: &[u8], o: &Outline, sent: &[PeerId]) -> Result<(), DropReason> {
        /// Sessions that one frame may begin.
        const AT_ONCE: usize = 64;
        let to: Vec<PeerId> = match self.snapshot.owner(&o.dst) {
            Some(owner) => vec![owner.peer],
            // A member that is none any more.
            None if !self.snapshot.is_unknown(&o.dst) => vec![],
            None => {
                let may_have =
                    |f: &Forward| o.is_group() || f.guard.bridge.as_ref().is_some_and(|b| b.is_any());
                let all = (0..self.peers.len() as PeerId).filter_map(|p| self.snapshot.peers.get(&p));
                all.filter(|f| may_have(f)).map(|f| f.peer).collect()
            }
        };
        if to.is_empty() && !o.is_group() {
            return Err(DropReason::UnknownDestination);
        }
        let mut begun = 0;
        for p in to.into_iter().filter(|p| sent.binary_search(p).is_err()) {
            let peer = &self.peers[p as usize];
            let route = self.route(peer);
            if peer.sending.is_some() && !self.is_former(route) {
                // ARP, or the snapshot was late: the session stands by now.
                self.send_frame(p, frame);
            } else if begun < AT_ONCE && (route.is_some() || !o.is_group()) {
                begun += 1;
                self.queue_frame(now, p, frame);
            }
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
        if owner == Some(self.id) {
            // A host behind this machine asks for it: the system answers.
            return Ok(());
        }
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
        self.forward(now, frame, o, &[])
    }

    fn owner6(&self, target: std::net::Ipv6Addr) -> Option<NodeId> {
        let p = self.snapshot.peers.values().find(|f| f.guard.ipv6 == target)?;
        Some(self.peers[p.peer as usize].node)
    }
}
