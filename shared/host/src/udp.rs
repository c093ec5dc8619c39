//! UDP: sockets for both families, many datagrams a system call, no fragmentation.
//!
//! A [`Udp`] is a list of bound sockets used as one. Receiving drains them into a [`RecvBatch`], memory
//! that is allocated once and opened in place; sending takes a list of (destination, bytes). What concerns
//! one datagram (too big, no route) never stops the others; what concerns the socket (full) is told apart.
//!
//! The sockets send with "don't fragment" and do not believe ICMP about the path's MTU
//! (`IP_PMTUDISC_PROBE`): the mesh probes it, authenticated, and a forged ICMP must not shrink it.
//! IPv6 sockets are IPv6 only, so an IPv4 address never appears mapped.
//!
//! Behind each address are two sockets, between which the kernel divides what arrives by its first byte: what claims to
//! belong to a session (the top bit is set: data, by relay), and all else, which any stranger can send. So a flood of the
//! second kind fills a queue of its own, and not the one that sessions wait in; and what is not taken from there
//! ([`crate::ration`]) is dropped by the kernel before it costs this process anything.
//!
//! A relay on a machine with several addresses answers from the one it was asked at ([`Udp::tell_local`], [`Remote`]).

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, SockaddrStorage, bind,
    getsockname, setsockopt, socket, sockopt,
};

/// Messages that one system call moves at most.
pub const BATCH: usize = 64;
/// Room for datagrams that the kernel has joined ([`Udp::use_offloads`]): 64 KiB, and a few cache lines more, so that where
/// each message begins is another place in the caches.
pub const JOINED: usize = 65_536 + 25 * 64;
/// Messages that are taken at once while the kernel joins: as much as stays in a core's own cache.
const JOINED_BATCH: usize = 4;

/// Asked of the kernel for each direction of each socket; it counts its own bookkeeping, too, and doubles what it is asked.
/// It is a queue that everything waits in, so it is as short as bursts allow: decision 0009.
const BUFFER: usize = 1 << 20;

/// Which of the two queues behind an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// What claims to be of a session; all, where the kernel does not divide.
    Sessions,
    /// Of these, what the kernel gives to the reader with this number ([`Udp::bind_divided`]).
    Part(usize),
    /// What is left: handshakes, and anything.
    Strangers,
    /// One after the other.
    Both,
}

impl Queue {
    /// Of several readers one reads what was added.
    fn reads_others(self) -> bool {
        !matches!(self, Queue::Strangers | Queue::Part(1..))
    }

    fn of(self, socket: &Socket) -> impl Iterator<Item = &OwnedFd> {
        let sessions = match self {
            Queue::Sessions | Queue::Both => &socket.sessions[..],
            Queue::Part(n) => socket.sessions.get(n..=n).unwrap_or_default(),
            // Where the kernel does not divide, the only one is not theirs alone.
            Queue::Strangers => &[],
        };
        let strangers =
            if matches!(self, Queue::Strangers | Queue::Both) { socket.strangers.as_ref() } else { None };
        sessions.iter().chain(strangers)
    }
}

/// Why a socket could not be had.
#[derive(Debug, thiserror::Error)]
pub enum UdpError {
    /// Another program has the port.
    #[error("udp {0} is used by another program")]
    InUse(SocketAddr),
    /// Ports below 1024.
    #[error("listening on udp {0} needs root or CAP_NET_BIND_SERVICE")]
    NoPrivilege(SocketAddr),
    /// The address is not of this machine, or its family is switched off.
    #[error("udp {0} is not an address of this machine")]
    NoAddress(SocketAddr),
    /// No address was given.
    #[error("no address to listen on was given")]
    Nothing,
    /// Anything else.
    #[error("listening on udp {address} did not work: {source}")]
    Other {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

struct Socket {
    /// They receive what claims to be of a session; all, where the kernel does not divide, and then it is one. The first
    /// sends.
    sessions: Vec<OwnedFd>,
    /// Receives what is left.
    strangers: Option<OwnedFd>,
    local: SocketAddr,
}

/// Bound sockets, used as one.
pub struct Udp {
    sockets: Vec<Socket>,
    /// What is sent to one destination is joined for the kernel.
    join: AtomicBool,
    /// What was received last had been joined.
    joined: AtomicBool,
    truncated: AtomicU64,
    /// Which socket is read first.
    turn: AtomicUsize,
    /// Sockets by which one address is reached, the newest last ([`Udp::adopt`]); and is there any?
    others: RwLock<Vec<Arc<Other>>>,
    any_others: AtomicBool,
    /// What is received is told with the address of this machine ([`Udp::tell_local`]).
    tells_local: AtomicBool,
}

/// A socket by which one address is reached.
pub struct Other {
    fd: OwnedFd,
    to: SocketAddr,
}

impl AsFd for Other {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl std::fmt::Debug for Udp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.sockets.iter().map(|s| s.local)).finish()
    }
}

