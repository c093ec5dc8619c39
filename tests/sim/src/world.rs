//! Virtual time and the network between the nodes.

mod links;
mod starts;

use crate::cast::{EPOCH, STAGE, relay_address};
use crate::guest::{self, Judge};
use crate::nat::Nat;
use links::{FIRST_SOCKET, stranger, told};
use shadowmesh_crypto::aead::Suite;
use shadowmesh_crypto::secret::Secret;
use shadowmesh_proto::join::{Joiner, Registrar};
use shadowmesh_proto::superframe::VnetHeader;
use shadowmesh_proto::{Endpoint, Event, OneThread, OwnKeys, Rng, Route, Time, Up};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

/// A card tells of arrivals so often, in nanoseconds: what came meanwhile is one batch.
const ARRIVES_TOGETHER: u64 = 250_000;

/// What a device gives at most: superframes of half the size that they could have.
const LARGEST_FRAME: usize = 32_000;

/// IPv4 and UDP headers (RFC 791, RFC 768).
const HEADERS: usize = 20 + 8;
/// What a link takes that nothing else is said of: IP packets, bytes.
pub const ETHERNET: usize = 1500;

/// How every link behaves.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    /// Least one-way delay.
    pub delay: Duration,
    /// Drawn on top, for each datagram: reorders.
    pub jitter: Duration,
    /// Lost, in thousandths.
    pub loss: u64,
    /// Repeated, in thousandths.
    pub repeat: u64,
    /// Copied by an attacker, in thousandths: a bit flipped, sent again later or from elsewhere, or sent ahead of the
    /// true one. It takes nothing away, so nothing may be lost by it.
    pub attack: u64,
}

impl Weather {
    /// A network that loses and reorders nothing.
    pub const CALM: Weather =
        Weather { delay: Duration::from_millis(5), jitter: Duration::ZERO, loss: 0, repeat: 0, attack: 0 };
}

/// A node of the world.
pub struct SimNode {
    /// The shipped core.
    pub endpoint: Endpoint<OneThread>,
    /// Where it is.
    pub address: SocketAddr,
    /// Who it is.
    pub id: shadowmesh_identity::NodeId,
    stored_facts: Vec<Vec<u8>>,
    stored_keys: OwnKeys,
}

/// Something on its way.
struct Flight {
    from: SocketAddr,
    to: SocketAddr,
    bytes: Vec<u8>,
}

/// What a world's nodes are configured with.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Members of the cast, from the first.
    pub nodes: usize,
    /// Between rekeys.
    pub rekey: Duration,
    /// Both ends rekey at once.
    pub rekey_both: bool,
    /// Snapshots are that late.
    pub lag: Duration,
    /// A machine is told at once that a datagram of its own is larger than its link; else nobody is told of any.
    pub refuses: bool,
    /// Everything goes by a relay; else every node knows the others' addresses.
    pub relayed: bool,
    /// Whose certificate allows it bridges.
    pub bridge: bool,
    /// Nodes look for paths without the relay.
    pub direct: bool,
}

impl Setup {
    /// The product's own defaults, and snapshots that are never late.
    pub fn plain(nodes: usize, relayed: bool) -> Self {
        let rekey = Duration::from_secs(120);
        Setup {
            nodes,
            rekey,
            rekey_both: false,
            lag: Duration::ZERO,
            refuses: false,
            relayed,
            bridge: false,
            direct: false,
        }
    }
}

/// The relay of the world.
struct SimRelay {
    /// `None` while it is down.
    core: Option<shadowmesh_relay_core::Relay>,
    stored: Vec<u8>,
}

