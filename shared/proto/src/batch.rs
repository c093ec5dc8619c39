//! Batches over reserved memory: the driver reads frames or datagrams straight into slots, the cores seal and open them in
//! place, and what comes out is slices over the same memory, ready for one vectored or segmented send.

use crate::frame::Outline;
use crate::handshake::Source;
use crate::snapshot::{PeerId, SessionId};
use crate::superframe::{self, Growing, Headers, VnetHeader};
use shadowmesh_wire::DropReason;
use shadowmesh_wire::data::{CHUNK_HEADER, ChunkHeader, DATA_HEADER, DATA_TAG, Kind};
use shadowmesh_wire::relay::RELAY_HEADER;
use std::net::SocketAddr;
use std::ops::Range;

/// Room before a frame: relay header, data header, kind, chunk header.
pub const HEADROOM: usize = RELAY_HEADER + DATA_HEADER + CHUNK_FRONT;
/// What a chunk has before its frame: kind and chunk header.
pub(crate) const CHUNK_FRONT: usize = 1 + CHUNK_HEADER;
/// Room after it: the tag.
pub const TAILROOM: usize = DATA_TAG;

/// A frame of a batch.
#[derive(Debug, Clone)]
pub struct TxFrame {
    at: usize,
    len: usize,
    /// What the device says of it; `None`: nothing is left to do.
    pub vnet: Option<VnetHeader>,
}

/// Frames on their way out.
pub struct TxBatch {
    memory: Vec<u8>,
    /// Largest frame.
    frame: usize,
    most: usize,
    /// Where the next one's room begins.
    next: usize,
    pub(crate) frames: Vec<TxFrame>,
    /// Copies: chunks, fragments, and floods to more than one.
    pub(crate) extra: Extra,
    pub(crate) out: Vec<(SocketAddr, Area)>,
    /// Frames that need thought.
    pub(crate) upcalls: Vec<Area>,
}

/// Memory for what is made of frames, used again by each batch: what the last one left there is not cleared, since all of
/// what is taken is written.
#[derive(Default)]
pub(crate) struct Extra {
    memory: Vec<u8>,
    used: usize,
}

impl Extra {
    /// The next bytes, so many, and where they are.
    pub fn next(&mut self, len: usize) -> (Range<usize>, &mut [u8]) {
        let range = self.used..self.used + len;
        if self.memory.len() < range.end {
            self.memory.resize(range.end, 0);
        }
        self.used = range.end;
        (range.clone(), &mut self.memory[range])
    }
}

/// Which memory bytes lie in.
#[derive(Debug, Clone)]
pub(crate) enum Area {
    Slot(Range<usize>),
    Extra(Range<usize>),
}

impl TxBatch {
    /// Room for `most` frames, each of at most `frame` bytes, as long as they fit in `memory` bytes with what is put
    /// around them; at least one does.
    pub fn new(most: usize, frame: usize, memory: usize) -> Self {
        TxBatch {
            memory: vec![0; memory.max(HEADROOM + frame + TAILROOM)],
            frame,
            most,
            next: 0,
            frames: Vec::with_capacity(most),
            extra: Extra::default(),
            out: Vec::with_capacity(most),
            upcalls: Vec::new(),
        }
    }

    /// Where the next frame goes; `None` when the batch is full.
    pub fn reserve(&mut self) -> Option<&mut [u8]> {
        if self.frames.len() >= self.most {
            return None;
        }
        let at = self.next + HEADROOM;
        let end = at + self.frame;
        if end + TAILROOM > self.memory.len() {
            return None;
        }
        self.memory.get_mut(at..end)
    }

    /// The frame is there: `len` bytes of it.
    pub fn commit(&mut self, len: usize, vnet: Option<VnetHeader>) {
        let (at, len) = (self.next + HEADROOM, len.min(self.frame));
        self.frames.push(TxFrame { at, len, vnet: vnet.filter(|v| !v.is_plain()) });
        self.next = at + len + TAILROOM;
    }