/// Why one datagram was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendError {
    /// Larger than the interface takes. A path MTU probe that found its answer.
    TooBig,
    /// No route, nobody there, or a firewall of this machine refuses it.
    Unreachable,
    /// No socket of this family is bound.
    NoSocket,
    /// Anything else, as an errno.
    Other(i32),
}

/// Why sending stopped before the end of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendStop {
    /// The socket's buffer is full: wait until it is writable.
    WouldBlock,
    /// The machine or the interface's queue is full; no descriptor tells when that ends. Try a moment later.
    NoBuffers,
}

/// How far [`Udp::send_batch`] came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Datagrams dealt with, from the front of the list: sent, or refused one by one.
    pub done: usize,
    /// Why the rest was not tried; `None` when there is no rest.
    pub stop: Option<SendStop>,
}

impl Udp {
    /// Binds a socket to each address. Port 0 takes a free port, the same for all that ask for 0 where
    /// possible; [`Udp::local_addrs`] tells it. `[::]` beside other addresses is left out where the machine
    /// has no IPv6.
    pub fn bind(addresses: &[SocketAddr]) -> Result<Udp, UdpError> {
        Udp::bind_divided(addresses, 1, 0)
    }

    /// The same, where what claims to be of a session is divided among `parts` readers (8 at most), by the low four bits of
    /// its first four bytes, or, if it begins with 0xc1, of those after `behind` bytes: a packet's index, behind a relay
    /// header or not. It may all the same be another reader's: the kernel joins what it has not looked at.
    pub fn bind_divided(addresses: &[SocketAddr], parts: usize, behind: usize) -> Result<Udp, UdpError> {
        let open = |address| open(address, parts.clamp(1, 8), behind);
        let mut sockets: Vec<Socket> = Vec::new();
        let mut chosen = 0;
        for &address in addresses {
            let wanted = |port| SocketAddr::new(address.ip(), port);
            let first = if address.port() == 0 { wanted(chosen) } else { address };
            let bound = match open(first) {
                Err(UdpError::InUse(_)) if address.port() == 0 && chosen != 0 => open(wanted(0)),
                other => other,
            };
            match bound {
                Ok(socket) => {
                    if address.port() == 0 {
                        chosen = socket.local.port();
                    }
                    sockets.push(socket);
                }
                Err(UdpError::NoAddress(_))
                    if address.is_ipv6() && address.ip().is_unspecified() && addresses.len() > 1 => {}
                Err(e) => return Err(e),
            }
        }
        if sockets.is_empty() {
            return Err(addresses.first().map_or(UdpError::Nothing, |a| UdpError::NoAddress(*a)));
        }
        Ok(Udp {
            sockets,
            join: AtomicBool::new(false),
            joined: AtomicBool::new(false),
            truncated: AtomicU64::new(0),
            turn: AtomicUsize::new(0),
            others: RwLock::default(),
            any_others: AtomicBool::new(false),
            tells_local: AtomicBool::new(false),
        })
    }

    /// From now on a [`Remote`] is told by which address of this machine it was heard, also where a socket is bound to all;
    /// that is for machines with several ([`several_addresses`]), and costs something for each message. Again with `false`:
    /// no more.
    pub fn tell_local(&self, yes: bool) {
        if yes != self.tells_local.swap(yes, Ordering::Relaxed) {
            for socket in self.sockets.iter().filter(|s| s.local.ip().is_unspecified()) {
                for fd in Queue::Both.of(socket) {
                    // Any kernel has it; without it the routing table chooses, as ever.
                    let _an_odd_kernel = mmsg::tell_local(fd, socket.local.is_ipv4(), yes);
                }
            }
        }
    }

