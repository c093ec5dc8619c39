//! What the driver gives a node, and what the node tells it.

use super::OwnKeys;
use crate::Time;
use crate::handshake::Source;
use crate::snapshot::{PeerId, Route};
use shadowmesh_crypto::aead::Suite;
use shadowmesh_crypto::secret::Secret;
use shadowmesh_crypto::sign::SigningKey;
use shadowmesh_identity::book::InviteBook;
use shadowmesh_identity::{Genesis, HostPort, NodeId};
use shadowmesh_wire::candidate::Candidate;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// What a node is made from.
pub struct NodeConfig {
    /// The network.
    pub genesis: Genesis,
    /// The identity in it.
    pub identity: Arc<SigningKey>,
    /// Facts from the store; the own certificate is among them.
    pub facts: Vec<Vec<u8>>,
    /// Leaf and pseudonym keys from the store.
    pub keys: OwnKeys,
    /// Root key, where this machine keeps it: only the root revokes admins.
    pub root: Option<Arc<SigningKey>>,
    /// Owner secrets of relays, where this machine keeps them: it rotates the access secrets there.
    pub owners: Vec<(NodeId, Secret<32>)>,
    /// Invites from the store.
    pub invites: InviteBook,
    /// Suites, the preferred first.
    pub suites: Vec<Suite>,
    /// The device is a port of a bridge: hosts behind it may send and are sent to, as the own certificate allows.
    pub bridge: bool,
    /// MTU of the device, bytes.
    pub mtu: usize,
    /// Largest datagram that the driver can receive in a session, without a relay header, bytes: peers are told.
    pub datagram: u16,
    /// Between rekeys.
    pub rekey: Duration,
    /// Both ends start a rekey at the interval: the simulator and a test force simultaneous ones by it.
    pub rekey_both: bool,
    /// Configured addresses of peers.
    pub endpoints: HashMap<NodeId, SocketAddr>,
    /// Look for paths without a relay.
    pub direct: bool,
    /// Sealers and openers, as many of each; 1 to 3. Sealers are threads 1 and up, openers are numbered from 0.
    pub data_threads: usize,
    /// Seed of all randomness.
    pub seed: [u8; 32],
}

/// Why a deadline was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timer {
    /// A peer: opening, session, ping, pull.
    Peer(PeerId),
    /// A relay link.
    Relay(u32),
    /// Locators at the relays.
    Invites,
    /// Access secrets to be rotated.
    Rotation,
    /// The own leaf, the clock, what strangers left.
    Housekeeping,
}

/// What the driver must know or do.
#[derive(Debug)]
pub enum Event {
    /// The roster has changed: store [`Node::facts`].
    SaveRoster,
    /// The own keys have changed: store [`Node::own_keys`].
    SaveKeys,
    /// The invites have changed: store [`Node::invites`].
    SaveInvites,
    /// A machine was let in.
    Admitted {
        /// Who.
        node: NodeId,
        /// Under which name.
        name: String,
    },
    /// A member's certificate ended soon, and was renewed.
    Renewed(NodeId),
    /// A relay's name needs an address: [`Node::set_relay_address`].
    Resolve {
        /// The node's number for it.
        relay: u32,
        /// Host name or address.
        host: String,
        /// UDP port.
        port: u16,
    },
    /// A relay is to take another access secret: [`crate::join::Registrar::rotate`], then [`Node::rotated`].
    Rotate {
        /// Which relay.
        relay: NodeId,
        /// Where it listens.
        place: HostPort,
        /// The owner secret there.
        owner: Secret<32>,
        /// What it is to take.
        access: Secret<32>,
    },
    /// A session with a peer stands, by this route.
    PeerUp(NodeId, Route),
    /// A session has moved to another path.
    PathChanged {
        /// With whom.
        peer: NodeId,
        /// Which path carries now.
        route: Route,
        /// Why, in words.
        why: &'static str,
        /// How long its validation took; zero for one that needed none.
        validated: Duration,
        /// And from then until it carried.
        moved: Duration,
    },
    /// Packets for one address, each to be sent from a socket of its own: the NAT here then opens a port for each. When
    /// something comes from there to one of them, that socket is the one by which this address is reached from then on.
    Punch {
        /// Where to.
        to: SocketAddr,
        /// What.
        packets: Vec<Vec<u8>>,
    },
    /// None stands any more, in words why.
    PeerDown(NodeId, &'static str),
    /// A ping was answered.
    Pong {
        /// By whom.
        peer: NodeId,
        /// As asked.
        id: u64,
        /// Round trip.
        rtt: Duration,
        /// How the answer came.
        source: Source,
    },
    /// A relay is there.
    RelayUp(NodeId),
    /// A relay is not there any more.
    RelayDown(NodeId),
    /// A member was revoked, or its admin was; its session is cut.
    Revoked(NodeId),
    /// This node was revoked: [`shadowmesh_identity::Roster::ending`] says by whom. It does nothing any more.
    SelfRevoked,
}

/// What `why` shows of the paths to a peer.
#[derive(Debug, Clone)]
pub struct PathsStatus {
    /// Which path carries, while a session stands.
    pub route: Option<Route>,
    /// Since when.
    pub since: Time,
    /// Why, in words.
    pub why: &'static str,
    /// Are paths without relay looked for here?
    pub looking: bool,
    /// Has the peer said where it may be reached?
    pub told: bool,
    /// Paths that were proved, the one that carries first: round trip, and the largest IP packet that it takes, bytes.
    pub paths: Vec<(Route, Option<Duration>, usize)>,
    /// Where the peer may be reached, and what came of asking there.
    pub tried: Vec<Tried>,
    /// Where it has seen this machine.
    pub sees: Option<SocketAddr>,
}

/// What came of asking at one address.
#[derive(Debug, Clone)]
pub struct Tried {
    /// Where, and how it was found.
    pub candidate: Candidate,
    /// Packets sent.
    pub sent: u32,
    /// And not sent, since that address has had enough without an answer.
    pub held_back: u32,
    /// Round trip of the last answer, if one came.
    pub rtt: Option<Duration>,
}

/// What `status` and `peers` show of a peer.
#[derive(Debug, Clone)]
pub struct PeerStatus {
    /// Who.
    pub node: NodeId,
    /// How it is reached, while a session stands.
    pub route: Option<Route>,
    /// Last round trip.
    pub rtt: Option<Duration>,
    /// Share of sent packets that its reports did not count.
    pub loss: Option<f64>,
    /// Suite of the session.
    pub suite: Option<Suite>,
    /// When the keys in use were made.
    pub keyed: Option<Time>,
    /// Rekeys with it since this process began; and of those, how many both sides had started at once.
    pub rekeys: (u64, u64),
    /// When it was last heard.
    pub last_rx: Option<Time>,
    /// The path's MTU as far as it is known: the largest IP packet that is sent to it, bytes.
    pub mtu: Option<usize>,
    /// Seconds that its clock is ahead of ours.
    pub skew: Option<i64>,
}