    /// Copies a frame in; `false` when there is no room for it.
    pub fn push(&mut self, frame: &[u8], vnet: Option<VnetHeader>) -> bool {
        match self.reserve() {
            Some(buf) if buf.len() >= frame.len() => {
                buf[..frame.len()].copy_from_slice(frame);
                self.commit(frame.len(), vnet);
                true
            }
            _ => false,
        }
    }

    pub(crate) fn frame(&self, i: usize) -> &[u8] {
        let f = &self.frames[i];
        &self.memory[f.at..f.at + f.len]
    }

    /// Frame `i` with what a chunk has before it, where its parts go, sealed, and the list of them.
    pub(crate) fn chunked(&mut self, i: usize) -> (&mut [u8], &mut Extra, &mut Vec<(SocketAddr, Area)>) {
        let f = &self.frames[i];
        (&mut self.memory[f.at - CHUNK_FRONT..f.at + f.len], &mut self.extra, &mut self.out)
    }

    /// Frame `i` needs thought.
    pub(crate) fn up(&mut self, i: usize) {
        let f = &self.frames[i];
        self.upcalls.push(Area::Slot(f.at..f.at + f.len));
    }

    /// So does a copy.
    pub(crate) fn up_copy(&mut self, frame: &[u8]) {
        let (range, room) = self.extra.next(frame.len());
        room.copy_from_slice(frame);
        self.upcalls.push(Area::Extra(range));
    }

    /// Frame `i` with `room` bytes before it and the tag's after it, and its place in memory.
    pub(crate) fn around(&mut self, i: usize, room: usize) -> (&mut [u8], Range<usize>) {
        let f = &self.frames[i];
        let range = f.at - room..f.at + f.len + TAILROOM;
        (&mut self.memory[range.clone()], range)
    }

    fn bytes(&self, area: &Area) -> &[u8] {
        match area {
            Area::Slot(r) => &self.memory[r.clone()],
            Area::Extra(r) => &self.extra.memory[r.clone()],
        }
    }

    /// What is to be sent, and where to.
    pub fn datagrams(&self) -> impl ExactSizeIterator<Item = (SocketAddr, &[u8])> {
        self.out.iter().map(|(to, area)| (*to, self.bytes(area)))
    }

    /// Frames for [`crate::Node::handle_frame`].
    pub fn upcalls(&self) -> impl Iterator<Item = &[u8]> {
        self.upcalls.iter().map(|area| self.bytes(area))
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
        self.next = 0;
        self.frames.clear();
        self.extra.used = 0;
        self.out.clear();
        self.upcalls.clear();
    }
}

/// What an opened datagram asks of the control half, which may be on another thread.
#[derive(Debug, Clone)]
pub enum Upcall {
    /// A handshake packet or RESET, as it came.
    Typed {
        /// From where.
        source: Source,
        /// The packet, without relay header.
        packet: Vec<u8>,
    },
    /// What a session's packet held, opened.
    Plain(Plain),
    /// What came from the relay itself, for its link.
    FromRelay {
        /// Which relay.
        relay: u32,
        /// The packet, without relay header.
        packet: Vec<u8>,
    },
}

/// Opened control, report or ping.
#[derive(Debug, Clone)]
pub struct Plain {
    /// In which session.
    pub session: SessionId,
    /// From whom.
    pub peer: PeerId,
    /// By which path it came.
    pub source: Source,
    /// Never a frame or fragment.
    pub kind: Kind,
    /// What follows the kind.
    pub body: Vec<u8>,
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
    /// Where the next datagram may go.
    next: usize,
    pub(crate) datagrams: Vec<(SocketAddr, Range<usize>)>,
    frames: Vec<RxFrame>,
    /// Payloads that follow a superframe's first part.
    parts: Vec<Range<usize>>,
    /// The last of the frames, while it may grow: from whom, and the flags of its last part.
    growing: Option<(PeerId, Growing, u8)>,
    /// Frames by themselves are joined, too.
    joins: bool,
    pub(crate) reassembled: Vec<u8>,
    pub(crate) upcalls: Vec<RawUpcall>,
    /// Hosts behind peers that were heard for the first time, from elsewhere, or again after a while.
    pub(crate) stations: Vec<([u8; 6], PeerId)>,
    /// Datagrams whose lane another opener has.
    pub(crate) elsewhere: Vec<(usize, SocketAddr, Range<usize>)>,
}

