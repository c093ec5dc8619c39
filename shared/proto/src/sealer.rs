//! The sending half of the data path: frames in, sealed datagrams out, on the lanes it was given. One a sending thread.

use crate::Table;
use crate::Time;
use crate::batch::{Area, CHUNK_FRONT, Drops, TxBatch};
use crate::frame::{self, ETHERNET, MAX_TAGS, Outline};
use crate::lane::TxLane;
use crate::relay_leg::RelayLeg;
use crate::snapshot::{Forward, Install, LaneId, PeerId, Route, Snapshot};
use crate::superframe::{self, Headers, MAX_HEADERS, MAX_SEGMENTS, VnetHeader};
use shadowmesh_wire::DropReason;
use shadowmesh_wire::data::{
    CHUNK_HEADER, ChunkHeader, DATA_HEADER, DATA_TAG, FRAGMENT_HEADER, FRAME_OVERHEAD, FragmentHeader, Kind,
    MAX_FRAME_FRAGMENTS,
};
use shadowmesh_wire::relay::RELAY_HEADER;
use std::net::SocketAddr;

/// Flooded bytes a second from this port, copies counted; and at once. Unicast is not limited.
const FLOOD_RATE: f64 = 8.0 * 1024.0 * 1024.0;
const FLOOD_BURST: f64 = 1024.0 * 1024.0;

/// What a chunk costs over its own size.
const CHUNK_OVERHEAD: usize = FRAME_OVERHEAD + CHUNK_HEADER;
/// Payload bytes that a path must hold for a superframe to go by parts.
const LEAST_PART: usize = 256;

/// What went to one peer.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sent {
    /// Frames.
    pub frames: u64,
    /// And their bytes.
    pub bytes: u64,
    /// Largest datagram since this was last asked for.
    largest: Option<Largest>,
}

/// A datagram that a report is to tell of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Largest {
    /// Bytes, without a relay header.
    pub size: usize,
    /// By which lane it went.
    pub lane: LaneId,
    /// And its counter there.
    pub counter: u64,
}

/// Seals for one thread. Nothing in it is shared.
pub struct Sealer {
    thread: usize,
    lanes: Table<LaneId, TxLane>,
    relays: Table<u32, RelayLeg>,
    frame_id: u32,
    flood_tokens: f64,
    flood_at: Time,
    /// Frames dropped here.
    pub drops: Drops,
    /// What was sealed, by peer.
    pub sent: Table<PeerId, Sent>,
}

impl Sealer {
    /// For the sending thread with this number; `frame_id` is where its frame ids begin (random, so that two threads
    /// of one sender do not meet).
    pub fn new(thread: usize, frame_id: u32) -> Self {
        Sealer {
            thread,
            lanes: Table::default(),
            relays: Table::default(),
            frame_id,
            flood_tokens: FLOOD_BURST,
            flood_at: Time(0),
            drops: Drops::default(),
            sent: Table::default(),
        }
    }

