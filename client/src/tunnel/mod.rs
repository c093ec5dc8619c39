//! The way to a relay where UDP is blocked: its datagrams in a WebSocket over TLS 1.3, by TCP. [P-TCP]
//!
//! A tunnel has a UDP socket on the loopback address. Who sends datagrams there, from one of the ports that it was made
//! for, has them at the relay, and gets the relay's from there; so that whatever moves packets here stays as it is. It is
//! a thread of its own, and ends when it is dropped or its connection does.

mod connect;
mod proxy;

pub use connect::{Connected, NOWHERE, Target, connect};
pub use proxy::{Proxy, configure, for_host};

use shadowmesh_host::clock::Clock;
use shadowmesh_host::udp::{JOINED, Queue, RecvBatch, SendStop, Udp};
use shadowmesh_host::wake::{Interest, Poller, Waker};
use shadowmesh_identity::NodeId;
use shadowmesh_wire::stream::{self, LENGTH, MAX_MESSAGE};
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;
use tracing::debug;
use tungstenite::{Bytes, Error, Message, WebSocket};

/// Messages of the kernel that are taken from the socket at once.
const BATCH: usize = 8;
/// Messages that are read before datagrams are.
const ROUNDS: usize = 8;
/// How long a full socket is waited for before the rest of a message is dropped.
const BUSY: Duration = Duration::from_millis(10);
/// That a relay was reached by TCP alone is remembered for so long.
const REMEMBERED: Duration = Duration::from_secs(60);

/// A connection to a relay that carries datagrams.
pub struct Tunnel {
    local: SocketAddr,
    by: String,
    by_proxy: bool,
    shared: Arc<Shared>,
}

struct Shared {
    waker: Waker,
    stop: AtomicBool,
    ended: AtomicBool,
}

impl Tunnel {
    /// Carries what is sent from these ports. `ended` is called when the connection is gone.
    ///
    /// # Errors
    /// No socket could be had.
    pub fn start(
        connected: Connected,
        users: &[SocketAddr],
        ended: impl FnOnce() + Send + 'static,
    ) -> io::Result<Tunnel> {
        let v4 = users.iter().any(SocketAddr::is_ipv4);
        let loopback = if v4 { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
        let mut udp = Udp::bind(&[SocketAddr::new(loopback, 0)]).map_err(io::Error::other)?;
        udp.use_offloads();
        let local = udp.local_addrs().first().copied().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let ports = users.iter().filter(|a| a.is_ipv4() == v4).map(SocketAddr::port).collect();
        let waker = Waker::new()?;
        let shared = Arc::new(Shared { waker, stop: AtomicBool::new(false), ended: AtomicBool::new(false) });
        let (by, by_proxy) = (connected.by.clone(), connected.by_proxy);
        let mut carrier = Carrier {
            udp,
            ports,
            user: None,
            socket: connected.socket,
            blocked: false,
            shared: shared.clone(),
            clock: Clock::new(),
        };
        std::thread::Builder::new().name("sm-tcp".into()).spawn(move || {
            let result = carrier.run();
            debug!("a connection by tcp has ended: {result:?}");
            let _half_open = carrier.socket.close(None);
            carrier.shared.ended.store(true, Ordering::Relaxed);
            ended();
        })?;
        Ok(Tunnel { local, by, by_proxy, shared })
    }

    /// Where datagrams for the relay are sent to.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// How the relay is reached, in words.
    pub fn by(&self) -> &str {
        &self.by
    }

    /// Whether a proxy is on the way.
    pub fn by_proxy(&self) -> bool {
        self.by_proxy
    }

    /// Whether the connection stands, as far as is known.
    pub fn stands(&self) -> bool {
        !self.shared.ended.load(Ordering::Relaxed)
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.waker.wake();
    }
}

struct Carrier {
    udp: Udp,
    ports: Vec<u16>,
    /// Who sent last, from one of these ports.
    user: Option<SocketAddr>,
    socket: WebSocket<connect::Tls>,
    /// The connection takes nothing: datagrams wait in the kernel's queue, and are dropped there when it is full.
    blocked: bool,
    shared: Arc<Shared>,
    clock: Clock,
}

/// Nothing more for now.
fn would_block(e: &Error) -> bool {
    matches!(e, Error::Io(e) if e.kind() == io::ErrorKind::WouldBlock)
}

impl Carrier {
    fn run(&mut self) -> Result<(), Error> {
        let (mut poller, mut batch) = (Poller::new()?, RecvBatch::new(BATCH, JOINED));
        let mut more = false;
        loop {
            let tcp = if self.blocked { Interest::ReadWrite } else { Interest::Read };
            let mut fds = vec![
                (self.shared.waker.as_fd(), Interest::Read),
                (self.socket.get_ref().socket().as_fd(), tcp),
            ];
            if !self.blocked {
                fds.extend(self.udp.fds(Queue::Both).map(|fd| (fd, Interest::Read)));
            }
            let count = fds.len();
            let ready = poller.wait(&fds, more.then_some(Duration::ZERO))?;
            drop(fds);
            if self.shared.stop.load(Ordering::Relaxed) {
                // The last words of who stops it.
                self.udp.recv_batch(&mut batch, Queue::Both)?;
                return self.send(&batch);
            }
            if self.blocked && (ready.writable(1) || ready.failed(1)) {
                self.flush()?;
            }
            if more || ready.readable(1) {
                more = self.receive()?;
            }
            if !self.blocked && (2..count).any(|i| ready.readable(i)) {
                self.udp.recv_batch(&mut batch, Queue::Both)?;
                self.send(&batch)?;
            }
        }
    }

