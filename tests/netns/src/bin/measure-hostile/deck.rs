//! What the stranger sends: a deck of datagrams made beforehand, each from a source of its own, so that a reply tells by
//! where it goes which datagram it answers.

use nix::sys::socket::SockProtocol;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt};
use nix::sys::time::TimeVal;
use shadowmesh_crypto::aead::Suite;
use shadowmesh_netns_tests::Host;
use shadowmesh_proto::Rng;
use shadowmesh_proto::Time;
use shadowmesh_proto::handshake::{Contact, Credential, Initiator, InitiatorConfig};
use shadowmesh_wire::handshake::{Choice, CookieHeader, LeafRequest};
use shadowmesh_wire::relay::RelayHeader;
use shadowmesh_wire::{PacketType, SAFE_DATAGRAM};
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Datagrams in a deck.
const CARDS: usize = 16_384;
/// Largest payload of a datagram in a frame of 1500 bytes.
const MOST: u64 = 1472;
/// Ethernet, IPv4 and UDP headers.
const HEADERS: usize = 14 + 20 + 8;
/// Captured datagrams that are kept, handshake packets and others each.
const KEPT: usize = 4096;

/// A datagram of the product's, as it crossed the router.
#[derive(Clone)]
pub struct Captured {
    from: SocketAddrV4,
    to: SocketAddrV4,
    payload: Vec<u8>,
}

/// A socket that gets every IPv4 packet that comes in at any interface of a host, from the Ethernet header on.
pub fn tap(host: &Host) -> OwnedFd {
    let protocol = SockProtocol::EthIp;
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = host.enter(|| socket(AddressFamily::Packet, SockType::Raw, flags, protocol));
    let fd = fd.expect("a packet socket");
    setsockopt(&fd, sockopt::RcvBufForce, &(64 << 20)).expect("room for packets");
    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(0, 50_000)).expect("a timeout");
    fd
}

/// The UDP datagram in a frame: source, destination, payload (perhaps cut), its true length.
pub fn parse(frame: &[u8]) -> Option<(SocketAddrV4, SocketAddrV4, &[u8], usize)> {
    let ip = frame.get(14..)?;
    let header = usize::from(ip.first()? & 15) * 4;
    if *ip.get(9)? != 17 {
        return None;
    }
    let address = |at: usize| ip.get(at..at + 4)?.try_into().ok().map(|b: [u8; 4]| Ipv4Addr::from(b));
    let udp = ip.get(header..)?;
    let word = |at: usize| udp.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes);
    let from = SocketAddrV4::new(address(12)?, word(0)?);
    let to = SocketAddrV4::new(address(16)?, word(2)?);
    Some((from, to, udp.get(8..)?, usize::from(word(4)?).checked_sub(8)?))
}

/// Datagrams from and to the relay's port, until told to stop: the first handshake packets, the last of the others.
pub fn capture(router: &Host, stop: &AtomicBool) -> Vec<Captured> {
    let fd = tap(router);
    let (mut typed, mut others) = (vec![], vec![]);
    let mut frame = [0; 2048];
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let Ok(n) = nix::sys::socket::recv(fd.as_raw_fd(), &mut frame, nix::sys::socket::MsgFlags::empty())
        else {
            continue;
        };
        let Some((from, to, payload, len)) = parse(&frame[..n]) else { continue };
        if payload.len() < len || (from.port() != 443 && to.port() != 443) {
            continue;
        }
        let captured = Captured { from, to, payload: payload[..len].to_vec() };
        if payload.first().is_some_and(|b| PacketType::from_byte(*b).is_some()) {
            if typed.len() < KEPT {
                typed.push(captured);
            }
        } else if others.len() < KEPT {
            others.push(captured);
        } else {
            others[count % KEPT] = captured;
            count += 1;
        }
    }
    typed.extend(others);
    typed
}

