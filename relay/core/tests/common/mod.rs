//! A relay and its clients on a table: virtual time, no network, every datagram in sight.
#![allow(dead_code, clippy::unwrap_used)]

use shadowmesh_crypto::aead::Suite;
use shadowmesh_crypto::kdf::{Label, hash};
use shadowmesh_crypto::kem;
use shadowmesh_crypto::secret::Secret;
use shadowmesh_crypto::sign;
use shadowmesh_identity::chain::verify_relay_leaf;
use shadowmesh_identity::{NodeId, Seed};
use shadowmesh_proto::handshake::{Credential, ResponderLeaf};
use shadowmesh_proto::relay_leg::{RelayLeg, check_down};
use shadowmesh_proto::{LinkEvent, RelayLink, Rng, Time};
use shadowmesh_relay_core::{Config, Durable, Event, FourTuple, Relay};
use shadowmesh_wire::control::{Control, Status};
use shadowmesh_wire::handshake::RelayGrant;
use shadowmesh_wire::relay::{RelayHeader, TO_RELAY};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

pub const UNIX: u64 = 1_900_000_000;

pub fn relay_address() -> SocketAddr {
    "192.0.2.1:443".parse().unwrap()
}

/// A client: the real link, a data thread's leg, and what came.
pub struct Peer {
    pub address: SocketAddr,
    /// By which of the relay's addresses it comes; what another one sends is not let in.
    pub by: Option<IpAddr>,
    pub link: RelayLink,
    pub leg: Option<RelayLeg>,
    pub down: Option<Secret<32>>,
    pub grant: Option<RelayGrant>,
    pub up_key: Option<Secret<32>>,
    /// (source handle, payload) of what was forwarded here.
    pub got: Vec<(u64, Vec<u8>)>,
    pub controls: Vec<Control>,
    pub ups: u32,
    pub resets: u32,
    pub failed: u32,
    pub bad_headers: u32,
    pub deaf: bool,
}

impl Peer {
    pub fn path(&self) -> FourTuple {
        FourTuple { remote: self.address, local: self.by }
    }
}

pub struct Table {
    pub now: Time,
    pub relay: Relay,
    pub seed: Seed,
    pub config: Config,
    pub saved: Vec<u8>,
    pub saves: u32,
    pub peers: Vec<Peer>,
    pub rng: Rng,
    /// Everything that the relay sent in the last round.
    pub sent: Vec<(FourTuple, Vec<u8>)>,
    starts: u8,
}

pub struct Network {
    pub owner: [u8; 32],
    pub access: [u8; 32],
}

impl Network {
    pub fn new(n: u8) -> Self {
        Network { owner: [n; 32], access: [n + 100; 32] }
    }

    pub fn tag(&self) -> [u8; 16] {
        hash(Label::OwnerTag, &[&self.owner])[..16].try_into().unwrap()
    }
}

pub fn address(n: usize) -> SocketAddr {
    format!("198.51.{}.{}:4000", n / 250, n % 250 + 1).parse().unwrap()
}

impl Table {
    pub fn new(config: Config) -> Self {
        let seed = Seed::new(Secret::new([9; 32]));
        let mut rng = Rng::from_seed([1; 32]);
        let durable = Durable::new(&mut rng);
        let identity = seed.relay_identity().unwrap();
        let relay =
            Relay::new(config.clone(), identity, durable, Time(0), UNIX, Rng::from_seed([2; 32])).unwrap();
        let mut t = Table {
            now: Time(0),
            relay,
            seed,
            config,
            saved: vec![],
            saves: 0,
            peers: vec![],
            rng,
            sent: vec![],
            starts: 2,
        };
        t.drain();
        assert_eq!(t.saves, 1, "the epoch is saved before anything else");
        t
    }

    /// The relay dies and comes back with what it had saved.
    pub fn restart(&mut self) {
        self.starts += 1;
        let durable = Durable::parse(&self.saved).unwrap();
        let rng = Rng::from_seed([self.starts; 32]);
        let identity = self.seed.relay_identity().unwrap();
        self.relay = Relay::new(
            self.config.clone(),
            identity,
            durable,
            self.now,
            UNIX + self.now.0 / 1_000_000_000,
            rng,
        )
        .unwrap();
        self.drain();
    }