    /// From the relay; says whether there may be more.
    fn receive(&mut self) -> Result<bool, Error> {
        for _ in 0..ROUNDS {
            match self.socket.read() {
                Ok(Message::Binary(bytes)) => self.deliver(bytes),
                Ok(Message::Close(_)) => return Err(Error::ConnectionClosed),
                Ok(_) => {}
                Err(e) if would_block(&e) => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    fn deliver(&self, bytes: Bytes) {
        let Some(user) = self.user else { return };
        let mut message = Vec::from(bytes);
        let mut list: Vec<(SocketAddr, &[u8])> = vec![];
        let _what_stands_before_garbage_counts =
            stream::datagrams(&mut message, |datagram| list.push((user, &*datagram)));
        let (mut rest, began) = (&list[..], self.clock.now());
        while !rest.is_empty() {
            let sent = self.udp.send_batch(rest, &mut |_, e| debug!("a datagram was not taken: {e:?}"));
            rest = rest.get(sent.done..).unwrap_or_default();
            match sent.stop {
                Some(SendStop::WouldBlock | SendStop::NoBuffers) if self.clock.now() - began < BUSY => {
                    std::thread::sleep(Duration::from_micros(200));
                }
                Some(_) => return,
                None => {}
            }
        }
    }

    /// To the relay.
    fn send(&mut self, batch: &RecvBatch) -> Result<(), Error> {
        let mut message = Vec::new();
        for (from, datagram) in batch.iter() {
            // Only this machine sends to the loopback address; of its programs only those that this is for are meant.
            if !self.ports.contains(&from.port()) {
                continue;
            }
            self.user = Some(from);
            if message.len() + LENGTH + datagram.len() > MAX_MESSAGE {
                self.write(std::mem::take(&mut message))?;
            }
            if message.capacity() == 0 {
                message.reserve_exact(MAX_MESSAGE);
            }
            let _too_large = stream::push(&mut message, datagram);
        }
        if !message.is_empty() {
            self.write(message)?;
        }
        self.flush()
    }

    fn write(&mut self, message: Vec<u8>) -> Result<(), Error> {
        match self.socket.write(Message::Binary(message.into())) {
            // It is taken, and goes out later.
            Err(e) if would_block(&e) => {
                self.blocked = true;
                Ok(())
            }
            other => other,
        }
    }

    fn flush(&mut self) -> Result<(), Error> {
        match self.socket.flush() {
            Ok(()) => self.blocked = false,
            Err(e) if would_block(&e) => self.blocked = true,
            Err(e) => return Err(e),
        }
        Ok(())
    }
}

/// Relays that were reached by TCP lately, and whether by a proxy: an errand finds out, and the network that follows begins
/// with it.
static NEEDED: Mutex<BTreeMap<NodeId, (Duration, bool)>> = Mutex::new(BTreeMap::new());
static CLOCK: LazyLock<Clock> = LazyLock::new(Clock::new);

/// This relay was reached by TCP, and not by UDP.
pub fn note_needed(relay: NodeId, by_proxy: bool) {
    let mut needed = NEEDED.lock().unwrap_or_else(PoisonError::into_inner);
    let now = CLOCK.now();
    needed.retain(|_, (at, _)| now - *at < REMEMBERED);
    needed.insert(relay, (now, by_proxy));
}

/// Was that so a moment ago? And by a proxy?
pub fn was_needed(relay: &NodeId) -> Option<bool> {
    let needed = NEEDED.lock().unwrap_or_else(PoisonError::into_inner);
    needed.get(relay).filter(|(at, _)| CLOCK.now() - *at < REMEMBERED).map(|(_, by_proxy)| *by_proxy)
}
