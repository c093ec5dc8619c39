//! `make bench`, issue line 11: a thousand clients of many prefixes at one relay, the shipped program, in a namespace.
//!
//! Every client is the real one (`tests/clients`: session, keepalive, answers to the relay's questions) on a socket of its
//! own, IPv4 and IPv6 by turns, each in a prefix of its own. They join at once; then each sends to another at a steady rate,
//! and every datagram that arrives is checked, while a tenth of them changes address every few seconds; then the relay is
//! killed and started again. Nothing may be refused: a thousand is below every limit.
//!
//! `LOAD_CLIENTS`, `LOAD_RATE` (datagrams a second from each) and `LOAD_SECONDS` change the size.

use shadowmesh_host::clock::Clock;
use shadowmesh_identity::RelayUrl;
use shadowmesh_netns_tests::{
    Host, Lab, Measured, cpu, make_relay, metrics, rss, spawn_relay, wait_for_relay,
};
use shadowmesh_proto::handshake::Credential;
use shadowmesh_test_clients::{Clients, pseudonym};
use shadowmesh_wire::control::{Control, Status};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

const OWNER: [u8; 32] = [3; 32];
const ACCESS: [u8; 32] = [4; 32];
const HTTP: &str = "127.0.0.1:9464";
/// Between moves of a tenth of the clients, another tenth each time.
const MOVE_EVERY: Duration = Duration::from_secs(3);
/// Turns end at the latest then, so that nobody sends late.
const TICK: Duration = Duration::from_millis(2);
/// How long what is under way is waited for at the end.
const REST: Duration = Duration::from_secs(1);

fn main() {
    let size = Size::from_env();
    let mut measured = Measured::new("bench-load");
    let mut lab = Lab::new("load");
    let (vps, crowd) = (lab.host("vps"), lab.host("crowd"));
    lab.wire(&vps, &["203.0.113.2/24", "2001:db8:1::2/64"], &crowd, &["203.0.113.1/24", "2001:db8:1::1/64"]);
    for gateway in ["203.0.113.1", "2001:db8:1::1"] {
        vps.default_route(gateway);
    }
    // Any address of these is the crowd's own.
    crowd.ip("route add local 10.0.0.0/8 dev lo");
    crowd.ip("-6 route add local fd10::/16 dev lo");
    crowd.sysctl("net/ipv6/ip_nonlocal_bind", "1");
    let state = lab.directory().join("relay").display().to_string();
    let urls = make_relay(&vps, &state, "203.0.113.2");
    let arguments = ["--http".to_owned(), HTTP.to_owned()];

    let url: RelayUrl = urls[0].parse().expect("a relay's URL");
    crowd.enter(|| {
        let relay = spawn_relay(&vps, &state, &arguments);
        wait_for_relay(&vps);
        let mut crowd = Crowd::new(&url, size);
        crowd.register(&url);
        let refused = crowd.measure(&vps, relay.id(), &mut measured);
        relay.kill();
        let relay = spawn_relay(&vps, &state, &arguments);
        crowd.come_back(&vps, relay.id(), refused, &mut measured);
    });
}

/// How much of everything.
#[derive(Clone, Copy)]
struct Size {
    clients: usize,
    rate: u32,
    seconds: u64,
}

impl Size {
    fn from_env() -> Size {
        let number = |key: &str, or: u64| std::env::var(key).ok().and_then(|s| s.parse().ok()).unwrap_or(or);
        Size {
            clients: number("LOAD_CLIENTS", 1000) as usize,
            rate: number("LOAD_RATE", 10) as u32,
            seconds: number("LOAD_SECONDS", 30),
        }
    }
}

/// What is known of one client's sending and receiving. Datagrams are numbered by their sender, who has one receiver.
#[derive(Default, Clone)]
struct Book {
    /// When each of its datagrams was sent.
    sent: Vec<Duration>,
    /// Which of the datagrams to it have arrived.
    arrived: Vec<bool>,
    /// It has moved, and received nothing since.
    moved: Option<Duration>,
    /// Times without reception, from a move to the first datagram after it.
    gaps: Vec<(Duration, Duration)>,
}

