//! What is asked and answered.

use crate::Problem;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One line of a streamed answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// A step that was checked.
    Step(Step),
    /// What is not as it should be, though it goes on.
    Warning(String),
    /// What is waited for now.
    Waiting(String),
    /// A reply to a ping.
    Reply(PingReply),
    /// The end: it worked.
    Done(serde_json::Value),
    /// The end: it did not.
    Problem(Problem),
}

/// A fact that was checked on the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What it is about, one word or two.
    pub what: String,
    /// What is so.
    pub detail: String,
}

/// `GET /v1/status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// `shadowmesh/status/1`.
    pub schema: String,
    /// The daemon's version.
    pub version: String,
    /// The daemon's process.
    pub pid: u32,
    /// When the daemon started.
    pub since: String,
    /// Its networks, by name.
    pub networks: Vec<NetworkStatus>,
}

/// A network of this node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// What it is called.
    pub name: String,
    /// Its id.
    pub id: String,
    /// Whether its device and its sockets are there.
    pub up: bool,
    /// Why it is not, or what is wrong with it.
    pub problems: Vec<String>,
    /// Why it never will be: this machine was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Problem>,
    /// The device.
    pub interface: String,
    /// Its MTU.
    pub mtu: u32,
    /// The Linux bridge that the device is a port of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// This node's name in it.
    pub device: String,
    /// This node's id in it.
    pub node: String,
    /// What this node may do.
    pub roles: String,
    /// This node's IPv4 address, if it has one here.
    pub ipv4: Option<String>,
    /// The network's IPv4 subnet.
    pub subnet4: String,
    /// This node's IPv6 address.
    pub ipv6: String,
    /// When this node's certificate ends.
    pub certificate_ends: Option<String>,
    /// Where UDP is listened.
    pub listen: Vec<String>,
    /// The port that the router has opened, and by what: `PCP 203.0.113.9:41990`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_mapping: Option<String>,
    /// The relays.
    pub relays: Vec<RelayStatus>,
    /// The other members.
    pub peers: Vec<PeerStatus>,
    /// What was dropped, by reason.
    pub drops: BTreeMap<String, u64>,
}

fn udp() -> String {
    "udp".into()
}

/// A relay of a network.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RelayStatus {
    /// Its NodeId.
    pub relay: String,
    /// Name and port.
    pub place: String,
    /// Whether the link stands.
    pub up: bool,
    /// Round trip, seconds.
    pub rtt: Option<f64>,
    /// `udp`, or `tcp` where UDP seems blocked.
    #[serde(default = "udp")]
    pub by: String,
    /// Where it is; by TCP, in words.
    pub address: Option<String>,
}

/// Another member.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its name.
    pub name: String,
    /// Its NodeId.
    pub node: String,
    /// What it may do.
    pub roles: String,
    /// Its IPv4 address.
    pub ipv4: Option<String>,
    /// Its IPv6 address.
    pub ipv6: String,
    /// How it is reached: `direct`, `relay` or `none`.
    pub path: String,
    /// The address, or the relay's place.
    pub via: Option<String>,
    /// Round trip, seconds.
    pub rtt: Option<f64>,
    /// Share of lost packets, 0 to 1.
    pub loss: Option<f64>,
    /// The path's MTU, as measured so far: the largest IP packet that is sent to it, bytes.
    pub mtu: Option<u32>,
    /// Key exchange and cipher, while a session stands.
    pub secured: Option<String>,
    /// Seconds since the keys in use were made.
    pub secured_ago: Option<f64>,
    /// Rekeys since the daemon began; and how many of them both sides had started at once.
    pub rekeys: (u64, u64),
    /// Seconds since it was last heard.
    pub heard_ago: Option<f64>,
    /// Seconds that its clock is ahead of ours.
    pub clock_ahead: Option<i64>,
    /// Frames and bytes sent to it.
    pub sent: (u64, u64),
    /// Frames and bytes received from it.
    pub received: (u64, u64),
}

