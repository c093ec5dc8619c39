//! The session beside which a stranger rages: numbered datagrams through the mesh, counted where they arrive.

use crate::{SPARE_CORE, on_core};
use nix::sys::socket::{setsockopt, sockopt};
use shadowmesh_host::clock::Clock;
use shadowmesh_identity::RelayUrl;
use shadowmesh_netns_tests::{Host, Machine};
use shadowmesh_proto::handshake::Credential;
use shadowmesh_test_clients::Clients;
use shadowmesh_wire::control::Control;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Bytes of a datagram in the mesh.
const SIZE: usize = 512;
/// Datagrams sent at once at most: when the sender itself was kept from the processor, it does not make up for it, since
/// what is lost in a burst of its making is not the product's to answer for.
const BURST: u64 = 64;
/// A newcomer gives up then.
const GIVES_UP: Duration = Duration::from_secs(3);
/// Between newcomers.
const BETWEEN: Duration = Duration::from_millis(200);
/// What is under way is waited for so long.
const REST: Duration = Duration::from_millis(700);

/// Who comes to the relay meanwhile, one after the other: how long until each has a session, milliseconds; `None` for who
/// gave up.
pub fn newcomers(host: &Host, url: &RelayUrl, relay: SocketAddr, during: Duration) -> Vec<Option<f64>> {
    on_core(SPARE_CORE, false);
    host.enter(|| {
        let mut clients = Clients::new(url, &[relay]);
        let (clock, mut took) = (clients.clock, vec![]);
        while clock.now() + GIVES_UP < during {
            let began = clock.now();
            let n = clients.add(Credential::Anonymous, SocketAddr::from(([0, 0, 0, 0], 0)));
            while clients.all[n].link.rtt().is_none() && clock.now() < began + GIVES_UP {
                clients.turn(Duration::from_millis(5));
            }
            took.push(clients.all[n].link.rtt().map(|_| (clock.now() - began).as_secs_f64() * 1e3));
            clients.say(n, &Control::Bye);
            clients.all.clear();
            std::thread::sleep(BETWEEN);
        }
        took
    })
}

/// A sender on one machine and a receiver on another.
pub struct Session {
    sender: UdpSocket,
    receiver: UdpSocket,
    to: SocketAddr,
    clock: Clock,
}

/// What came of a run.
#[derive(Default, Clone)]
pub struct Counted {
    /// Datagrams sent.
    pub sent: u64,
    /// Of them, received (once).
    pub received: u64,
    /// Received again, or not what was sent.
    pub wrong: u64,
    /// How long each was under way, microseconds.
    pub took: Vec<u32>,
}

impl Counted {
    pub fn add(&mut self, other: Counted) {
        self.sent += other.sent;
        self.received += other.received;
        self.wrong += other.wrong;
        self.took.extend(other.took);
    }

    /// Lost, of 100.
    pub fn lost(&self) -> f64 {
        (self.sent - self.received) as f64 * 100.0 / self.sent.max(1) as f64
    }

    /// How long `part` of them (0 to 1) were under way at most, milliseconds.
    pub fn within(&mut self, part: f64) -> f64 {
        self.took.sort_unstable();
        let at = (self.took.len().saturating_sub(1)) as f64 * part;
        self.took.get(at as usize).map_or(0.0, |us| f64::from(*us) / 1e3)
    }
}

impl Session {
    /// From one machine to another, whose overlay address is `to`.
    pub fn new(from: &Machine, to: &Machine, address: &str) -> Session {
        let sender = from.host.enter(|| UdpSocket::bind("0.0.0.0:0").expect("a socket"));
        let receiver = to.host.enter(|| UdpSocket::bind("0.0.0.0:7000").expect("a socket"));
        setsockopt(&receiver, sockopt::RcvBufForce, &(32 << 20)).expect("room for what arrives");
        receiver.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
        let to = SocketAddr::new(address.parse().expect("an address"), 7000);
        Session { sender, receiver, to, clock: Clock::new() }
    }

    /// Sends at this rate for so long.
    pub fn run(&self, rate: u64, during: Duration) -> Counted {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let receiver = scope.spawn(|| {
                on_core(SPARE_CORE, false);
                self.receive(&done)
            });
            let sender = scope.spawn(|| {
                on_core(SPARE_CORE, false);
                self.send(rate, during)
            });
            let (sent, since) = sender.join().expect("the sender");
            std::thread::sleep(REST);
            done.store(true, Ordering::Relaxed);
            let arrived = receiver.join().expect("the receiver");
            self.count(sent, since, &arrived)
        })
    }

    /// Gives how many were sent, and when it began: what is in each tells the run.
    fn send(&self, rate: u64, during: Duration) -> (u64, u64) {
        let began = self.clock.now();
        let (mut from, mut due_from, mut sent) = (began, 0, 0);
        let mut bytes = [0x5a; SIZE];
        bytes[16..24].copy_from_slice(&(began.as_nanos() as u64).to_be_bytes());
        loop {
            let now = self.clock.now();
            if now >= began + during {
                return (sent, began.as_nanos() as u64);
            }
            let mut due = due_from + ((now - from).as_nanos() as u64 * rate) / 1_000_000_000;
            if due > sent + BURST {
                due = sent + BURST;
                (from, due_from) = (now, due);
            }
            while sent < due {
                bytes[..8].copy_from_slice(&sent.to_be_bytes());
                bytes[8..16].copy_from_slice(&(self.clock.now().as_nanos() as u64).to_be_bytes());
                self.sender.send_to(&bytes, self.to).expect("a datagram into the mesh");
                sent += 1;
            }
            std::thread::sleep(Duration::from_micros(500));
        }
    }

    /// (number, sent at, run, arrived at, as sent)
    fn receive(&self, done: &AtomicBool) -> Vec<(u64, u64, u64, u64, bool)> {
        let mut all = vec![];
        let mut bytes = [0; 2048];
        while !done.load(Ordering::Relaxed) {
            let Ok(n) = self.receiver.recv(&mut bytes) else { continue };
            let number = |at: usize| bytes[at..at + 8].try_into().map_or(0, u64::from_be_bytes);
            let whole = n == SIZE && bytes[24..SIZE].iter().all(|b| *b == 0x5a);
            all.push((number(0), number(8), number(16), self.clock.now().as_nanos() as u64, whole));
        }
        all
    }

    fn count(&self, sent: u64, since: u64, arrived: &[(u64, u64, u64, u64, bool)]) -> Counted {
        let mut seen = vec![false; sent as usize];
        let mut counted = Counted { sent, ..Counted::default() };
        for (number, at, run, came, whole) in arrived.iter().copied() {
            // The last of the run before.
            if run != since && whole {
                continue;
            }
            match seen.get_mut(number as usize) {
                Some(seen) if whole && !*seen => {
                    *seen = true;
                    counted.received += 1;
                    counted.took.push((came.saturating_sub(at) / 1000) as u32);
                }
                _ => counted.wrong += 1,
            }
        }
        counted
    }
}