#[derive(Debug, Clone)]
pub(crate) enum FrameArea {
    Slot(Range<usize>),
    Reassembled(Range<usize>),
}

struct RxFrame {
    head: FrameArea,
    /// Which of the batch's parts follow.
    parts: Range<usize>,
    vnet: Option<VnetHeader>,
}

/// A frame for the device.
pub struct Delivered<'a> {
    /// Headers and payload; of a superframe, those of its first part.
    pub head: &'a [u8],
    parts: &'a [Range<usize>],
    memory: &'a [u8],
    /// What the device is told of it; `None`: it is complete.
    pub vnet: Option<VnetHeader>,
}

impl<'a> Delivered<'a> {
    /// Payload that follows the head.
    pub fn parts(&self) -> impl Iterator<Item = &'a [u8]> {
        let memory = self.memory;
        self.parts.iter().map(|r| &memory[r.clone()])
    }

    /// All of it in one piece.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut out = self.head.to_vec();
        out.extend(self.parts().flatten());
        out
    }

    /// The frames that it is for a device that takes no superframes and computes no checksums.
    pub fn plain(&self) -> Vec<Vec<u8>> {
        let whole = self.to_vec();
        let Some(vnet) = &self.vnet else { return vec![whole] };
        Outline::read(&whole).ok().and_then(|o| superframe::plain(&whole, &o, vnet)).unwrap_or_default()
    }
}

impl RxBatch {
    /// Room for `memory` bytes of datagrams.
    pub fn new(memory: usize) -> Self {
        RxBatch {
            memory: vec![0; memory],
            next: 0,
            datagrams: Vec::new(),
            frames: Vec::new(),
            parts: Vec::new(),
            growing: None,
            joins: false,
            reassembled: Vec::new(),
            upcalls: Vec::new(),
            stations: Vec::new(),
            elsewhere: Vec::new(),
        }
    }

    /// Memory to read into, and the list of what was read: from whom, and where in that memory. The batch is to be empty.
    pub fn space(&mut self) -> (&mut [u8], &mut Vec<(SocketAddr, Range<usize>)>) {
        (&mut self.memory, &mut self.datagrams)
    }

    /// Shall frames by themselves that follow each other be joined? That spares the device calls, where it takes superframes.
    pub fn join(&mut self, joins: bool) {
        self.joins = joins;
    }

    /// Copies a datagram in; `false` when there is no room for it.
    pub fn push(&mut self, from: SocketAddr, datagram: &[u8]) -> bool {
        let range = self.next..self.next + datagram.len();
        let Some(room) = self.memory.get_mut(range.clone()) else { return false };
        room.copy_from_slice(datagram);
        self.next = range.end;
        self.datagrams.push((from, range));
        true
    }

    /// A complete frame for the device.
    pub(crate) fn deliver(&mut self, area: FrameArea) {
        self.grown();
        self.add(area, None);
    }

    /// Is it the next part of the superframe that grows? Then it is with it, and all that was found of that one's first part
    /// holds of it.
    pub(crate) fn grow(&mut self, peer: PeerId, c: ChunkHeader, area: Range<usize>) -> bool {
        if let Some((from, growing, last)) = &mut self.growing
            && *from == peer
            && let Some(f) = self.frames.last_mut()
            && let FrameArea::Slot(head) = &f.head
            && let Some((at, flags)) =
                growing.take(c.id, c.size, &self.memory[head.clone()], &self.memory[area.clone()])
        {
            *last = flags;
            self.parts.push(area.start + at..area.end);
            f.parts.end = self.parts.len();
            return true;
        }
        false
    }

