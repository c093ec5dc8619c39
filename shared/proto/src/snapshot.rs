//! The forwarding snapshot: what the data half knows. Immutable, published by the node, taken up when a data thread gets to
//! it, so it may be late; lane ids and addresses, never keys.

use crate::Table;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::frame::{self, Outline};
use shadowmesh_identity::Bridge;
use shadowmesh_wire::DropReason;

/// A peer, numbered by the node for as long as it runs.
pub type PeerId = u32;
/// A session, numbered by the node for as long as it runs; a rekey makes a new one.
pub type SessionId = u32;
/// A sending lane, numbered likewise.
pub type LaneId = u32;
/// Sending threads: 0 is the control half, 1 and up are data threads.
pub const THREADS: usize = 4;

/// How to reach a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// Straight to an address.
    Udp(SocketAddr),
    /// Through a relay (the node's number for it), to a handle there.
    Relay {
        /// The node's number for the relay.
        relay: u32,
        /// The peer's handle there.
        handle: u64,
    },
}

impl Route {
    /// As a source of datagrams.
    pub fn source(&self) -> crate::handshake::Source {
        match *self {
            Route::Udp(a) => crate::handshake::Source::Udp(a),
            Route::Relay { relay, handle } => crate::handshake::Source::Relay { relay, handle },
        }
    }
}

/// What may come from one peer: the source guard. [P-GUARD]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// Its MAC.
    pub mac: [u8; 6],
    /// Its mesh IPv4 address, when it has one.
    pub ipv4: Option<Ipv4Addr>,
    /// Its mesh IPv6 address.
    pub ipv6: Ipv6Addr,
    /// What it may speak for besides itself, if it bridges.
    pub bridge: Option<Arc<Bridge>>,
}

/// A peer as the data half sees it.
#[derive(Debug, Clone)]
pub struct Forward {
    /// Who.
    pub peer: PeerId,
    /// The lane to seal on, one for each sending thread; `None` while there is no session.
    pub lanes: Option<[LaneId; THREADS]>,
    /// Where to send.
    pub route: Route,
    /// Largest datagram for it, without a relay header, bytes.
    pub mtu: usize,
    /// Largest datagram for a TCP segment of its own: the same, or while that is searched what it will likely be. [P-MSS]
    pub segment: usize,
    /// What it may send.
    pub guard: Guard,
}

/// The mesh's own addresses on this network: what the guard is strict about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeshPrefixes {
    /// Network's IPv4 subnet.
    pub subnet4: (Ipv4Addr, u8),
    /// First 64 bits of the network's ULA.
    pub prefix6: [u8; 8],
}

impl MeshPrefixes {
    /// Is it one of the subnet's?
    pub fn holds4(&self, a: Ipv4Addr) -> bool {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.subnet4.1.min(32))).unwrap_or(0);
        u32::from(a) & mask == u32::from(self.subnet4.0) & mask
    }

    /// Is it one of the ULA's?
    pub fn holds6(&self, a: Ipv6Addr) -> bool {
        a.octets().starts_with(&self.prefix6)
    }
}

/// All that the data half forwards by.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Grows by one with each that is published.
    pub version: u64,
    /// What the local device may send; it bridges when hosts behind it are among it.
    pub own: Guard,
    /// Largest frame of the device without its Ethernet header: the MTU, bytes.
    pub mtu: usize,
    /// The mesh's own addresses.
    pub prefixes: MeshPrefixes,
    /// Peers by number.
    pub peers: Table<PeerId, Forward>,
    /// Which peer has which MAC: its own, and those of hosts that its certificate names. Of members that are none any
    /// more, too, though they are not among the peers.
    pub macs: Table<[u8; 6], PeerId>,
    /// Hosts behind peers that may bridge any, as learned.
    pub stations: Table<[u8; 6], PeerId>,
    /// Peers with a session that may bridge any host: who might have a MAC that nobody is known to have. Ascending.
    pub bridges: Vec<PeerId>,
    /// Peers with a session, for floods; ascending.
    pub flood: Vec<PeerId>,
    /// Some live member has no session yet: the control half wants to see group frames, to open one.
    pub unreached: bool,
}

