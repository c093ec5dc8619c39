//! Further sockets, from which one address is sent to: a NAT that gives every destination another port opens a port for
//! each, and by one of them the answer comes.

use super::{Other, Udp, mmsg};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Sockets that were found to be answered, at most, for one address and for all.
const MAX_OF_ADDRESS: usize = 2;
const MAX_OTHERS: usize = 16;

/// Looked at, at once.
const EVENTS: usize = 32;

/// Sockets that each have sent a packet to one address.
pub struct Punch {
    to: SocketAddr,
    /// Of all of them: they are many.
    epoll: Epoll,
    sockets: Vec<Option<UdpSocket>>,
    /// How many more are kept: where all are answered, the first are in use before the last.
    room: usize,
}

impl Punch {
    /// Sends each packet from a socket of its own.
    ///
    /// # Errors
    ///
    /// No socket could be had at all.
    pub fn send(to: SocketAddr, packets: &[Vec<u8>]) -> io::Result<Punch> {
        let any: SocketAddr = match to {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut sockets = Vec::with_capacity(packets.len());
        for packet in packets {
            let socket = match UdpSocket::bind(any) {
                Ok(socket) => socket,
                // The process may have no more; fewer do, too.
                Err(_) if !sockets.is_empty() => break,
                Err(e) => return Err(e),
            };
            socket.set_nonblocking(true)?;
            // One that is lost is one of many.
            let _lost = socket.send_to(packet, to);
            epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, sockets.len() as u64))?;
            sockets.push(Some(socket));
        }
        Ok(Punch { to, epoll, sockets, room: MAX_OF_ADDRESS })
    }

    /// Where they have sent to.
    pub fn to(&self) -> SocketAddr {
        self.to
    }

    /// The sockets to which that address has sent: they are no more of this. What came is not read yet. Once there were as
    /// many as an address may have, the others are closed.
    pub fn answered(&mut self) -> Vec<OwnedFd> {
        let mut events = [EpollEvent::empty(); EVENTS];
        let ready = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
        let mut found = vec![];
        for event in events.iter().take(ready) {
            let Some(slot) = self.sockets.get_mut(event.data() as usize) else { continue };
            let Some(socket) = slot else { continue };
            match socket.peek_from(&mut [0; 1]) {
                Ok((_, from)) if from == self.to && self.room > 0 => {
                    self.room -= 1;
                    let _gone_with_it = self.epoll.delete(&*socket);
                    found.extend(slot.take().map(OwnedFd::from));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                // Somebody else's, or what ICMP says: out of the way.
                _ => {
                    let _nothing_there = socket.recv_from(&mut [0; 1]);
                }
            }
        }
        if self.room == 0 {
            self.sockets.clear();
        }
        found
    }
}

impl AsFd for Punch {
    /// To wait on for something to read at any of them.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

impl Udp {
    /// From now on that address is sent to by this socket, and what it receives is read like that of the others.
    ///
    /// # Errors
    ///
    /// What the system said.
    pub fn adopt(&self, to: SocketAddr, fd: OwnedFd) -> io::Result<()> {
        let (level, option, value) = match to {
            SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE),
            SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE),
        };
        mmsg::set_int(&fd, level, option, value)?;
        super::enlarge(&fd)?;
        if self.join.load(std::sync::atomic::Ordering::Relaxed) {
            let _older_kernel = mmsg::set_int(&fd, libc::SOL_UDP, libc::UDP_GRO, 1);
        }
        self.change_others(|others| {
            if others.iter().filter(|o| o.to == to).count() >= MAX_OF_ADDRESS
                && let Some(oldest) = others.iter().position(|o| o.to == to)
            {
                others.remove(oldest);
            }
            if others.len() >= MAX_OTHERS {
                others.remove(0);
            }
            others.push(Arc::new(Other { fd, to }));
        });
        Ok(())
    }

    /// Closes the sockets of addresses for which it says no.
    pub fn release(&self, keep: impl Fn(&SocketAddr) -> bool) {
        if self.others().iter().any(|o| !keep(&o.to)) {
            self.change_others(|others| others.retain(|o| keep(&o.to)));
        }
    }
}
