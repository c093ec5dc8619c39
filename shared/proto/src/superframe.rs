//! Superframes and checksums that a device leaves to its reader, or takes from its writer (`virtio_net_hdr`): TCP and UDP
//! over Ethernet, behind up to two tags.
//!
//! A superframe is cut into frames that each stand alone, headers and all, so that a loss costs one of them; at the
//! receiver what comes together is one superframe again. No payload checksum is computed on the way: the AEAD covers it,
//! and the field holds the sum of the pseudo header alone, as the device wants it. Who cannot leave that to a device has
//! it computed by [`complete`].

use crate::frame::Outline;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
pub const NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_TCPV4`, `_TCPV6`, `_UDP_L4`.
pub const GSO_TCP4: u8 = 1;
/// See [`GSO_TCP4`].
pub const GSO_TCP6: u8 = 4;
/// See [`GSO_TCP4`].
pub const GSO_UDP: u8 = 5;
/// `VIRTIO_NET_HDR_GSO_ECN`: the first segment alone has CWR (RFC 3168 section 6.1.2).
pub const GSO_ECN: u8 = 0x80;
/// Segments of one superframe at most: what the kernel takes of UDP, and more than 64 KiB of TCP have at its smallest
/// common segment (RFC 9293 section 3.7.1: 536 bytes).
pub const MAX_SEGMENTS: usize = 128;
/// Below this a segment would be mostly header: Linux's own least (`TCP_MIN_GSO_SIZE`).
const MIN_TCP_SEGMENT: usize = 32;
/// An IP packet's length has 16 bits.
const MAX_IP: usize = 65_535;

/// Headers at most: Ethernet with two tags, IPv4 and TCP with all the options that they have room for. IPv6 has more, but
/// none that is read here ([`Headers::read`]).
pub(crate) const MAX_HEADERS: usize = 22 + 60 + 60;

const FIN_PSH: u8 = 0x09;
const ACK: u8 = 0x10;
const ECE: u8 = 0x40;
const CWR: u8 = 0x80;

/// What a device says of a frame, and is told (`virtio_net_hdr`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// [`NEEDS_CSUM`], or 2 (`_DATA_VALID`).
    pub flags: u8,
    /// 0, [`GSO_TCP4`], [`GSO_TCP6`] or [`GSO_UDP`], and [`GSO_ECN`].
    pub gso_type: u8,
    /// Bytes up to the payload; a hint.
    pub hdr_len: u16,
    /// Payload bytes of a segment.
    pub gso_size: u16,
    /// Where summing begins.
    pub csum_start: u16,
    /// Where the sum goes, from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// Bytes of it.
    pub const LEN: usize = 10;

    /// As the device takes it: in the machine's own byte order.
    pub fn emit(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[0] = self.flags;
        out[1] = self.gso_type;
        let fields = [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset];
        for (at, field) in out[2..].as_chunks_mut::<2>().0.iter_mut().zip(fields) {
            *at = field.to_ne_bytes();
        }
        out
    }

    /// As the device gives it.
    pub fn parse(bytes: &[u8; Self::LEN]) -> Self {
        let [flags, gso_type, a, b, c, d, e, f, g, h] = *bytes;
        let field = |a, b| u16::from_ne_bytes([a, b]);
        VnetHeader {
            flags,
            gso_type,
            hdr_len: field(a, b),
            gso_size: field(c, d),
            csum_start: field(e, f),
            csum_offset: field(g, h),
        }
    }

    /// Is there nothing left to do for this frame?
    pub fn is_plain(&self) -> bool {
        self.flags & NEEDS_CSUM == 0 && self.gso_type & !GSO_ECN == 0
    }
}

/// Where the headers of a TCP or UDP frame lie; every length in them is that of the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Headers {
    /// Where the IP header begins.
    ip: usize,
    /// Where TCP or UDP begins.
    pub(crate) l4: usize,
    /// Where the payload begins.
    pub payload: usize,
    v6: bool,
    tcp: bool,
}

impl Headers {
    /// Reads them: TCP or UDP right behind IPv4 (no fragment) or IPv6, the lengths exact. `None` for all else. [P-CHUNK]
    pub fn read(frame: &[u8], o: &Outline) -> Option<Self> {
        let ip = o.payload;
        let packet = frame.get(ip..)?;
        let (v6, l4, protocol) = match (o.ethertype, packet.first()?) {
            (0x0800, first @ 0x45..=0x4f) => {
                let fragment = be16(packet, 6)? & 0x3fff != 0;
                if fragment || usize::from(be16(packet, 2)?) != packet.len() {
                    return None;
                }
                (false, usize::from(first & 15) * 4, *packet.get(9)?)
            }
            (0x86dd, 0x60..=0x6f) => {
                if usize::from(be16(packet, 4)?) + 40 != packet.len() {
                    return None;
                }
                (true, 40, *packet.get(6)?)
            }
            _ => return None,
        };
        let segment = packet.get(l4..)?;
        let (tcp, header) = match protocol {
            6 => (true, usize::from(segment.get(12)? >> 4) * 4),
            17 if usize::from(be16(segment, 4)?) == segment.len() => (false, 8),
            _ => return None,
        };
        if header < if tcp { 20 } else { 8 } || header > segment.len() {
            return None;
        }
        Some(Headers { ip, l4: ip + l4, payload: ip + l4 + header, v6, tcp })
    }

    /// Is it TCP? Else it is UDP.
    pub fn is_tcp(&self) -> bool {
        self.tcp
    }

    /// Do programs read it raw, checksum and all? DHCP servers and clients (RFC 2131 section 4.1) do.
    pub fn is_dhcp(&self, frame: &[u8]) -> bool {
        let dhcp = |at| matches!(be16(frame, at), Some(67 | 68));
        !self.tcp && !self.v6 && (dhcp(self.l4) || dhcp(self.l4 + 2))
    }

    /// What a device is told of such a frame: `size` payload bytes a segment, 0 for one that is no superframe.
    pub fn meta(&self, frame: &[u8], size: u16) -> VnetHeader {
        let ecn = self.tcp && frame.get(self.l4 + 13).is_some_and(|f| f & CWR != 0);
        let gso = match (size, self.tcp, self.v6) {
            (0, ..) => 0,
            (_, true, false) => GSO_TCP4,
            (_, true, true) => GSO_TCP6,
            (_, false, _) => GSO_UDP,
        };
        VnetHeader {
            flags: NEEDS_CSUM,
            gso_type: gso | if gso != 0 && ecn { GSO_ECN } else { 0 },
            hdr_len: self.payload as u16,
            gso_size: size,
            csum_start: self.l4 as u16,
            csum_offset: if self.tcp { 16 } else { 6 },
        }
    }

    /// Appends the frame that has the payload from `at`, `len` bytes of it: a part of a superframe that stands alone.
    pub fn cut(&self, frame: &[u8], at: usize, len: usize, segments: usize, out: &mut Vec<u8>) {
        let (start, end) = (self.payload + at, (self.payload + at + len).min(frame.len()));
        let base = out.len();
        out.extend_from_slice(&frame[..self.payload]);
        out.extend_from_slice(&frame[start..end]);
        self.head_part(&mut out[base..], at, end - start, segments, end == frame.len());
    }

    /// Makes a superframe's headers those of one of its parts: of `len` bytes of its payload from `at`, before which there
    /// are so many segments; `last`, if none follows.
    pub fn head_part(&self, head: &mut [u8], at: usize, len: usize, segments: usize, last: bool) {
        if self.tcp {
            let seq = self.seq(head).wrapping_add(at as u32);
            head[self.l4 + 4..self.l4 + 8].copy_from_slice(&seq.to_be_bytes());
            let flags = &mut head[self.l4 + 13];
            if at > 0 {
                *flags &= !CWR;
            }
            if !last {
                *flags &= !FIN_PSH;
            }
        }
        if !self.v6 {
            let id = be16(head, self.ip + 4).unwrap_or(0).wrapping_add(segments as u16);
            head[self.ip + 4..self.ip + 6].copy_from_slice(&id.to_be_bytes());
        }
        self.set_lengths(head, len);
    }

    /// Are the headers of `frame`, which has so many bytes at least, those of another part of the superframe that begins with
    /// `head`? So lengths are exact, and the rest the same but for IPv4's identification and checksum, and TCP's sequence,
    /// flags and checksum.
    fn is_part(&self, head: &[u8], frame: &[u8]) -> bool {
        let (ip, l4) = (self.ip, self.l4);
        let same = |r: std::ops::Range<usize>| head.get(r.clone()) == frame.get(r);
        let long = |at, len| be16(frame, at).map(usize::from) == Some(len);
        let network = if self.v6 {
            same(ip..ip + 4) && long(ip + 4, frame.len() - ip - 40) && same(ip + 6..l4)
        } else {
            same(ip..ip + 2) && long(ip + 2, frame.len() - ip) && same(ip + 6..ip + 10) && same(ip + 12..l4)
        };
        let transport = if self.tcp {
            same(l4 + 8..l4 + 13) && same(l4 + 14..l4 + 16) && same(l4 + 18..self.payload)
        } else {
            long(l4 + 4, frame.len() - l4)
        };
        network && transport && same(l4..l4 + 4) && same(0..ip)
    }

    fn seq(&self, frame: &[u8]) -> u32 {
        let bytes = frame.get(self.l4 + 4..).and_then(|b| b.first_chunk::<4>());
        bytes.map_or(0, |b| u32::from_be_bytes(*b))
    }

    /// Lengths, the IPv4 header's checksum, and the sum of the pseudo header, for so many bytes of payload. `head` is at
    /// least the headers.
    fn set_lengths(&self, head: &mut [u8], payload: usize) {
        let l4_len = self.payload - self.l4 + payload;
        let ip_len = self.payload - self.ip + payload;
        let (ip, l4) = (self.ip, self.l4);
        let addresses = if self.v6 {
            head[ip + 4..ip + 6].copy_from_slice(&((ip_len - 40) as u16).to_be_bytes());
            ip + 8..ip + 40
        } else {
            head[ip + 2..ip + 4].copy_from_slice(&(ip_len as u16).to_be_bytes());
            head[ip + 10..ip + 12].fill(0);
            let sum = !fold(sum(&head[ip..l4], 0));
            head[ip + 10..ip + 12].copy_from_slice(&sum.to_be_bytes());
            ip + 12..ip + 20
        };
        let field = if self.tcp {
            l4 + 16
        } else {
            head[l4 + 4..l4 + 6].copy_from_slice(&(l4_len as u16).to_be_bytes());
            l4 + 6
        };
        let protocol = if self.tcp { 6 } else { 17 };
        let pseudo = fold(sum(&head[addresses], protocol + l4_len as u64));
        head[field..field + 2].copy_from_slice(&pseudo.to_be_bytes());
    }
}

/// A superframe that grows, as its parts come: what the next must be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Growing {
    /// The sender's number for it, and what it said of the segments: 0, they are frames by themselves.
    id: u32,
    told: u16,
    h: Headers,
    size: usize,
    /// Payload bytes so far.
    len: usize,
    /// Sequence number of the next.
    next: u32,
    done: bool,
}

impl Growing {
    /// Begins with a part; `told` is what its sender says of its segments. `None`: it is no part of any superframe that a
    /// device would take.
    pub fn begin(id: u32, told: u16, frame: &[u8], h: Headers) -> Option<Self> {
        let len = frame.len() - h.payload;
        let size = if told == 0 { len } else { usize::from(told) };
        let least = if h.tcp { MIN_TCP_SEGMENT } else { 1 };
        if size < least || len == 0 || len.div_ceil(size) > MAX_SEGMENTS || frame.len() - h.ip > MAX_IP {
            return None;
        }
        let done = h.tcp && flags(frame, &h) & !(CWR | ECE) != ACK;
        let next = h.seq(frame).wrapping_add(len as u32);
        Some(Growing { id, told, h, size, len, next, done: done || !len.is_multiple_of(size) })
    }

    /// Takes a part whose headers, but for what differs from part to part, are those of `head`, so that what was found of
    /// those holds of these; says where its payload begins, and its TCP flags. `None`: it begins one of its own. [P-CHUNK]
    pub fn take(&mut self, id: u32, told: u16, head: &[u8], frame: &[u8]) -> Option<(usize, u8)> {
        let h = &self.h;
        let len = frame.len().checked_sub(h.payload)?;
        let total = self.len + len;
        let fits = total.div_ceil(self.size) <= MAX_SEGMENTS && h.payload - h.ip + total <= MAX_IP;
        // Of frames by themselves the last alone is shorter.
        let sized = told == self.told && (told != 0 || len <= self.size);
        if id != self.id || !sized || self.done || len == 0 || !fits || !h.is_part(head, frame) {
            return None;
        }
        let own = tcp_flags(frame, h);
        if h.tcp && (h.seq(frame) != self.next || own & !FIN_PSH != flags(head, h) & !CWR) {
            return None;
        }
        self.len = total;
        self.next = self.next.wrapping_add(len as u32);
        self.done = own & FIN_PSH != 0 || !len.is_multiple_of(self.size);
        Some((h.payload, own))
    }

    /// Makes the first part's headers those of the whole; gives what the device is told.
    pub fn finish(&self, head: &mut [u8], last_flags: u8) -> VnetHeader {
        self.h.set_lengths(head, self.len);
        if self.h.tcp {
            head[self.h.l4 + 13] |= last_flags & FIN_PSH;
        }
        let size = if self.len > self.size { self.size } else { 0 };
        self.h.meta(head, size as u16)
    }
}

fn flags(frame: &[u8], h: &Headers) -> u8 {
    frame.get(h.l4 + 13).copied().unwrap_or(0)
}

/// TCP flags of a part, for [`Growing::finish`].
pub(crate) fn tcp_flags(frame: &[u8], h: &Headers) -> u8 {
    if h.tcp { flags(frame, h) } else { 0 }
}

/// Computes the checksum that was left to somebody. `false`: it lies outside of the frame, which is left as it was.
pub fn complete(frame: &mut [u8], meta: &VnetHeader) -> bool {
    let start = usize::from(meta.csum_start);
    let field = start + usize::from(meta.csum_offset);
    let Some(summed) = frame.get(start..) else { return false };
    if field + 2 > frame.len() {
        return false;
    }
    // Zero would say that there is no sum (RFC 768); the two are the same number.
    let sum = match !fold(sum(summed, 0)) {
        0 => 0xffff,
        s => s,
    };
    frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    true
}

/// The frames that a superframe is, each complete: for who takes no superframes. `None`: it is none that can be cut.
pub fn plain(frame: &[u8], o: &Outline, meta: &VnetHeader) -> Option<Vec<Vec<u8>>> {
    let whole = |frame: &[u8], meta: &VnetHeader| {
        let mut frame = frame.to_vec();
        (meta.flags & NEEDS_CSUM == 0 || complete(&mut frame, meta)).then_some(frame)
    };
    if meta.gso_type & !GSO_ECN == 0 {
        return Some(vec![whole(frame, meta)?]);
    }
    let h = Headers::read(frame, o)?;
    let size = usize::from(meta.gso_size);
    let len = frame.len() - h.payload;
    if size == 0 || len.div_ceil(size) > MAX_SEGMENTS {
        return None;
    }
    let one = h.meta(frame, 0);
    let cut = |i: usize| {
        let mut out = vec![];
        h.cut(frame, i * size, size, i, &mut out);
        whole(&out, &one)
    };
    (0..len.div_ceil(size)).map(cut).collect()
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_be_bytes(*b))
}

/// Adds 16-bit words (RFC 1071), an odd byte at the end as if a zero followed.
fn sum(bytes: &[u8], start: u64) -> u64 {
    let (fours, rest) = bytes.as_chunks::<4>();
    let mut sum = start;
    for word in fours {
        sum += u64::from(u32::from_be_bytes(*word));
    }
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum + u64::from(u32::from_be_bytes(last))
}

pub(crate) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

#[cfg(test)]
#[path = "superframe_tests.rs"]
mod tests;
