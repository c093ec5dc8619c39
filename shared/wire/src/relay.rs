//! The relay header before every packet that a relay forwards, and RESET.

use crate::{BY_RELAY, PacketType, Reader, WireError, Writer};

/// Bytes of the relay header.
pub const RELAY_HEADER: usize = 32;
/// Sending threads that one client may have at a relay.
pub const THREADS: usize = 16;
/// Destination handle that means the relay itself.
pub const TO_RELAY: u64 = 0;

/// `type, thread, 0, 0, slot 4, handle 8, counter 8, mac 8`. Client to relay: the sender's slot and the destination's
/// handle; relay to client: the receiver's slot and the source's handle. The MAC covers the 24 bytes before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayHeader {
    /// Sending thread; each has its own counter and window.
    pub thread: u8,
    /// The client's slot.
    pub slot: u32,
    /// Destination, or source; [`TO_RELAY`] is the relay.
    pub handle: u64,
    /// Never repeats for one (slot, direction, thread).
    pub counter: u64,
    /// BLAKE3 keyed, cut to 8 bytes.
    pub mac: [u8; 8],
}

impl RelayHeader {
    /// What the MAC covers.
    pub fn maced(&self) -> [u8; RELAY_HEADER - 8] {
        let mut out = [0; RELAY_HEADER - 8];
        let mut put = |at: usize, b: &[u8]| {
            if let Some(s) = out.get_mut(at..at + b.len()) {
                s.copy_from_slice(b);
            }
        };
        put(0, &[BY_RELAY, self.thread]);
        put(4, &self.slot.to_be_bytes());
        put(8, &self.handle.to_be_bytes());
        put(16, &self.counter.to_be_bytes());
        out
    }

    /// As bytes.
    pub fn emit(&self) -> [u8; RELAY_HEADER] {
        let mut out = [0; RELAY_HEADER];
        let (head, mac) = out.split_at_mut(RELAY_HEADER - 8);
        head.copy_from_slice(&self.maced());
        mac.copy_from_slice(&self.mac);
        out
    }

    /// The header and the packet behind it.
    pub fn parse(datagram: &[u8]) -> Result<(Self, &[u8]), WireError> {
        let mut r = Reader::new(datagram);
        if r.u8()? != BY_RELAY {
            return Err(WireError::Malformed);
        }
        let thread = r.u8()?;
        r.zeros(2)?;
        if usize::from(thread) >= THREADS {
            return Err(WireError::Malformed);
        }
        let header =
            RelayHeader { thread, slot: r.u32()?, handle: r.u64()?, counter: r.u64()?, mac: r.array()? };
        Ok((header, r.rest()))
    }
}

/// RESET, relay to client: `type, 0 x 3, slot 4, token 16`. The slot is not known (any more); shorter than any packet
/// that provokes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reset {
    /// As the client sent it.
    pub slot: u32,
    /// PRF(relay secret, slot): only this relay can make it.
    pub token: [u8; 16],
}

impl Reset {
    /// Bytes of the packet.
    pub const LEN: usize = 24;

    /// As bytes.
    pub fn emit(&self) -> Vec<u8> {
        let mut v = Vec::with_capacity(Self::LEN);
        Writer(&mut v).u8(PacketType::Reset as u8).zeros(3).u32(self.slot).bytes(&self.token);
        v
    }

    /// From bytes.
    pub fn parse(datagram: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(datagram);
        if r.u8()? != PacketType::Reset as u8 {
            return Err(WireError::Malformed);
        }
        r.zeros(3)?;
        let out = Reset { slot: r.u32()?, token: r.array()? };
        r.finish()?;
        Ok(out)
    }
}