/// A world.
pub struct World {
    /// Virtual time.
    pub now: Time,
    /// The world's dice.
    pub rng: Rng,
    /// The nodes.
    pub nodes: Vec<SimNode>,
    /// What is between a node and all else, the nearest first.
    pub nats: HashMap<usize, Vec<Nat>>,
    /// Nodes that reach each other by their own addresses, whatever is between them and all else: pairs of them.
    pub lan: HashSet<(usize, usize)>,
    /// From which of a node's other sockets an address is sent to.
    sockets: HashMap<(usize, SocketAddr), SocketAddr>,
    relay: Option<SimRelay>,
    /// Machines that are joining, and where they are.
    pub joiners: Vec<(SocketAddr, Joiner)>,
    /// How links behave now.
    pub weather: Weather,
    /// Pairs of addresses that cannot reach each other now.
    pub cut: HashSet<(SocketAddr, SocketAddr)>,
    /// Registered access secrets are not told to the node that asked: it was killed in between.
    pub rotations_unsaid: bool,
    /// Largest IP packet of a link, both ways, where it is not [`ETHERNET`].
    pub mtu: HashMap<(SocketAddr, SocketAddr), usize>,
    /// How long a link takes more than the weather says, one way.
    pub delay: HashMap<(SocketAddr, SocketAddr), Duration>,
    /// Who hears nothing from now on.
    pub deaf: HashSet<SocketAddr>,
    /// Of the numbered frames.
    pub judge: Judge,
    /// Superframes that were joined again.
    pub joined: u64,
    setup: Setup,
    flights: BinaryHeap<Reverse<(Time, u64)>>,
    in_flight: HashMap<u64, Flight>,
    next_flight: u64,
    /// Refused, and not told yet: from where, where to, length.
    too_big: Vec<(SocketAddr, SocketAddr, usize)>,
    /// Receiver (address and handle), index, counter.
    seen: HashSet<(SocketAddr, u64, u32, u64)>,
    /// What happened, by node.
    pub events: Vec<(usize, String)>,
    /// Datagrams for which it says yes are lost: from where, and what.
    pub filter: Option<fn(SocketAddr, &[u8]) -> bool>,
    counts: HashMap<(SocketAddr, u8), u64>,
    /// Datagrams that a node has sent to an address.
    heard_at: HashMap<(usize, std::net::IpAddr), u64>,
    /// When a datagram of one came to another, the first since this was cleared.
    pub first: HashMap<(SocketAddr, SocketAddr), Time>,
    /// Frames that came out and are not numbered: where, and what.
    pub taken: Vec<(usize, Vec<u8>)>,
    /// Print what is sent and lost.
    pub trace: bool,
    /// Datagrams that were sent.
    pub datagrams: u64,
    /// Replies that the stranger got.
    pub replies: u64,
    /// Of the length of the stranger's datagram that is being handled, what no answer has used up.
    unanswered: Option<usize>,
}

impl World {
    fn drain_relay(&mut self) {
        let Some(r) = &mut self.relay else { return };
        let Some(core) = &mut r.core else { return };
        while let Some(event) = core.poll_event() {
            if let shadowmesh_relay_core::Event::Save { state, .. } = event {
                r.stored = state.to_vec();
            }
        }
        let out: Vec<_> = std::iter::from_fn(|| core.poll_transmit()).collect();
        for (to, bytes) in out {
            self.launch(relay_address(), to.remote, bytes);
        }
    }

    /// Clients of the relay: of the network, and others (those with a former access secret among them).
    pub fn relay_clients(&self) -> (usize, usize) {
        self.relay
            .as_ref()
            .and_then(|r| r.core.as_ref())
            .map(shadowmesh_relay_core::Relay::clients)
            .unwrap_or_default()
    }

    /// Does a node send to another without the relay?
    pub fn is_direct(&self, from: usize, to: usize) -> bool {
        let status = self.nodes[from].endpoint.node.peer_status();
        status.iter().any(|p| p.node == self.nodes[to].id && matches!(p.route, Some(Route::Udp(_))))
    }

    fn relay_deadline(&self) -> Option<Time> {
        self.relay.as_ref()?.core.as_ref()?.poll_timeout()
    }

    /// One node's device gives a numbered frame for another.
    pub fn send(&mut self, from: usize, to: usize, len: usize) -> u64 {
        let macs = [from, to].map(|n| self.nodes[n].id.mac());
        self.send_between(from, to, macs, len)
    }

    /// The same between hosts behind them, or a host and a node: by their MACs.
    pub fn send_between(&mut self, from: usize, to: usize, macs: [[u8; 6]; 2], len: usize) -> u64 {
        let (n, frame) = self.judge.send(from, vec![to], macs, len);
        self.inject(from, &frame);
        n
    }

