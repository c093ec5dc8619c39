//! Worlds drawn from a number, and played: three nodes or more, a thousand frames or more, rekeys, and what the number
//! says of loss, repeats, reordering, partitions, restarts, late snapshots and revocation.

use crate::cast::{CAST, EPOCH, MAY_BRIDGE, relay_address};
use crate::nat::{Nat, NatKind};
use crate::world::{ETHERNET, Setup, Weather, World, address};
use shadowmesh_proto::{Rng, Time};
use std::net::SocketAddr;
use std::time::Duration;

/// What kind of world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing is lost on the way, whatever is reordered, repeated or added: so no frame may be.
    Calm,
    /// Loss, repeats, reordering, partitions, restarts.
    Rough,
}

/// What happens at some moment.
#[derive(Debug, Clone, Copy)]
enum Happening {
    /// Two nodes cannot reach each other for a while.
    Part(usize, usize, Duration),
    /// One direction only.
    Deafen(usize, usize, Duration),
    /// `kill -9` and a start.
    Restart(usize),
    /// The admin revokes a member.
    Revoke(usize),
    /// `kill -9` the relay, and a start after a while.
    RelayAway(Duration),
    /// The weather changes.
    Weather(Weather),
    /// A link takes smaller packets from now on, and nobody is told.
    Shrink(usize, usize, usize),
    /// Two nodes do not reach each other without the relay for a while: the first not the second, or neither the other.
    CutDirect(usize, usize, bool, Duration),
    /// A node's NATs forget all; the node is told that its network has changed, or not.
    NatRestart(usize, bool),
    /// A node's wall clock is set, by so many seconds.
    ClockJump(usize, i64),
}

/// A drawn world.
#[derive(Debug)]
pub struct Plan {
    seed: u64,
    /// Its kind.
    pub kind: Kind,
    setup: Setup,
    weather: Weather,
    frames: usize,
    pace: Duration,
    happenings: Vec<(usize, Happening)>,
    /// What links take, where it is not what an Ethernet does.
    mtus: Vec<(usize, usize, usize)>,
    /// The same of those between nodes, beside the relay.
    direct_mtus: Vec<(usize, usize, usize)>,
    /// What is before each node.
    nats: Vec<Vec<NatKind>>,
}

/// What came of it.
#[derive(Debug, Default, Clone, Copy)]
pub struct Outcome {
    /// Frames sent and delivered.
    pub sent: u64,
    /// The same.
    pub delivered: u64,
    /// Of them superframes, joined again of what came together.
    pub joined: u64,
    /// Datagrams on the wire.
    pub datagrams: u64,
    /// Replies to a stranger.
    pub replies: u64,
    /// Virtual time, seconds.
    pub seconds: u64,
}

impl Outcome {
    /// Adds another's.
    pub fn add(&mut self, o: &Outcome) {
        self.sent += o.sent;
        self.delivered += o.delivered;
        self.joined += o.joined;
        self.datagrams += o.datagrams;
        self.replies += o.replies;
        self.seconds += o.seconds;
    }
}

