//! Batches over reserved memory: the driver reads frames or datagrams straight into slots, the cores seal and open them in
//! place, and what comes out is slices over the same memory, ready for one vectored or segmented send.

use crate::handshake::Source;
use crate::snapshot::{PeerId, SessionId};
use shadowmesh_wire::DropReason;
use shadowmesh_wire::data::{DATA_HEADER, DATA_TAG, Kind, VnetMeta};
use shadowmesh_wire::relay::RELAY_HEADER;
use std::net::SocketAddr;
use std::ops::Range;

/// Room before a frame: relay header, data header, kind.
pub const HEADROOM: usize = RELAY_HEADER + DATA_HEADER + 1;
/// Room after it: the tag.
pub const TAILROOM: usize = DATA_TAG;

/// A frame in a slot.
#[derive(Debug, Clone)]
pub struct TxFrame {
    pub(crate) slot: usize,
    pub(crate) len: usize,
    /// Offload metadata, when the device gives it.
    pub vnet: Option<VnetMeta>,
}

/// Frames on their way out.
pub struct TxBatch {
    memory: Vec<u8>,
    slot: usize,
    slots: usize,
    pub(crate) frames: Vec<TxFrame>,
    /// Copies: fragments, and floods to more than one.
    pub(crate) extra: Vec<u8>,
    pub(crate) out: Vec<(SocketAddr, Area)>,
    /// Frames that need thought.
    pub(crate) upcalls: Vec<usize>,
}

/// Which memory a datagram lies in.
#[derive(Debug, Clone)]
pub(crate) enum Area {
    Slot(Range<usize>),
    Extra(Range<usize>),
}

impl TxBatch {
    /// Room for `slots` frames of at most `frame` bytes each.
    pub fn new(slots: usize, frame: usize) -> Self {
        let slot = HEADROOM + frame + TAILROOM;
        TxBatch {
            memory: vec![0; slots * slot],
            slot,
            slots,
            frames: Vec::with_capacity(slots),
            extra: Vec::new(),
            out: Vec::with_capacity(slots),
            upcalls: Vec::new(),
        }
    }

    /// Where the next frame goes; `None` when the batch is full.
    pub fn reserve(&mut self) -> Option<&mut [u8]> {
        if self.frames.len() >= self.slots {
            return None;
        }
        let at = self.frames.len() * self.slot;
        self.memory.get_mut(at + HEADROOM..at + self.slot - TAILROOM)
    }

    /// The frame is there: `len` bytes of it.
    pub fn commit(&mut self, len: usize, vnet: Option<VnetMeta>) {
        let slot = self.frames.len();
        self.frames.push(TxFrame { slot, len: len.min(self.slot - HEADROOM - TAILROOM), vnet });
    }

    /// Copies a frame in; `false` when there is no room for it.
    pub fn push(&mut self, frame: &[u8]) -> bool {
        match self.reserve() {
            Some(buf) if buf.len() >= frame.len() => {
                buf[..frame.len()].copy_from_slice(frame);
                self.commit(frame.len(), None);
                true
            }
            _ => false,
        }
    }

    pub(crate) fn frame(&self, i: usize) -> &[u8] {
        let f = &self.frames[i];
        let at = f.slot * self.slot + HEADROOM;
        &self.memory[at..at + f.len]
    }

    /// The slot of frame `i` from `room` bytes before the frame to the tag's end, and its place in memory.
    pub(crate) fn whole_slot(&mut self, i: usize, room: usize) -> (&mut [u8], Range<usize>) {
        let f = &self.frames[i];
        let at = f.slot * self.slot + HEADROOM - room;
        let range = at..at + room + f.len + TAILROOM;
        (&mut self.memory[range.clone()], range)
    }

    /// What is to be sent, and where to.
    pub fn datagrams(&self) -> impl Iterator<Item = (SocketAddr, &[u8])> {
        self.out.iter().map(|(to, area)| {
            let bytes = match area {
                Area::Slot(r) => &self.memory[r.clone()],
                Area::Extra(r) => &self.extra[r.clone()],
            };
            (*to, bytes)
        })
    }

    /// Frames for [`crate::Node::handle_frame`].
    pub fn upcalls(&self) -> impl Iterator<Item = &[u8]> {
        self.upcalls.iter().map(|i| self.frame(*i))
    }

    /// Frames in it.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// No frame in it.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Empties it; the memory stays.
    pub fn clear(&mut self) {
        self.frames.clear();
        self.extra.clear();
        self.out.clear();
        self.upcalls.clear();
    }
}

/// What an opened datagram asks of the control half.
#[derive(Debug, Clone)]
pub enum Upcall<'a> {
    /// A handshake packet or RESET, as it came.
    Typed {
        /// From where.
        source: Source,
        /// The packet, without relay header.
        packet: &'a [u8],
    },
    /// What a session's packet held, opened.
    Plain(Plain<'a>),
    /// What came from the relay itself, for its link.
    FromRelay {
        /// Which relay.
        relay: u32,
        /// The packet, without relay header.
        packet: &'a [u8],
    },
}

/// Opened control, report or ping.
#[derive(Debug, Clone)]
pub struct Plain<'a> {
    /// In which session.
    pub session: SessionId,
    /// From whom.
    pub peer: PeerId,
    /// By which path it came.
    pub source: Source,
    /// Never a frame or fragment.
    pub kind: Kind,
    /// What follows the kind.
    pub body: &'a [u8],
}