/// `POST /v1/networks`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CreateNetwork {
    /// What it is to be called.
    pub name: String,
    /// Relays, as URLs.
    pub relays: Vec<String>,
    /// IPv4 subnet; one is chosen without.
    pub subnet: Option<String>,
    /// This node's name in it; the machine's name without.
    pub device: Option<String>,
    /// What this node may bridge, in words: `any`, a MAC, `vlan:7`, a prefix.
    #[serde(default)]
    pub bridge: Vec<String>,
}

/// `POST /v1/join`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Join {
    /// The invite.
    pub url: String,
    /// This node's name in the network.
    pub device: Option<String>,
}

/// `POST /v1/networks/NAME/invites`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CreateInvite {
    /// The name thought of for the joiner.
    pub name: Option<String>,
    /// `member` or `admin`-less roles: `member`, `relay`, `exit`.
    pub role: Option<String>,
    /// Tags it gets.
    pub tags: Vec<String>,
    /// What it may bridge, in words: `any`, a MAC, `vlan:7`, a prefix.
    #[serde(default)]
    pub bridge: Vec<String>,
    /// For how long, seconds.
    pub expires: u64,
    /// More than one may use it.
    pub reusable: bool,
}

/// An invite that was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Invite {
    /// `shadowmesh/invite/1`.
    pub schema: String,
    /// The network.
    pub network: String,
    /// Its id, for `invite cancel`.
    pub id: String,
    /// The URL: it is the secret.
    pub url: String,
    /// When it ends.
    pub expires: String,
    /// More than one may use it.
    pub reusable: bool,
}

/// `GET /v1/networks/NAME/invites`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Invites {
    /// `shadowmesh/invite-list/1`.
    pub schema: String,
    /// The network.
    pub network: String,
    /// The invites of this node.
    pub invites: Vec<InviteEntry>,
}

/// An invite in the list.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InviteEntry {
    /// Its id.
    pub id: String,
    /// The name thought of.
    pub name: Option<String>,
    /// `open`, `used`, `expired` or `cancelled`.
    pub state: String,
    /// When it ends.
    pub expires: String,
    /// More than one may use it.
    pub reusable: bool,
    /// Who used it.
    pub used_by: Vec<String>,
}

/// `POST /v1/networks/NAME/ping`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ping {
    /// A name, an overlay address or a NodeId.
    pub peer: String,
    /// How many.
    pub count: u32,
    /// Stop at the first answer by a path that needs no relay; ask five times a second until then.
    #[serde(default)]
    pub until_direct: bool,
}

/// An answer to a ping, or its absence.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PingReply {
    /// Which one, from 1.
    pub number: u32,
    /// Round trip in seconds; nothing: no answer in time.
    pub rtt: Option<f64>,
    /// `direct` or `relay`.
    pub path: Option<String>,
    /// The address, or the relay's place.
    pub via: Option<String>,
}

/// `GET /v1/networks/NAME/why/PEER`: how a peer is reached, and why so.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Why {
    /// `shadowmesh/why/1`.
    pub schema: String,
    /// Its name.
    pub peer: String,
    /// How it is reached: `direct`, `relay` or `none`.
    pub path: String,
    /// The address, or the relay's place.
    pub via: Option<String>,
    /// Since when that is so, seconds.
    pub since_ago: Option<f64>,
    /// Round trip, seconds.
    pub rtt: Option<f64>,
    /// All of it in one sentence.
    pub answer: String,
    /// What is known besides, a sentence each.
    pub notes: Vec<String>,
    /// The paths that were proved, the one that carries first.
    pub paths: Vec<WhyPath>,
    /// What was tried.
    pub tried: Vec<WhyTried>,
    /// What would change it, if anything would.
    pub change: Option<String>,
}

/// A path to a peer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WhyPath {
    /// `direct` or `relay`.
    pub path: String,
    /// The address, or the relay's place.
    pub via: Option<String>,
    /// Whether frames go by it; the others are kept a while.
    pub carries: bool,
    /// Round trip, seconds.
    pub rtt: Option<f64>,
    /// The largest IP packet that it takes, bytes, as far as is known.
    pub mtu: u32,
}