    /// Its number.
    pub fn thread(&self) -> usize {
        self.thread
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
            Install::RelayMoved { thread, relay, address } if thread == self.thread => {
                if let Some(leg) = self.relays.get_mut(&relay) {
                    leg.set_address(address);
                }
            }
            other => return Some(other),
        }
        None
    }

    /// The largest counter of all lanes: how near the nearest key is to its limit.
    pub fn most_sealed(&self) -> u64 {
        self.lanes.values().map(TxLane::sealed).max().unwrap_or(0)
    }

    /// To whom frames went since the last call, and the largest datagram for each: what receiver reports are held against.
    /// [P-BLACKHOLE]
    pub fn take_largest(&mut self) -> Vec<(PeerId, Largest)> {
        let taken = self.sent.iter_mut().filter_map(|(p, s)| Some((*p, s.largest.take()?)));
        let mut out: Vec<_> = taken.collect();
        out.sort_unstable_by_key(|(p, _)| *p);
        out
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
        let (frame, vnet) = (batch.frame(i), batch.frames[i].vnet);
        let o = Outline::read(frame)?;
        let segmented = vnet.is_some_and(|v| v.gso_size > 0);
        if !segmented && frame.len() > snapshot.mtu + ETHERNET + 4 * MAX_TAGS {
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
            return match vnet {
                None => self.seal_in_slot(forward, batch, i),
                Some(v) => self.seal_left(forward, batch, i, &o, &v),
            };
        }
        // No session yet, ARP, neighbour discovery: the control half knows what to do.
        let unknown = !o.is_group() && !snapshot.bridges.is_empty() && snapshot.is_unknown(&o.dst);
        if !(o.is_group() || unknown) || frame::resolution(frame, &o).is_some() {
            return up(batch, i, &o, vnet.as_ref());
        }
        // Whoever has no session yet is seen to by the control half, once.
        if snapshot.unreached {
            up(batch, i, &o, vnet.as_ref())?;
        }
        // What nobody is known to have goes to those who may have it. [P-LEARN]
        let to = if unknown { &snapshot.bridges } else { &snapshot.flood };
        let frame = batch.frame(i).to_vec();
        self.flood_budget(now, frame.len() * to.len())?;
        for frame in plain_frames(frame, &o, vnet.as_ref())? {
            for peer in to {
                if let Some(forward) = snapshot.peers.get(peer)
                    && let Err(reason) = self.seal_copy(forward, &frame, batch)
                {
                    self.drops.count(reason);
                }
            }
        }
        Ok(())
    }

    /// Unicast of which something is left to do: the receiver's device does it. What cannot be left to a device is done
    /// here.
    fn seal_left(
        &mut self,
        forward: &Forward,
        batch: &mut TxBatch,
        i: usize,
        o: &Outline,
        v: &VnetHeader,
    ) -> Result<(), DropReason> {
        let frame = batch.frame(i);
        let h = Headers::read(frame, o).filter(|h| !h.is_dhcp(frame));
        let (size, step) = match h {
            // As it is.
            Some(_) if v.gso_size == 0 && frame.len() + CHUNK_OVERHEAD <= forward.mtu => {
                return self.seal_chunk_in_slot(forward, batch, i);
            }
            Some(h) => match part(&h, frame.len() - h.payload, usize::from(v.gso_size), forward.mtu) {
                Some(part) => part,
                None => return self.seal_plain(forward, batch, i, o, v),
            },
            None => return self.seal_plain(forward, batch, i, o, v),
        };
        let Some(h) = h else { return Err(DropReason::BadFrame) };
        let (to, relay) = self.first_hop(forward)?;
        let lane = lane_of(&mut self.lanes, forward, self.thread)?;
        let mut leg = match relay {
            Some((relay, handle)) => {
                Some((self.relays.get_mut(&relay).ok_or(DropReason::NoSession)?, handle))
            }
            None => None,
        };
        self.frame_id = self.frame_id.wrapping_add(1);
        let chunk = ChunkHeader { id: self.frame_id, size: size as u16 }.emit();
        let (slot, extra, out) = batch.chunked(i);
        let (len, front) = (slot.len() - CHUNK_FRONT, CHUNK_FRONT + h.payload);
        let payload = slot.len() - front;
        let mut headers = [0; MAX_HEADERS];
        let headers = headers.get_mut(..h.payload).ok_or(DropReason::BadFrame)?;
        headers.copy_from_slice(&slot[CHUNK_FRONT..front]);
        let first = lane.sealed();
        for at in (0..payload).step_by(step) {
            // What is before a part's payload belongs to the part before, which is sealed already.
            let part = step.min(payload - at);
            let plain = &mut slot[at..at + front + part];
            plain[0] = Kind::Chunk as u8;
            plain[1..CHUNK_FRONT].copy_from_slice(&chunk);
            plain[CHUNK_FRONT..front].copy_from_slice(headers);
            h.head_part(&mut plain[CHUNK_FRONT..front], at, part, at / size, at + part == payload);
            let outer = if leg.is_some() { RELAY_HEADER } else { 0 };
            let (range, room) = extra.next(outer + DATA_HEADER + plain.len() + DATA_TAG);
            if let Some((leg, handle)) = &mut leg {
                room[..outer].copy_from_slice(&leg.header(*handle));
            }
            lane.seal_from(plain, &mut room[outer..])?;
            out.push((to, Area::Extra(range)));
        }
        self.count(forward, len, CHUNK_OVERHEAD + h.payload + step.min(payload), first);
        Ok(())
    }

    /// Everything done here: for what no device can be told of, and where the path is too small for a segment.
    fn seal_plain(
        &mut self,
        forward: &Forward,
        batch: &mut TxBatch,
        i: usize,
        o: &Outline,
        v: &VnetHeader,
    ) -> Result<(), DropReason> {
        let frame = batch.frame(i).to_vec();
        for frame in plain_frames(frame, o, Some(v))? {
            self.seal_copy(forward, &frame, batch)?;
        }
        Ok(())
    }

    fn seal_chunk_in_slot(
        &mut self,
        forward: &Forward,
        batch: &mut TxBatch,
        i: usize,
    ) -> Result<(), DropReason> {
        let header = ChunkHeader { id: 0, size: 0 }.emit();
        self.seal_around(forward, batch, i, Kind::Chunk, &header)
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
        if batch.frame(i).len() + FRAME_OVERHEAD > forward.mtu {
            let frame = batch.frame(i).to_vec();
            return self.seal_copy(forward, &frame, batch);
        }
        self.seal_around(forward, batch, i, Kind::Frame, &[])
    }

    /// Puts kind, a body's header and all else around a frame where it lies, and seals it.
    fn seal_around(
        &mut self,
        forward: &Forward,
        batch: &mut TxBatch,
        i: usize,
        kind: Kind,
        header: &[u8],
    ) -> Result<(), DropReason> {
        let len = batch.frame(i).len();
        let (to, relay) = self.first_hop(forward)?;
        let before = DATA_HEADER + 1 + header.len();
        let room = before + if relay.is_some() { RELAY_HEADER } else { 0 };
        let lane = lane_of(&mut self.lanes, forward, self.thread)?;
        let (buf, range) = batch.around(i, room);
        let (outer, inner) = buf.split_at_mut(room - before);
        let counter = lane.sealed();
        inner[DATA_HEADER] = kind as u8;
        inner[DATA_HEADER + 1..before].copy_from_slice(header);
        lane.seal_in_place(inner)?;
        if let Some((relay, handle)) = relay {
            let leg = self.relays.get_mut(&relay).ok_or(DropReason::NoSession)?;
            outer.copy_from_slice(&leg.header(handle));
        }
        batch.out.push((to, Area::Slot(range)));
        self.count(forward, len, before + len + DATA_TAG, counter);
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
            self.frame_id = self.frame_id.wrapping_add(1);
            (count, self.frame_id)
        };
        let piece = frame.len().div_ceil(count);
        let first = lane_of(&mut self.lanes, forward, self.thread)?.sealed();
        for (index, bytes) in frame.chunks(piece).enumerate() {
            let fragment = FragmentHeader { id, index: index as u8, count: count as u8 }.emit();
            let (kind, header) =
                if count == 1 { (Kind::Frame, &[][..]) } else { (Kind::Fragment, &fragment[..]) };
            let outer = if relay.is_some() { RELAY_HEADER } else { 0 };
            let before = outer + DATA_HEADER + 1 + header.len();
            let (range, room) = batch.extra.next(before + bytes.len() + DATA_TAG);
            if let Some((relay, handle)) = relay {
                let leg = self.relays.get_mut(&relay).ok_or(DropReason::NoSession)?;
                room[..outer].copy_from_slice(&leg.header(handle));
            }
            room[outer + DATA_HEADER] = kind as u8;
            room[outer + DATA_HEADER + 1..before].copy_from_slice(header);
            room[before..before + bytes.len()].copy_from_slice(bytes);
            lane_of(&mut self.lanes, forward, self.thread)?.seal_in_place(&mut room[outer..])?;
            batch.out.push((to, Area::Extra(range)));
        }
        let overhead = FRAME_OVERHEAD + if count > 1 { FRAGMENT_HEADER } else { 0 };
        self.count(forward, frame.len(), overhead + piece, first);
        Ok(())
    }

    /// A frame of so many bytes went out; `size` is that of its first datagram, its largest, which had this counter.
    fn count(&mut self, forward: &Forward, bytes: usize, size: usize, counter: u64) {
        let sent = self.sent.entry(forward.peer).or_default();
        sent.frames += 1;
        sent.bytes += bytes as u64;
        if let Some(lane) = forward.lanes.and_then(|l| l.get(self.thread).copied())
            && sent.largest.is_none_or(|l| size >= l.size || lane != l.lane)
        {
            sent.largest = Some(Largest { size, lane, counter });
        }
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

/// How a superframe (or one frame of which something is left to do, `size` 0) goes over a path: payload bytes a segment,
/// and a datagram, a multiple of them. `None`: not by parts.
fn part(h: &Headers, payload: usize, size: usize, mtu: usize) -> Option<(usize, usize)> {
    let room = mtu.checked_sub(CHUNK_OVERHEAD + h.payload).filter(|r| *r >= LEAST_PART)?;
    if size == 0 {
        // Evenly, so that the second is not a few bytes. UDP's boundaries are not ours to move.
        return h.is_tcp().then(|| payload.div_ceil(payload.div_ceil(room).max(1))).map(|size| (size, size));
    }
    match room / size {
        0 if h.is_tcp() => Some((room, room)),
        0 => None,
        n => Some((size, n.min(MAX_SEGMENTS) * size)),
    }
}

/// A frame of which nothing is left to do.
fn plain_frames(frame: Vec<u8>, o: &Outline, vnet: Option<&VnetHeader>) -> Result<Vec<Vec<u8>>, DropReason> {
    match vnet {
        None => Ok(vec![frame]),
        Some(v) => superframe::plain(&frame, o, v).ok_or(DropReason::BadFrame),
    }
}

/// To the control half, complete.
fn up(batch: &mut TxBatch, i: usize, o: &Outline, vnet: Option<&VnetHeader>) -> Result<(), DropReason> {
    if vnet.is_none() {
        batch.up(i);
        return Ok(());
    }
    for frame in plain_frames(batch.frame(i).to_vec(), o, vnet)? {
        batch.up_copy(&frame);
    }
    Ok(())
}

fn lane_of<'a>(
    lanes: &'a mut Table<LaneId, TxLane>,
    forward: &Forward,
    thread: usize,
) -> Result<&'a mut TxLane, DropReason> {
    let lane = forward.lanes.and_then(|l| l.get(thread).copied()).ok_or(DropReason::NoSession)?;
    lanes.get_mut(&lane).ok_or(DropReason::NoSession)
}
