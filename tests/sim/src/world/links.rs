//! Between the nodes: links that delay, lose, repeat and reorder, NATs, an attacker, and what must hold for all that is on
//! the wire.

use super::{ARRIVES_TOGETHER, ETHERNET, Flight, HEADERS, World, address};
use crate::cast::relay_address;
use crate::guest::MARK;
use crate::nat::{Nat, NatKind};
use shadowmesh_proto::Time;
use std::cmp::Reverse;
use std::net::SocketAddr;
use std::time::Duration;

/// The first port of a node's other sockets.
pub(super) const FIRST_SOCKET: u16 = 20_000;

impl World {
    /// A node sends, from the socket by which it reaches that address.
    pub(super) fn send_datagram(&mut self, n: usize, to: SocketAddr, bytes: Vec<u8>) {
        let from = self.sockets.get(&(n, to)).copied().unwrap_or(address(n));
        self.launch(from, to, bytes);
    }

    /// Puts a datagram on a link.
    ///
    /// # Panics
    /// Invariant I5 is broken.
    pub fn launch(&mut self, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        self.datagrams += 1;
        self.eavesdrop(from, to, &bytes);
        *self.counts.entry((from, bytes[0])).or_default() += 1;
        if let Some(n) = self.node_at(from) {
            *self.heard_at.entry((n, to.ip())).or_default() += 1;
        }
        let filtered = self.filter.is_some_and(|f| f(from, &bytes));
        // A link is between two machines, whatever addresses are on it.
        let (near, far) = (self.node_at(from).map_or(from, address), self.behind(to));
        let mtu =
            self.mtu.get(&(near, far)).or_else(|| self.mtu.get(&(far, near))).copied().unwrap_or(ETHERNET);
        let too_big = bytes.len() + HEADERS > mtu;
        if too_big && self.setup.refuses {
            self.too_big.push((from, to, bytes.len()));
        }
        let lost = too_big
            || filtered
            || self.cut.contains(&(near, far))
            || self.rng.below(1000) < self.weather.loss
            || !self.is_routed(from, to);
        let from = self.outward(from, to);
        if self.trace {
            println!(
                "{:8.3} {from} -> {to} {} {} B{}",
                self.now.0 as f64 / 1e9,
                told(&bytes),
                bytes.len(),
                if lost { " lost" } else { "" }
            );
        }
        if lost {
            return;
        }
        if self.rng.below(1000) < self.weather.attack {
            self.attack(from, to, &bytes);
        }
        let link = self.delay.get(&(near, far)).or_else(|| self.delay.get(&(far, near)));
        let delay = self.weather.delay + link.copied().unwrap_or_default();
        let copies = if self.rng.below(1000) < self.weather.repeat { 2 } else { 1 };
        for _ in 0..copies {
            let jitter = self.rng.below(self.weather.jitter.as_nanos() as u64 + 1);
            let at = self.now + delay + Duration::from_nanos(jitter);
            let at = Time(at.0.next_multiple_of(ARRIVES_TOGETHER));
            self.flights.push(Reverse((at, self.next_flight)));
            self.in_flight.insert(self.next_flight, Flight { from, to, bytes: bytes.clone() });
            self.next_flight += 1;
        }
    }

    /// Puts a node behind a NAT; behind one more, if there is one.
    pub fn shelter(&mut self, n: usize, kind: NatKind) {
        let nats = self.nats.entry(n).or_default();
        let outside = std::net::Ipv4Addr::new(198, 18, n as u8 + 1, nats.len() as u8 + 1);
        nats.push(Nat::new(kind, outside.into()));
    }

    /// A node's own address, of whichever of its sockets.
    pub(super) fn node_at(&self, address: SocketAddr) -> Option<usize> {
        self.nodes.iter().position(|n| n.address.ip() == address.ip())
    }

    /// The node that has the outermost NAT with this address, if one has; else the address itself.
    fn behind(&self, to: SocketAddr) -> SocketAddr {
        let outside = |nats: &Vec<Nat>| nats.iter().any(|n| n.outside == to.ip());
        let node = self.nats.iter().find(|(_, nats)| outside(nats));
        node.map(|(n, _)| *n).or_else(|| self.node_at(to)).map_or(to, address)
    }

    /// Is there a way from a node to an address as it is: public, or on the same LAN?
    fn is_routed(&self, from: SocketAddr, to: SocketAddr) -> bool {
        let inner = |a| self.node_at(a).filter(|n| self.nats.contains_key(n));
        match (self.node_at(from), inner(to)) {
            (_, None) => true,
            (Some(a), Some(b)) => self.lan.contains(&(a.min(b), a.max(b))),
            (None, Some(_)) => false,
        }
    }

    /// Through the NATs before a node.
    fn outward(&mut self, from: SocketAddr, to: SocketAddr) -> SocketAddr {
        let Some(n) = self.node_at(from) else { return from };
        if self.node_at(to).is_some_and(|m| self.nats.contains_key(&m)) {
            return from;
        }
        let mut seen = from;
        for nat in self.nats.get_mut(&n).into_iter().flatten() {
            seen = nat.outward(seen, to, &mut self.rng);
        }
        seen
    }

