//! Numbered frames, and the judge of what becomes of them.

use shadowmesh_proto::superframe::{GSO_TCP4, NEEDS_CSUM, VnetHeader};
use std::collections::HashMap;
use std::net::Ipv4Addr;

/// Ethertype for local experiments (IEEE 802 table 9-1).
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
/// What every payload begins with: an eavesdropper looks for it.
pub const MARK: &[u8; 16] = b"sim-plain-frame:";

/// A frame with a number.
pub fn frame(src: [u8; 6], dst: [u8; 6], number: u64, len: usize) -> Vec<u8> {
    let mut f = vec![];
    f.extend_from_slice(&dst);
    f.extend_from_slice(&src);
    f.extend_from_slice(&ETHERTYPE);
    f.extend_from_slice(MARK);
    f.extend_from_slice(&number.to_be_bytes());
    while f.len() < len {
        f.push((number as usize + f.len()) as u8);
    }
    f
}

/// The number in a frame of ours; `None` for other frames.
pub fn number(frame: &[u8]) -> Option<u64> {
    if frame.get(12..14)? != ETHERTYPE || frame.get(14..30)? != MARK {
        return None;
    }
    frame.get(30..38)?.try_into().ok().map(u64::from_be_bytes)
}

/// Segments of a numbered superframe's sender: what an Ethernet of 1500 holds, with timestamps.
const SEGMENT: u16 = 1448;
/// Ports of superframes.
const PORTS: [u16; 2] = [40_000, 40_001];
/// Headers of one: Ethernet, IPv4, TCP with 12 bytes of options.
const HEADERS: usize = 14 + 20 + 32;

fn octet(number: u64, at: usize) -> u8 {
    (number.wrapping_mul(31).wrapping_add(at as u64 * 7) >> 1) as u8
}

fn first_seq(number: u64) -> u32 {
    (number as u32).wrapping_mul(0x9e37_79b9)
}

/// A TCP superframe with a number, as a device gives it: checksums are left to its reader, and its segments.
pub fn superframe(
    macs: [[u8; 6]; 2],
    addresses: [Ipv4Addr; 2],
    number: u64,
    len: usize,
) -> (Vec<u8>, VnetHeader) {
    let mut f = [macs[1], macs[0]].concat();
    f.extend([0x08, 0x00, 0x45, 0]);
    f.extend(((HEADERS - 14 + len) as u16).to_be_bytes());
    f.extend([0, 7, 0x40, 0, 64, 6, 0, 0]);
    f.extend(addresses.iter().flat_map(|a| a.octets()));
    f.extend(PORTS.iter().flat_map(|p| p.to_be_bytes()));
    f.extend(first_seq(number).to_be_bytes());
    f.extend((number as u32).to_be_bytes());
    f.extend([0x80, 0x18, 1, 0, 0, 0, 0, 0]);
    f.extend([1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 8]);
    f.extend((0..len).map(|i| octet(number, i)));
    // As a device does: the IP header's own, and of TCP's the sum of the pseudo header alone.
    let ip = !checksum(&f[14..34], 0);
    f[24..26].copy_from_slice(&ip.to_be_bytes());
    let pseudo = checksum(&f[26..34], 6 + (f.len() - 34) as u32);
    f[50..52].copy_from_slice(&pseudo.to_be_bytes());
    let vnet = VnetHeader {
        flags: NEEDS_CSUM,
        gso_type: if len > usize::from(SEGMENT) { GSO_TCP4 } else { 0 },
        hdr_len: HEADERS as u16,
        gso_size: if len > usize::from(SEGMENT) { SEGMENT } else { 0 },
        csum_start: 34,
        csum_offset: 16,
    };
    (f, vnet)
}

/// One's complement sum of RFC 1071, the plain way.
pub fn checksum(bytes: &[u8], start: u32) -> u16 {
    let words = bytes.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0)));
    let mut sum = words.fold(start, |s, w| s + w);
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

/// What was sent and what came of it.
#[derive(Default)]
pub struct Judge {
    sent: HashMap<u64, Sent>,
    streams: HashMap<u64, Stream>,
    next: u64,
    /// Deliveries in all.
    pub delivered: u64,
}

struct Sent {
    from: usize,
    /// To one node; a group frame to all others.
    to: Vec<usize>,
    macs: [[u8; 6]; 2],
    len: usize,
    /// Where it came out.
    at: Vec<usize>,
}

/// A superframe: which of its bytes came out.
struct Stream {
    from: usize,
    to: usize,
    got: Vec<bool>,
}