    /// What is bound, with the ports that were chosen.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.sockets.iter().map(|s| s.local).collect()
    }

    /// The descriptors to wait on for something to read. Those of [`Queue::Sessions`] are also the ones that send, to wait
    /// on after [`SendStop::WouldBlock`].
    pub fn fds(&self, queue: Queue) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets.iter().flat_map(move |s| queue.of(s)).map(AsFd::as_fd)
    }

    /// Sockets that were added: to be waited on like those of [`Queue::Sessions`], whose first reader reads them.
    pub fn others(&self) -> Vec<Arc<Other>> {
        if !self.any_others.load(Ordering::Relaxed) {
            return vec![];
        }
        self.others.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The same, for who reads them.
    pub fn others_of(&self, queue: Queue) -> Vec<Arc<Other>> {
        if queue.reads_others() { self.others() } else { vec![] }
    }

    fn change_others(&self, change: impl FnOnce(&mut Vec<Arc<Other>>)) {
        let mut others = self.others.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut others);
        self.any_others.store(!others.is_empty(), Ordering::Relaxed);
    }

    /// Whether a socket can send to this family.
    pub fn reaches(&self, to: &SocketAddr) -> bool {
        self.socket_for(to).is_some()
    }

    fn socket_for(&self, to: &SocketAddr) -> Option<usize> {
        self.sockets.iter().position(|s| s.local.is_ipv4() == to.is_ipv4())
    }

    /// The same, and what it must be told to send from, if it is to leave by an address that it is not bound to.
    fn way_to(&self, to: &SocketAddr, local: Option<IpAddr>) -> Option<(usize, Option<IpAddr>)> {
        let Some(local) = local else { return Some((self.socket_for(to)?, None)) };
        match self.sockets.iter().position(|s| s.local.ip() == local) {
            Some(bound) => Some((bound, None)),
            None => Some((self.socket_for(to)?, Some(local))),
        }
    }

    /// From now on the kernel may join datagrams of one sender and one size (UDP_GRO, Linux 5.0), and what is sent is
    /// joined for it (UDP_SEGMENT, 4.18). Who receives gives each message [`JOINED`] bytes of room.
    pub fn use_offloads(&mut self) {
        for s in &self.sockets {
            // Without it each datagram comes by itself.
            for fd in &s.sessions {
                let _older_kernel = mmsg::set_int(fd, libc::SOL_UDP, libc::UDP_GRO, 1);
            }
        }
        self.join = AtomicBool::new(true);
    }

    /// What claims to be of sessions may wait in the kernel up to so many bytes, its bookkeeping among them. Best effort.
    pub fn hold(&self, bytes: usize) {
        for fd in self.sockets.iter().flat_map(|s| &s.sessions) {
            let _system_limit = receives(fd, bytes);
        }
    }

    /// Takes what has arrived, from all sockets, as far as `memory` holds it in pieces of `slot` bytes; what is where is
    /// appended to the list. Gives how many messages that were: nothing is there, when none. Errors that ICMP left on a
    /// socket are not errors; one that is returned means the socket is broken.
    pub fn recv<P: Remote>(
        &self,
        memory: &mut [u8],
        slot: usize,
        list: &mut Vec<(P, Range<usize>)>,
        queue: Queue,
    ) -> io::Result<usize> {
        // Another address first each time, so that a flood on one does not starve the other.
        let (first, n) = (self.turn.fetch_add(1, Ordering::Relaxed), self.sockets.len());
        let most = if self.joined.load(Ordering::Relaxed) { JOINED_BATCH * slot } else { memory.len() };
        let most = most.min(memory.len());
        let memory = &mut memory[..most];
        let (mut truncated, before) = (0, list.len());
        let mut got = Received { list, used: 0, truncated: &mut truncated, local: None };
        let mut messages = 0;
        let others = self.others_of(queue);
        let own = (0..n).map(|i| &self.sockets[(first.wrapping_add(i)) % n]);
        let own = own.flat_map(|s| queue.of(s).map(|fd| (fd, Some(s.local.ip()))));
        for (fd, local) in own.chain(others.iter().map(|o| (&o.fd, None))) {
            let mut tries = 0;
            got.local = local;
            while got.used + slot <= memory.len() {
                match mmsg::recv(fd.as_fd(), memory, slot, &mut got) {
                    Ok(n) => {
                        messages += n;
                        break;
                    }
                    Err(Errno::EAGAIN) => break,
                    Err(Errno::EINTR) => {}
                    Err(e) if transient(e) && tries < BATCH => tries += 1,
                    Err(e) if transient(e) => break,
                    Err(e) => return Err(e.into()),
                }
            }
        }
        let datagrams = got.list.len() - before;
        self.truncated.fetch_add(truncated, Ordering::Relaxed);
        if queue != Queue::Strangers {
            self.joined.store(datagrams > 2 * messages, Ordering::Relaxed);
        }
        Ok(messages)
    }

    /// Datagrams dropped so far because they were longer than the room for them.
    pub fn truncated(&self) -> u64 {
        self.truncated.load(Ordering::Relaxed)
    }

    /// The same into a batch: up to its size.
    pub fn recv_batch<P: Remote>(&self, batch: &mut RecvBatch<P>, queue: Queue) -> io::Result<usize> {
        batch.list.clear();
        self.recv(&mut batch.slab, batch.slot, &mut batch.list, queue)?;
        Ok(batch.list.len())
    }

    /// Sends a list of datagrams in order. `refused` is told of each that was not sent while the rest went
    /// on. When it stops early, call again with the rest (`&list[sent.done..]`).
    pub fn send_batch<P: Remote>(
        &self,
        list: &[(P, &[u8])],
        refused: &mut dyn FnMut(usize, SendError),
    ) -> Sent {
        let (mut done, others) = (0, self.others());
        // Where each destination is sent from.
        let other = |to: SocketAddr| others.iter().rev().find(|o| o.to == to);
        // So many from here are sent one by one, since the kernel did not take them together; and so many from wherever it
        // likes, since it does not have the address any more that they were to leave by.
        let (mut apart, mut anyhow) = (0, 0);
        while let Some((to, _)) = list.get(done) {
            let way = |to: &P| self.way_to(&to.address(), to.local().filter(|_| anyhow <= done));
            let Some((index, _)) = way(to) else {
                refused(done, SendError::NoSocket);
                done += 1;
                continue;
            };
            let join = apart <= done && self.join.load(Ordering::Relaxed);
            let bounds = [apart, anyhow].into_iter().filter(|b| *b > done);
            let most = bounds.min().map_or(list.len(), |b| b - done);
            // As many as go through one socket in one call.
            let by = other(to.address());
            let same = |(t, _): &&(P, &[u8])| match by {
                Some(_) => t == to,
                None => {
                    t == to
                        || way(t).is_some_and(|(i, _)| i == index)
                            && (others.is_empty() || other(t.address()).is_none())
                }
            };
            let run = list[done..].iter().take(most).take_while(same).count();
            let fd = by.map_or(self.sockets[index].sessions[0].as_fd(), |o| o.as_fd());
            let local = |t: &P| if by.is_some() { None } else { way(t)?.1 };
            match mmsg::send(fd, &list[done..done + run], join, local) {
                Ok(0) => return Sent { done, stop: Some(SendStop::WouldBlock) },
                Ok(n) => done += n,
                Err((Errno::EINTR, _)) => {}
                Err((Errno::EAGAIN, _)) => return Sent { done, stop: Some(SendStop::WouldBlock) },
                Err((Errno::ENOBUFS | Errno::ENOMEM, _)) => {
                    return Sent { done, stop: Some(SendStop::NoBuffers) };
                }
                // One that is too large for the interface, or an interface (EIO) or kernel that does not cut.
                Err((e @ (Errno::EINVAL | Errno::EIO | Errno::EMSGSIZE | Errno::EOPNOTSUPP), n)) if n > 1 => {
                    apart = done + n;
                    if e == Errno::EIO {
                        self.join.store(false, Ordering::Relaxed);
                    }
                }
                // This machine does not have the address any more at which that one was heard.
                Err((Errno::EINVAL | Errno::EADDRNOTAVAIL | Errno::ENETUNREACH, n))
                    if local(to).is_some() =>
                {
                    anyhow = done + n
                }
                Err((e, _)) => {
                    // The call reports the error of its first datagram only.
                    refused(done, send_error(e));
                    done += 1;
                }
            }
        }
        Sent { done, stop: None }
    }

    /// Sends one datagram: for the control plane and for tests.
    pub fn send_to<P: Remote>(&self, to: P, bytes: &[u8]) -> Result<(), SendError> {
        let mut result = Ok(());
        let sent = self.send_batch(&[(to, bytes)], &mut |_, e| result = Err(e));
        match sent.stop {
            None => result,
            Some(SendStop::WouldBlock) => Err(SendError::Other(libc::EAGAIN)),
            Some(SendStop::NoBuffers) => Err(SendError::Other(libc::ENOBUFS)),
        }
    }
}

