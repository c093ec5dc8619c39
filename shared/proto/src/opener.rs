//! The receiving half of the data path: datagrams in, frames and upcalls out. A lane's replay window belongs to one opener
//! for life.

use crate::Table;
use crate::Time;
use crate::batch::{Drops, FrameArea, RawUpcall, RxBatch};
use crate::frame;
use crate::handshake::Source;
use crate::lane::{RxLane, RxStats};
use crate::mss;
use crate::relay_leg::check_down;
use crate::snapshot::{Install, PeerId, SessionId, Snapshot, owner};
use crate::superframe::Headers;
use shadowmesh_crypto::secret::Secret;
use shadowmesh_wire::data::{ChunkHeader, DataHeader, FragmentHeader, Kind, MAX_FRAME_FRAGMENTS};
use shadowmesh_wire::relay::{RELAY_HEADER, RelayHeader, TO_RELAY};
use shadowmesh_wire::{Class, DropReason, PacketType, classify};
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

/// Frames under reassembly, and for how long.
const MAX_REASSEMBLY: usize = 64;
const REASSEMBLY_LIFETIME: Duration = Duration::from_millis(200);
/// A peer sends fragments of one frame only; larger is a lie.
const MAX_FRAME: usize = 9216 + 22;
/// Upcalls of one batch at most: the control half's queue.
const MAX_UPCALLS: usize = 256;
/// A host that goes on sending is told of again so often: well within its age.
const HEARD_AGAIN: Duration = Duration::from_secs(30);
/// Hosts that an opener remembers to have told of.
const MAX_HEARD: usize = 1024;

struct Lane {
    rx: RxLane,
    session: SessionId,
    peer: PeerId,
    number: u8,
    /// What the last report told.
    reported: u64,
}

/// What a relay's packets to us are checked by.
struct Down {
    relay: u32,
    key: Secret<32>,
    /// Of the link as it is now, not of the one before.
    newest: bool,
}

struct Partial {
    since: Time,
    pieces: [Option<Vec<u8>>; MAX_FRAME_FRAGMENTS],
    count: u8,
}

/// A lane's statistics, with its place.
#[derive(Debug, Clone, Copy)]
pub struct LaneStats {
    /// Whose.
    pub session: SessionId,
    /// Number in the session.
    pub lane: u8,
    /// What it has received.
    pub stats: RxStats,
}

/// Opens for one thread.
#[derive(Default)]
pub struct Opener {
    number: usize,
    openers: usize,
    lanes: Table<u32, Lane>,
    /// By slot. Each relay numbers its clients by itself, so that two may have given the same.
    relays: Table<u32, Vec<Down>>,
    partial: Table<(PeerId, u32), Partial>,
    /// Hosts behind peers, where they were last told to be, and when.
    heard: Table<[u8; 6], (PeerId, Time)>,
    /// Frames came, or parts of some, since the statistics were taken: whoever sends them is owed a report, also of those
    /// that were refused.
    owes_report: bool,
    /// What was dropped here.
    pub drops: Drops,
    /// Frames delivered, and their bytes, by peer.
    pub received: Table<PeerId, (u64, u64)>,
}

impl Opener {
    /// The only opener, without lanes.
    pub fn new() -> Self {
        Self::default()
    }

    /// One of several openers: each has lanes of its own, by their indexes' [`owner`].
    pub fn of(number: usize, openers: usize) -> Self {
        Opener { number, openers, ..Self::default() }
    }

    /// Takes what is for an opener; gives the rest back.
    pub fn install(&mut self, install: Install) -> Option<Install> {
        match install {
            Install::Rx { index, lane, session, peer, keys } => {
                self.lanes.insert(index, Lane { rx: keys, session, peer, number: lane, reported: 0 });
            }
            Install::RetireRx { index } => {
                self.lanes.remove(&index);
            }
            Install::RelayDown { relay, slot, key } => {
                // The link before still receives: the relay sends there until it has heard of the new one.
                self.relays.retain(|_, all| {
                    all.retain_mut(|d| d.relay != relay || std::mem::take(&mut d.newest));
                    !all.is_empty()
                });
                self.relays.entry(slot).or_default().push(Down { relay, key, newest: true });
            }
            other => return Some(other),
        }
        None
    }

