//! Clients of one relay, with real sockets and the real client's side of the protocol ([`RelayLink`], [`RelayLeg`]), all
//! in one thread: what the relay's own tests use a handful of, and the load generator a thousand.
//!
//! Everything panics with what went wrong: this is for tests only.
#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a test harness: to panic is how it reports"
)]

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg, setsockopt, sockopt};
use shadowmesh_crypto::aead::Suite;
use shadowmesh_crypto::kdf::{Label, hash};
use shadowmesh_crypto::kem;
use shadowmesh_crypto::secret::Secret;
use shadowmesh_crypto::sign;
use shadowmesh_host::clock::Clock;
use shadowmesh_identity::chain::verify_relay_leaf;
use shadowmesh_identity::{NodeId, RelayUrl};
use shadowmesh_proto::handshake::{Credential, ResponderLeaf};
use shadowmesh_proto::relay_leg::{RelayLeg, check_down};
use shadowmesh_proto::{LinkEvent, RelayLink, Rng, Time};
use shadowmesh_wire::control::Control;
use shadowmesh_wire::handshake::RelayGrant;
use shadowmesh_wire::relay::{RelayHeader, TO_RELAY};
use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

/// A free port of the loopback address.
pub const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// How long [`Clients::until`] waits.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest sleep of one turn.
const NAP: Duration = Duration::from_millis(20);

/// A pseudonym of the network with this owner secret and access secret, its key made for it.
pub fn pseudonym(owner: &[u8; 32], access: &[u8; 32]) -> Credential {
    let tag = hash(Label::OwnerTag, &[owner])[..16].try_into().unwrap();
    let key = Arc::new(kem::SecretKey::generate().unwrap());
    Credential::Pseudonym { key, tag, access: Arc::new(Secret::new(*access)) }
}

/// One client.
pub struct Client {
    socket: UdpSocket,
    /// The relay's address, of the socket's family.
    relay: SocketAddr,
    /// Its session with the relay.
    pub link: RelayLink,
    leg: Option<RelayLeg>,
    down: Option<Secret<32>>,
    /// Slot and handle of the last session.
    pub grant: Option<RelayGrant>,
    /// What was forwarded to it: source handle, payload.
    pub got: Vec<(u64, Vec<u8>)>,
    /// What the relay said to it.
    pub controls: Vec<Control>,
    /// Sessions that came to stand.
    pub ups: u32,
    /// Sessions that ended by RESET.
    pub resets: u32,
    /// Openings that came to nothing.
    pub failed: u32,
}

/// Clients of one relay, and the clock they live by.
pub struct Clients {
    /// Their clock.
    pub clock: Clock,
    relay: NodeId,
    addresses: Vec<SocketAddr>,
    rng: Rng,
    epoll: Epoll,
    /// In the order of [`Clients::add`].
    pub all: Vec<Client>,
}

impl Clients {
    /// None yet. The relay has an address for each family that is going to be used.
    pub fn new(url: &RelayUrl, addresses: &[SocketAddr]) -> Self {
        let rng = Rng::from_seed(*Secret::<32>::random().expose());
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        let addresses = addresses.to_vec();
        Clients { clock: Clock::new(), relay: url.relay, addresses, rng, epoll, all: vec![] }
    }

    /// Now.
    pub fn now(&self) -> Time {
        Time(0) + self.clock.now()
    }

    /// One more client, whose socket is bound to `local`.
    pub fn add(&mut self, credential: Credential, local: SocketAddr) -> usize {
        let i = self.all.len();
        let socket = self.bind(local, i);
        let relay = *self.addresses.iter().find(|a| a.is_ipv4() == local.is_ipv4()).unwrap();
        let suites = Suite::ALL.to_vec();
        let link = RelayLink::new(self.relay.0, Some(relay), credential, suites, self.now());
        self.all.push(Client {
            socket,
            relay,
            link,
            leg: None,
            down: None,
            grant: None,
            got: vec![],
            controls: vec![],
            ups: 0,
            resets: 0,
            failed: 0,
        });
        i
    }