    pub fn id(&self) -> NodeId {
        self.relay.id()
    }

    pub fn anonymous(&mut self) -> usize {
        self.peer(Credential::Anonymous)
    }

    pub fn pseudonym(&mut self, network: &Network) -> usize {
        let key = Arc::new(kem::SecretKey::generate().unwrap());
        self.pseudonym_with(network, key)
    }

    pub fn pseudonym_with(&mut self, network: &Network, key: Arc<kem::SecretKey>) -> usize {
        let access = Arc::new(Secret::new(network.access));
        self.peer(Credential::Pseudonym { key, tag: network.tag(), access })
    }

    pub fn peer(&mut self, credential: Credential) -> usize {
        let n = self.peers.len();
        let link =
            RelayLink::new(self.id().0, Some(relay_address()), credential, Suite::ALL.to_vec(), self.now);
        self.peers.push(Peer {
            address: address(n),
            by: None,
            link,
            leg: None,
            down: None,
            grant: None,
            up_key: None,
            got: vec![],
            controls: vec![],
            ups: 0,
            resets: 0,
            failed: 0,
            bad_headers: 0,
            deaf: false,
        });
        n
    }

    /// Registers a network with a fresh token, by an anonymous client of its own.
    pub fn register(&mut self, network: &Network) {
        let token = *self.relay.mint().expose();
        assert_eq!(self.register_with(network, token), Some(Status::Ok));
    }

    pub fn register_with(&mut self, network: &Network, token: [u8; 16]) -> Option<Status> {
        let a = self.anonymous();
        self.run(Duration::from_secs(2));
        let status = self.say_register(a, network, token);
        self.peers[a].link.send_control(&Control::Bye);
        self.run(Duration::from_millis(50));
        self.peers[a].deaf = true;
        status
    }

    pub fn say_register(&mut self, a: usize, network: &Network, token: [u8; 16]) -> Option<Status> {
        let (owner, access) = (network.owner, network.access);
        self.peers[a].controls.clear();
        self.peers[a].link.send_control(&Control::Register { token, owner, access });
        self.run(Duration::from_millis(50));
        self.peers[a].controls.iter().find_map(|c| match c {
            Control::RegisterReply(s) => Some(*s),
            _ => None,
        })
    }

    /// A network with so many clients, all of them up.
    pub fn network(&mut self, n: u8, clients: usize) -> (Network, Vec<usize>) {
        let network = Network::new(n);
        self.register(&network);
        let peers: Vec<usize> = (0..clients).map(|_| self.pseudonym(&network)).collect();
        self.run(Duration::from_secs(2));
        for p in &peers {
            assert!(self.peers[*p].link.is_up(), "client {p} is not up");
        }
        (network, peers)
    }

    pub fn handle(&self, p: usize) -> u64 {
        self.peers[p].grant.expect("no grant").handle
    }

    /// A packet from one client by the relay to a handle, as a data thread sends it.
    pub fn packet(&mut self, p: usize, to: u64, payload: &[u8]) -> Vec<u8> {
        self.peers[p].leg.as_mut().expect("not up").wrap(to, payload)
    }

    pub fn send(&mut self, p: usize, to: u64, payload: &[u8]) {
        let packet = self.packet(p, to, payload);
        let from = self.peers[p].path();
        self.inject(from, &packet);
    }

    /// A datagram at the relay, and all that follows at this moment.
    pub fn inject(&mut self, from: impl Into<FourTuple>, datagram: &[u8]) {
        self.relay.handle_datagram(self.now, from, datagram);
        self.settle();
    }

    fn drain(&mut self) {
        while let Some(e) = self.relay.poll_event() {
            if let Event::Save { state, .. } = e {
                self.saved = state.to_vec();
                self.saves += 1;
            }
        }
    }

