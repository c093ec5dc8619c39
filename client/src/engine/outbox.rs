//! Datagrams on their way to the sockets: straight from where they were sealed, or waiting, in one piece of memory.

use shadowmesh_host::udp::{SendError, SendStop, Udp};
use shadowmesh_proto::batch::Drops;
use shadowmesh_wire::DropReason;
use std::net::SocketAddr;
use std::ops::Range;

/// Datagrams that wait for the sockets at most; then new ones are dropped.
const MAX_WAITING: usize = 512;

/// What waits, in order.
#[derive(Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    list: Vec<(SocketAddr, Range<usize>)>,
    /// Datagrams that were larger than the interface takes: where to, and how long the shortest was. For
    /// [`shadowmesh_proto::Up::TooBig`].
    pub too_big: Vec<(SocketAddr, usize)>,
    /// Why the sockets stopped taking, if they did.
    pub stopped: Option<SendStop>,
}

impl Outbox {
    /// Adds one.
    pub fn push(&mut self, to: SocketAddr, datagram: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(datagram);
        self.list.push((to, start..self.bytes.len()));
    }

    /// Sends these, without a copy unless something waits before them or the sockets do not take them.
    pub fn send<'a>(
        &mut self,
        udp: &Udp,
        drops: &mut Drops,
        list: impl Iterator<Item = (SocketAddr, &'a [u8])>,
    ) {
        if !self.list.is_empty() {
            list.for_each(|(to, datagram)| self.push(to, datagram));
            return self.flush(udp, drops);
        }
        let list: Vec<(SocketAddr, &[u8])> = list.collect();
        let too_big = std::mem::take(&mut self.too_big);
        *self = rest(udp, &list, drops, too_big);
    }

    /// Sends what waits, as far as the sockets take it.
    pub fn flush(&mut self, udp: &Udp, drops: &mut Drops) {
        self.stopped = None;
        if self.list.is_empty() {
            return;
        }
        let list: Vec<(SocketAddr, &[u8])> =
            self.list.iter().map(|(to, range)| (*to, &self.bytes[range.clone()])).collect();
        let left = rest(udp, &list, drops, std::mem::take(&mut self.too_big));
        if left.stopped.is_none() {
            // The memory stays.
            self.bytes.clear();
            self.list.clear();
            self.too_big = left.too_big;
        } else {
            *self = left;
        }
    }
}

/// Sends, and gives what was not taken, which waits, but not without bound.
fn rest(
    udp: &Udp,
    list: &[(SocketAddr, &[u8])],
    drops: &mut Drops,
    mut too_big: Vec<(SocketAddr, usize)>,
) -> Outbox {
    let sent = udp.send_batch(list, &mut |n, error| {
        // Mostly a probe of the path, which has its answer: the node counts what is more.
        if error != SendError::TooBig {
            return drops.count(DropReason::SocketBusy);
        }
        let (to, len) = (list[n].0, list[n].1.len());
        match too_big.iter_mut().find(|(a, _)| *a == to) {
            Some((_, shortest)) => *shortest = len.min(*shortest),
            None => too_big.push((to, len)),
        }
    });
    let mut rest = Outbox { stopped: sent.stop, too_big, ..Outbox::default() };
    for (n, (to, datagram)) in list[sent.done..].iter().enumerate() {
        if n < MAX_WAITING {
            rest.push(*to, datagram);
        } else {
            drops.count(DropReason::SocketBusy);
        }
    }
    rest
}