struct Crowd {
    clients: Clients,
    clock: Clock,
    size: Size,
    books: Vec<Book>,
    /// Addresses given so far.
    addresses: u32,
    handles: Vec<u64>,
    wrong: u64,
}

impl Crowd {
    fn new(url: &RelayUrl, size: Size) -> Crowd {
        let relay: Vec<SocketAddr> =
            ["203.0.113.2:443", "[2001:db8:1::2]:443"].iter().flat_map(|a| a.parse()).collect();
        let clients = Clients::new(url, &relay);
        let (clock, books) = (clients.clock, vec![Book::default(); size.clients]);
        Crowd { clients, clock, size, books, addresses: 0, handles: vec![], wrong: 0 }
    }

    /// An address in a prefix that nobody had: a /24 or a /56 for each. Of the clients every second one has IPv6.
    fn fresh_address(&mut self, client: usize) -> SocketAddr {
        self.addresses += 1;
        let [_, b, c, d] = self.addresses.to_be_bytes();
        let ip: IpAddr = if client.is_multiple_of(2) {
            Ipv4Addr::new(10, c, d, 1).into()
        } else {
            Ipv6Addr::new(0xfd10, u16::from(b), u16::from(c), u16::from(d) << 8, 0, 0, 0, 1).into()
        };
        SocketAddr::new(ip, 0)
    }

    fn add(&mut self, credential: Credential) -> usize {
        let address = self.fresh_address(self.clients.all.len());
        self.clients.add(credential, address)
    }

    /// The network that they are all of, by a client without a name.
    fn register(&mut self, url: &RelayUrl) {
        let token = *url.token.as_ref().expect("a token").expose();
        let creator = self.add(Credential::Anonymous);
        self.clients.until("a session", |c| c[creator].link.rtt().is_some());
        self.clients.say(creator, &Control::Register { token, owner: OWNER, access: ACCESS });
        let done = Control::RegisterReply(Status::Ok);
        self.clients.until("the registration", |c| c[creator].controls.contains(&done));
        self.clients.say(creator, &Control::Bye);
        self.clients.all.clear();
    }

    /// Joins and sends; gives what was refused.
    fn measure(&mut self, vps: &Host, relay: u32, measured: &mut Measured) -> f64 {
        let n = self.size.clients;
        // Past the creator's own leavings.
        std::thread::sleep(Duration::from_secs(2));
        let idle = rss(relay);
        let credentials: Vec<Credential> = (0..n).map(|_| pseudonym(&OWNER, &ACCESS)).collect();
        let (began, cpu_before) = (self.clock.now(), cpu(relay));
        for credential in credentials {
            self.add(credential);
        }
        self.clients.until("everybody", |c| c.iter().all(|c| c.link.rtt().is_some()));
        let (joined, each) = (self.clock.now() - began, (cpu(relay) - cpu_before) / n as u32);
        self.handles = self.clients.all.iter().map(|c| c.grant.map_or(0, |g| g.handle)).collect();
        let failed: u32 = self.clients.all.iter().map(|c| c.failed).sum();
        println!("{n} clients joined in {joined:?}, {failed} openings failed; {}", said(&metrics(vps, HTTP)));

        let (before, cpu_before, at) = (metrics(vps, HTTP), cpu(relay), self.clock.now());
        let moves = self.send(Duration::from_secs(self.size.seconds));
        let (after, spent, passed) = (metrics(vps, HTTP), cpu(relay) - cpu_before, self.clock.now() - at);
        let forwarded = difference(&before, &after, "datagrams_forwarded_total");
        let memory = (rss(relay) - idle) / n as f64;
        let (sent, lost, in_gaps) = self.losses();
        let mut gaps: Vec<f64> =
            self.books.iter().flat_map(|b| &b.gaps).map(|(from, to)| (*to - *from).as_secs_f64()).collect();
        gaps.sort_by(f64::total_cmp);
        let never = self.books.iter().filter(|b| b.moved.is_some()).count();
        println!("{sent} sent, {forwarded} forwarded in {passed:?}; {}", said(&after));

        let mut line = |what: &str, value: f64, unit: &str, goal: &str, holds: bool| {
            let id = format!("11-{}", what.split(':').next().unwrap_or_default());
            measured.line(&id, what.split(": ").nth(1).unwrap_or(what), value, unit, goal, holds);
        };
        let joining = n as f64 / joined.as_secs_f64();
        line("joining: handshakes a second while all join at once", joining, "/s", "", true);
        line("joining-cpu: relay's CPU for a handshake", each.as_secs_f64() * 1e6, "us", "", true);
        line("failed: openings that came to nothing", f64::from(failed), "", "0", failed == 0);
        line("memory: relay's memory for a client", memory, "KiB", "<= 16", memory <= 16.0);
        let per_datagram = spent.as_secs_f64() * 1e6 / forwarded;
        line("sending: datagrams forwarded", forwarded / passed.as_secs_f64(), "/s", "", true);
        line("sending-cpu: relay's CPU for a datagram", per_datagram, "us", "", true);
        let share = spent.as_secs_f64() / passed.as_secs_f64() * 100.0;
        line("sending-share: of one core, while all send", share, "%", "", true);
        line("lost: to clients that stay where they are", lost as f64, "datagrams", "0", lost == 0);
        line("lost-moving: to clients between two addresses", in_gaps as f64, "datagrams", "", true);
        line("wrong: received twice, changed, or from another", self.wrong as f64, "", "0", self.wrong == 0);
        let rebinds = difference(&before, &after, "rebinds_total");
        line("moves: addresses changed", moves as f64, "", "", true);
        line("moves-proved: and taken over by the relay", rebinds, "", "all", rebinds >= moves as f64);
        let middle = gaps.get(gaps.len() / 2).copied().unwrap_or_default();
        let most = gaps.last().copied().unwrap_or_default();
        line("gap: from a move to the next datagram received, median", middle * 1e3, "ms", "", true);
        let holds = never == 0 && most < 2.0;
        line("gap-most: and the longest of them", most * 1e3, "ms", "< 2000", holds);
        refused(&after)
    }