    /// Opens every datagram of the batch. Frames that may pass are in the batch's frames, the rest in its upcalls or
    /// its counters.
    pub fn open_datagrams(&mut self, now: Time, snapshot: &Snapshot, batch: &mut RxBatch) {
        for i in 0..batch.datagrams.len() {
            let (from, range) = batch.datagrams[i].clone();
            match self.open_datagram(now, snapshot, batch, from, range.clone()) {
                // The kernel has joined what is for several, or could not tell.
                Err(DropReason::UnknownIndex)
                    if let Some(other) = self.other_owner(&batch.memory[range.clone()]) =>
                {
                    batch.elsewhere.push((other, from, range));
                }
                Err(reason) => self.drops.count(reason),
                Ok(()) => {}
            }
        }
        batch.grown();
    }

    /// Which opener has the lane of a data packet, if it is not this one.
    fn other_owner(&self, datagram: &[u8]) -> Option<usize> {
        let inner = match RelayHeader::parse(datagram) {
            Ok((_, inner)) => inner,
            Err(_) => datagram,
        };
        let other = owner(DataHeader::parse(inner).ok()?.index);
        (other != self.number && other < self.openers).then_some(other)
    }

    fn open_datagram(
        &mut self,
        now: Time,
        snapshot: &Snapshot,
        batch: &mut RxBatch,
        from: SocketAddr,
        range: Range<usize>,
    ) -> Result<(), DropReason> {
        let bytes = &batch.memory[range.clone()];
        match classify(bytes)? {
            Class::Stun => Err(DropReason::Malformed),
            Class::Typed(_) => upcall(batch, RawUpcall::Typed(Source::Udp(from), range)),
            Class::Data => self.open_data(now, snapshot, batch, Source::Udp(from), range),
            Class::ByRelay => {
                let (header, _) = RelayHeader::parse(bytes)?;
                let downs = self.relays.get(&header.slot).ok_or(DropReason::UnknownSlot)?;
                let from_it = |d: &Down| check_down(&d.key, &header).ok().map(|handle| (d.relay, handle));
                let (relay, handle) = downs.iter().find_map(from_it).ok_or(DropReason::BadMac)?;
                let inner = range.start + RELAY_HEADER..range.end;
                if handle == TO_RELAY {
                    return upcall(batch, RawUpcall::FromRelay { relay, packet: inner });
                }
                let source = Source::Relay { relay, handle };
                match classify(&batch.memory[inner.clone()])? {
                    // RESET is the relay's own word, never a forwarded one.
                    Class::Typed(PacketType::Reset) => Err(DropReason::Malformed),
                    Class::Typed(_) => upcall(batch, RawUpcall::Typed(source, inner)),
                    Class::Data => self.open_data(now, snapshot, batch, source, inner),
                    Class::Stun | Class::ByRelay => Err(DropReason::Malformed),
                }
            }
        }
    }

    fn open_data(
        &mut self,
        now: Time,
        snapshot: &Snapshot,
        batch: &mut RxBatch,
        source: Source,
        range: Range<usize>,
    ) -> Result<(), DropReason> {
        let datagram = &mut batch.memory[range.clone()];
        let header = DataHeader::parse(datagram)?;
        let lane = self.lanes.get_mut(&header.index).ok_or(DropReason::UnknownIndex)?;
        let (kind, body) = lane.rx.open_in_place(now, datagram)?;
        let body = range.start + body.start..range.start + body.end;
        let (peer, session) = (lane.peer, lane.session);
        self.owes_report |= matches!(kind, Kind::Frame | Kind::Chunk | Kind::Fragment);
        match kind {
            Kind::Frame => self.deliver(now, snapshot, batch, peer, FrameArea::Slot(body), None),
            Kind::Chunk => {
                let (chunk, frame) = ChunkHeader::parse(&batch.memory[body.clone()])?;
                let area = body.end - frame.len()..body.end;
                let len = area.len();
                if batch.grow(peer, chunk, area.clone()) {
                    self.count(peer, len);
                    return Ok(());
                }
                self.deliver(now, snapshot, batch, peer, FrameArea::Slot(area), Some(chunk))
            }
            Kind::Fragment => {
                let Some(area) = self.reassemble(now, batch, peer, body)? else { return Ok(()) };
                self.deliver(now, snapshot, batch, peer, area, None)
            }
            Kind::Control | Kind::Report | Kind::Ping | Kind::Pong | Kind::Probe | Kind::ProbeAck => {
                upcall(batch, RawUpcall::Plain { session, peer, source, kind, body })
            }
        }
    }