    /// A frame whose checksum is left to the device, and of which others may be parts.
    pub(crate) fn deliver_chunk(
        &mut self,
        peer: PeerId,
        c: ChunkHeader,
        area: Range<usize>,
        h: Headers,
    ) -> bool {
        let frame = &self.memory[area.clone()];
        let flags = superframe::tcp_flags(frame, &h);
        let alone = c.size == 0;
        let growing = if alone && !self.joins { None } else { Growing::begin(c.id, c.size, frame, h) };
        if growing.is_none() && !alone {
            return false;
        }
        let vnet = growing.is_none().then(|| h.meta(frame, 0));
        self.grown();
        self.add(FrameArea::Slot(area), vnet);
        self.growing = growing.map(|g| (peer, g, flags));
        true
    }

    fn add(&mut self, head: FrameArea, vnet: Option<VnetHeader>) {
        let parts = self.parts.len()..self.parts.len();
        self.frames.push(RxFrame { head, parts, vnet });
    }

    /// The last frame grows no more.
    pub(crate) fn grown(&mut self) {
        if let Some((_, growing, flags)) = self.growing.take()
            && let Some(f) = self.frames.last_mut()
            && let FrameArea::Slot(head) = &f.head
        {
            f.vnet = Some(growing.finish(&mut self.memory[head.clone()], flags));
        }
    }

    /// Frames for the device.
    pub fn frames(&self) -> impl Iterator<Item = Delivered<'_>> {
        self.frames.iter().map(|f| Delivered {
            head: self.frame(&f.head),
            parts: &self.parts[f.parts.clone()],
            memory: &self.memory,
            vnet: f.vnet,
        })
    }

    pub(crate) fn frame(&self, area: &FrameArea) -> &[u8] {
        match area {
            FrameArea::Slot(r) => &self.memory[r.clone()],
            FrameArea::Reassembled(r) => &self.reassembled[r.clone()],
        }
    }

    /// The same, to be changed.
    pub(crate) fn frame_mut(&mut self, area: &FrameArea) -> &mut [u8] {
        match area {
            FrameArea::Slot(r) => &mut self.memory[r.clone()],
            FrameArea::Reassembled(r) => &mut self.reassembled[r.clone()],
        }
    }

    /// What the control half must see: for [`crate::Node::handle_upcall`].
    pub fn upcalls(&self) -> impl Iterator<Item = Upcall> {
        let bytes = |r: &Range<usize>| self.memory[r.clone()].to_vec();
        self.upcalls.iter().map(move |u| match u {
            RawUpcall::Typed(source, r) => Upcall::Typed { source: *source, packet: bytes(r) },
            RawUpcall::Plain { session, peer, source, kind, body } => Upcall::Plain(Plain {
                session: *session,
                peer: *peer,
                source: *source,
                kind: *kind,
                body: bytes(body),
            }),
            RawUpcall::FromRelay { relay, packet } => {
                Upcall::FromRelay { relay: *relay, packet: bytes(packet) }
            }
        })
    }

    /// Hosts behind peers, where they were heard: for [`crate::Node::handle_stations`].
    pub fn stations(&self) -> &[([u8; 6], PeerId)] {
        &self.stations
    }

    /// Datagrams for other openers: whose, from where.
    pub fn elsewhere(&self) -> impl Iterator<Item = (usize, SocketAddr, &[u8])> {
        self.elsewhere.iter().map(|(owner, from, range)| (*owner, *from, &self.memory[range.clone()]))
    }

    /// No datagram in it.
    pub fn is_empty(&self) -> bool {
        self.datagrams.is_empty()
    }

    /// Empties it; the memory stays.
    pub fn clear(&mut self) {
        self.next = 0;
        self.datagrams.clear();
        self.frames.clear();
        self.parts.clear();
        self.growing = None;
        self.reassembled.clear();
        self.upcalls.clear();
        self.stations.clear();
        self.elsewhere.clear();
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
