//! Between TCP connections and the packet loop: batches of datagrams in, a bounded queue for each connection out.
//!
//! To the relay's core a connection is a client's address like any other: one that no UDP packet comes from. It holds no
//! address of anybody, since the relay tells clients where it sees them, and each other.

use shadowmesh_crypto::kdf::mac8;
use shadowmesh_crypto::secret::Secret;
use shadowmesh_host::wake::Waker;
use shadowmesh_relay_core::prefix;
use shadowmesh_wire::stream::{self, LENGTH, MAX_MESSAGE};
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, mpsc};

/// Messages from all connections that wait for the packet loop; then connections are not read.
const WAITING: usize = 64;
/// Bytes that wait for one connection: what a gigabit brings in 8 ms. Then they are dropped, as by a full socket.
const OUT: usize = 1 << 20;
/// And for all together.
const OUT_ALL: usize = 64 << 20;
/// Tells these addresses from others of `::/8`, of which none is anybody's.
const MARK: u8 = b't';

/// Is this a connection's address?
pub fn is_stream(address: &SocketAddr) -> bool {
    match address.ip() {
        IpAddr::V6(ip) => address.port() == 0 && ip.octets()[0] == 0 && ip.octets()[7] == MARK,
        IpAddr::V4(_) => false,
    }
}

/// The address of a connection: seven bytes that stand for the prefix that it comes from, since the core counts clients
/// by these, and a number.
fn address(key: &Secret<32>, ip: IpAddr, number: u64) -> SocketAddr {
    let mut octets = [0; 16];
    octets[1..7].copy_from_slice(&mac8(key, &prefix(ip))[..6]);
    octets[7] = MARK;
    octets[8..].copy_from_slice(&number.to_be_bytes());
    SocketAddr::new(Ipv6Addr::from(octets).into(), 0)
}

fn number(address: &SocketAddr) -> Option<u64> {
    match address.ip() {
        IpAddr::V6(ip) => ip.octets().last_chunk::<8>().map(|b| u64::from_be_bytes(*b)),
        IpAddr::V4(_) => None,
    }
}

/// A message of a connection: datagrams, each behind its length.
pub struct Message {
    pub from: SocketAddr,
    pub bytes: Vec<u8>,
}

/// What waits for one connection.
#[derive(Default)]
pub struct Out {
    messages: Mutex<VecDeque<Vec<u8>>>,
    waiting: AtomicUsize,
    some: Notify,
}

#[derive(Default)]
struct Table {
    next: u64,
    open: HashMap<u64, Arc<Out>>,
}

struct Shared {
    key: Secret<32>,
    table: Mutex<Table>,
    /// Bytes that wait for all connections.
    waiting: AtomicUsize,
    dropped: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The packet loop's end.
pub struct Streams {
    shared: Arc<Shared>,
    messages: mpsc::Receiver<Message>,
    waker: Waker,
}

/// The connections' end.
#[derive(Clone)]
pub struct Hub {
    shared: Arc<Shared>,
    messages: mpsc::Sender<Message>,
    waker: Waker,
}

/// Both ends; `waker` wakes the packet loop.
pub fn pair(waker: Waker) -> (Streams, Hub) {
    let (send, receive) = mpsc::channel(WAITING);
    let shared = Arc::new(Shared {
        key: Secret::random(),
        table: Mutex::default(),
        waiting: AtomicUsize::new(0),
        dropped: AtomicU64::new(0),
    });
    let hub = Hub { shared: shared.clone(), messages: send, waker: waker.clone() };
    (Streams { shared, messages: receive, waker }, hub)
}

impl Streams {
    /// The next message.
    pub fn next(&mut self) -> Option<Message> {
        self.messages.try_recv().ok()
    }

    /// There may be more messages: the loop comes again.
    pub fn come_again(&self) {
        self.waker.wake();
    }