    fn deliver(
        &mut self,
        now: Time,
        snapshot: &Snapshot,
        batch: &mut RxBatch,
        peer: PeerId,
        area: FrameArea,
        chunk: Option<ChunkHeader>,
    ) -> Result<(), DropReason> {
        // A lane that outlives its peer's place in the snapshot (revoked, left) delivers nothing.
        let forward = snapshot.peers.get(&peer).ok_or(DropReason::NotMember)?;
        let frame = batch.frame(&area);
        let len = frame.len();
        let o = snapshot.check_source(frame, Some(forward))?;
        let left = match chunk {
            Some(c) => Some((c, Headers::read(frame, &o).ok_or(DropReason::BadFrame)?)),
            None => None,
        };
        // Of several segments each must be one that the network takes.
        let largest = match &left {
            Some((c, h)) if c.size > 0 => h.payload + usize::from(c.size),
            _ => len,
        };
        if largest > snapshot.mtu + frame::ETHERNET + 4 * frame::MAX_TAGS {
            return Err(DropReason::BadFrame);
        }
        // Whoever bridges takes frames for hosts behind it, never those of another member.
        let here = |mac| snapshot.own.bridge.is_some() && !snapshot.macs.contains_key(mac);
        if !o.is_group() && o.dst != snapshot.own.mac && !here(&o.dst) {
            return Err(DropReason::UnknownDestination);
        }
        if o.src != forward.guard.mac && !snapshot.macs.contains_key(&o.src) {
            self.hear_station(now, batch, o.src, peer);
        }
        mss::lower(batch.frame_mut(&area), &o, forward.segment, left.is_none());
        match (area, left) {
            (FrameArea::Slot(area), Some((c, h))) => {
                if !batch.deliver_chunk(peer, c, area, h) {
                    return Err(DropReason::BadFrame);
                }
            }
            (area, _) => batch.deliver(area),
        }
        self.count(peer, len);
        Ok(())
    }

    fn count(&mut self, peer: PeerId, len: usize) {
        let received = self.received.entry(peer).or_default();
        received.0 += 1;
        received.1 += len as u64;
    }

    /// Notes where a host was heard, not oftener than ageing needs. [P-LEARN]
    fn hear_station(&mut self, now: Time, batch: &mut RxBatch, mac: [u8; 6], peer: PeerId) {
        if self.heard.get(&mac).is_some_and(|(p, at)| *p == peer && now.since(*at) < HEARD_AGAIN)
            || batch.stations.len() >= MAX_UPCALLS
        {
            return;
        }
        if self.heard.len() >= MAX_HEARD {
            self.heard.clear();
        }
        self.heard.insert(mac, (peer, now));
        batch.stations.push((mac, peer));
    }

    /// Adds a piece; gives the frame when it is whole. Kept by (peer, frame id), so a rekey or another lane in between
    /// does no harm.
    fn reassemble(
        &mut self,
        now: Time,
        batch: &mut RxBatch,
        peer: PeerId,
        body: Range<usize>,
    ) -> Result<Option<FrameArea>, DropReason> {
        let (header, piece) = FragmentHeader::parse(&batch.memory[body])?;
        let key = (peer, header.id);
        if !self.partial.contains_key(&key) {
            self.expire(now);
            if self.partial.len() >= MAX_REASSEMBLY {
                // The oldest makes room: under loss it is the one least likely to be completed.
                let oldest = self.partial.iter().min_by_key(|(_, p)| p.since).map(|(k, _)| *k);
                if let Some(oldest) = oldest {
                    self.partial.remove(&oldest);
                    self.drops.count(DropReason::Reassembly);
                }
            }
        }
        let partial = self.partial.entry(key).or_insert_with(|| Partial {
            since: now,
            pieces: Default::default(),
            count: header.count,
        });
        if partial.count != header.count {
            return Err(DropReason::Malformed);
        }
        partial.pieces[usize::from(header.index)] = Some(piece.to_vec());
        let pieces = &partial.pieces[..usize::from(header.count)];
        if pieces.iter().any(Option::is_none) {
            return Ok(None);
        }
        let start = batch.reassembled.len();
        for p in pieces.iter().flatten() {
            batch.reassembled.extend_from_slice(p);
        }
        self.partial.remove(&key);
        let len = batch.reassembled.len() - start;
        if len > MAX_FRAME {
            batch.reassembled.truncate(start);
            return Err(DropReason::TooLong);
        }
        Ok(Some(FrameArea::Reassembled(start..start + len)))
    }

