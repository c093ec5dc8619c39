//! `make hostile`, issue line 10: strangers flood a relay and two clients, the shipped programs, beside a session of 10,000
//! datagrams a second between the clients.
//!
//! ```text
//!   core 1: relay, both clients              core 0: the stranger; the session's ends and the watchers, first in line
//!
//!   one -- net -- two          The stranger is on a wire of its own, sends from any address, the clients' and the
//!          / \                 relay's included, and sees what is sent to addresses that nobody has.
//!        vps  stranger
//! ```
//!
//! Runs are paired: in every second one the stranger keeps its core as busy and sends nothing. `HOSTILE_SECONDS` is for each
//! kind, in all; `HOSTILE_ROUNDS` how many runs that makes; `HOSTILE_RATE` the session's; `HOSTILE_KIND` (0 to 7, of
//! `deck::KINDS`) leaves one kind of datagrams of the mix.

mod deck;
mod session;
mod stranger;

use crate::deck::{Captured, Dealer, KINDS, Target, capture};
use crate::session::{Counted, Session, newcomers};
use crate::stranger::{Replies, Stranger};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::{Pid, gettid};
use shadowmesh_identity::{NetworkId, NodeId, RelayUrl};
use shadowmesh_netns_tests::{
    Evening, Host, Lab, Machine, Measured, cpu, make_relay, metrics, rss, spawn_relay, udp_arrived,
    wait_for_relay, wait_until,
};
use shadowmesh_proto::Rng;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Where the product runs.
const PRODUCT_CORE: usize = 1;
/// Where all else does.
const SPARE_CORE: usize = 0;
const HTTP: &str = "127.0.0.1:9464";
const RELAY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 2), 443);
const OWN: Ipv4Addr = Ipv4Addr::new(198, 51, 9, 2);

fn main() {
    let number = |key: &str, or: u64| std::env::var(key).ok().and_then(|s| s.parse().ok()).unwrap_or(or);
    let (seconds, rounds) = (number("HOSTILE_SECONDS", 60), number("HOSTILE_ROUNDS", 6));
    let rate = number("HOSTILE_RATE", 10_000);
    // Children inherit it: the product is where this thread is.
    on_core(PRODUCT_CORE, false);
    let scene = Scene::new();
    // Linux shares a core among login sessions first, and only within one of them by niceness (sched(7), autogroup).
    for (_, pid) in scene.products() {
        let group = format!("/proc/{pid}/autogroup");
        if std::fs::exists(&group).unwrap_or(false) {
            // One change in a tenth of a second is taken.
            wait_until("its place in line", Duration::from_secs(5), || std::fs::write(&group, "-15").ok());
        }
    }
    let mut hostile = Hostile::new(&scene, rate);
    let each = Duration::from_millis(seconds * 1000 / rounds);
    for round in 1..=rounds {
        hostile.round(round, each);
    }
    let held = hostile.report();
    drop(scene);
    if !held {
        std::process::exit(1);
    }
}

/// Pins the thread that calls, and what it starts. Whatever else runs on the machine is behind all of this; on the spare
/// core the stranger is behind the session's ends and the watchers.
fn on_core(core: usize, stranger: bool) {
    let mut set = CpuSet::new();
    set.set(core).expect("a core");
    sched_setaffinity(Pid::from_raw(0), &set).expect("this needs two cores");
    let (thread, nice) = (gettid().to_string(), if stranger { "-10" } else { "-15" });
    let said = Command::new("renice").args(["-n", nice, "-p", &thread]).output();
    assert!(said.is_ok_and(|o| o.status.success()), "renice did not work");
}

/// The network, with nothing between the stranger and anybody.
struct Scene {
    evening: Evening,
    net: Host,
    stranger: Host,
    /// The stranger's interface, and the router's towards it.
    wire: [String; 2],
    captured: Vec<Captured>,
}