    /// And in, to a node; `None`: a NAT drops it. `from` is where the packet seems to come from.
    pub(super) fn inward(&self, from: SocketAddr, to: SocketAddr) -> Option<SocketAddr> {
        let outermost = |nats: &&Vec<Nat>| nats.last().is_some_and(|n| n.outside == to.ip());
        let Some(nats) = self.nats.values().find(outermost) else {
            // An inner NAT's address is on no map.
            let inner = self.nats.values().flatten().any(|n| n.outside == to.ip());
            return (!inner).then_some(to);
        };
        let own = nats.iter().any(|n| n.outside == from.ip());
        if own && !nats.last().is_some_and(|n| n.kind.hairpin) {
            return None;
        }
        nats.iter().rev().try_fold(to, |at, nat| nat.inward(from, at.port()))
    }

    /// Datagrams of nodes for an address, of all ports.
    pub fn sent_to(&self, ip: std::net::IpAddr) -> u64 {
        self.sent_from(|_| true, |a| *a == ip)
    }

    /// Datagrams of some nodes for some addresses.
    pub fn sent_from(&self, who: impl Fn(usize) -> bool, to: impl Fn(&std::net::IpAddr) -> bool) -> u64 {
        self.heard_at.iter().filter(|((n, ip), _)| who(*n) && to(ip)).map(|(_, sent)| sent).sum()
    }

    /// Datagrams that somebody has sent with this first byte.
    pub fn sent(&self, from: SocketAddr, first: u8) -> u64 {
        self.counts.get(&(from, first)).copied().unwrap_or(0)
    }

    /// Datagrams that somebody has sent.
    pub fn datagrams_of(&self, from: SocketAddr) -> u64 {
        self.counts.iter().filter(|((f, _), _)| *f == from).map(|(_, n)| n).sum()
    }

    /// Data packets that somebody has sent, not by relay.
    pub fn sent_data(&self, from: SocketAddr) -> u64 {
        self.counts.iter().filter(|((f, b), _)| *f == from && b >> 6 == 0b10).map(|(_, n)| n).sum()
    }

    /// What an attacker who sees everything, and takes nothing away, adds.
    fn attack(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        // The stranger is a third, whose address is used and whose mail nobody reads. An attacker who gets what is sent to
        // an address, and carries it to a client and the answer back, has made a path by way of it: it may be moved to.
        if to == stranger() {
            return;
        }
        let mut copy = bytes.to_vec();
        if self.rng.below(2) == 0 {
            // The relay's MAC covers its header alone: a changed payload that arrives first takes the true one's
            // counter (docs/THREATS.md), so here only headers towards the relay are changed.
            let reach = if to == relay_address() { copy.len().min(32) } else { copy.len() };
            let bit = self.rng.below(reach as u64 * 8) as usize;
            copy[bit / 8] ^= 1 << (bit % 8);
        }
        let from = if self.rng.below(3) == 0 { stranger() } else { from };
        let to = if self.rng.below(4) == 0 {
            let n = self.rng.below(self.nodes.len() as u64) as usize;
            self.nodes[n].address
        } else {
            to
        };
        // Ahead of the true one, or long after it.
        let wait = if self.rng.below(2) == 0 { 100_000 } else { self.rng.below(20_000_000_000) };
        self.flights.push(Reverse((self.now + Duration::from_nanos(wait), self.next_flight)));
        self.in_flight.insert(self.next_flight, Flight { from, to, bytes: copy });
        self.next_flight += 1;
    }

    /// What must hold for everything that is on the wire (I5).
    fn eavesdrop(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        assert!(!bytes.windows(MARK.len()).any(|w| w == MARK), "I5: a payload in the clear on the wire");
        if to == stranger() {
            let asked = self.unanswered.unwrap_or(0);
            assert!(bytes.len() <= asked, "I5: {} bytes in reply to a stranger's {asked}", bytes.len());
            self.unanswered = Some(asked - bytes.len());
            self.replies += 1;
        }
        let (by_relay, inner) = match bytes.first() {
            Some(0xc1) => (true, &bytes[shadowmesh_wire::relay::RELAY_HEADER..]),
            _ => (false, bytes),
        };
        // What the relay sends on was counted when it was sent to it.
        if inner.first().is_some_and(|b| b >> 6 == 0b10) && !(by_relay && from == relay_address()) {
            let header =
                shadowmesh_wire::data::DataHeader::parse(inner).expect("I5: a malformed data packet");
            let handle =
                if by_relay { u64::from_be_bytes(bytes[8..16].try_into().expect("8 bytes")) } else { 0 };
            let slot = if handle == 0 && by_relay {
                u64::from(bytes[7]) << 32 | u64::from(bytes[6])
            } else {
                handle
            };
            assert!(
                self.seen.insert((to, slot, header.index, header.counter)),
                "I5: an index and counter used twice: {from} -> {to} {}",
                told(bytes)
            );
        }
    }
}

/// A datagram in the trace: its type, or index and counter; behind a relay header, whose slot and handle.
pub(super) fn told(bytes: &[u8]) -> String {
    match shadowmesh_wire::relay::RelayHeader::parse(bytes) {
        Ok((h, inner)) => format!("[slot {:x} handle {:x}] {}", h.slot, h.handle >> 48, told(inner)),
        Err(_) => match shadowmesh_wire::data::DataHeader::parse(bytes) {
            Ok(h) => format!("data {:x}:{}", h.index, h.counter),
            Err(_) => format!("{:#x}", bytes.first().copied().unwrap_or(0)),
        },
    }
}

/// Where nobody of the network is, and some of an attacker's copies come from.
pub(super) fn stranger() -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 66], 666))
}