/// Errors that a socket reports once because of what the network answered, and then works on.
fn transient(e: Errno) -> bool {
    matches!(
        e,
        Errno::ECONNREFUSED
            | Errno::ECONNRESET
            | Errno::EHOSTUNREACH
            | Errno::ENETUNREACH
            | Errno::EHOSTDOWN
            | Errno::ENETDOWN
            | Errno::ENOPROTOOPT
            | Errno::EPROTO
            | Errno::EMSGSIZE
            | Errno::EACCES
            | Errno::EPERM
            | Errno::ENOMEM
            | Errno::ENOBUFS
    )
}

fn send_error(e: Errno) -> SendError {
    match e {
        Errno::EMSGSIZE => SendError::TooBig,
        Errno::ENETUNREACH
        | Errno::EHOSTUNREACH
        | Errno::ENETDOWN
        | Errno::EHOSTDOWN
        | Errno::ECONNREFUSED
        | Errno::EADDRNOTAVAIL
        | Errno::EACCES
        | Errno::EPERM
        | Errno::EINVAL => SendError::Unreachable,
        other => SendError::Other(other as i32),
    }
}

fn open(address: SocketAddr, parts: usize, behind: usize) -> Result<Socket, UdpError> {
    open_raw(address, parts, behind).map_err(|e| match e {
        Errno::EADDRINUSE => UdpError::InUse(address),
        Errno::EACCES | Errno::EPERM => UdpError::NoPrivilege(address),
        Errno::EADDRNOTAVAIL | Errno::EAFNOSUPPORT => UdpError::NoAddress(address),
        other => UdpError::Other { address, source: other.into() },
    })
}

