//! The data packet: header, the kinds of what is inside, and the small fixed bodies.

use crate::{Reader, WireError, Writer};

/// Bytes before the sealed part: `10` and a 30-bit index, then the counter. All of it is the associated data.
pub const DATA_HEADER: usize = 12;
/// Bytes after it: the AEAD tag.
pub const DATA_TAG: usize = 16;
/// Largest lane index.
pub const MAX_INDEX: u32 = (1 << 30) - 1;
/// What a plain frame costs over its own size, without a relay header: header, kind, tag.
pub const FRAME_OVERHEAD: usize = DATA_HEADER + 1 + DATA_TAG;
/// Body bytes before a fragment's piece: id 4, index and count 1.
pub const FRAGMENT_HEADER: usize = 5;
/// Fragments of one frame at most.
pub const MAX_FRAME_FRAGMENTS: usize = 8;
/// Body bytes before a chunk's frame: id 4, size 2.
pub const CHUNK_HEADER: usize = 6;

/// Header of a data packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataHeader {
    /// Lane index, chosen by the receiver.
    pub index: u32,
    /// The lane's counter; the AEAD nonce.
    pub counter: u64,
}

impl DataHeader {
    /// As bytes.
    pub fn emit(&self) -> [u8; DATA_HEADER] {
        let mut out = [0; DATA_HEADER];
        let (index, counter) = out.split_at_mut(4);
        index.copy_from_slice(&(self.index & MAX_INDEX | 0x8000_0000).to_be_bytes());
        counter.copy_from_slice(&self.counter.to_be_bytes());
        out
    }

    /// From the front of a datagram; the sealed part must hold at least a kind and a tag.
    pub fn parse(datagram: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(datagram);
        let index = r.u32()?;
        if index >> 30 != 0b10 {
            return Err(WireError::Malformed);
        }
        let counter = r.u64()?;
        if r.remaining() < 1 + DATA_TAG {
            return Err(WireError::Truncated);
        }
        Ok(DataHeader { index: index & MAX_INDEX, counter })
    }
}

/// First byte inside the seal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A whole Ethernet frame.
    Frame = 1,
    /// A frame whose TCP or UDP checksum is left to the receiver's device, often a part of a superframe: [`ChunkHeader`]
    /// and the frame.
    Chunk = 2,
    /// A piece of a frame larger than the path: [`FragmentHeader`] and bytes.
    Fragment = 3,
    /// A control message ([`crate::control`]).
    Control = 4,
    /// A receiver report ([`Report`]).
    Report = 5,
    /// A question ([`Ping`]).
    Ping = 6,
    /// Its answer, the same body.
    Pong = 7,
    /// Asks whether a datagram of this size arrives ([`Probe`]).
    Probe = 8,
    /// It has: the probe's number alone, so that an answer is never larger than what it answers.
    ProbeAck = 9,
}

impl Kind {
    /// The kind with this byte.
    pub fn from_byte(b: u8) -> Option<Self> {
        use Kind::*;
        [Frame, Chunk, Fragment, Control, Report, Ping, Pong, Probe, ProbeAck]
            .into_iter()
            .find(|k| *k as u8 == b)
    }
}

/// Before a frame's piece: `id 4, index << 4 | count`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FragmentHeader {
    /// Frame id, the same on all pieces; unique for a while at one sender.
    pub id: u32,
    /// Below `count`.
    pub index: u8,
    /// 2 to [`MAX_FRAME_FRAGMENTS`].
    pub count: u8,
}

impl FragmentHeader {
    /// As bytes.
    pub fn emit(&self) -> [u8; FRAGMENT_HEADER] {
        let [a, b, c, d] = self.id.to_be_bytes();
        [a, b, c, d, self.index << 4 | self.count]
    }

    /// The header and the piece.
    pub fn parse(body: &[u8]) -> Result<(Self, &[u8]), WireError> {
        let mut r = Reader::new(body);
        let id = r.u32()?;
        let b = r.u8()?;
        let (index, count) = (b >> 4, b & 15);
        if count < 2 || usize::from(count) > MAX_FRAME_FRAGMENTS || index >= count || r.remaining() == 0 {
            return Err(WireError::Malformed);
        }
        Ok((FragmentHeader { id, index, count }, r.rest()))
    }
}