impl Plan {
    /// Draws world number `seed`.
    pub fn draw(seed: u64) -> Self {
        let mut bytes = [7; 32];
        bytes[..8].copy_from_slice(&seed.to_be_bytes());
        let mut dice = Rng::from_seed(bytes);
        let ms = Duration::from_millis;
        let kind = if dice.below(3) == 0 { Kind::Calm } else { Kind::Rough };
        let nodes = 3 + dice.below(2) as usize;
        let setup = Setup {
            nodes,
            // Longer than the grace of a replaced session, or shorter.
            rekey: ms(if dice.below(3) == 0 { 6000 + dice.below(2000) } else { 1500 + dice.below(3000) }),
            rekey_both: dice.below(2) == 0,
            lag: ms(if dice.below(2) == 0 { 0 } else { dice.below(60) }),
            refuses: dice.below(3) == 0,
            relayed: dice.below(4) != 0,
            // The fourth may.
            bridge: nodes > 3 && dice.below(2) == 0,
            direct: false,
        };
        let calm = Weather {
            delay: ms(1 + dice.below(40)),
            // Without any, the parts of a superframe arrive together.
            jitter: ms(if dice.below(3) == 0 { 0 } else { dice.below(60) }),
            repeat: dice.below(100),
            attack: dice.below(100),
            ..Weather::CALM
        };
        let rough = |dice: &mut Rng| Weather {
            delay: ms(1 + dice.below(60)),
            jitter: ms(dice.below(50)),
            loss: dice.below(150),
            repeat: dice.below(150),
            attack: dice.below(100),
        };
        let frames = 1000 + dice.below(500) as usize;
        let mut happenings = vec![];
        if kind == Kind::Rough {
            for _ in 0..1 + dice.below(4) {
                let at = dice.below(frames as u64) as usize;
                let (a, b) = pair(&mut dice, nodes);
                let d = ms(200 + dice.below(4000));
                let what = match dice.below(9) {
                    7 | 8 => Happening::Shrink(a, b, link_mtu(&mut dice)),
                    5 | 6 if setup.relayed => Happening::RelayAway(d / 2),
                    0 => Happening::Part(a, b, d),
                    1 => Happening::Deafen(a, b, d),
                    2 => Happening::Restart(a),
                    3 => Happening::Weather(rough(&mut dice)),
                    _ => Happening::Part(a, b, d),
                };
                happenings.push((at, what));
            }
        }
        if dice.below(4) == 0 {
            let at = frames / 2 + dice.below(frames as u64 / 4) as usize;
            happenings.push((at, Happening::Revoke(1 + dice.below(nodes as u64 - 1) as usize)));
        }
        let weather = if kind == Kind::Calm { calm } else { rough(&mut dice) };
        let mtus = (0..nodes).flat_map(|a| (0..nodes).map(move |b| (a, b))).filter(|(a, b)| a != b);
        let mtus = mtus.map(|(a, b)| (a, b, link_mtu(&mut dice))).collect();
        let pace = ms(4 + dice.below(10));
        let direct = setup.relayed && dice.below(2) == 0;
        let setup = Setup { direct, ..setup };
        let (mut nats, mut direct_mtus) = (vec![], vec![]);
        if direct {
            nats = (0..nodes).map(|_| sheltered(&mut dice)).collect();
            let pairs = (0..nodes).flat_map(|b| (0..b).map(move |a| (a, b)));
            direct_mtus = pairs.map(|(a, b)| (a, b, link_mtu(&mut dice))).collect();
            let worse = if kind == Kind::Rough { dice.below(4) } else { 0 };
            for _ in 0..worse {
                let (a, b) = pair(&mut dice, nodes);
                let what = match dice.below(4) {
                    3 => Happening::ClockJump(a, dice.below(7200) as i64 - 3600),
                    0 => Happening::NatRestart(a, dice.below(2) == 0),
                    n => Happening::CutDirect(a, b, n == 1, ms(200 + dice.below(4000))),
                };
                happenings.push((dice.below(frames as u64) as usize, what));
            }
        }
        happenings.sort_by_key(|(at, _)| *at);
        Plan { mtus, direct_mtus, nats, seed, kind, setup, weather, frames, pace, happenings }
    }

    /// The link between two nodes, or the first one's with the relay (the second's, when it is deaf).
    fn ends(&self, a: usize, b: usize) -> (SocketAddr, SocketAddr) {
        match (self.setup.relayed, a < b) {
            (false, _) => (address(a), address(b)),
            (true, true) => (address(a), relay_address()),
            (true, false) => (relay_address(), address(b)),
        }
    }

    /// The same, as both ends see it.
    fn link(&self, a: usize, b: usize) -> (SocketAddr, SocketAddr) {
        let (x, y) = self.ends(a, b);
        (x.min(y), x.max(y))
    }