impl Scene {
    fn new() -> Scene {
        let mut lab = Lab::new("hostile");
        let (net, vps, stranger) = (lab.router("net"), lab.host("vps"), lab.host("stranger"));
        lab.wire(&vps, &["203.0.113.2/24"], &net, &["203.0.113.1/24"]);
        vps.default_route("203.0.113.1");
        let mut machines = vec![];
        for (i, name) in ["one", "two"].into_iter().enumerate() {
            let host = lab.host(name);
            lab.wire(&host, &[&format!("198.51.{i}.2/24")], &net, &[&format!("198.51.{i}.1/24")]);
            host.default_route(&format!("198.51.{i}.1"));
            machines.push(Machine { host, directory: lab.directory().join(name), environment: vec![] });
        }
        let wire = lab.wire(&stranger, &["198.51.9.2/24"], &net, &["198.51.9.1/24"]);
        // Whoever is asked for of these, it is the stranger.
        net.ip("route add 10.0.0.0/8 via 198.51.9.2");
        for interface in ["all", "default", &wire.b] {
            net.sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"), "0");
        }
        // Its kernel stays silent about what is sent to it.
        stranger.nft("table ip quiet {\n chain in {\n  type filter hook input priority 0; ip protocol udp drop\n }\n}\n");
        let state = lab.directory().join("relay").display().to_string();
        let urls = make_relay(&vps, &state, "203.0.113.2");
        let relay_arguments = vec!["--http".to_owned(), HTTP.to_owned()];
        let relay = spawn_relay(&vps, &state, &relay_arguments);
        wait_for_relay(&vps);
        let evening =
            Evening { machines, vps, state, relay, urls, relay_arguments, line: None, routers: vec![], lab };
        // All of the handshakes, with the traffic after them.
        let stop = AtomicBool::new(false);
        let captured = std::thread::scope(|scope| {
            let capture = scope.spawn(|| {
                on_core(SPARE_CORE, false);
                capture(&net, &stop)
            });
            evening.network("home");
            stop.store(true, Ordering::Relaxed);
            capture.join().expect("the capture")
        });
        Scene { evening, net, stranger, wire: [wire.a, wire.b], captured }
    }

    /// Relay and clients: name and process.
    fn products(&self) -> Vec<(String, u32)> {
        let relay = ("relay".to_owned(), self.evening.relay.id());
        let client = |m: &Machine| {
            m.processes().into_iter().map(|p| (m.host.name().to_owned(), p)).collect::<Vec<_>>()
        };
        std::iter::once(relay).chain(self.evening.machines.iter().flat_map(client)).collect()
    }

    /// Everybody, and what it takes to speak to them.
    fn targets(&self) -> Vec<Target> {
        let url: RelayUrl = self.evening.urls[0].parse().expect("a relay's URL");
        let mut targets = vec![Target { address: RELAY, contact: (url.relay.0, url.relay.0) }];
        for (i, machine) in self.evening.machines.iter().enumerate() {
            let status = &machine.json(&["status"])["networks"][0];
            let text = |key: &str| status[key].as_str().unwrap_or_default().to_owned();
            let network: NetworkId = text("id").parse().expect("a network id");
            let node: NodeId = text("node").parse().expect("a NodeId");
            let listen = status["listen"].to_string();
            let port =
                listen.split("0.0.0.0:").nth(1).and_then(|r| r.split(|c: char| !c.is_ascii_digit()).next());
            let port = port.and_then(|p| p.parse().ok()).unwrap_or_else(|| panic!("no port: {listen}"));
            let address = SocketAddrV4::new(Ipv4Addr::new(198, 51, i as u8, 2), port);
            targets.push(Target { address, contact: (network.0, node.0) });
        }
        targets
    }
}

/// What is measured.
struct Hostile<'a> {
    scene: &'a Scene,
    session: Session,
    stranger: Stranger,
    targets: Vec<Target>,
    macs: [[u8; 6]; 2],
    rng: Rng,
    rate: u64,
    kinds: Vec<usize>,
    before: Vec<f64>,
    calm: Counted,
    flooded: Counted,
    sent: u64,
    took: Duration,
    replies: Replies,
    arrived: f64,
    read: f64,
    newcomers: Vec<Option<f64>>,
}