    fn bind(&self, local: SocketAddr, i: usize) -> UdpSocket {
        let socket = UdpSocket::bind(local).unwrap_or_else(|e| panic!("{local}: {e}"));
        socket.set_nonblocking(true).unwrap();
        self.epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, i as u64)).unwrap();
        socket
    }

    /// Another address from now on, with all else as it was: a laptop that changed its network.
    pub fn move_to(&mut self, i: usize, local: SocketAddr) {
        let socket = self.bind(local, i);
        // What the old one had and was not read is lost, as on a network that is gone.
        self.epoll.delete(&self.all[i].socket).unwrap();
        self.all[i].socket = socket;
    }

    /// A datagram to another client's handle.
    pub fn send(&mut self, from: usize, to: u64, payload: &[u8]) {
        let now = self.now();
        let c = &mut self.all[from];
        c.link.note_activity(now);
        let packet = c.leg.as_mut().unwrap().wrap(to, payload);
        c.put(&packet);
    }

    /// So many datagrams of one payload to another client's handle, as one message that the kernel, or nobody, cuts; `false`
    /// when the socket takes no more.
    pub fn burst(&mut self, from: usize, to: u64, payload: &[u8], count: usize) -> bool {
        let now = self.now();
        let c = &mut self.all[from];
        c.link.note_activity(now);
        let leg = c.leg.as_mut().unwrap();
        let mut bytes = vec![];
        (0..count).for_each(|_| bytes.extend_from_slice(&leg.wrap(to, payload)));
        let segment = (bytes.len() / count) as u16;
        let control = [ControlMessage::UdpGsoSegments(&segment)];
        let (fd, relay) = (c.socket.as_raw_fd(), SockaddrStorage::from(c.relay));
        match sendmsg(fd, &[IoSlice::new(&bytes)], &control, MsgFlags::empty(), Some(&relay)) {
            Err(Errno::EAGAIN | Errno::ENOBUFS) => false,
            other => other.map(|n| n == bytes.len()).unwrap(),
        }
    }

    /// From now on the kernel may join what arrives for this client, whom only [`Clients::drain`] asks.
    pub fn join(&mut self, i: usize) {
        setsockopt(&self.all[i].socket, sockopt::UdpGroSegment, &true).unwrap();
        setsockopt(&self.all[i].socket, sockopt::RcvBufForce, &(64 << 20)).unwrap();
    }

    /// Bytes that have arrived for a client, unlooked at.
    pub fn drain(&mut self, i: usize) -> u64 {
        let (mut buffer, mut bytes) = (vec![0; 65_536], 0);
        while let Ok(n) = self.all[i].socket.recv(&mut buffer) {
            bytes += n as u64;
        }
        bytes
    }

    /// A message to the relay.
    pub fn say(&mut self, i: usize, control: &Control) {
        self.all[i].link.send_control(control);
        self.settle(i);
    }

    /// Lets the clients live until `done`; panics with `what` when that takes too long.
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&[Client]) -> bool) {
        let end = self.now() + PATIENCE;
        while !done(&self.all) {
            assert!(self.now() < end, "{what}: not in time");
            self.turn(NAP);
        }
    }

    /// What has come, what is due and what there is to send; sleeps at most so long for something to come.
    pub fn turn(&mut self, longest: Duration) {
        let now = self.now();
        let due = self.all.iter().filter_map(|c| c.link.deadline()).min();
        let wait = due.map_or(longest, |d| d.since(now).min(longest));
        let mut ready = [EpollEvent::empty(); 256];
        let timeout = EpollTimeout::try_from(wait.as_micros().div_ceil(1000) as i32).unwrap();
        let count = match self.epoll.wait(&mut ready, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(e) => panic!("epoll: {e}"),
        };
        for event in &ready[..count] {
            self.receive(event.data() as usize);
        }
        let now = self.now();
        for i in 0..self.all.len() {
            let c = &mut self.all[i];
            if c.link.deadline().is_some_and(|d| d <= now) {
                c.link.handle_timeout(now, &mut self.rng);
                self.settle(i);
            }
        }
    }

    fn receive(&mut self, i: usize) {
        let mut buffer = [0; 2048];
        // A few at a time: one client does not starve the others.
        for _ in 0..16 {
            let Ok((n, from)) = self.all[i].socket.recv_from(&mut buffer) else { break };
            assert_eq!(from, self.all[i].relay);
            self.take(i, &buffer[..n]);
        }
        self.settle(i);
    }

    fn take(&mut self, i: usize, datagram: &[u8]) {
        let (now, c) = (self.now(), &mut self.all[i]);
        if datagram[0] == shadowmesh_wire::BY_RELAY {
            let (header, body) = RelayHeader::parse(datagram).unwrap();
            // The last of a session that was replaced.
            if c.grant.is_none_or(|g| g.slot != header.slot) {
                return;
            }
            assert!(check_down(c.down.as_ref().unwrap(), &header).is_ok());
            if header.handle == TO_RELAY {
                let _ = c.link.handle_session(now, body);
            } else {
                c.got.push((header.handle, body.to_vec()));
            }
        } else if c.link.takes(datagram) {
            let _ = c.link.handle_typed(now, datagram, &mut self.rng);
        }
    }

    /// Acts on what a link says, and sends what it has to send.
    fn settle(&mut self, i: usize) {
        let (now, unix, id) = (self.now(), self.clock.unix(), self.relay);
        let c = &mut self.all[i];
        while let Some(e) = c.link.poll_event() {
            match e {
                LinkEvent::Verify(bundle) => {
                    let (key, leaf) = bundle.split_at(sign::PUBLIC_KEY_LEN);
                    let fact = verify_relay_leaf(&id, key, leaf, unix).unwrap().fact().clone();
                    let key = (*fact.leaf().unwrap().key).clone();
                    let leaf = ResponderLeaf { node: id.0, hash: fact.id(), key };
                    c.link.set_leaf(now, Some(leaf), &mut self.rng);
                }
                LinkEvent::Up { grant, address, up, down, .. } => {
                    c.ups += 1;
                    c.leg = Some(RelayLeg::new(address, grant.slot, 1, up));
                    c.down = Some(down);
                    c.grant = Some(grant);
                }
                LinkEvent::Down(by_reset) => c.resets += u32::from(by_reset),
                LinkEvent::Control(control) => c.controls.push(control),
                LinkEvent::Failed => c.failed += 1,
                LinkEvent::Heard | LinkEvent::Back => {}
            }
        }
        while let Some((_, packet)) = c.link.poll_transmit() {
            c.put(&packet);
        }
    }
}

impl Client {
    /// Its address.
    pub fn local(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }

    fn put(&self, packet: &[u8]) {
        // A relay that is not there shows as an error of the next call: nothing was sent, and it is repeated.
        match self.socket.send_to(packet, self.relay) {
            Err(e) if e.kind() != std::io::ErrorKind::ConnectionRefused => panic!("{}: {e}", self.relay),
            _ => {}
        }
    }
}
