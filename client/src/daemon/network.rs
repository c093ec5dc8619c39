//! One network of the daemon: its device and sockets, its addresses.

use super::lan::Lan;
use super::mapping::{Mapping, MappingState};
use super::nat::NatWatch;
use super::tcp::{Carried, Tcp};
use crate::config::{self, Config, MAX_DATA_THREADS, PeerName};
use crate::engine::{Engine, Inside, LARGEST_DATAGRAM, Setup};
use crate::state::{self, Meta, NetworkState, Saved, State};
use shadowmesh_control::{Exit, NetworkStatus, Problem, date};
use shadowmesh_crypto::Secret;
use shadowmesh_host::netlink::{self, Netlink, NetlinkError};
use shadowmesh_host::tap::{Tap, TapError, TapOptions};
use shadowmesh_host::udp::{Udp, UdpError};
use shadowmesh_identity::{Fact, Genesis, Name, NetworkId, NodeId, Roster};
use shadowmesh_proto::NodeConfig;
use shadowmesh_wire::relay::RELAY_HEADER;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use tracing::{debug, warn};

/// Frames of one queue that wait in the kernel for us: 10 ms at 50,000 a second, as long as a busy machine may keep us
/// waiting. Local TCP fills it with superframes, which is why there are several.
const TXQUEUELEN: u32 = 500;
/// Queues of the device that each sending thread reads in turn: what waits in one does not keep others waiting.
const QUEUES: u16 = 4;
/// For each so many cores, data has a thread of its own in each direction; the others are for those who use the network.
const DATA_THREAD_CORES: usize = 4;

/// A network, opened or not.
pub struct Network {
    /// Its name here.
    pub name: Name,
    /// Its files.
    pub files: NetworkState,
    /// What is neither fact nor secret.
    pub meta: Meta,
    /// What it is.
    pub genesis: Genesis,
    /// This node in it.
    pub node: NodeId,
    /// What the configuration says.
    pub config: config::Network,
    /// What runs, if it does.
    pub engine: Option<Arc<Engine>>,
    /// Where UDP is listened.
    pub listen: Vec<SocketAddr>,
    /// Paths without a relay are looked for.
    pub direct: bool,
    /// The router's port, while the network runs and one is looked for.
    pub mapping: Option<Mapping>,
    /// What finds out how the NAT maps, while the network runs and paths without a relay are looked for.
    pub nat: Option<NatWatch>,
    /// What finds members on the LAN, while the network runs and they are looked for.
    pub lan: Option<Lan>,
    /// Relays by TCP, while the network runs.
    pub tcp: Option<Tcp>,
    /// Why it does not run.
    pub failure: Option<Problem>,
    /// What is wrong although it runs: overlaps, IPv6 switched off.
    pub warnings: Vec<String>,
    /// The IPv4 address on the device.
    pub ipv4: Option<Ipv4Addr>,
}

/// Why a network that this node was revoked in does not run, and what to do; `None` while it is a member. Nobody's word
/// is taken for it: the tombstone is among the stored facts, and verified.
pub fn revoked(name: &Name, saved: &state::Saved, node: &NodeId) -> Option<Problem> {
    let facts = || saved.facts.iter().filter_map(|f| Fact::parse(f).ok());
    let issuers: Vec<NodeId> =
        facts().filter(|f| f.subject() == *node && f.certificate().is_some()).map(|f| f.signer()).collect();
    let about = |f: Fact| f.tombstone().is_some() && (f.subject() == *node || issuers.contains(&f.subject()));
    if !facts().any(about) {
        return None;
    }
    let (roster, _) = Roster::restore(saved.genesis.clone(), saved.facts.iter().cloned());
    let tombstone = roster.ending(node)?;
    let by = roster.name_of(&tombstone.signer());
    let whom = if tombstone.subject() == *node {
        "this machine was revoked".to_owned()
    } else {
        format!("{}, who let this machine in, was revoked", roster.name_of(&tombstone.subject()))
    };
    let reason = tombstone.tombstone().map_or(String::new(), |t| t.reason.to_string());
    let what = format!(
        "{whom} in \"{name}\" by {by} on {} (change {}, {reason}); it is no member any more",
        date(tombstone.issued()),
        tombstone.seq()
    );
    Some(
        Problem::new(Exit::Refused, what)
            .fix(format!("Leave it here:  sudo shadowmesh leave --network {name}"))
            .fix("then ask an admin for a new invite (shadowmesh invite, there) and join by that."),
    )
}