    /// A group frame, to all.
    pub fn send_all(&mut self, from: usize, src: [u8; 6], len: usize) -> u64 {
        let to = (0..self.nodes.len()).filter(|n| *n != from).collect();
        let (n, frame) = self.judge.send(from, to, [src, [0x33, 0x33, 0, 0, 0, 1]], len);
        self.inject(from, &frame);
        n
    }

    /// A TCP superframe with so many bytes of payload, at most 30,000.
    pub fn send_super(&mut self, from: usize, to: usize, len: usize) -> u64 {
        let macs = [from, to].map(|n| self.nodes[n].id.mac());
        let ends = [from, to].map(|n| std::net::Ipv4Addr::new(10, 83, 1, n as u8 + 1));
        let (n, frame, vnet) = self.judge.send_super(from, to, macs, ends, len);
        self.inject_left(from, &frame, Some(vnet));
        n
    }

    /// One node's device gives a frame.
    pub fn inject(&mut self, node: usize, frame: &[u8]) {
        self.inject_left(node, frame, None);
    }

    /// And what is left to do for it.
    pub fn inject_left(&mut self, node: usize, frame: &[u8], vnet: Option<VnetHeader>) {
        let now = self.now;
        let mut out = vec![];
        let e = &mut self.nodes[node].endpoint;
        assert!(e.data.tx.batch().push(frame, vnet), "a frame larger than a device gives");
        e.seal(now, |batch| out.extend(batch.datagrams().map(|(to, bytes)| (to, bytes.to_vec()))));
        for (to, bytes) in out {
            self.send_datagram(node, to, bytes);
        }
        self.drain(node);
    }

    /// Takes over what a node wants done.
    pub fn drain(&mut self, n: usize) {
        loop {
            while let Some(event) = self.nodes[n].endpoint.poll_event() {
                let node = &mut self.nodes[n];
                match event {
                    Event::SaveRoster => {
                        node.stored_facts = node.endpoint.node.facts().map(<[u8]>::to_vec).collect();
                    }
                    Event::SaveKeys => node.stored_keys = node.endpoint.node.own_keys(),
                    Event::Rotate { relay, owner, access, .. } => {
                        let copy = access.duplicate();
                        if self.register(n, owner, copy) && !self.rotations_unsaid {
                            let now = self.now;
                            self.nodes[n].endpoint.node.rotated(now, &relay, access);
                            self.nodes[n].endpoint.settle(now);
                        }
                    }
                    Event::Punch { to, packets } => {
                        self.sockets.retain(|(node, other), _| (*node, *other) != (n, to));
                        for (i, bytes) in packets.into_iter().enumerate() {
                            self.launch(SocketAddr::new(address(n).ip(), FIRST_SOCKET + i as u16), to, bytes);
                        }
                    }
                    other => self.events.push((n, format!("{:.2} {other:?}", self.now.0 as f64 / 1e9))),
                }
            }
            let now = self.now;
            self.refuse(n);
            while let Some((to, bytes)) = self.nodes[n].endpoint.poll_transmit() {
                self.send_datagram(n, to, bytes);
                self.refuse(n);
            }
            while let Some(frame) = self.nodes[n].endpoint.poll_frame() {
                self.delivered(n, &frame);
            }
            match self.nodes[n].endpoint.poll_work() {
                Some(work) => self.nodes[n].endpoint.handle_work(now, work.run()),
                None => break,
            }
        }
    }

    /// Tells a node which of its datagrams were too large for their links.
    fn refuse(&mut self, n: usize) {
        let now = self.now;
        for (from, to, len) in std::mem::take(&mut self.too_big) {
            if from == address(n) {
                self.nodes[n].endpoint.handle_up(now, Up::TooBig(to, len));
            }
        }
    }