fn open_raw(address: SocketAddr, parts: usize, behind: usize) -> nix::Result<Socket> {
    // Bound without sharing, so that a port that is in use is found out; opened for sharing only then, which lets nobody in
    // but programs of the same user (socket(7)).
    let strangers = bound(address, false)?;
    let name: SockaddrStorage = getsockname(strangers.as_raw_fd())?;
    let local = match (name.as_sockaddr_in(), name.as_sockaddr_in6()) {
        (Some(a), _) => SocketAddr::V4(SocketAddrV4::from(*a)),
        (_, Some(a)) => SocketAddr::V6(SocketAddrV6::from(*a)),
        _ => address,
    };
    let divided = || -> nix::Result<Vec<OwnedFd>> {
        setsockopt(&strangers, sockopt::ReusePort, &true)?;
        let sessions = (0..parts).map(|_| bound(local, true)).collect::<nix::Result<Vec<_>>>()?;
        mmsg::divide(&sessions[0], parts, behind)?;
        Ok(sessions)
    };
    Ok(match divided() {
        Ok(sessions) => Socket { sessions, strangers: Some(strangers), local },
        // One queue for all, as before Linux 4.5 and in some sandboxes.
        Err(_) => Socket { sessions: vec![strangers], strangers: None, local },
    })
}

fn bound(address: SocketAddr, share: bool) -> nix::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, SockType::Datagram, flags, SockProtocol::Udp)?;
    enlarge(&fd)?;
    if share {
        setsockopt(&fd, sockopt::ReusePort, &true)?;
    }
    match address {
        SocketAddr::V4(a) => {
            mmsg::set_int(&fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)?;
            bind(fd.as_raw_fd(), &SockaddrIn::from(a))?;
        }
        SocketAddr::V6(a) => {
            setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
            mmsg::set_int(&fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)?;
            mmsg::set_int(&fd, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 1)?;
            bind(fd.as_raw_fd(), &SockaddrIn6::from(a))?;
        }
    }
    Ok(fd)
}

/// Best effort: with CAP_NET_ADMIN past the system's limit, else up to it.
fn enlarge(fd: &OwnedFd) -> nix::Result<()> {
    receives(fd, BUFFER)?;
    if setsockopt(fd, sockopt::SndBufForce, &BUFFER).is_err() {
        setsockopt(fd, sockopt::SndBuf, &BUFFER)?;
    }
    Ok(())
}

fn receives(fd: &OwnedFd, bytes: usize) -> nix::Result<()> {
    setsockopt(fd, sockopt::RcvBufForce, &bytes).or_else(|_| setsockopt(fd, sockopt::RcvBuf, &bytes))
}

/// What a call has received.
struct Received<'a, P> {
    list: &'a mut Vec<(P, Range<usize>)>,
    /// Bytes of the memory that are taken.
    used: usize,
    truncated: &'a mut u64,
    /// What the socket is bound to.
    local: Option<IpAddr>,
}

mod batch;
mod mmsg;
mod punch;
mod remote;

pub use batch::RecvBatch;
pub use punch::Punch;
pub use remote::{Remote, several_addresses};

#[cfg(test)]
#[path = "udp_tests.rs"]
mod tests;