    /// Plays it.
    ///
    /// # Errors
    /// The invariant that was broken; panics say the same.
    pub fn play(&self) -> Result<Outcome, String> {
        let mut w = World::new(self.seed, self.setup.clone(), self.weather);
        w.trace = std::env::var_os("SIM_TRACE").is_some();
        let mut dice = Rng::from_seed([self.seed as u8; 32]);
        let nodes = self.setup.nodes;
        w.mtu.extend(self.mtus.iter().map(|(a, b, mtu)| (self.link(*a, *b), *mtu)));
        let direct = |(a, b, mtu): &(usize, usize, usize)| ((address(*a), address(*b)), *mtu);
        w.mtu.extend(self.direct_mtus.iter().map(direct));
        for (n, kinds) in self.nats.iter().enumerate() {
            kinds.iter().for_each(|kind| w.shelter(n, *kind));
        }
        let mut revoked = None;
        let mut mend: Vec<(Time, SocketAddr, SocketAddr)> = vec![];
        let mut relay_back = None;
        let mut happenings = self.happenings.iter().peekable();
        if self.kind == Kind::Calm {
            // Only so many frames wait for a session; what must not be lost is what is sent once it stands.
            for (a, b) in (0..nodes).flat_map(|a| (0..nodes).map(move |b| (a, b))).filter(|(a, b)| a != b) {
                w.send(a, b, 100);
            }
            w.run(Duration::from_secs(3));
        }
        for i in 0..self.frames {
            while let Some((_, what)) = happenings.next_if(|(at, _)| *at <= i) {
                match *what {
                    Happening::Part(a, b, d) => {
                        for (x, y) in [(a, b), (b, a)] {
                            let (x, y) = self.ends(x, y);
                            w.cut.insert((x, y));
                            mend.push((w.now + d, x, y));
                        }
                    }
                    Happening::Deafen(a, b, d) => {
                        let (x, y) = self.ends(a, b);
                        w.cut.insert((x, y));
                        mend.push((w.now + d, x, y));
                    }
                    Happening::RelayAway(d) => {
                        w.kill_relay();
                        relay_back = Some(w.now + d);
                    }
                    Happening::Restart(n) => w.restart(n),
                    Happening::Revoke(n) => {
                        let (now, seq) = (w.now, w.nodes[0].endpoint.node.roster().next_seq());
                        w.nodes[0].endpoint.node.add_fact(now, CAST.tombstone(n, seq));
                        w.nodes[0].endpoint.settle(now);
                        // One that heard of its end would stop by itself, and prove nothing of the others.
                        if !self.seed.is_multiple_of(4) {
                            w.deaf.insert(address(n));
                        }
                        w.drain(0);
                        revoked = Some(n);
                    }
                    Happening::CutDirect(a, b, both, d) => {
                        for (x, y) in [(a, b), (b, a)].into_iter().take(1 + usize::from(both)) {
                            w.cut.insert((address(x), address(y)));
                            mend.push((w.now + d, address(x), address(y)));
                        }
                    }
                    Happening::NatRestart(n, told) => {
                        w.nats.get_mut(&n).into_iter().flatten().for_each(Nat::restart);
                        if told {
                            let now = w.now;
                            w.nodes[n].endpoint.node.network_changed(now);
                            w.nodes[n].endpoint.settle(now);
                            w.drain(n);
                        }
                    }
                    Happening::ClockJump(n, seconds) => {
                        let (now, clock) = (w.now, EPOCH as i64 + w.now.0 as i64 / 1_000_000_000);
                        w.nodes[n].endpoint.node.set_wall(now, (clock + seconds) as u64);
                        w.nodes[n].endpoint.settle(now);
                        w.drain(n);
                    }
                    Happening::Weather(weather) => w.weather = weather,
                    Happening::Shrink(a, b, mtu) => {
                        let link = self.link(a, b);
                        let before = w.mtu.get(&link).copied().unwrap_or(ETHERNET);
                        w.mtu.insert(link, mtu.min(before));
                    }
                }
            }
            let now = w.now;
            mend.retain(|(at, a, b)| {
                let done = *at <= now;
                if done {
                    w.cut.remove(&(*a, *b));
                }
                !done
            });
            if relay_back.is_some_and(|at| at <= now) {
                relay_back = None;
                w.start_relay();
            }
            let (a, b) = pair(&mut dice, nodes);
            let len = 60 + dice.below(1455) as usize;
            let macs = [a, b].map(|n| self.speaker(&mut dice, n));
            let stands = w.nodes[a]
                .endpoint
                .node
                .peer_status()
                .iter()
                .any(|p| p.node == w.nodes[b].id && p.route.is_some());
            if dice.below(16) == 0 {
                w.send_all(a, macs[0], len);
            } else if stands && dice.below(20) == 0 {
                // More of them than wait for a session, so only where one stands.
                w.send_super(a, b, 1 + dice.below(30_000) as usize);
            } else {
                w.send_between(a, b, macs, len);
            }
            w.run(Duration::from_nanos(dice.below(2 * self.pace.as_nanos() as u64)));
        }
        if relay_back.is_some() {
            w.start_relay();
        }
        self.settle(&mut w, revoked)?;
        Ok(Outcome {
            sent: w.judge.count(),
            delivered: w.judge.delivered,
            joined: w.joined,
            datagrams: w.datagrams,
            replies: w.replies,
            seconds: w.now.0 / 1_000_000_000,
        })
    }

    /// A stream begins that fills its datagrams: does it get through within a second, whatever the links have become?
    fn large_arrive(&self, w: &mut World, a: usize, b: usize) -> bool {
        let mut last = [0; 2];
        for _ in 0..8 {
            // One whose two fragments would fit any link proves nothing.
            last = [w.send(a, b, 1300), w.send_super(a, b, 5_000)];
            w.run(Duration::from_millis(125));
        }
        last.iter().all(|n| w.judge.arrived(*n))
    }