/// Opens device and sockets of a network. Nothing runs yet.
pub fn open(state: &State, config: &Config, name: &Name) -> Result<(Network, Setup), Problem> {
    let files = state.network(name)?;
    let saved = files.load()?;
    let (genesis, mut meta) = (saved.genesis.clone(), saved.meta.clone());
    let id = genesis.id();
    let seed = state.seed()?.ok_or_else(|| {
        Problem::failed("the master seed is missing; without it this node has no identity")
            .fix("Restore it:  shadowmesh identity restore")
    })?;
    let identity = seed
        .identity_key(&id, meta.incarnation)
        .map_err(|e| Problem::failed(format!("the identity could not be made: {e}")))?;
    let node = NodeId::of(identity.public());
    if let Some(p) = revoked(name, &saved, &node) {
        return Err(p);
    }
    let wanted = config.network(name);
    if let Some(bridge) = &wanted.bridge {
        may_bridge(name, &saved, &node, bridge)?;
    }
    let threads = data_threads(config);
    let pairs = threads.max(1);
    let udp = bind(config, &mut meta, pairs)?;
    files.save_meta(&meta).map_err(|e| state::problem(&e))?;
    let queues = pairs * QUEUES;
    let options = TapOptions { mtu: wanted.mtu, mac: node.mac(), vnet: true, queues, txqueuelen: TXQUEUELEN };
    let tap = Tap::open(&wanted.interface, options).map_err(|e| {
        let exit = if matches!(e, TapError::NoPrivilege) { Exit::NotPermitted } else { Exit::Failed };
        let p = Problem::new(exit, e.to_string());
        if exit == Exit::NotPermitted { p.fix("Run it as root:  sudo shadowmesh up") } else { p }
    })?;
    let mut taps = vec![tap];
    while taps.len() < usize::from(queues) {
        taps.push(taps[0].another_queue().map_err(|e| Problem::failed(e.to_string()))?);
    }
    let mut taps = taps.into_iter();
    let taps = (0..pairs).map(|_| taps.by_ref().take(QUEUES.into()).collect()).collect();
    let endpoints = endpoints(&wanted, &id, &saved.facts, node);
    let root = meta.root.map(|n| seed.root_key(n)).transpose();
    let root = root.map_err(|e| Problem::failed(format!("the root key could not be made: {e}")))?;
    let node_config = NodeConfig {
        genesis: genesis.clone(),
        identity: Arc::new(identity),
        facts: saved.facts,
        keys: saved.keys,
        root: root.map(Arc::new),
        owners: saved.owners,
        invites: saved.invites,
        suites: config.crypto.preferred(),
        bridge: wanted.bridge.is_some(),
        mtu: wanted.mtu.into(),
        datagram: LARGEST_DATAGRAM,
        rekey: config.crypto.rekey,
        // For measurements: the race that is otherwise rare.
        rekey_both: std::env::var_os("SHADOWMESH_REKEY_BOTH").is_some(),
        endpoints,
        direct: config.direct,
        data_threads: pairs.into(),
        seed: *Secret::<32>::random().expose(),
    };
    let listen = udp.local_addrs();
    let network = Network {
        name: name.clone(),
        files: files.clone(),
        meta,
        genesis,
        node,
        config: wanted,
        engine: None,
        listen,
        direct: config.direct,
        mapping: None,
        nat: None,
        lan: None,
        tcp: None,
        failure: None,
        warnings: vec![],
        ipv4: None,
    };
    Ok((network, Setup { node: node_config, taps, udp, files, threads: threads > 0 }))
}

/// Threads that data moves on, for each direction.
fn data_threads(config: &Config) -> u16 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let auto = (cores / DATA_THREAD_CORES).min(MAX_DATA_THREADS.into()) as u16;
    config.data_threads.map_or(auto, u16::from)
}