    /// Each sends to the next at a steady rate, and a tenth moves now and then. Gives how many moves there were.
    fn send(&mut self, during: Duration) -> usize {
        let n = self.size.clients;
        let began = self.clock.now();
        let (mut next, mut moving, mut moves, mut tenth) = (0, began + MOVE_EVERY, 0, 0);
        loop {
            let now = self.clock.now();
            let due =
                ((now - began).min(during).as_secs_f64() * f64::from(self.size.rate) * n as f64) as usize;
            while next < due {
                self.send_one(next % n);
                next += 1;
            }
            // The last move leaves time to be seen.
            if now >= moving && now + MOVE_EVERY < began + during {
                for i in (tenth..n).step_by(10) {
                    let address = self.fresh_address(i);
                    self.clients.move_to(i, address);
                    self.books[i].moved = Some(self.clock.now());
                    moves += 1;
                }
                (tenth, moving) = ((tenth + 1) % 10, now + MOVE_EVERY);
            }
            self.clients.turn(TICK);
            self.take();
            if now >= began + during + REST {
                return moves;
            }
        }
    }

    /// The next datagram from a client to its partner: sender and number, then bytes that follow from them.
    fn send_one(&mut self, from: usize) {
        let to = (from + 1) % self.size.clients;
        let number = self.books[from].sent.len();
        self.books[from].sent.push(self.clock.now());
        self.clients.send(from, self.handles[to], &payload(from, number));
    }