    /// A direct path ends, in one direction or in both: do frames arrive again within a second, by the relay?
    fn outlives_its_path(&self, w: &mut World, a: usize, b: usize) -> bool {
        let ways = [(address(a), address(b)), (address(b), address(a))];
        w.cut.extend([&ways[..1], &ways[1..], &ways[..]][self.seed as usize % 3]);
        let mut last = [0; 2];
        for _ in 0..50 {
            last = [w.send(a, b, 300), w.send(b, a, 300)];
            w.run(Duration::from_millis(20));
        }
        w.run(Duration::from_millis(50));
        w.cut.clear();
        last.iter().all(|n| w.judge.arrived(*n))
    }

    /// Are there hosts behind this node?
    fn bridges(&self, n: usize) -> bool {
        self.setup.bridge && !MAY_BRIDGE[n].is_empty()
    }

    /// Who speaks at a node: itself, or a host behind it.
    fn speaker(&self, dice: &mut Rng, n: usize) -> [u8; 6] {
        match self.bridges(n).then(|| dice.below(6)) {
            Some(i @ 0..3) => host(i as u8),
            _ => CAST.members[n].id.mac(),
        }
    }

    /// The network heals; then everyone reaches everyone, and nothing is held that should not be.
    fn settle(&self, w: &mut World, revoked: Option<usize>) -> Result<(), String> {
        w.run(Duration::from_secs(1));
        if self.kind == Kind::Calm {
            // What a revoked member sent, or was sent, is not owed to anybody.
            let owed = |(_, a, b): &(u64, usize, usize)| Some(*a) != revoked && Some(*b) != revoked;
            let lost: Vec<_> = w.judge.missing().into_iter().filter(owed).collect();
            if !lost.is_empty() {
                return Err(format!("I2: {} frames lost, first {:?}; {}", lost.len(), lost[0], w.drops()));
            }
        }
        w.cut.clear();
        w.weather = Weather::CALM;
        w.run(Duration::from_secs(4));
        for a in 0..self.setup.nodes {
            for b in 0..self.setup.nodes {
                if a == b {
                    continue;
                }
                let mut sent = vec![w.send(a, b, 100)];
                w.run(Duration::from_secs(3));
                if self.bridges(a) || self.bridges(b) {
                    let macs =
                        [a, b].map(|n| if self.bridges(n) { host(0) } else { CAST.members[n].id.mac() });
                    sent.push(w.send_between(a, b, macs, 100));
                    w.run(Duration::from_secs(1));
                }
                let stands = Some(a) != revoked && Some(b) != revoked;
                if stands && !sent.iter().all(|n| w.judge.arrived(*n)) {
                    return Err(format!("I4: {a} does not reach {b}; {} {:?}", w.drops(), w.events));
                }
                if stands && !self.large_arrive(w, a, b) {
                    return Err(format!("I7: {a} sends nothing large to {b}; {}", w.drops()));
                }
                if !stands && sent.iter().any(|n| w.judge.arrived(*n)) {
                    return Err(format!("I3: {a} reaches {b} although {revoked:?} is revoked"));
                }
            }
        }
        for a in 0..self.setup.nodes {
            for b in a + 1..self.setup.nodes {
                let stand = Some(a) != revoked && Some(b) != revoked;
                if self.setup.direct && stand && w.is_direct(a, b) && !self.outlives_its_path(w, a, b) {
                    return Err(format!(
                        "I8: {a} and {b} do not leave a dead path; {} {:?}",
                        w.drops(),
                        w.events
                    ));
                }
            }
        }
        for (i, n) in w.nodes.iter().enumerate() {
            let (reassembly, asked, answered) = n.endpoint.node.held_for_strangers();
            if reassembly > 256 || asked > 128 || answered > 1024 {
                return Err(format!("I6: node {i} holds {reassembly}, {asked}, {answered} for strangers"));
            }
        }
        Ok(())
    }
}

/// What is before a node.
fn sheltered(dice: &mut Rng) -> Vec<NatKind> {
    let kind = NatKind::ALL[dice.below(4) as usize];
    match dice.below(4) {
        0 => vec![],
        1 => vec![NatKind::PORT_RESTRICTED, kind],
        _ => vec![kind],
    }
}

/// What a link takes: IP packets, bytes.
fn link_mtu(dice: &mut Rng) -> usize {
    match dice.below(7) {
        0 => 1280,
        1 => 1280 + dice.below(300) as usize,
        2 => 1400,
        3 => 1492,
        4 => 9000,
        _ => ETHERNET,
    }
}

/// A host on a LAN.
fn host(i: u8) -> [u8; 6] {
    [0x02, 0, 0x5e, 0, 0, i + 1]
}

fn pair(dice: &mut Rng, nodes: usize) -> (usize, usize) {
    let a = dice.below(nodes as u64) as usize;
    let b = (a + 1 + dice.below(nodes as u64 - 1) as usize) % nodes;
    (a, b)
}