impl Hostile<'_> {
    fn new(scene: &Scene, rate: u64) -> Hostile<'_> {
        let m = &scene.evening.machines;
        let address = m[1].address();
        let session = Session::new(&m[0], &m[1], &address);
        // What the session itself makes the programs hold.
        let warm = session.run(rate, Duration::from_secs(3));
        println!("before anything: {} sent, {:.3} % lost", warm.sent, warm.lost());
        let before = scene.products().iter().map(|(_, pid)| rss(*pid)).collect();
        let kind = std::env::var("HOSTILE_KIND").ok().and_then(|k| k.parse().ok());
        let kinds: Vec<usize> = kind.map_or_else(|| (0..KINDS.len()).collect(), |k| vec![k]);
        println!("the stranger sends: {}", kinds.iter().map(|k| KINDS[*k]).collect::<Vec<_>>().join("; "));
        let macs = [scene.net.mac(&scene.wire[1]), scene.stranger.mac(&scene.wire[0])];
        Hostile {
            scene,
            session,
            stranger: Stranger::new(&scene.stranger, &scene.wire[0]),
            targets: scene.targets(),
            macs,
            rng: Rng::from_seed(*shadowmesh_crypto::secret::Secret::<32>::random().expose()),
            rate,
            kinds,
            before,
            calm: Counted::default(),
            flooded: Counted::default(),
            sent: 0,
            took: Duration::ZERO,
            replies: Replies::default(),
            arrived: 0.0,
            read: 0.0,
            newcomers: vec![],
        }
    }

    /// A run in which the stranger sends nothing, and one in which it does.
    fn round(&mut self, round: u64, during: Duration) {
        let who = &self.stranger;
        let calm = std::thread::scope(|scope| {
            let stranger = scope.spawn(|| who.spin(during));
            let counted = self.session.run(self.rate, during);
            stranger.join().expect("the stranger");
            counted
        });
        let captured = [self.scene.captured.clone(), self.recent()].concat();
        let (targets, own, macs) = (&self.targets, OWN, self.macs);
        let deck = Dealer { targets, captured: &captured, own, macs, kinds: &self.kinds }.deal(&mut self.rng);
        let products = self.scene.products();
        let used = || -> Vec<Duration> { products.iter().map(|(_, p)| cpu(*p)).collect() };
        let arrived = || -> f64 { products.iter().map(|(_, p)| udp_arrived(*p)).sum() };
        let (before, came, read) = (used(), arrived(), self.read());
        let url: RelayUrl = self.scene.evening.urls[0].parse().expect("a relay's URL");
        let host = &self.scene.evening.machines[0].host;
        let (flooded, (sent, took, replies), newcomers) = std::thread::scope(|scope| {
            let newcomers = scope.spawn(|| newcomers(host, &url, RELAY.into(), during));
            let stranger = scope.spawn(|| who.flood(&deck, during));
            let counted = self.session.run(self.rate, during);
            let newcomers = newcomers.join().expect("the newcomers");
            (counted, stranger.join().expect("the stranger"), newcomers)
        });
        let shares: Vec<String> = products
            .iter()
            .zip(used().iter().zip(&before))
            .map(|((name, _), (a, b))| {
                format!("{name} {:.0} %", (*a - *b).as_secs_f64() * 100.0 / during.as_secs_f64())
            })
            .collect();
        println!(
            "round {round}: lost {:.3} % of {} alone, {:.3} % of {} with {:.0} hostile datagrams a second; {}; memory {}",
            calm.lost(),
            calm.sent,
            flooded.lost(),
            flooded.sent,
            sent as f64 / took.as_secs_f64(),
            shares.join(", "),
            products.iter().map(|(_, p)| format!("{:.0}", rss(*p))).collect::<Vec<_>>().join(" "),
        );
        println!(
            "  replies {}, largest {} B, larger than asked {}, more than asked {}, stray {}",
            replies.seen, replies.largest, replies.larger, replies.more, replies.stray
        );
        // Each of the session's comes to the relay, to the other client's port and to who it is for.
        self.arrived += arrived() - came - 3.0 * flooded.received as f64;
        self.read += self.read() - read - flooded.received as f64;
        self.newcomers.extend(newcomers);
        self.calm.add(calm);
        self.flooded.add(flooded);
        self.sent += sent;
        self.took += took;
        self.replies.seen += replies.seen;
        self.replies.larger += replies.larger;
        self.replies.more += replies.more;
        self.replies.stray += replies.stray;
        self.replies.largest = self.replies.largest.max(replies.largest);
    }

    /// Datagrams that the relay has taken from its sockets.
    fn read(&self) -> f64 {
        let all = metrics(&self.scene.evening.vps, HTTP);
        all.get("datagrams_received_total").copied().unwrap_or_default()
    }

    /// The session's datagrams of just now: their counters are within the windows.
    fn recent(&self) -> Vec<Captured> {
        let (stop, net) = (AtomicBool::new(false), &self.scene.net);
        std::thread::scope(|scope| {
            let capture = scope.spawn(|| {
                on_core(SPARE_CORE, false);
                capture(net, &stop)
            });
            self.session.run(self.rate, Duration::from_millis(500));
            stop.store(true, Ordering::Relaxed);
            capture.join().expect("the capture")
        })
    }

    /// Writes the lines; says whether all hold.
    fn report(&mut self) -> bool {
        let mut measured = Measured::new("hostile");
        let mut all = true;
        let mut line = |id: &str, what: &str, value: f64, unit: &str, goal: &str, holds: bool| {
            measured.line(&format!("10-{id}"), what, value, unit, goal, holds);
            all &= holds;
        };
        let rate = self.sent as f64 / self.took.as_secs_f64();
        line("rate", "hostile datagrams a second, from one core", rate, "/s", ">= 100000", rate >= 100_000.0);
        let offered = self.flooded.sent as f64 / self.took.as_secs_f64();
        line("session", "datagrams a second of the session beside it", offered, "/s", "", true);
        let (calm, flooded) = (self.calm.lost(), self.flooded.lost());
        line("lost-alone", "lost while the stranger sends nothing", calm, "%", "", true);
        line("lost-flooded", "lost while it sends", flooded, "%", "", true);
        let more = flooded - calm;
        line("lost-more", "lost more than alone", more, "points", "< 1", more < 1.0);
        let wrong = (self.calm.wrong + self.flooded.wrong) as f64;
        line("wrong", "received twice or changed", wrong, "datagrams", "0", wrong == 0.0);
        for (part, name) in [(0.5, "median"), (0.99, "99 of 100")] {
            line("delay-alone", &format!("under way alone, {name}"), self.calm.within(part), "ms", "", true);
            line(
                "delay-flooded",
                &format!("under way while it sends, {name}"),
                self.flooded.within(part),
                "ms",
                "",
                true,
            );
        }
        for ((name, pid), before) in self.scene.products().iter().zip(&self.before) {
            let grown = rss(*pid) - before;
            line("memory", &format!("memory grown, {name}"), grown, "KiB", "< 1024", grown < 1024.0);
        }
        let r = &self.replies;
        line("replies", "replies to strangers seen", r.seen as f64, "", "> 0", r.seen > 0);
        line("replies-larger", "larger than the request", r.larger as f64, "", "0", r.larger == 0);
        line("replies-more", "more than requests from there", r.more as f64, "", "0", r.more == 0);
        line("replies-stray", "to who had not asked", r.stray as f64, "", "0", r.stray == 0);
        let dropped = metrics(&self.scene.evening.vps, HTTP);
        println!("relay: {dropped:?}");
        for machine in &self.scene.evening.machines {
            println!(
                "{}: dropped {}",
                machine.host.name(),
                machine.json(&["status"])["networks"][0]["drops"]
            );
        }
        let share = self.arrived / self.sent as f64;
        line("arrived", "of what the stranger sent, part that arrived", share, "x", "> 0.9", share > 0.9);
        line("read", "of it, read by the relay", self.read / self.sent as f64, "x", "", true);
        let mut came: Vec<f64> = self.newcomers.iter().flatten().copied().collect();
        came.sort_by(f64::total_cmp);
        let (asked, part) = (self.newcomers.len().max(1), came.len() as f64 * 100.0);
        line(
            "newcomers",
            "newcomers that get a session with the relay meanwhile",
            part / asked as f64,
            "%",
            "",
            true,
        );
        let middle = came.get(came.len() / 2).copied().unwrap_or_default();
        line("newcomers-time", "and how long it takes them, median", middle, "ms", "", true);
        all
    }
}