    /// Drops frames whose other fragments did not come.
    pub fn expire(&mut self, now: Time) {
        let before = self.partial.len();
        self.partial.retain(|_, p| now.since(p.since) < REASSEMBLY_LIFETIME);
        for _ in self.partial.len()..before {
            self.drops.count(DropReason::Reassembly);
        }
    }

    /// Have frames come that no report has told of?
    pub fn owes_report(&self) -> bool {
        self.owes_report
    }

    /// Lanes that received something since the last call: what reports tell.
    pub fn take_stats(&mut self) -> Vec<LaneStats> {
        self.owes_report = false;
        let mut out = Vec::new();
        for lane in self.lanes.values_mut().filter(|l| l.rx.stats.received != l.reported) {
            lane.reported = lane.rx.stats.received;
            out.push(LaneStats { session: lane.session, lane: lane.number, stats: lane.rx.stats });
            lane.rx.stats.largest = 0;
        }
        // In an order of its own, not the table's: the same world plays the same way each time.
        out.sort_unstable_by_key(|s| (s.session, s.lane));
        out
    }
}

fn upcall(batch: &mut RxBatch, up: RawUpcall) -> Result<(), DropReason> {
    if batch.upcalls.len() >= MAX_UPCALLS {
        return Err(DropReason::QueueFull);
    }
    batch.upcalls.push(up);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lane::TxLane;
    use shadowmesh_crypto::aead::{Key, Suite};

    /// What another opener has the lane of is for it, also behind a relay header; what nobody can have is dropped, and what
    /// this one should have and has not, too.
    #[test]
    fn another_openers_lane() {
        let datagram = |index: u32| {
            let key = Key::new(Suite::ChaCha20Poly1305, &Secret::new([7; 32]));
            TxLane::new(index, key).seal(Kind::Ping, &[1; 16]).unwrap()
        };
        let opener = Opener::of(1, 3);
        let header = RelayHeader { thread: 1, slot: 9, handle: 5, counter: 0, mac: [0; 8] }.emit();
        for (low, other) in [(0, Some(0)), (1, None), (2, Some(2)), (3, None), (15, None)] {
            let direct = datagram(0x120 | low);
            assert_eq!(opener.other_owner(&direct), other, "{low}");
            assert_eq!(opener.other_owner(&[&header[..], &direct].concat()), other, "{low} by relay");
        }
        assert_eq!(Opener::new().other_owner(&datagram(0x122)), None);
        for cut in [&[][..], &[0x80], &header[..]] {
            assert_eq!(opener.other_owner(cut), None);
        }
    }

    /// Two relays may have given the same slot: each packet is known by its relay's key.
    #[test]
    fn one_slot_at_two_relays() {
        let key = |n| Secret::new([n; 32]);
        let mut opener = Opener::new();
        for relay in [0, 1] {
            assert!(opener.install(Install::RelayDown { relay, slot: 9, key: key(relay as u8) }).is_none());
        }
        let prefixes = crate::MeshPrefixes { subnet4: ([10, 0, 0, 0].into(), 8), prefix6: [0; 8] };
        let own = crate::Guard { mac: [2; 6], ipv4: None, ipv6: [0; 16].into(), bridge: None };
        let snapshot = Snapshot {
            version: 0,
            mtu: 1500,
            prefixes,
            own,
            peers: Table::default(),
            macs: Table::default(),
            stations: Table::default(),
            bridges: vec![],
            flood: vec![],
            unreached: false,
        };
        let from = SocketAddr::from(([192, 0, 2, 1], 443));
        for (n, of) in [(0, Some(0)), (1, Some(1)), (2, None)] {
            let mut leg = crate::relay_leg::RelayLeg::new(from, 9, 0, key(n));
            let mut batch = RxBatch::new(4096);
            assert!(batch.push(from, &leg.wrap(TO_RELAY, &[0x80; 40])));
            opener.open_datagrams(Time(0), &snapshot, &mut batch);
            let heard: Vec<_> = batch.upcalls().collect();
            let by = heard.iter().map(|u| match u {
                crate::batch::Upcall::FromRelay { relay, .. } => *relay,
                other => panic!("{other:?}"),
            });
            assert_eq!(by.collect::<Vec<_>>(), of.into_iter().collect::<Vec<_>>());
        }
        assert_eq!(opener.drops.get(DropReason::BadMac), 1);
    }
}