    /// Puts datagrams into the queues of connections. What does not fit is dropped, and counted.
    pub fn send<'a>(&self, list: impl Iterator<Item = (SocketAddr, &'a [u8])>) {
        let table = lock(&self.shared.table);
        let mut last: Option<(SocketAddr, &Arc<Out>)> = None;
        for (to, datagram) in list {
            let out = match last {
                Some((address, out)) if address == to => Some(out),
                _ => number(&to).and_then(|n| table.open.get(&n)),
            };
            let taken = out.is_some_and(|out| {
                last = Some((to, out));
                out.push(&self.shared, datagram)
            });
            if !taken {
                self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Connections that are open.
    pub fn open(&self) -> usize {
        lock(&self.shared.table).open.len()
    }

    /// Datagrams that found no connection, or a full queue.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }
}

impl Out {
    fn push(&self, shared: &Shared, datagram: &[u8]) -> bool {
        let size = datagram.len() + LENGTH;
        let full = self.waiting.load(Ordering::Relaxed) + size > OUT
            || shared.waiting.load(Ordering::Relaxed) + size > OUT_ALL;
        if full {
            return false;
        }
        let mut messages = lock(&self.messages);
        let none = messages.is_empty();
        let fits = messages.back_mut().is_some_and(|last| stream::push(last, datagram));
        if !fits {
            let mut message = Vec::with_capacity(if none { size } else { MAX_MESSAGE });
            if !stream::push(&mut message, datagram) {
                return false;
            }
            messages.push_back(message);
        }
        self.waiting.fetch_add(size, Ordering::Relaxed);
        shared.waiting.fetch_add(size, Ordering::Relaxed);
        drop(messages);
        if none {
            self.some.notify_one();
        }
        true
    }
}

/// A connection's place in the table; it leaves it when dropped.
pub struct Place {
    shared: Arc<Shared>,
    /// Its address, as the core knows it.
    pub address: SocketAddr,
    out: Arc<Out>,
}

impl Hub {
    /// A connection from there may speak from now on.
    pub fn enter(&self, ip: IpAddr) -> Place {
        let mut table = lock(&self.shared.table);
        let number = table.next;
        table.next += 1;
        let out = Arc::new(Out::default());
        table.open.insert(number, out.clone());
        Place { shared: self.shared.clone(), address: address(&self.shared.key, ip, number), out }
    }

    /// Hands a message to the packet loop, when there is room; `false`: the loop has ended.
    pub async fn deliver(&self, from: SocketAddr, bytes: Vec<u8>) -> bool {
        let taken = self.messages.send(Message { from, bytes }).await.is_ok();
        self.waker.wake();
        taken
    }
}

impl Place {
    /// What waits for this connection, once there is anything: messages.
    pub async fn waiting(&self) -> VecDeque<Vec<u8>> {
        loop {
            let messages = std::mem::take(&mut *lock(&self.out.messages));
            if !messages.is_empty() {
                let size = messages.iter().map(Vec::len).sum();
                self.out.waiting.fetch_sub(size, Ordering::Relaxed);
                self.shared.waiting.fetch_sub(size, Ordering::Relaxed);
                return messages;
            }
            self.out.some.notified().await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(n) = number(&self.address) {
            lock(&self.shared.table).open.remove(&n);
        }
        // Nobody pushes any more: the loop does that with the table locked.
        let left = self.out.waiting.load(Ordering::Relaxed);
        self.shared.waiting.fetch_sub(left, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends() -> (Streams, Hub) {
        pair(Waker::new().unwrap())
    }

    /// No UDP packet comes from there, the prefix is kept, the address is not told. [P-TCP]
    #[test]
    fn addresses_are_nobodys_and_count_by_prefix() {
        let (_streams, hub) = ends();
        let of = |ip: &str| hub.enter(ip.parse().unwrap()).address;
        let seven = |a: SocketAddr| match a.ip() {
            IpAddr::V6(ip) => ip.octets()[..7].to_vec(),
            IpAddr::V4(_) => vec![],
        };
        let all = ["192.0.2.7", "192.0.2.7", "192.0.2.8", "2001:db8::1", "2001:db8:0:ff::2", "2001:db8:1::"];
        let all = all.map(of);
        for (i, a) in all.iter().enumerate() {
            assert!(is_stream(a) && a.port() == 0, "{a}");
            assert!(!a.to_string().contains("192") && !a.to_string().contains("c000"), "{a}");
            assert!(all[..i].iter().all(|b| a != b));
        }
        assert_eq!(seven(all[0]), seven(all[1]));
        assert_ne!(seven(all[0]), seven(all[2]));
        assert_eq!(seven(all[3]), seven(all[4]));
        assert_ne!(seven(all[3]), seven(all[5]));
        for other in ["[::1]:443", "[::ffff:1.2.3.4]:7", "1.2.3.4:0", "[2001:db8::7400]:0"] {
            assert!(!is_stream(&other.parse().unwrap()), "{other}");
        }
    }

    #[tokio::test]
    async fn a_full_queue_drops_and_counts() {
        let (streams, hub) = ends();
        let [a, b] = ["192.0.2.1", "192.0.2.2"].map(|ip| hub.enter(ip.parse().unwrap()));
        let datagram = [7u8; 1400];
        let many = || (0..2000).map(|_| (a.address, &datagram[..]));
        streams.send(many());
        streams.send([(b.address, &b"x"[..])].into_iter());
        let got = a.waiting().await;
        let datagrams: usize = got.iter().map(|m| m.len() / (1400 + LENGTH)).sum();
        assert!(got.iter().all(|m| m.len() <= MAX_MESSAGE));
        assert_eq!(datagrams as u64 + streams.dropped(), 2000);
        assert!((700..760).contains(&datagrams), "{datagrams}");
        assert_eq!(b.waiting().await, [[0, 1, b'x'].to_vec()]);
        assert_eq!(streams.shared.waiting.load(Ordering::Relaxed), 0);
        // A connection that is gone leaves nothing behind.
        streams.send(many());
        let (gone, dropped) = (a.address, streams.dropped());
        drop(a);
        assert_eq!((streams.shared.waiting.load(Ordering::Relaxed), streams.open()), (0, 1));
        streams.send([(gone, &b"x"[..])].into_iter());
        assert_eq!(streams.dropped(), dropped + 1);
    }
}
