//! Lanes: one direction of a session on one path from one sending thread. Index, key, counter, and at the receiver a
//! replay window. Nothing is shared between lanes, so threads share nothing while they send.

use crate::Time;
use crate::window::ReplayWindow;
use shadowmesh_crypto::aead::Key;
use shadowmesh_wire::DropReason;
use shadowmesh_wire::data::{DATA_HEADER, DATA_TAG, DataHeader, Kind};

/// Packets that one key may seal: AES-GCM's bound at these sizes (PROTOCOL.md, "Rekey"). [P-LIMIT]
pub const MAX_PACKETS: u64 = 1 << 30;
/// Failed opens after which a key is dropped.
pub const MAX_FAILED_OPENS: u64 = 1 << 36;
/// 64-bit words of the replay window: 8,192 counters, 1 KiB, made on first use.
const WORDS: usize = 128;

/// The sending end.
pub struct TxLane {
    index: u32,
    key: Key,
    counter: u64,
}

impl TxLane {
    /// `index` was chosen by the receiver.
    pub fn new(index: u32, key: Key) -> Self {
        TxLane { index, key, counter: 0 }
    }

    /// Packets sealed so far.
    pub fn sealed(&self) -> u64 {
        self.counter
    }

    /// Seals in place: `buf` is header space ([`DATA_HEADER`]), kind and body, tag space ([`DATA_TAG`]).
    ///
    /// # Errors
    /// `KeyExpired` once the key has sealed all that it may; `Truncated` when `buf` is too short.
    pub fn seal_in_place(&mut self, buf: &mut [u8]) -> Result<(), DropReason> {
        let body = buf.len().checked_sub(DATA_HEADER + DATA_TAG).ok_or(DropReason::Truncated)?;
        let (counter, header) = self.next()?;
        let (head, rest) = buf.split_at_mut(DATA_HEADER);
        let (plain, tag) = rest.split_at_mut(body);
        head.copy_from_slice(&header);
        tag.copy_from_slice(&self.key.seal(counter, &header, plain));
        Ok(())
    }

    /// Seals what lies elsewhere: `plain` is kind and body, `out` as long as that with header ([`DATA_HEADER`]) and tag
    /// ([`DATA_TAG`]).
    ///
    /// # Errors
    /// `KeyExpired` once the key has sealed all that it may; `Truncated` when `out` is of another length.
    pub fn seal_from(&mut self, plain: &[u8], out: &mut [u8]) -> Result<(), DropReason> {
        if out.len() != DATA_HEADER + plain.len() + DATA_TAG {
            return Err(DropReason::Truncated);
        }
        let (counter, header) = self.next()?;
        let (head, sealed) = out.split_at_mut(DATA_HEADER);
        head.copy_from_slice(&header);
        self.key.seal_from(counter, &header, plain, sealed);
        Ok(())
    }

    /// The next packet's counter, which no other will have, and its header.
    fn next(&mut self) -> Result<(u64, [u8; DATA_HEADER]), DropReason> {
        if self.counter >= MAX_PACKETS {
            return Err(DropReason::KeyExpired);
        }
        let counter = self.counter;
        self.counter += 1;
        Ok((counter, DataHeader { index: self.index, counter }.emit()))
    }

    /// Seals a kind and body into a datagram of its own.
    ///
    /// # Errors
    /// As [`TxLane::seal_in_place`].
    pub fn seal(&mut self, kind: Kind, body: &[u8]) -> Result<Vec<u8>, DropReason> {
        let mut v = vec![0; DATA_HEADER];
        v.push(kind as u8);
        v.extend_from_slice(body);
        v.resize(v.len() + DATA_TAG, 0);
        self.seal_in_place(&mut v)?;
        Ok(v)
    }
}

/// The receiving end.
pub struct RxLane {
    key: Key,
    window: Option<Box<ReplayWindow<WORDS>>>,
    /// What receiver reports tell.
    pub stats: RxStats,
    failed: u64,
}

/// What one lane has received.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RxStats {
    /// Highest counter opened.
    pub highest: u64,
    /// Packets opened.
    pub received: u64,
    /// Largest datagram opened since this was last told, bytes.
    pub largest: u16,
    /// When the last one was opened.
    pub last: Time,
}

impl RxLane {
    /// A lane that has received nothing.
    pub fn new(key: Key) -> Self {
        RxLane { key, window: None, stats: RxStats::default(), failed: 0 }
    }

    /// Opens in place; gives the kind and where the body lies. The window moves only after the tag holds. [P-REPLAY]
    ///
    /// # Errors
    /// Why it was dropped.
    pub fn open_in_place(
        &mut self,
        now: Time,
        datagram: &mut [u8],
    ) -> Result<(Kind, std::ops::Range<usize>), DropReason> {
        let header = DataHeader::parse(datagram)?;
        if self.failed >= MAX_FAILED_OPENS {
            return Err(DropReason::KeyExpired);
        }
        if header.counter >= MAX_PACKETS {
            return Err(DropReason::KeyExpired);
        }
        if let Some(w) = &self.window {
            w.check(header.counter)?;
        }
        let len = datagram.len();
        let (head, sealed) = datagram.split_at_mut(DATA_HEADER);
        let Ok(plain) = self.key.open(header.counter, head, sealed) else {
            self.failed += 1;
            return Err(DropReason::BadTag);
        };
        self.window.get_or_insert_default().accept(header.counter);
        self.stats.highest = self.stats.highest.max(header.counter);
        self.stats.received += 1;
        self.stats.largest = self.stats.largest.max(u16::try_from(len).unwrap_or(u16::MAX));
        self.stats.last = now;
        let kind = plain.first().and_then(|b| Kind::from_byte(*b)).ok_or(DropReason::Malformed)?;
        Ok((kind, DATA_HEADER + 1..len - DATA_TAG))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shadowmesh_crypto::Secret;
    use shadowmesh_crypto::aead::Suite;

    fn key() -> Key {
        Key::new(Suite::ChaCha20Poly1305, &Secret::new([7; 32]))
    }

    /// A key seals its last packet and none after it; a receiver takes none beyond, and drops a key that too much was
    /// tried against. [P-LIMIT]
    #[test]
    fn a_key_has_an_end() {
        let (mut tx, mut rx) = (TxLane::new(16, key()), RxLane::new(key()));
        tx.counter = MAX_PACKETS - 1;
        let mut last = tx.seal(Kind::Ping, &[1; 16]).unwrap();
        assert_eq!(tx.seal(Kind::Ping, &[1; 16]), Err(DropReason::KeyExpired));
        assert_eq!(rx.open_in_place(Time(0), &mut last).map(|o| o.0), Ok(Kind::Ping));

        // One that would not stop.
        tx.counter = 0;
        let mut beyond = tx.seal(Kind::Ping, &[1; 16]).unwrap();
        beyond[4..12].copy_from_slice(&MAX_PACKETS.to_be_bytes());
        assert_eq!(rx.open_in_place(Time(0), &mut beyond), Err(DropReason::KeyExpired));

        let mut rx = RxLane { failed: MAX_FAILED_OPENS - 1, ..RxLane::new(key()) };
        let good = tx.seal(Kind::Ping, &[1; 16]).unwrap();
        let mut bad = good.clone();
        bad[20] ^= 1;
        assert_eq!(rx.open_in_place(Time(0), &mut bad), Err(DropReason::BadTag));
        assert_eq!(rx.open_in_place(Time(0), &mut good.clone()), Err(DropReason::KeyExpired));
    }
}