    /// The errand of a node at the relay, in no time, if the two can reach each other.
    fn register(&mut self, n: usize, owner: Secret<32>, access: Secret<32>) -> bool {
        let (now, from, seed) = (self.now, SocketAddr::from(([192, 0, 2, 201], 4000)), self.rng.bytes());
        let ways = [(address(n), relay_address()), (relay_address(), address(n))];
        let Some(core) = self.relay.as_mut().and_then(|r| r.core.as_mut()) else { return false };
        if ways.iter().any(|w| self.cut.contains(w)) {
            return false;
        }
        let suites = vec![Suite::ChaCha20Poly1305];
        let secrets = (owner, access);
        let mut registrar =
            Registrar::rotate(STAGE.relay, relay_address(), secrets, suites, now, EPOCH, seed);
        let mut others = vec![];
        let outcome = loop {
            registrar.handle_timeout(now);
            while let Some((_, bytes)) = registrar.poll_transmit() {
                core.handle_datagram(now, from, &bytes);
            }
            while let Some((to, mut bytes)) = core.poll_transmit() {
                if to.remote == from {
                    registrar.handle_datagram(now, relay_address(), &mut bytes);
                } else {
                    others.push((to, bytes));
                }
            }
            while let Some(work) = registrar.poll_work() {
                registrar.handle_work(now, work.run());
            }
            if let Some(outcome) = registrar.outcome() {
                break outcome;
            }
        };
        for (to, bytes) in others {
            self.launch(relay_address(), to.remote, bytes);
        }
        self.drain_relay();
        outcome.is_ok()
    }

    fn delivered(&mut self, n: usize, frame: &[u8]) {
        if guest::number(frame).is_none() {
            self.taken.push((n, frame.to_vec()));
        }
        let sender = self.judge.deliver(n, frame).unwrap_or_else(|broken| panic!("{broken}"));
        let src = |s: &SimNode| frame.get(6..12) == Some(&s.id.mac()[..]);
        if let Some(s) = sender.or_else(|| self.nodes.iter().position(src)) {
            let id = self.nodes[s].id;
            let node = &self.nodes[n].endpoint.node;
            let valid = node.roster().is_valid(&id, node.unix(self.now));
            assert!(valid.is_ok(), "I3: node {n} took a frame of node {s}, whose tombstone it holds");
        }
    }

    /// A machine begins to join; gives its number.
    pub fn join(&mut self, joiner: Joiner) -> usize {
        let n = self.joiners.len();
        self.joiners.push((SocketAddr::from(([192, 0, 2, 100 + n as u8], 4000)), joiner));
        self.drain_joiner(n);
        n
    }

    fn drain_joiner(&mut self, n: usize) {
        let now = self.now;
        loop {
            let (address, j) = &mut self.joiners[n];
            let from = *address;
            if let Some((to, bytes)) = j.poll_transmit() {
                self.launch(from, to, bytes);
            } else if let Some(work) = j.poll_work() {
                j.handle_work(now, work.run());
            } else {
                return;
            }
        }
    }

    /// When the next thing happens.
    fn next(&self) -> Option<Time> {
        let flight = self.flights.peek().map(|Reverse((at, _))| *at);
        self.nodes
            .iter()
            .filter_map(|n| n.endpoint.first_deadline())
            .chain(flight)
            .chain(self.relay_deadline())
            .min()
    }

    /// Plays until a moment.
    pub fn run_until(&mut self, end: Time) {
        let mut idle = 0;
        while let Some(at) = self.next().filter(|at| *at <= end) {
            idle = if at <= self.now { idle + 1 } else { 0 };
            assert!(idle < 10_000, "time stands still: {:?}", self.timers());
            self.now = self.now.max(at);
            while let Some(Reverse((at, id))) = self.flights.peek().copied() {
                if at > self.now {
                    break;
                }
                self.flights.pop();
                if let Some(f) = self.in_flight.remove(&id) {
                    let more = self.with_it(&f);
                    self.arrive(f, more);
                }
            }
            for n in 0..self.joiners.len() {
                let now = self.now;
                if self.joiners[n].1.deadline().is_some_and(|d| d <= now) {
                    self.joiners[n].1.handle_timeout(now);
                    self.drain_joiner(n);
                }
            }
            if self.relay_deadline().is_some_and(|d| d <= self.now) {
                let now = self.now;
                if let Some(core) = self.relay.as_mut().and_then(|r| r.core.as_mut()) {
                    core.handle_timeout(now);
                }
                self.drain_relay();
            }
            for n in 0..self.nodes.len() {
                if self.nodes[n].endpoint.first_deadline().is_some_and(|d| d <= self.now) {
                    let now = self.now;
                    self.nodes[n].endpoint.handle_all_timeouts(now);
                    self.drain(n);
                }
            }
        }
        self.now = self.now.max(end);
    }