/// Before a chunk's frame. All else that a device wants to know is in the frame's own headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkHeader {
    /// The superframe that it is a part of; unique for a while at one sender.
    pub id: u32,
    /// Payload bytes of the superframe's segments; 0: a frame by itself.
    pub size: u16,
}

impl ChunkHeader {
    /// As bytes.
    pub fn emit(&self) -> [u8; CHUNK_HEADER] {
        let ([a, b, c, d], [e, f]) = (self.id.to_be_bytes(), self.size.to_be_bytes());
        [a, b, c, d, e, f]
    }

    /// The header and the frame.
    pub fn parse(body: &[u8]) -> Result<(Self, &[u8]), WireError> {
        let mut r = Reader::new(body);
        let header = ChunkHeader { id: r.u32()?, size: r.u16()? };
        if r.remaining() == 0 {
            return Err(WireError::Truncated);
        }
        Ok((header, r.rest()))
    }
}

/// Ping or pong. `id 8, stamp 8`; the stamp is the asker's clock and comes back as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ping {
    /// Names the question.
    pub id: u64,
    /// The asker's clock, nanoseconds.
    pub stamp: u64,
}

impl Ping {
    /// Appends it.
    pub fn emit(&self, out: &mut Vec<u8>) {
        Writer(out).u64(self.id).u64(self.stamp);
    }

    /// From bytes.
    pub fn parse(body: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(body);
        let p = Ping { id: r.u64()?, stamp: r.u64()? };
        r.finish()?;
        Ok(p)
    }
}

/// A path MTU probe (RFC 8899 section 4.1): `number 4`, then zeros up to the size that is asked about. Its answer is the
/// same without the zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Names the question.
    pub number: u32,
}

impl Probe {
    /// Bytes before the zeros.
    pub const LEN: usize = 4;

    /// As a body of `len` bytes, or [`Probe::LEN`] if that is more.
    pub fn emit(&self, len: usize) -> Vec<u8> {
        let mut body = self.number.to_be_bytes().to_vec();
        body.resize(len.max(Self::LEN), 0);
        body
    }

    /// From bytes.
    pub fn parse(body: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(body);
        let number = r.u32()?;
        if r.rest().iter().any(|b| *b != 0) {
            return Err(WireError::Malformed);
        }
        Ok(Probe { number })
    }
}

/// What one lane has received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneReport {
    /// Lane number within the session, sender to reporter.
    pub lane: u8,
    /// Highest counter opened.
    pub highest: u64,
    /// Packets opened.
    pub received: u64,
    /// Largest datagram opened since the report before, bytes, without a relay header.
    pub largest: u16,
}

/// Receiver report: what each active lane has received, and the clock echo that gives the RTT.
/// `stamp 4, echo 4, held 4, n 1, n x (lane 1, highest 8, received 8, largest 2)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Reporter's clock, microseconds, wrapping.
    pub stamp: u32,
    /// Stamp of the other side's last [`Ping`], microseconds, wrapping; 0 when none was seen.
    pub echo: u32,
    /// How long that stamp was held, microseconds.
    pub held: u32,
    /// One entry a lane, at most [`Report::MAX`].
    pub lanes: Vec<LaneReport>,
}

impl Report {
    /// Lanes in one report at most.
    pub const MAX: usize = 32;

    /// Appends it.
    pub fn emit(&self, out: &mut Vec<u8>) {
        let n = self.lanes.len().min(Self::MAX);
        let mut w = Writer(out);
        w.u32(self.stamp).u32(self.echo).u32(self.held).u8(n as u8);
        for l in self.lanes.iter().take(n) {
            w.u8(l.lane).u64(l.highest).u64(l.received).u16(l.largest);
        }
    }

    /// From bytes.
    pub fn parse(body: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(body);
        let (stamp, echo, held, n) = (r.u32()?, r.u32()?, r.u32()?, r.u8()?);
        if usize::from(n) > Self::MAX {
            return Err(WireError::TooLong);
        }
        let lanes = (0..n)
            .map(|_| {
                Ok(LaneReport { lane: r.u8()?, highest: r.u64()?, received: r.u64()?, largest: r.u16()? })
            })
            .collect::<Result<_, WireError>>()?;
        r.finish()?;
        Ok(Report { stamp, echo, held, lanes })
    }
}