/// An address at which a peer was asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WhyTried {
    /// `lan`, `ipv6`, `udp`, `port map` or `seen`.
    pub kind: String,
    /// Where.
    pub address: String,
    /// Packets sent.
    pub sent: u32,
    /// And not sent, since the address has had enough without an answer.
    pub held_back: u32,
    /// Round trip of its answer, seconds.
    pub rtt: Option<f64>,
}

/// `POST /v1/networks/NAME/revoke`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Revoke {
    /// A name, an overlay address or a NodeId.
    pub peer: String,
    /// `lost`, `compromised`, `replaced` or nothing.
    pub reason: Option<String>,
}

/// `GET /v1/identity`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Identity {
    /// `shadowmesh/identity-show/1`.
    pub schema: String,
    /// Whether there is a master seed.
    pub seed: bool,
    /// The identity in each network.
    pub networks: Vec<NetworkIdentity>,
}

/// Who this node is in one network.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NetworkIdentity {
    /// The network.
    pub network: String,
    /// The name in it.
    pub device: String,
    /// The NodeId in it.
    pub node: String,
    /// Whether this machine holds the network's root key.
    pub root: bool,
}

/// `GET /v1/networks/NAME/netcheck`: what lies between this machine and the others. What was not found out is nothing.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Netcheck {
    /// `shadowmesh/netcheck/1`.
    pub schema: String,
    /// Whether UDP comes back.
    pub udp: bool,
    /// By IPv4.
    pub ipv4: Option<NetcheckFamily>,
    /// By IPv6.
    pub ipv6: Option<NetcheckFamily>,
    /// The router's port, and by what: `PCP at 192.168.1.1, 203.0.113.9:41990`.
    pub port_map: Option<String>,
    /// Why there is none.
    pub no_port_map: Option<String>,
    /// Who was asked.
    pub servers: Vec<NetcheckServer>,
    /// Seconds that this machine's clock is ahead of the first relay's.
    pub clock_ahead: Option<i64>,
    /// Answers that nobody had asked for, or that came from elsewhere.
    pub forged: u32,
    /// What follows from it.
    pub advice: String,
}

/// What is so by one family of addresses.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NetcheckFamily {
    /// Where this machine is seen.
    pub address: String,
    /// That is another address than its own.
    pub nat: bool,
    /// On what the port outside depends (RFC 4787 section 4.1): `endpoint-independent`, `address-dependent`,
    /// `address-and-port-dependent`, or `dependent` where it cannot be told on which.
    pub mapping: Option<String>,
    /// On what it depends who may come in (RFC 4787 section 5): the same words, or `not-port-dependent` where no server
    /// with two addresses was there to tell more.
    pub filtering: Option<String>,
    /// Whether machines behind the router reach each other by the address outside.
    pub hairpin: Option<bool>,
    /// The port outside is the one inside.
    pub port_preserved: Option<bool>,
    /// How long a silent mapping is kept, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mapping_lifetime: Option<NetcheckLifetime>,
    /// Addresses of servers that answered. From one alone it cannot be told whether another would see the same.
    pub server_addresses: u32,
}

/// How long what comes from outside still reaches a socket that is silent (RFC 4787 section 4.3, RFC 5780 section 4.6).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetcheckLifetime {
    /// Seconds after which it did.
    pub at_least: Option<u64>,
    /// Seconds after which it did not.
    pub less_than: Option<u64>,
    /// Why it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A relay, or a STUN server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NetcheckServer {
    /// `relay` or `stun`.
    pub kind: String,
    /// Name and port.
    pub place: String,
    /// Whether it answered by UDP.
    pub udp: bool,
    /// Whether it answers STUN.
    pub stun: bool,
    /// Whether its second port does.
    pub second_port: bool,
    /// Round trip, seconds.
    pub rtt: Option<f64>,
    /// Of a relay: whether it is reached by TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<bool>,
    /// How: `tcp 203.0.113.2:443`, or by which proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_by: Option<String>,
    /// How long connecting took, TLS and WebSocket among it, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_connect: Option<f64>,
    /// Why it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_problem: Option<String>,
    /// Why it was not asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}