impl Snapshot {
    /// Who has a MAC, as far as is known.
    pub fn owner(&self, mac: &[u8; 6]) -> Option<&Forward> {
        self.macs.get(mac).or_else(|| self.stations.get(mac)).and_then(|p| self.peers.get(p))
    }

    /// Nobody is known to have it, nor ever had it as a member: a host that has not been heard.
    pub fn is_unknown(&self, mac: &[u8; 6]) -> bool {
        !self.macs.contains_key(mac) && !self.stations.contains_key(mac)
    }

    /// May this frame come from `peer` (`None`: the local device)? [P-GUARD]
    ///
    /// # Errors
    /// [`frame::check_source`]'s; `SourceMac` also for a host's MAC that is somebody else's by certificate.
    pub fn check_source(&self, frame: &[u8], peer: Option<&Forward>) -> Result<Outline, DropReason> {
        let guard = peer.map_or(&self.own, |p| &p.guard);
        let o = frame::check_source(frame, guard, &self.prefixes)?;
        let free = |who: &PeerId| peer.is_some_and(|p| p.peer == *who);
        let ours =
            || o.src == self.own.mac || self.own.bridge.as_ref().is_some_and(|b| b.macs.contains(&o.src));
        let taken =
            o.src != guard.mac && (peer.is_some() && ours() || !self.macs.get(&o.src).is_none_or(free));
        if taken { Err(DropReason::SourceMac) } else { Ok(o) }
    }
}

/// Keys on their way to the data half, and their end. Each must reach its sealer or opener before the datagrams polled
/// after it are sent: a peer may use a lane as soon as it hears of it.
pub enum Install {
    /// A sending lane, for the sealer of its thread.
    Tx {
        /// Which thread's sealer.
        thread: usize,
        /// Its name in snapshots.
        lane: LaneId,
        /// Its keys.
        keys: crate::lane::TxLane,
    },
    /// The sender stops using a lane.
    RetireTx {
        /// Which thread's sealer.
        thread: usize,
        /// Which lane.
        lane: LaneId,
    },
    /// A receiving lane, for the opener that owns its index.
    Rx {
        /// The index that was told to the peer.
        index: u32,
        /// Number of the lane in its session.
        lane: u8,
        /// Its session.
        session: SessionId,
        /// Its peer.
        peer: PeerId,
        /// Its keys.
        keys: crate::lane::RxLane,
    },
    /// Nothing comes on this index any more.
    RetireRx {
        /// Which.
        index: u32,
    },
    /// What packets by a relay are wrapped with, for the sealer of this thread.
    Relay {
        /// Which thread's sealer.
        thread: usize,
        /// The node's number for the relay.
        relay: u32,
        /// The leg.
        leg: crate::relay_leg::RelayLeg,
    },
    /// A relay is reached at another address, by the leg that is there.
    RelayMoved {
        /// Which thread's sealer.
        thread: usize,
        /// The node's number for the relay.
        relay: u32,
        /// Where.
        address: SocketAddr,
    },
    /// How packets from a relay are known, for every opener.
    RelayDown {
        /// The node's number for the relay.
        relay: u32,
        /// Our slot there.
        slot: u32,
        /// MAC key of what it sends.
        key: shadowmesh_crypto::secret::Secret<32>,
    },
}

/// Whom an [`Install`] is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    /// The sealer of this thread.
    Sealer(usize),
    /// The opener with this number.
    Opener(usize),
    /// Every opener.
    Openers,
}

/// The opener that owns the lane of an index.
pub fn owner(index: u32) -> usize {
    (index & 15) as usize
}

impl Install {
    /// Whom it is for.
    pub fn to(&self) -> To {
        match self {
            Install::Tx { thread, .. }
            | Install::RetireTx { thread, .. }
            | Install::Relay { thread, .. }
            | Install::RelayMoved { thread, .. } => To::Sealer(*thread),
            Install::Rx { index, .. } | Install::RetireRx { index } => To::Opener(owner(*index)),
            Install::RelayDown { .. } => To::Openers,
        }
    }

    /// The same once more, if it is for every opener.
    pub fn duplicate(&self) -> Option<Install> {
        match self {
            Install::RelayDown { relay, slot, key } => {
                Some(Install::RelayDown { relay: *relay, slot: *slot, key: key.duplicate() })
            }
            _ => None,
        }
    }
}