/// Whom datagrams are sent to, and what the stranger knows of them.
pub struct Target {
    /// Where it listens.
    pub address: SocketAddrV4,
    /// How it is addressed in a HELLO: network id (or the relay's NodeId), NodeId.
    pub contact: ([u8; 32], [u8; 32]),
}

/// What makes a deck.
pub struct Dealer<'a> {
    /// The relay first.
    pub targets: &'a [Target],
    /// True traffic, to be sent again.
    pub captured: &'a [Captured],
    /// The stranger's own address.
    pub own: Ipv4Addr,
    /// MAC addresses: the router's, the stranger's.
    pub macs: [[u8; 6]; 2],
    /// Kinds of datagrams, of [`KINDS`].
    pub kinds: &'a [usize],
}

/// Kinds of datagrams.
pub const KINDS: [&str; 8] = [
    "random",
    "random behind a true first byte",
    "replayed",
    "replayed",
    "replayed with bits flipped",
    "replayed with bits flipped",
    "HELLO",
    "RESPONSE, LEAF_REQUEST and by relay, with bad cookies and MACs",
];

/// Datagrams in frames, ready to be sent.
pub struct Deck {
    /// From the Ethernet header on.
    pub frames: Vec<Vec<u8>>,
    /// Which one has this source. Sources that are somebody's (a client's, the relay's) are not in here.
    pub by_source: HashMap<SocketAddrV4, usize>,
}

impl Deck {
    /// Bytes of a datagram's payload.
    pub fn payload(&self, i: usize) -> usize {
        self.frames[i].len() - HEADERS
    }
}

