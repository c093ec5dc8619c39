//! Numbered frames, and the judge of what becomes of them.

use std::collections::HashMap;

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

/// What was sent and what came of it.
#[derive(Default)]
pub struct Judge {
    sent: HashMap<u64, Sent>,
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

impl Judge {
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
    }

    /// What was not delivered: number, from and to.
    pub fn missing(&self) -> Vec<(u64, usize, usize)> {
        let all = self.sent.iter().flat_map(|(n, s)| s.to.iter().map(move |to| (*n, s, *to)));
        let lost = all.filter(|(_, s, to)| !s.at.contains(to));
        let mut v: Vec<_> = lost.map(|(n, s, to)| (n, s.from, to)).collect();
        v.sort_unstable();
        v
    }
}
