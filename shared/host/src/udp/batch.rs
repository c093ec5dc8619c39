//! What [`super::Udp::recv_batch`] fills.

use std::net::SocketAddr;
use std::ops::Range;

use super::{BATCH, Remote};

/// Memory for received datagrams, allocated once.
pub struct RecvBatch<P = SocketAddr> {
    pub(super) slab: Box<[u8]>,
    pub(super) slot: usize,
    pub(super) list: Vec<(P, Range<usize>)>,
}

impl<P: Remote> RecvBatch<P> {
    /// `count` datagrams (1 to [`BATCH`]) of up to `slot` bytes each.
    pub fn new(count: usize, slot: usize) -> Self {
        let (count, slot) = (count.clamp(1, BATCH), slot.max(1));
        RecvBatch { slab: vec![0; count * slot].into_boxed_slice(), slot, list: Vec::with_capacity(count) }
    }

    /// How many messages it can hold.
    pub fn capacity(&self) -> usize {
        self.slab.len() / self.slot
    }

    /// How many datagrams it holds.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The datagrams, to read.
    pub fn iter(&self) -> impl Iterator<Item = (P, &[u8])> {
        self.list.iter().map(|(from, range)| (*from, &self.slab[range.clone()]))
    }

    /// The datagrams, to open in place.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (P, &mut [u8])> {
        let (mut rest, mut at) = (&mut self.slab[..], 0);
        // They lie one after the other.
        self.list.iter().map(move |(from, range)| {
            let (_, behind) = std::mem::take(&mut rest).split_at_mut(range.start - at);
            let (datagram, behind) = behind.split_at_mut(range.len());
            (rest, at) = (behind, range.end);
            (*from, datagram)
        })
    }
}
