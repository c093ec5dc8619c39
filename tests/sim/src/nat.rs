//! NATs by RFC 4787: how they map, what they let in, whether they turn packets round. One before a node, or one before
//! another (carrier's and home's).

use shadowmesh_proto::Rng;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

/// Of what a mapping, or a filter, depends (RFC 4787 sections 4.1 and 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depends {
    /// Endpoint-independent.
    Nothing,
    /// Address-dependent.
    Address,
    /// Address and port-dependent.
    AddressAndPort,
}

impl Depends {
    fn key(self, other: SocketAddr) -> Option<SocketAddr> {
        match self {
            Depends::Nothing => None,
            Depends::Address => Some(SocketAddr::new(other.ip(), 0)),
            Depends::AddressAndPort => Some(other),
        }
    }
}

/// What a NAT is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NatKind {
    /// Of what the outer port depends.
    pub mapping: Depends,
    /// Of what it depends who may answer.
    pub filtering: Depends,
    /// Packets from inside to an outer address come in again (RFC 4787 section 6).
    pub hairpin: bool,
}

impl NatKind {
    const fn new(mapping: Depends, filtering: Depends) -> Self {
        NatKind { mapping, filtering, hairpin: false }
    }

    /// The outer port is the same for all, and whoever knows it may send there.
    pub const FULL_CONE: NatKind = NatKind::new(Depends::Nothing, Depends::Nothing);
    /// Whom it has sent to may answer, from any port.
    pub const ADDRESS_RESTRICTED: NatKind = NatKind::new(Depends::Nothing, Depends::Address);
    /// From the same port.
    pub const PORT_RESTRICTED: NatKind = NatKind::new(Depends::Nothing, Depends::AddressAndPort);
    /// Every destination sees another port.
    pub const SYMMETRIC: NatKind = NatKind::new(Depends::AddressAndPort, Depends::AddressAndPort);
    /// All of them.
    pub const ALL: [NatKind; 4] =
        [NatKind::FULL_CONE, NatKind::ADDRESS_RESTRICTED, NatKind::PORT_RESTRICTED, NatKind::SYMMETRIC];
}

/// A NAT.
#[derive(Debug)]
pub struct Nat {
    /// What it is like.
    pub kind: NatKind,
    /// Its address outside.
    pub outside: IpAddr,
    /// Inner address and what the mapping depends on, to outer port.
    out: HashMap<(SocketAddr, Option<SocketAddr>), u16>,
    /// Outer port to inner address, and who may answer.
    back: HashMap<u16, (SocketAddr, HashSet<Option<SocketAddr>>)>,
}

impl Nat {
    /// A NAT that has mapped nothing.
    pub fn new(kind: NatKind, outside: IpAddr) -> Self {
        Nat { kind, outside, out: HashMap::new(), back: HashMap::new() }
    }

    /// A packet goes out: from where it seems to come.
    pub fn outward(&mut self, from: SocketAddr, to: SocketAddr, rng: &mut Rng) -> SocketAddr {
        let key = (from, self.kind.mapping.key(to));
        let port = *self.out.entry(key).or_insert_with(|| {
            loop {
                let port = 1024 + rng.below(64_512) as u16;
                if !self.back.contains_key(&port) {
                    break port;
                }
            }
        });
        let (_, allowed) = self.back.entry(port).or_insert_with(|| (from, HashSet::new()));
        allowed.insert(self.kind.filtering.key(to));
        SocketAddr::new(self.outside, port)
    }

    /// A packet comes for one of its ports: for whom inside, if it may in.
    pub fn inward(&self, from: SocketAddr, port: u16) -> Option<SocketAddr> {
        let (inside, allowed) = self.back.get(&port)?;
        allowed.contains(&self.kind.filtering.key(from)).then_some(*inside)
    }

    /// It was switched off and on, and knows nothing.
    pub fn restart(&mut self) {
        self.out.clear();
        self.back.clear();
    }
}