    /// What arrives at the same node at the same moment, right behind: the kernel gives it in one batch.
    fn with_it(&mut self, f: &Flight) -> Vec<Flight> {
        let mut more = vec![];
        let node = f.to != relay_address() && self.joiners.iter().all(|(a, _)| *a != f.to);
        while node && more.len() < 63 && f.from != stranger() {
            let Some(Reverse((at, id))) = self.flights.peek().copied() else { break };
            let next = |n: &&Flight| at <= self.now && n.to == f.to && n.from != stranger();
            if self.in_flight.get(&id).filter(next).is_none() {
                break;
            }
            self.flights.pop();
            more.extend(self.in_flight.remove(&id));
        }
        more
    }

    fn timers(&self) -> Vec<String> {
        self.nodes.iter().map(|n| format!("{:?}", n.endpoint.node.poll_timeout())).collect()
    }

    /// Plays for a while.
    pub fn run(&mut self, d: Duration) {
        self.run_until(self.now + d);
    }

    fn arrive(&mut self, f: Flight, more: Vec<Flight>) {
        let mut all = std::iter::once(f).chain(more).filter_map(|f| {
            let to = self.inward(f.from, f.to)?;
            Some(Flight { to, ..f })
        });
        if let Some(first) = all.next() {
            let more: Vec<Flight> = all.collect();
            self.arrive_inside(first, more);
        }
    }

    fn arrive_inside(&mut self, mut f: Flight, more: Vec<Flight>) {
        let now = self.now;
        if let Some(n) = self.node_at(f.to).filter(|n| address(*n) != f.to) {
            // By one of its other sockets.
            self.sockets.insert((n, f.from), f.to);
            f.to = address(n);
        }
        self.unanswered = (f.from == stranger()).then_some(f.bytes.len());
        if self.deaf.contains(&f.to) {
            return;
        }
        for f in std::iter::once(&f).chain(&more) {
            self.first.entry((f.from, f.to)).or_insert(now);
        }
        if f.to == relay_address() {
            let Some(core) = self.relay.as_mut().and_then(|r| r.core.as_mut()) else { return };
            let to = core.handle_in_place(now, f.from, &mut f.bytes);
            if self.trace {
                let drops =
                    core.metrics().drops.nonzero().map(|(r, c)| format!("{r}={c}")).collect::<Vec<_>>();
                println!("{:8.3} relay took {} drops {drops:?}", now.0 as f64 / 1e9, told(&f.bytes));
            }
            if let Some(to) = to {
                self.launch(relay_address(), to.remote, f.bytes);
            }
            self.drain_relay();
            return;
        }
        if let Some(n) = self.joiners.iter().position(|(a, _)| *a == f.to) {
            self.joiners[n].1.handle_datagram(now, f.from, &mut f.bytes);
            self.drain_joiner(n);
            return;
        }
        let Some(n) = self.nodes.iter().position(|n| n.address == f.to) else { return };
        let now = self.now;
        let mut frames = vec![];
        let before = if self.trace { self.drops() } else { String::new() };
        let e = &mut self.nodes[n].endpoint;
        e.data.rx.batch().join(true);
        for f in std::iter::once(&f).chain(&more) {
            e.data.rx.batch().push(f.from, &f.bytes);
        }
        let mut joined = 0;
        e.open(now, |frame| {
            joined += u64::from(frame.parts().next().is_some());
            frames.extend(frame.plain());
        });
        self.joined += joined;
        if self.trace && self.drops() != before {
            let (what, len) = (told(&f.bytes), f.bytes.len());
            println!("{:8.3} {n} drops {what} {len} B from {}: {}", now.0 as f64 / 1e9, f.from, self.drops());
        }
        for frame in frames {
            self.delivered(n, &frame);
        }
        self.drain(n);
    }

    /// Every drop of every node, for a failure's message.
    pub fn drops(&self) -> String {
        let one = |n: &SimNode| {
            n.endpoint.drops().nonzero().map(|(r, c)| format!("{r}={c}")).collect::<Vec<_>>().join(" ")
        };
        self.nodes.iter().enumerate().map(|(i, n)| format!("[{i}] {}", one(n))).collect::<Vec<_>>().join("; ")
    }
}

/// Where node `n` is.
pub fn address(n: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n as u8 + 1], 4000))
}
