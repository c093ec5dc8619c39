//! The sending half of the data path: frames in, sealed datagrams out, on the lanes it was given. One a sending thread.

use crate::Time;
use crate::batch::{Area, Drops, TxBatch};
use crate::frame::{self, ETHERNET, MAX_TAGS, Outline};
use crate::lane::TxLane;
use crate::relay_leg::RelayLeg;
use crate::snapshot::{Forward, Install, LaneId, PeerId, Route, Snapshot};
use shadowmesh_wire::DropReason;
use shadowmesh_wire::data::{
    DATA_HEADER, DATA_TAG, FRAGMENT_HEADER, FRAME_OVERHEAD, FragmentHeader, Kind, MAX_FRAME_FRAGMENTS,
};
use shadowmesh_wire::relay::RELAY_HEADER;
use std::collections::HashMap;
use std::net::SocketAddr;

/// Flooded bytes a second from this port, copies counted; and at once. Unicast is not limited.
const FLOOD_RATE: f64 = 8.0 * 1024.0 * 1024.0;
const FLOOD_BURST: f64 = 1024.0 * 1024.0;

/// Seals for one thread. Nothing in it is shared.
pub struct Sealer {
    thread: usize,
    lanes: HashMap<LaneId, TxLane>,
    relays: HashMap<u32, RelayLeg>,
    fragment_id: u32,
    flood_tokens: f64,
    flood_at: Time,
    /// Frames dropped here.
    pub drops: Drops,
    /// Frames sealed, and their bytes, by peer.
    pub sent: HashMap<PeerId, (u64, u64)>,
}

impl Sealer {
    /// For the sending thread with this number; `fragment_id` is where its frame ids begin (random, so that two threads
    /// of one sender do not meet).
    pub fn new(thread: usize, fragment_id: u32) -> Self {
        Sealer {
            thread,
            lanes: HashMap::new(),
            relays: HashMap::new(),
            fragment_id,
            flood_tokens: FLOOD_BURST,
            flood_at: Time(0),
            drops: Drops::default(),
            sent: HashMap::new(),
        }
    }

    /// Takes what is for a sealer; gives the rest back.
    pub fn install(&mut self, install: Install) -> Option<Install> {
        match install {
            Install::Tx { thread, lane, keys } if thread == self.thread => {
                self.lanes.insert(lane, keys);
            }
            Install::RetireTx { thread, lane } if thread == self.thread => {
                self.lanes.remove(&lane);
            }
            Install::Relay { thread, relay, leg } if thread == self.thread => {
                self.relays.insert(relay, leg);
            }
            other => return Some(other),
        }
        None
    }

    /// The largest counter of all lanes: how near the nearest key is to its limit.
    pub fn most_sealed(&self) -> u64 {
        self.lanes.values().map(TxLane::sealed).max().unwrap_or(0)
    }

    /// Seals every frame of the batch by the snapshot. What needs thought is left in the batch's upcalls; what cannot
    /// go is counted.
    pub fn seal_frames(&mut self, now: Time, snapshot: &Snapshot, batch: &mut TxBatch) {
        for i in 0..batch.len() {
            if let Err(reason) = self.seal_frame(now, snapshot, batch, i) {
                self.drops.count(reason);
            }
        }
    }

    fn seal_frame(
        &mut self,
        now: Time,
        snapshot: &Snapshot,
        batch: &mut TxBatch,
        i: usize,
    ) -> Result<(), DropReason> {
        let frame = batch.frame(i);
        let o = Outline::read(frame)?;
        if frame.len() > snapshot.mtu + ETHERNET + 4 * MAX_TAGS {
            return Err(DropReason::BadFrame);
        }
        // Peers would drop it: say so here, where it can be seen.
        if o.src != snapshot.own.mac {
            snapshot.check_source(frame, None)?;
        }
        if o.is_link_local() {
            return Err(DropReason::LinkLocal);
        }
        if !o.is_group()
            && let Some(forward) = snapshot.owner(&o.dst)
            && forward.lanes.is_some()
        {
            return self.seal_in_slot(forward, batch, i);
        }
        // No session yet, ARP, neighbour discovery: the control half knows what to do.
        let unknown = !o.is_group() && !snapshot.bridges.is_empty() && snapshot.is_unknown(&o.dst);
        if !(o.is_group() || unknown) || frame::resolution(frame, &o).is_some() {
            batch.upcalls.push(i);
            return Ok(());
        }
        // Whoever has no session yet is seen to by the control half, once.
        if snapshot.unreached {
            batch.upcalls.push(i);
        }
        // What nobody is known to have goes to those who may have it. [P-LEARN]
        let to = if unknown { &snapshot.bridges } else { &snapshot.flood };
        let frame = batch.frame(i).to_vec();
        self.flood_budget(now, frame.len() * to.len())?;
        for peer in to {
            if let Some(forward) = snapshot.peers.get(peer)
                && let Err(reason) = self.seal_copy(forward, &frame, batch)
            {
                self.drops.count(reason);
            }
        }
        Ok(())
    }

    fn flood_budget(&mut self, now: Time, bytes: usize) -> Result<(), DropReason> {
        let filled = self.flood_tokens + now.since(self.flood_at).as_secs_f64() * FLOOD_RATE;
        self.flood_tokens = filled.min(FLOOD_BURST);
        self.flood_at = now;
        if self.flood_tokens < bytes as f64 {
            return Err(DropReason::FloodBudget);
        }
        self.flood_tokens -= bytes as f64;
        Ok(())
    }