/// The certificate lets this machine bridge; what it does not let it, the others would drop.
fn may_bridge(name: &Name, saved: &Saved, node: &NodeId, bridge: &str) -> Result<(), Problem> {
    let (roster, _) = Roster::restore(saved.genesis.clone(), saved.facts.iter().cloned());
    if roster.member(node).is_none_or(|m| !m.certificate.bridge.is_empty()) {
        return Ok(());
    }
    let what =
        format!("this machine may not bridge in \"{name}\", and its device is to join the bridge `{bridge}`");
    Err(Problem::failed(what)
        .fix(format!(
            "Take `bridge` out of the configuration of \"{name}\", or let it in anew as one that may:"
        ))
        .fix(
            "an admin makes an invite with --bridge any (or the hosts' MACs); leave here, and join by that.",
        ))
}

/// The sockets. A port that was chosen once is asked for again, so that what routers and peers learnt stays true.
fn bind(config: &Config, meta: &mut Meta, queues: u16) -> Result<Udp, Problem> {
    let bind = |addresses: &[SocketAddr]| Udp::bind_divided(addresses, queues.into(), RELAY_HEADER);
    let chosen = config.listen.iter().any(|a| a.port() == 0);
    let with = |port: u16| {
        let one = |a: &SocketAddr| SocketAddr::new(a.ip(), if a.port() == 0 { port } else { a.port() });
        config.listen.iter().map(one).collect::<Vec<_>>()
    };
    let kept = if chosen && meta.port != 0 { Some(bind(&without_ipv6(with(meta.port)))) } else { None };
    let bound = match kept {
        Some(Ok(udp)) => Ok(udp),
        Some(Err(UdpError::InUse(_))) | None => bind(&with(0)),
        Some(Err(e)) => Err(e),
    };
    let udp = bound.map_err(|e| {
        let p = Problem::failed(e.to_string());
        match e {
            UdpError::InUse(_) => {
                p.fix("Choose another port in `listen`, or 0 for any; each network needs its own.")
            }
            _ => p,
        }
    })?;
    if chosen {
        meta.port = udp.local_addrs().first().map_or(0, SocketAddr::port);
    }
    Ok(udp)
}

/// `[::]` is left out where the machine has no IPv6.
fn without_ipv6(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let has_v6 = std::fs::exists("/proc/net/if_inet6").unwrap_or(false);
    if has_v6 || addresses.len() < 2 {
        return addresses;
    }
    addresses.into_iter().filter(|a| a.is_ipv4() || !a.ip().is_unspecified()).collect()
}

/// Known addresses of peers by NodeId; names are those of the certificates at hand.
fn endpoints(
    config: &config::Network,
    network: &NetworkId,
    facts: &[Vec<u8>],
    own: NodeId,
) -> HashMap<NodeId, SocketAddr> {
    let certificates: Vec<(NodeId, Name)> = facts
        .iter()
        .filter_map(|f| Fact::parse(f).ok())
        .filter(|f| f.network() == *network && f.subject() != own)
        .filter_map(|f| Some((f.subject(), f.certificate()?.name.clone())))
        .collect();
    let mut known = HashMap::new();
    for (peer, addresses) in &config.peers {
        let Some(address) = addresses.first() else { continue };
        match peer {
            PeerName::Node(node) => {
                known.insert(*node, *address);
            }
            PeerName::Name(name) => {
                let of_that_name = certificates.iter().filter(|(_, n)| n == name);
                known.extend(of_that_name.map(|(node, _)| (*node, *address)));
            }
        }
    }
    known
}

impl Network {
    /// A network that could not be opened.
    pub fn failed(state: &State, config: &Config, name: &Name, failure: Problem) -> Result<Self, Problem> {
        let files = state.network(name)?;
        let saved = files.load()?;
        let seed = state.seed()?;
        let identity = seed.and_then(|s| s.identity_key(&saved.genesis.id(), saved.meta.incarnation).ok());
        let node = identity.map_or(NodeId([0; 32]), |i| NodeId::of(i.public()));
        Ok(Network {
            name: name.clone(),
            files,
            meta: saved.meta,
            genesis: saved.genesis,
            node,
            config: config.network(name),
            engine: None,
            listen: vec![],
            direct: config.direct,
            mapping: None,
            nat: None,
            lan: None,
            tcp: None,
            failure: Some(failure),
            warnings: vec![],
            ipv4: None,
        })
    }