    /// Checks what has arrived.
    fn take(&mut self) {
        let now = self.clock.now();
        for i in 0..self.size.clients {
            for (handle, bytes) in std::mem::take(&mut self.clients.all[i].got) {
                let from = (i + self.size.clients - 1) % self.size.clients;
                let number = bytes.get(4..8).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes);
                let number = number.unwrap_or(u32::MAX) as usize;
                let book = &mut self.books[i];
                if handle != self.handles[from] || bytes != payload(from, number) {
                    self.wrong += 1;
                    continue;
                }
                if book.arrived.len() <= number {
                    book.arrived.resize(number + 1, false);
                }
                self.wrong += u64::from(std::mem::replace(&mut book.arrived[number], true));
                if let Some(moved) = book.moved.take() {
                    book.gaps.push((moved, now));
                }
            }
        }
    }

    /// Sent; lost; lost while the receiver was between two addresses.
    fn losses(&self) -> (usize, usize, usize) {
        let (mut sent, mut lost, mut in_gaps) = (0, 0, 0);
        for (from, book) in self.books.iter().enumerate() {
            let to = &self.books[(from + 1) % self.size.clients];
            sent += book.sent.len();
            for (number, at) in book.sent.iter().enumerate() {
                if to.arrived.get(number) == Some(&true) {
                    continue;
                }
                // What was under way at the moment of the move counts to it.
                let during = |(a, b): &(Duration, Duration)| *at + Duration::from_millis(20) >= *a && at <= b;
                if to.gaps.iter().any(during) || to.moved.is_some_and(|m| *at >= m) {
                    in_gaps += 1;
                } else {
                    lost += 1;
                }
            }
        }
        (sent, lost, in_gaps)
    }

    /// The relay has died and runs again: all come back, when they are told by RESET.
    fn come_back(&mut self, vps: &Host, relay: u32, refused_before: f64, measured: &mut Measured) {
        wait_for_relay(vps);
        let ups: Vec<u32> = self.clients.all.iter().map(|c| c.ups).collect();
        let began = self.clock.now();
        let end = began + Duration::from_secs(30);
        let mut next = 0;
        let back = loop {
            let now = self.clock.now();
            let due =
                ((now - began).as_secs_f64() * f64::from(self.size.rate) * self.size.clients as f64) as usize;
            while next < due {
                self.send_one(next % self.size.clients);
                next += 1;
            }
            self.clients.turn(TICK);
            self.take();
            let all = &self.clients.all;
            if all.iter().zip(&ups).all(|(c, before)| c.ups > *before && c.link.rtt().is_some()) {
                break now - began;
            }
            assert!(now < end, "not everybody came back: {}", said(&metrics(vps, HTTP)));
        };
        let resets = self.clients.all.iter().filter(|c| c.resets > 0).count();
        let handles: Vec<u64> = self.clients.all.iter().map(|c| c.grant.map_or(0, |g| g.handle)).collect();
        let after = metrics(vps, HTTP);
        println!("all back in {back:?}, {resets} by RESET, CPU {:?}; {}", cpu(relay), said(&after));
        let same = handles == self.handles;
        let seconds = back.as_secs_f64();
        let mut line = |id: &str, what: &str, value: f64, unit: &str, goal: &str, holds: bool| {
            measured.line(id, what, value, unit, goal, holds);
        };
        line(
            "11-back",
            "all are back after the relay was killed",
            seconds,
            "s",
            "< 10",
            seconds < 10.0 && same,
        );
        let rate = self.size.clients as f64 / seconds;
        line("11-back-rate", "handshakes a second meanwhile", rate, "/s", "", true);
        let refusals = refused_before + refused(&after);
        line("11-refused", "refused: over a limit, or by rate", refusals, "datagrams", "0", refusals == 0.0);
    }
}

/// 200 to 1,199 bytes.
fn payload(from: usize, number: usize) -> Vec<u8> {
    let mut bytes = [(from as u32).to_be_bytes(), (number as u32).to_be_bytes()].concat();
    bytes.resize(200 + (from * 31 + number * 7) % 1000, (from + number) as u8);
    bytes
}

fn difference(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>, name: &str) -> f64 {
    let of = |m: &BTreeMap<String, f64>| m.get(name).copied().unwrap_or_default();
    of(after) - of(before)
}

/// Everything that a limit did, and not the weather.
fn refused(metrics: &BTreeMap<String, f64>) -> f64 {
    ["over_limit", "rate_limited", "queue_full", "not_allowed", "not_member"]
        .iter()
        .filter_map(|r| metrics.get(&format!("dropped_total{{reason=\"{r}\"}}")))
        .fold(0.0, |sum, n| sum + n)
}

/// What a relay dropped, and the puzzle, for the eye.
fn said(metrics: &BTreeMap<String, f64>) -> String {
    let shown = |(name, value): (&String, &f64)| {
        let drop = name.strip_prefix("dropped_total{reason=\"").map(|n| n.trim_end_matches("\"}"));
        drop.or((name == "puzzle_bits").then_some("puzzle")).map(|n| format!("{n} {value}"))
    };
    let all: Vec<String> = metrics.iter().filter_map(shown).collect();
    format!("dropped: {}", all.join(", "))
}