    /// Lets everything at this moment happen.
    pub fn settle(&mut self) {
        self.sent.clear();
        loop {
            let mut quiet = true;
            self.drain();
            while let Some((to, datagram)) = self.relay.poll_transmit() {
                quiet = false;
                self.sent.push((to, datagram.clone()));
                if let Some(p) = self.peers.iter().position(|p| p.path() == to && !p.deaf) {
                    self.deliver(p, &datagram);
                }
            }
            for p in 0..self.peers.len() {
                while let Some((to, datagram)) = self.peers[p].link.poll_transmit() {
                    quiet = false;
                    assert_eq!(to, relay_address());
                    if !self.peers[p].deaf {
                        let from = self.peers[p].path();
                        self.relay.handle_datagram(self.now, from, &datagram);
                    }
                }
            }
            if quiet {
                return;
            }
        }
    }

    pub fn deliver(&mut self, p: usize, datagram: &[u8]) {
        let (now, peer) = (self.now, &mut self.peers[p]);
        if datagram[0] == shadowmesh_wire::BY_RELAY {
            let (header, body) = RelayHeader::parse(datagram).unwrap();
            let ok = peer.grant.is_some_and(|g| g.slot == header.slot)
                && peer.down.as_ref().is_some_and(|k| check_down(k, &header).is_ok());
            if !ok {
                peer.bad_headers += 1;
            } else if header.handle == TO_RELAY {
                let _ = peer.link.handle_session(now, body);
            } else {
                peer.got.push((header.handle, body.to_vec()));
            }
        } else if peer.link.takes(datagram) {
            let _ = peer.link.handle_typed(now, datagram, &mut self.rng);
        }
        self.link_events(p);
    }

    fn link_events(&mut self, p: usize) {
        let id = self.id();
        let unix = UNIX + self.now.0 / 1_000_000_000;
        let peer = &mut self.peers[p];
        while let Some(e) = peer.link.poll_event() {
            match e {
                LinkEvent::Verify(bundle) => {
                    let (key, leaf) = bundle.split_at(sign::PUBLIC_KEY_LEN);
                    let leaf = verify_relay_leaf(&id, key, leaf, unix).ok().map(|v| {
                        let fact = v.fact();
                        let key = (*fact.leaf().unwrap().key).clone();
                        ResponderLeaf { node: id.0, hash: fact.id(), key }
                    });
                    peer.link.set_leaf(self.now, leaf, &mut self.rng);
                }
                LinkEvent::Up { grant, address, up, down, .. } => {
                    peer.ups += 1;
                    peer.leg = Some(RelayLeg::new(address, grant.slot, 1, up.duplicate()));
                    peer.up_key = Some(up);
                    peer.down = Some(down);
                    peer.grant = Some(grant);
                }
                LinkEvent::Down(by_reset) => peer.resets += u32::from(by_reset),
                LinkEvent::Control(c) => peer.controls.push(c),
                LinkEvent::Failed => peer.failed += 1,
                LinkEvent::Heard | LinkEvent::Back => {}
            }
        }
    }

    /// Lets so much time pass.
    pub fn run(&mut self, d: Duration) {
        let end = self.now + d;
        loop {
            self.settle();
            let links = self.peers.iter().filter(|p| !p.deaf).filter_map(|p| p.link.deadline());
            let next = links.chain(self.relay.poll_timeout()).min().unwrap_or(end);
            if next >= end {
                self.now = end;
                return;
            }
            self.now = Time(next.0.max(self.now.0 + 1));
            for p in 0..self.peers.len() {
                if !self.peers[p].deaf {
                    self.peers[p].link.handle_timeout(self.now, &mut self.rng);
                    self.link_events(p);
                }
            }
            if self.relay.poll_timeout().is_some_and(|t| t <= self.now) {
                self.relay.handle_timeout(self.now);
            }
        }
    }

    pub fn drops(&self, reason: shadowmesh_wire::DropReason) -> u64 {
        self.relay.metrics().drops.get(reason)
    }
}