    /// Why this node is no member any more, if it was revoked.
    pub fn why_revoked(&self) -> Option<Problem> {
        revoked(&self.name, &self.files.load().ok()?, &self.node)
    }

    /// It was revoked, as far as was seen: nothing brings it up again.
    pub fn is_ended(&self) -> bool {
        self.failure.as_ref().is_some_and(|p| p.exit == Exit::Refused)
    }

    /// This node's IPv6 address.
    pub fn ipv6(&self) -> Ipv6Addr {
        self.node.ipv6(&self.genesis.id())
    }

    /// How its port mapping is.
    pub fn mapping_state(&self) -> MappingState {
        self.mapping.as_ref().map_or(MappingState::Off, Mapping::state)
    }

    /// Relays that are reached by TCP.
    pub fn carried(&self) -> Vec<Carried> {
        self.tcp.as_ref().map(Tcp::carried).unwrap_or_default()
    }

    /// What to show while nothing runs.
    pub fn resting(&self) -> NetworkStatus {
        let ended = self.failure.clone().filter(|_| self.is_ended());
        let failure = ended.as_ref().map(ToString::to_string);
        let failure = failure.or_else(|| self.failure.as_ref().map(|p| p.what.clone()));
        let mut problems: Vec<String> = failure.into_iter().collect();
        problems.extend(self.warnings.iter().cloned());
        NetworkStatus {
            name: self.name.to_string(),
            id: self.genesis.id().to_string(),
            up: false,
            problems,
            ended,
            interface: self.config.interface.clone(),
            mtu: self.config.mtu.into(),
            bridge: self.config.bridge.clone(),
            device: self.meta.device.clone(),
            node: self.node.to_string(),
            roles: String::new(),
            ipv4: self.ipv4.map(|a| a.to_string()),
            subnet4: format!("{}/{}", self.genesis.subnet4.0, self.genesis.subnet4.1),
            ipv6: self.ipv6().to_string(),
            certificate_ends: None,
            listen: self.listen.iter().map(ToString::to_string).collect(),
            port_mapping: match self.mapping_state() {
                MappingState::Open { by, external, .. } => Some(format!("{by} {external}")),
                _ => None,
            },
            relays: vec![],
            peers: vec![],
            drops: Default::default(),
        }
    }
}

/// Finds a member by name, overlay address, NodeId or the beginning of one.
pub fn find_peer(inside: &Inside<'_>, text: &str) -> Option<NodeId> {
    let roster = inside.endpoint.node.roster();
    if let Some(m) = roster.by_name(text) {
        return Some(m.id);
    }
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V4(a)) => return roster.by_ipv4(a).map(|m| m.id),
        Ok(IpAddr::V6(a)) => return roster.members().find(|m| m.ipv6 == a).map(|m| m.id),
        Err(_) => {}
    }
    if let Ok(id) = text.parse::<NodeId>() {
        return roster.member(&id).map(|m| m.id);
    }
    // What `short` prints; not less, that it stays one.
    let mut found =
        roster.members().map(|m| m.id).filter(|id| text.len() >= 19 && id.to_string().starts_with(text));
    found.next().filter(|_| found.next().is_none())
}

/// What the device is to have, compared with what it has: addresses come and go with the routes of this machine.
pub struct Wanted {
    /// The device.
    pub interface: String,
    /// The Linux bridge that it is to be a port of: it has the addresses then.
    pub bridge: Option<String>,
    /// The IPv4 subnet.
    pub subnet: (Ipv4Addr, u8),
    /// This node's address in it, if it has one.
    pub ipv4: Option<Ipv4Addr>,
    /// This node's IPv6 address.
    pub ipv6: Ipv6Addr,
    /// Members' router advertisements are taken.
    pub router_advertisements: bool,
}