    /// Unicast: sealed where it was read, no copy.
    fn seal_in_slot(&mut self, forward: &Forward, batch: &mut TxBatch, i: usize) -> Result<(), DropReason> {
        let len = batch.frame(i).len();
        if len + FRAME_OVERHEAD > forward.mtu {
            let frame = batch.frame(i).to_vec();
            return self.seal_copy(forward, &frame, batch);
        }
        let (to, relay) = self.first_hop(forward)?;
        let room = DATA_HEADER + 1 + if relay.is_some() { RELAY_HEADER } else { 0 };
        let lane = lane_of(&mut self.lanes, forward, self.thread)?;
        let (buf, range) = batch.whole_slot(i, room);
        let (outer, inner) = buf.split_at_mut(room - DATA_HEADER - 1);
        inner[DATA_HEADER] = Kind::Frame as u8;
        lane.seal_in_place(inner)?;
        if let Some((relay, handle)) = relay {
            let leg = self.relays.get_mut(&relay).ok_or(DropReason::NoSession)?;
            outer.copy_from_slice(&leg.header(handle));
        }
        batch.out.push((to, Area::Slot(range)));
        self.count(forward.peer, len);
        Ok(())
    }

    /// Seals a copy of a frame, in even fragments where the path is too small for it.
    pub(crate) fn seal_copy(
        &mut self,
        forward: &Forward,
        frame: &[u8],
        batch: &mut TxBatch,
    ) -> Result<(), DropReason> {
        let (to, relay) = self.first_hop(forward)?;
        let room = forward.mtu.saturating_sub(FRAME_OVERHEAD + FRAGMENT_HEADER).max(1);
        let (count, id) = if frame.len() + FRAME_OVERHEAD <= forward.mtu {
            (1, 0)
        } else {
            let count = frame.len().div_ceil(room);
            if count > MAX_FRAME_FRAGMENTS {
                return Err(DropReason::BadFrame);
            }
            self.fragment_id = self.fragment_id.wrapping_add(1);
            (count, self.fragment_id)
        };
        let piece = frame.len().div_ceil(count);
        for (index, bytes) in frame.chunks(piece).enumerate() {
            let start = batch.extra.len();
            if let Some((relay, handle)) = relay {
                let leg = self.relays.get_mut(&relay).ok_or(DropReason::NoSession)?;
                batch.extra.extend_from_slice(&leg.header(handle));
            }
            let inner = batch.extra.len();
            batch.extra.resize(inner + DATA_HEADER, 0);
            if count == 1 {
                batch.extra.push(Kind::Frame as u8);
            } else {
                batch.extra.push(Kind::Fragment as u8);
                let h = FragmentHeader { id, index: index as u8, count: count as u8 };
                batch.extra.extend_from_slice(&h.emit());
            }
            batch.extra.extend_from_slice(bytes);
            batch.extra.resize(batch.extra.len() + DATA_TAG, 0);
            let lane = lane_of(&mut self.lanes, forward, self.thread)?;
            lane.seal_in_place(&mut batch.extra[inner..])?;
            batch.out.push((to, Area::Extra(start..batch.extra.len())));
        }
        self.count(forward.peer, frame.len());
        Ok(())
    }

    fn count(&mut self, peer: PeerId, bytes: usize) {
        let sent = self.sent.entry(peer).or_default();
        sent.0 += 1;
        sent.1 += bytes as u64;
    }

    fn first_hop(&self, forward: &Forward) -> Result<(SocketAddr, Option<(u32, u64)>), DropReason> {
        match forward.route {
            Route::Udp(a) => Ok((a, None)),
            Route::Relay { relay, handle } => {
                let leg = self.relays.get(&relay).ok_or(DropReason::NoSession)?;
                Ok((leg.address(), Some((relay, handle))))
            }
        }
    }

    /// Seals a control, report or ping body on a lane.
    ///
    /// # Errors
    /// No such lane, or its key is used up.
    pub fn seal_control(&mut self, lane: LaneId, kind: Kind, body: &[u8]) -> Result<Vec<u8>, DropReason> {
        self.lanes.get_mut(&lane).ok_or(DropReason::NoSession)?.seal(kind, body)
    }

    /// Puts a finished packet on its way.
    ///
    /// # Errors
    /// `NoSession` when the relay is not there.
    pub fn address(&mut self, route: &Route, packet: Vec<u8>) -> Result<(SocketAddr, Vec<u8>), DropReason> {
        match *route {
            Route::Udp(a) => Ok((a, packet)),
            Route::Relay { relay, handle } => {
                let leg = self.relays.get_mut(&relay).ok_or(DropReason::NoSession)?;
                Ok((leg.address(), leg.wrap(handle, &packet)))
            }
        }
    }
}

fn lane_of<'a>(
    lanes: &'a mut HashMap<LaneId, TxLane>,
    forward: &Forward,
    thread: usize,
) -> Result<&'a mut TxLane, DropReason> {
    let lane = forward.lanes.and_then(|l| l.get(thread).copied()).ok_or(DropReason::NoSession)?;
    lanes.get_mut(&lane).ok_or(DropReason::NoSession)
}