impl Judge {
    /// The next superframe from one node to another, with so many bytes of payload.
    pub fn send_super(
        &mut self,
        from: usize,
        to: usize,
        macs: [[u8; 6]; 2],
        addresses: [Ipv4Addr; 2],
        len: usize,
    ) -> (u64, Vec<u8>, VnetHeader) {
        self.next += 1;
        self.streams.insert(self.next, Stream { from, to, got: vec![false; len] });
        let (frame, vnet) = superframe(macs, addresses, self.next, len);
        (self.next, frame, vnet)
    }

    /// A segment of a superframe came out.
    fn segment(&mut self, at: usize, f: &[u8]) -> Result<Option<usize>, String> {
        let be =
            |at: usize| f.get(at..at + 4).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_be_bytes(*b));
        let n = u64::from(be(42));
        let Some(s) = self.streams.get_mut(&n) else { return Ok(None) };
        self.delivered += 1;
        if at != s.to {
            return Err(format!("I1: superframe {n} for {} came out at {at}", s.to));
        }
        let length = (f.len() - 34) as u32;
        if checksum(&f[14..34], 0) != 0xffff
            || checksum(&f[34..], checksum(&f[26..34], 6 + length).into()) != 0xffff
        {
            return Err(format!("I1: a segment of superframe {n} has a wrong checksum"));
        }
        let offset = be(38).wrapping_sub(first_seq(n)) as usize;
        for (i, byte) in f[HEADERS..].iter().enumerate() {
            match s.got.get_mut(offset + i) {
                Some(got) if !*got && *byte == octet(n, offset + i) => *got = true,
                Some(true) => {
                    return Err(format!("I1: byte {} of superframe {n} came out twice", offset + i));
                }
                _ => return Err(format!("I1: byte {} of superframe {n} was changed on its way", offset + i)),
            }
        }
        Ok(Some(s.from))
    }

    /// The next frame from one node to others; `macs` are its source and destination. Gives its number, too.
    pub fn send(&mut self, from: usize, to: Vec<usize>, macs: [[u8; 6]; 2], len: usize) -> (u64, Vec<u8>) {
        self.next += 1;
        self.sent.insert(self.next, Sent { from, to, macs, len, at: vec![] });
        (self.next, frame(macs[0], macs[1], self.next, len))
    }

    /// Frames sent.
    pub fn count(&self) -> u64 {
        self.next
    }

    /// A frame came out at a node; says which node sent it, if it is a numbered one.
    ///
    /// # Errors
    /// The invariant that it breaks (I1).
    pub fn deliver(&mut self, at: usize, f: &[u8]) -> Result<Option<usize>, String> {
        if f.get(12..14) == Some(&[8, 0])
            && f.get(34..38) == Some(&[0x9c, 0x40, 0x9c, 0x41])
            && f.len() > HEADERS
        {
            return self.segment(at, f);
        }
        let Some(n) = number(f) else { return Ok(None) };
        let s = self.sent.get_mut(&n).ok_or_else(|| format!("I1: frame {n} was never sent"))?;
        self.delivered += 1;
        if s.at.contains(&at) {
            return Err(format!("I1: frame {n} ({} to {:?}) came out at {at} twice", s.from, s.to));
        }
        s.at.push(at);
        if !s.to.contains(&at) {
            return Err(format!("I1: frame {n} for {:?} came out at {at}", s.to));
        }
        if f != frame(s.macs[0], s.macs[1], n, s.len) {
            return Err(format!("I1: frame {n} was changed on its way"));
        }
        Ok(Some(s.from))
    }

    /// Was this one delivered?
    pub fn arrived(&self, n: u64) -> bool {
        self.sent.get(&n).is_some_and(|s| s.at.len() == s.to.len())
            || self.streams.get(&n).is_some_and(|s| s.got.iter().all(|got| *got))
    }

    /// What was not delivered: number, from and to.
    pub fn missing(&self) -> Vec<(u64, usize, usize)> {
        let all = self.sent.iter().flat_map(|(n, s)| s.to.iter().map(move |to| (*n, s, *to)));
        let lost = all.filter(|(_, s, to)| !s.at.contains(to));
        let mut v: Vec<_> = lost.map(|(n, s, to)| (n, s.from, to)).collect();
        let holes = self.streams.iter().filter(|(_, s)| s.got.contains(&false));
        v.extend(holes.map(|(n, s)| (*n, s.from, s.to)));
        v.sort_unstable();
        v
    }
}