/// Sets the device up, or right again. Gives the IPv4 address that it has now, and what a person should know.
pub async fn configure(
    netlink: &Netlink,
    network: &Name,
    wanted: &Wanted,
) -> Result<(Option<Ipv4Addr>, Vec<String>), Problem> {
    let failed = |e: NetlinkError| {
        let exit = if matches!(e, NetlinkError::NoPrivilege(_)) { Exit::NotPermitted } else { Exit::Failed };
        Problem::new(exit, e.to_string())
    };
    let mut warnings = vec![];
    let device = wanted.interface.as_str();
    let autoconf = if wanted.router_advertisements {
        netlink::enable_ipv6_autoconf(device)
    } else {
        netlink::disable_ipv6_autoconf(device)
    };
    match autoconf {
        Ok(()) | Err(NetlinkError::NoIpv6(_)) => {}
        Err(e) => return Err(failed(e)),
    }
    if let Some(bridge) = &wanted.bridge {
        netlink.join_bridge(device, bridge).await.map_err(failed)?;
    }
    if !netlink.link_state(device).await.map_err(failed)?.up {
        if let Err(e) = netlink.without_qdisc(device).await {
            debug!("{e}");
        }
        netlink.set_up(device).await.map_err(failed)?;
    }
    // A port of a bridge takes no packets itself.
    let interface = wanted.bridge.as_deref().unwrap_or(device);
    // Added only where they are not: to be told of an address, also of one that it has, has Linux report to the whole
    // network again what it listens to (`ipv6_find_idev`).
    let there = netlink.addresses(interface).await.map_err(failed)?;
    let has = |ip: IpAddr, prefix: u8| there.iter().any(|a| a.ip == ip && a.prefix == prefix);
    if !has(wanted.ipv6.into(), 64) {
        match netlink.add_address(interface, wanted.ipv6.into(), 64).await {
            Ok(()) => {}
            Err(e @ NetlinkError::NoIpv6(_)) => {
                warnings.push(format!("{e}, so \"{network}\" is up on IPv4 alone here."))
            }
            Err(e) => return Err(failed(e)),
        }
    }
    let (subnet, len) = wanted.subnet;
    let routes = netlink.local_routes_v4().await.map_err(failed)?;
    let other =
        routes.iter().find(|r| r.interface != interface && overlaps((r.network, r.prefix), (subnet, len)));
    let mut ipv4 = wanted.ipv4;
    if let (Some(route), Some(_)) = (other, ipv4) {
        ipv4 = None;
        warnings.push(format!(
            "{subnet}/{len} overlaps {} ({}/{}) on this machine, so \"{network}\" is up on IPv6 alone here. IPv4 comes \
             back by itself when that network changes.",
            if route.interface.is_empty() { "a route" } else { &route.interface },
            route.network,
            route.prefix
        ));
    }
    for address in &there {
        let IpAddr::V4(old) = address.ip else { continue };
        let inside = overlaps((old, 32), (subnet, len)) || ipv4.is_none();
        if Some(old) != ipv4 && inside {
            netlink.remove_address(interface, address.ip).await.map_err(failed)?;
        }
    }
    if let Some(a) = ipv4.filter(|a| !has((*a).into(), len)) {
        netlink.add_address(interface, a.into(), len).await.map_err(failed)?;
    }
    Ok((ipv4, warnings))
}

/// Takes the addresses from a bridge: unlike the device, it stays.
pub async fn leave_bridge(netlink: &Netlink, bridge: &str, addresses: [Option<IpAddr>; 2]) {
    for ip in addresses.into_iter().flatten() {
        if let Err(e) = netlink.remove_address(bridge, ip).await {
            warn!("{ip} stays on `{bridge}`: {e}");
        }
    }
}

/// Whether one IPv4 network holds the other, or is it.
pub fn overlaps(a: (Ipv4Addr, u8), b: (Ipv4Addr, u8)) -> bool {
    let len = u32::from(a.1.min(b.1).min(32));
    let mask = u32::MAX.checked_shl(32 - len).unwrap_or(0);
    (a.0.to_bits() ^ b.0.to_bits()) & mask == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_overlap_when_one_holds_the_other() {
        let net = |t: &str, n| (t.parse().unwrap(), n);
        assert!(overlaps(net("10.83.0.0", 16), net("10.83.4.0", 24)));
        assert!(overlaps(net("10.0.0.0", 8), net("10.83.4.0", 24)));
        assert!(!overlaps(net("10.83.0.0", 16), net("10.84.0.0", 16)));
        assert!(overlaps(net("0.0.0.0", 0), net("10.84.0.0", 16)));
        assert!(!overlaps(net("10.0.0.1", 32), net("10.0.0.2", 32)));
    }
}