impl Dealer<'_> {
    /// A deck, by chance.
    pub fn deal(&self, rng: &mut Rng) -> Deck {
        let mut deck = Deck { frames: Vec::with_capacity(CARDS), by_source: HashMap::new() };
        while deck.frames.len() < CARDS {
            // Half of them to the relay.
            let at = if rng.below(2) == 0 { 0 } else { rng.below(self.targets.len() as u64) as usize };
            let (from, to, payload) = self.card(rng, &self.targets[at]);
            let from = from.unwrap_or_else(|| self.source(rng, &deck));
            if from.ip().octets()[0] == 10 || *from.ip() == self.own {
                deck.by_source.insert(from, deck.frames.len());
            }
            deck.frames.push(self.frame(from, to, &payload));
        }
        deck
    }

    /// A source that nobody has: of 10.0.0.0/8, or the stranger's own address.
    fn source(&self, rng: &mut Rng, deck: &Deck) -> SocketAddrV4 {
        loop {
            let [_, a, b, c] = (rng.u64() as u32).to_be_bytes();
            let ip = if rng.below(4) == 0 { self.own } else { Ipv4Addr::new(10, a, b, c) };
            let source = SocketAddrV4::new(ip, 1024 + rng.below(60_000) as u16);
            if !deck.by_source.contains_key(&source) {
                return source;
            }
        }
    }

    /// One datagram; its source when it is somebody's.
    fn card(&self, rng: &mut Rng, target: &Target) -> (Option<SocketAddrV4>, SocketAddrV4, Vec<u8>) {
        let to = target.address;
        let random = |rng: &mut Rng, len: u64| -> Vec<u8> { (0..len).map(|_| rng.u64() as u8).collect() };
        let any = rng.below(MOST + 1);
        match self.kinds[rng.below(self.kinds.len() as u64) as usize] {
            0 => (None, to, random(rng, any)),
            // Random behind a first byte that something begins with, often of a length that something has.
            1 => {
                let len = [any, SAFE_DATAGRAM as u64, 68, 24, 32][rng.below(5) as usize].max(1);
                let mut bytes = random(rng, len);
                bytes[0] =
                    [0x41 + rng.below(9) as u8, 0x80 + rng.below(64) as u8, 0xc1][rng.below(3) as usize];
                (None, to, bytes)
            }
            // Again, as it was: from where it came, or from elsewhere.
            2 | 3 => self.again(rng, to),
            // Again, with a few bits changed.
            4 | 5 => {
                let (from, to, mut bytes) = self.again(rng, to);
                for _ in 0..=rng.below(4) {
                    // Mostly in the headers, since the rest is one tag to check.
                    let span = if rng.below(2) == 0 { bytes.len().min(64) } else { bytes.len() };
                    bytes[rng.below(span as u64) as usize] ^= 1 << rng.below(8);
                }
                (from, to, bytes)
            }
            6 => (None, to, hello(rng, target)),
            _ => (None, to, self.answer(rng)),
        }
    }

    /// A captured datagram for this target.
    fn again(&self, rng: &mut Rng, to: SocketAddrV4) -> (Option<SocketAddrV4>, SocketAddrV4, Vec<u8>) {
        loop {
            let c = &self.captured[rng.below(self.captured.len() as u64) as usize];
            // Now and then to whom it was not for.
            if c.to == to || rng.below(16) == 0 {
                return ((rng.below(2) == 0).then_some(c.from), to, c.payload.clone());
            }
        }
    }

    /// Well-formed, with a cookie or a header's MAC that is not: RESPONSE, LEAF_REQUEST, a packet by relay.
    fn answer(&self, rng: &mut Rng) -> Vec<u8> {
        let which = rng.below(4);
        let packet = if which == 0 { PacketType::LeafRequest } else { PacketType::Response };
        let choice =
            Choice { version: 1, suite: 1, puzzle: 0, epoch: rng.below(3) as u8, cookie: rng.bytes() };
        let (sid, hello_hash) = (rng.bytes(), rng.bytes());
        let (index, count) = if which == 0 { (0, 1) } else { (rng.below(3) as u8, 3) };
        let header = CookieHeader { packet, index, count, choice, sid, hello_hash, solution: 0 };
        match which {
            0 => LeafRequest { header, hello: [0x41; 64], part: rng.below(24) as u8 }.emit(),
            1 | 2 => {
                let mut bytes = vec![];
                header.emit(&mut bytes);
                bytes.resize_with(SAFE_DATAGRAM, || rng.u64() as u8);
                bytes
            }
            _ => {
                // A slot that was given to somebody, perhaps dead: what RESET answers.
                let slot = 1 << 24 | rng.below(16) as u32;
                let (thread, handle) = (rng.below(3) as u8, rng.below(2) * rng.u64());
                let header =
                    RelayHeader { thread, slot, handle, counter: rng.below(1 << 40), mac: rng.bytes() };
                let mut bytes = header.emit().to_vec();
                bytes.resize_with(32 + rng.below(MOST - 31) as usize, || rng.u64() as u8);
                bytes
            }
        }
    }

    fn frame(&self, from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
        let mut v = [self.macs[0], self.macs[1]].concat();
        v.extend([8, 0, 0x45, 0]);
        v.extend(((28 + payload.len()) as u16).to_be_bytes());
        v.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
        v.extend(from.ip().octets());
        v.extend(to.ip().octets());
        let sum: u32 = v[14..34].chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(c[1])).sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        let check = !((folded & 0xffff) + (folded >> 16)) as u16;
        v[24..26].copy_from_slice(&check.to_be_bytes());
        v.extend(from.port().to_be_bytes());
        v.extend(to.port().to_be_bytes());
        v.extend(((8 + payload.len()) as u16).to_be_bytes());
        // No checksum, as IPv4 allows.
        v.extend([0, 0]);
        v.extend(payload);
        v
    }
}

/// A HELLO such as who knows the target's NodeId sends; now and then to another's.
fn hello(rng: &mut Rng, target: &Target) -> Vec<u8> {
    let (profile, mut node) = target.contact;
    if rng.below(4) == 0 {
        node[0] ^= 1;
    }
    let config = InitiatorConfig {
        contact: Contact::node(&profile, &node),
        leaf: None,
        credential: Credential::Anonymous,
        suites: Suite::ALL.to_vec(),
    };
    Initiator::new(config, Time(0), rng).poll_transmit().expect("a HELLO")
}