#[derive(Debug, Clone)]
pub(crate) enum RawUpcall {
    Typed(Source, Range<usize>),
    Plain { session: SessionId, peer: PeerId, source: Source, kind: Kind, body: Range<usize> },
    FromRelay { relay: u32, packet: Range<usize> },
}

/// Datagrams on their way in.
pub struct RxBatch {
    pub(crate) memory: Vec<u8>,
    slot: usize,
    slots: usize,
    pub(crate) datagrams: Vec<(SocketAddr, Range<usize>)>,
    pub(crate) frames: Vec<(FrameArea, Option<VnetMeta>)>,
    pub(crate) reassembled: Vec<u8>,
    pub(crate) upcalls: Vec<RawUpcall>,
    /// Hosts behind peers that were heard for the first time, from elsewhere, or again after a while.
    pub(crate) stations: Vec<([u8; 6], PeerId)>,
}

#[derive(Debug, Clone)]
pub(crate) enum FrameArea {
    Slot(Range<usize>),
    Reassembled(Range<usize>),
}

impl RxBatch {
    /// Room for `slots` datagrams of at most `datagram` bytes each.
    pub fn new(slots: usize, datagram: usize) -> Self {
        RxBatch {
            memory: vec![0; slots * datagram],
            slot: datagram,
            slots,
            datagrams: Vec::with_capacity(slots),
            frames: Vec::with_capacity(slots),
            reassembled: Vec::new(),
            upcalls: Vec::new(),
            stations: Vec::new(),
        }
    }

    /// Where the next datagram goes; `None` when the batch is full.
    pub fn reserve(&mut self) -> Option<&mut [u8]> {
        if self.datagrams.len() >= self.slots {
            return None;
        }
        let at = self.datagrams.len() * self.slot;
        self.memory.get_mut(at..at + self.slot)
    }

    /// The datagram is there: `len` bytes of it.
    pub fn commit(&mut self, from: SocketAddr, len: usize) {
        let at = self.datagrams.len() * self.slot;
        self.datagrams.push((from, at..at + len.min(self.slot)));
    }

    /// Copies a datagram in; `false` when there is no room for it.
    pub fn push(&mut self, from: SocketAddr, datagram: &[u8]) -> bool {
        match self.reserve() {
            Some(buf) if buf.len() >= datagram.len() => {
                buf[..datagram.len()].copy_from_slice(datagram);
                self.commit(from, datagram.len());
                true
            }
            _ => false,
        }
    }

    /// Frames for the device, with their offload metadata.
    pub fn frames(&self) -> impl Iterator<Item = (&[u8], Option<VnetMeta>)> {
        self.frames.iter().map(|(area, vnet)| (self.frame(area), *vnet))
    }

    pub(crate) fn frame(&self, area: &FrameArea) -> &[u8] {
        match area {
            FrameArea::Slot(r) => &self.memory[r.clone()],
            FrameArea::Reassembled(r) => &self.reassembled[r.clone()],
        }
    }

    /// What the control half must see: for [`crate::Node::handle_upcall`].
    pub fn upcalls(&self) -> impl Iterator<Item = Upcall<'_>> {
        self.upcalls.iter().map(|u| match u {
            RawUpcall::Typed(source, r) => Upcall::Typed { source: *source, packet: &self.memory[r.clone()] },
            RawUpcall::Plain { session, peer, source, kind, body } => Upcall::Plain(Plain {
                session: *session,
                peer: *peer,
                source: *source,
                kind: *kind,
                body: &self.memory[body.clone()],
            }),
            RawUpcall::FromRelay { relay, packet } => {
                Upcall::FromRelay { relay: *relay, packet: &self.memory[packet.clone()] }
            }
        })
    }

    /// Hosts behind peers, where they were heard: for [`crate::Node::handle_stations`].
    pub fn stations(&self) -> &[([u8; 6], PeerId)] {
        &self.stations
    }

    /// No datagram in it.
    pub fn is_empty(&self) -> bool {
        self.datagrams.is_empty()
    }

    /// Empties it; the memory stays.
    pub fn clear(&mut self) {
        self.datagrams.clear();
        self.frames.clear();
        self.reassembled.clear();
        self.upcalls.clear();
        self.stations.clear();
    }
}

/// Counts of what was dropped, by reason.
#[derive(Debug, Clone)]
pub struct Drops([u64; DropReason::ALL.len()]);

impl Default for Drops {
    fn default() -> Self {
        Drops([0; DropReason::ALL.len()])
    }
}

impl Drops {
    /// One more.
    pub fn count(&mut self, reason: DropReason) {
        if let Some(n) = self.0.get_mut(reason as usize) {
            *n += 1;
        }
    }

    /// How many for this reason.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0.get(reason as usize).copied().unwrap_or(0)
    }

    /// Adds another's counts.
    pub fn add(&mut self, other: &Drops) {
        for (a, b) in self.0.iter_mut().zip(other.0) {
            *a += b;
        }
    }

    /// Every reason that occurred, with its count.
    pub fn nonzero(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().map(|r| (*r, self.get(*r))).filter(|(_, n)| *n > 0)
    }
}
