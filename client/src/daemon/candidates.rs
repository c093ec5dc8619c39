//! Where this machine may be reached: a task of its own looks at the machine's addresses and routes, tells the nodes, and
//! the port mappings (`mapping.rs`) by which router to ask.

use super::lan;
use super::mapping::{Basis, MappingState};
use super::network::{Network, overlaps};
use super::{Daemon, UPKEEP};
use crate::engine::Engine;
use shadowmesh_host::clock::Clock;
use shadowmesh_host::netlink::{
    DefaultRoute, InterfaceAddress, Netlink, NetlinkError, Scope, gateway_of, source_for,
};
use shadowmesh_identity::{Name, address};
use shadowmesh_wire::candidate::{Candidate, CandidateKind, is_special};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{debug, warn};

/// A change of the network is a burst of small ones: it is looked at when that is over.
const SETTLE: Duration = Duration::from_millis(100);
/// Between looks.
const PAUSE: Duration = Duration::from_millis(200);
/// Addresses of each family that are told.
const EACH: usize = 4;

/// Looks whenever something may have changed. Never ends.
pub async fn follow(daemon: Arc<Daemon>) {
    let watch = Netlink::watch().map_err(|e| warn!("changes of the network are seen late: {e}"));
    let (mut changes, mut seen, clock) = (watch.ok(), BTreeMap::new(), Clock::new());
    let mut ticks = interval(UPKEEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut last, mut woken) = (clock.now(), false);
    loop {
        tokio::select! {
            () = change(&mut changes) => sleep(SETTLE).await,
            () = daemon.look.notified() => {}
            _ = ticks.tick() => {
                let now = clock.now();
                woken |= has_slept(now - last);
                last = now;
            }
        }
        match look(&daemon, &mut seen, woken).await {
            Ok(()) => woken = false,
            Err(e) => debug!("the machine's addresses cannot be listed: {e}"),
        }
        sleep(PAUSE).await;
    }
}

/// Returns when the kernel says that something has changed.
async fn change(changes: &mut Option<mpsc::Receiver<()>>) {
    if let Some(told) = changes {
        if told.recv().await.is_some() {
            return;
        }
        *changes = None;
    }
    std::future::pending().await
}

/// Whether the machine, or this process, has stood still between two looks.
fn has_slept(between: Duration) -> bool {
    between > UPKEEP * 3 + Duration::from_secs(10)
}

/// What a network's node was told.
struct Seen {
    engine: Weak<Engine>,
    hosts: BTreeSet<IpAddr>,
    routes: Vec<DefaultRoute>,
    candidates: Vec<Candidate>,
}

/// What is of this machine's networks themselves: nothing of it leads to this machine but through them.
#[derive(Default)]
struct Own {
    interfaces: Vec<String>,
    subnets: Vec<(Ipv4Addr, u8)>,
    prefixes: Vec<Ipv6Addr>,
}

impl Own {
    async fn of(daemon: &Daemon) -> Own {
        let mut own = Own::default();
        for network in daemon.networks.lock().await.values() {
            own.interfaces.push(network.config.interface.clone());
            own.interfaces.extend(network.config.bridge.clone());
            own.subnets.push(network.genesis.subnet4);
            own.prefixes.push(address::prefix6(&network.genesis.id()));
        }
        for i in 0..own.interfaces.len() {
            if let Ok(Some(bridge)) = daemon.netlink.controller(&own.interfaces[i]).await {
                own.interfaces.push(bridge);
            }
        }
        own
    }

    fn holds(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => self.subnets.iter().any(|s| overlaps((ip, 32), *s)),
            IpAddr::V6(ip) => self.prefixes.iter().any(|p| p.octets()[..8] == ip.octets()[..8]),
        }
    }
}

async fn look(daemon: &Daemon, seen: &mut BTreeMap<Name, Seen>, woken: bool) -> Result<(), NetlinkError> {
    let own = Own::of(daemon).await;
    let addresses = usable(daemon.netlink.all_addresses().await?, &own);
    let mut routes = daemon.netlink.default_routes().await?;
    routes.retain(|r| !own.interfaces.contains(&r.interface));
    let mut calls = vec![];
    {
        let networks = daemon.networks.lock().await;
        seen.retain(|name, _| networks.get(name).is_some_and(|n| n.engine.is_some()));
        for network in networks.values().filter(|n| n.direct) {
            calls.extend(look_for(network, seen, &addresses, &routes, &own, woken));
        }
    }
    for (engine, candidates, changed) in calls {
        let told = engine.call(move |inside| {
            inside.endpoint.node.set_candidates(inside.now, candidates);
            if changed {
                inside.endpoint.node.network_changed(inside.now);
            }
        });
        // A network that has just ended needs to hear nothing.
        let _ended = told.await;
    }
    Ok(())
}

/// For one network: what its node is to be told, if that is anything new; its mapping is told here.
fn look_for(
    network: &Network,
    seen: &mut BTreeMap<Name, Seen>,
    addresses: &[InterfaceAddress],
    routes: &[DefaultRoute],
    own: &Own,
    woken: bool,
) -> Option<(Arc<Engine>, Vec<Candidate>, bool)> {
    let engine = network.engine.clone()?;
    let listened = |a: &&InterfaceAddress| port_of(&network.listen, a.ip).is_some();
    let addresses: Vec<_> = addresses.iter().filter(listened).collect();
    let hosts: BTreeSet<IpAddr> = addresses.iter().map(|a| a.ip).collect();
    let before = seen.get(&network.name).filter(|s| s.engine.ptr_eq(&Arc::downgrade(&engine)));
    let changed = before.is_some_and(|s| woken || s.hosts != hosts || s.routes != routes);
    if let Some(mapping) = &network.mapping {
        mapping.follow(basis(&network.listen, &hosts, routes, own), changed);
    }
    if let Some(nat) = network.nat.as_ref().filter(|_| changed) {
        nat.network_changed();
    }
    if let Some(lan) = &network.lan {
        lan.follow(on_lan(&network.listen, &chosen(&addresses, routes), &addresses, own));
    }
    let host = |ip| {
        let address = SocketAddr::new(ip, port_of(&network.listen, ip)?);
        Some(Candidate { kind: CandidateKind::Host, address })
    };
    let mut candidates: Vec<_> = chosen(&addresses, routes).into_iter().filter_map(host).collect();
    if let MappingState::Open { external, .. } = network.mapping_state() {
        candidates.push(Candidate { kind: CandidateKind::Mapped, address: external });
    }
    if !changed && before.is_some_and(|s| s.candidates == candidates) {
        return None;
    }
    debug!(network = %network.name, ?candidates, changed, "candidates");
    let told = Seen {
        engine: Arc::downgrade(&engine),
        hosts,
        routes: routes.to_vec(),
        candidates: candidates.clone(),
    };
    seen.insert(network.name.clone(), told);
    Some((engine, candidates, changed))
}

/// The addresses that others may be able to send to.
fn usable(mut addresses: Vec<InterfaceAddress>, own: &Own) -> Vec<InterfaceAddress> {
    addresses.retain(|a| {
        let reaches = matches!(a.scope, Scope::Global | Scope::Site);
        let stands = !a.tentative && !a.duplicate && !a.deprecated;
        !is_special(a.ip) && reaches && stands && !own.interfaces.contains(&a.interface) && !own.holds(a.ip)
    });
    addresses
}

/// The port at which a packet to this address comes to the network's socket, if it does.
fn port_of(listen: &[SocketAddr], ip: IpAddr) -> Option<u16> {
    let here = |a: &&SocketAddr| a.is_ipv4() == ip.is_ipv4() && (a.ip().is_unspecified() || a.ip() == ip);
    listen.iter().find(here).map(SocketAddr::port)
}

/// Those that are told: of each family a few, those of the interface that the default route takes first; of IPv6 stable and
/// temporary ones in turn.
fn chosen(addresses: &[&InterfaceAddress], routes: &[DefaultRoute]) -> Vec<IpAddr> {
    let mut chosen = vec![];
    for ipv6 in [false, true] {
        let main = routes.iter().find(|r| r.ipv6 == ipv6).map(|r| r.interface.as_str());
        let mut family: Vec<_> = addresses.iter().filter(|a| a.ip.is_ipv6() == ipv6).collect();
        family.sort_by_key(|a| Some(a.interface.as_str()) != main);
        let (temporary, stable): (Vec<_>, Vec<_>) = family.into_iter().partition(|a| a.temporary);
        let turns = stable.len().max(temporary.len());
        let turn = |i| [stable.get(i), temporary.get(i)].into_iter().flatten();
        let both = (0..turns).flat_map(turn).map(|a: &&&InterfaceAddress| a.ip);
        chosen.extend(both.take(EACH));
    }
    chosen
}

/// What is announced on the LANs: those of the addresses that are told that have the first one's port.
fn on_lan(listen: &[SocketAddr], told: &[IpAddr], addresses: &[&InterfaceAddress], own: &Own) -> lan::Basis {
    let port = told.iter().find_map(|ip| port_of(listen, *ip)).unwrap_or(0);
    let prefix = |ip: &IpAddr| addresses.iter().find(|a| a.ip == *ip).map(|a| (*ip, a.prefix));
    let here = told.iter().filter(|ip| port_of(listen, **ip) == Some(port));
    lan::Basis { port, addresses: here.filter_map(prefix).collect(), without: own.interfaces.clone() }
}

/// By what a port mapping is to be asked for, or why none is.
fn basis(
    listen: &[SocketAddr],
    hosts: &BTreeSet<IpAddr>,
    routes: &[DefaultRoute],
    own: &Own,
) -> Result<Basis, &'static str> {
    let router = gateway_of(routes).ok_or("there is no IPv4 router")?.address;
    let public = |ip: &IpAddr| matches!(ip, IpAddr::V4(ip) if !is_private(*ip));
    if hosts.iter().any(public) {
        return Err("this machine has a public IPv4 address");
    }
    let address = match source_for(router.into()) {
        Ok(IpAddr::V4(ip)) if hosts.contains(&ip.into()) => ip,
        _ => return Err("the router is not reached from an address that is listened on"),
    };
    let port = port_of(listen, address.into()).and_then(NonZeroU16::new).ok_or("there is no IPv4 socket")?;
    Ok(Basis { router, address, port, subnets: own.subnets.clone() })
}

/// Behind a router, or behind a provider's (RFC 1918, RFC 6598).
pub(super) fn is_private(ip: Ipv4Addr) -> bool {
    ip.is_private() || overlaps((ip, 32), (Ipv4Addr::new(100, 64, 0, 0), 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(interface: &str, ip: &str) -> InterfaceAddress {
        InterfaceAddress {
            interface: interface.into(),
            ip: ip.parse().unwrap(),
            prefix: 24,
            scope: Scope::Global,
            tentative: false,
            duplicate: false,
            deprecated: false,
            temporary: false,
        }
    }

    fn route(interface: &str, gateway: Option<&str>) -> DefaultRoute {
        let gateway: Option<IpAddr> = gateway.map(|g| g.parse().unwrap());
        DefaultRoute {
            ipv6: gateway.is_some_and(|g| g.is_ipv6()),
            interface: interface.into(),
            gateway,
            metric: 0,
        }
    }

    fn texts(addresses: &[InterfaceAddress]) -> Vec<String> {
        addresses.iter().map(|a| a.ip.to_string()).collect()
    }

    #[test]
    fn addresses_that_lead_nowhere_or_into_the_mesh_are_left_out() {
        let own = Own {
            interfaces: vec!["sm-home".into(), "br0".into()],
            subnets: vec![("10.83.0.0".parse().unwrap(), 16)],
            prefixes: vec!["fd5a:1:2:3::".parse().unwrap()],
        };
        let good =
            [address("eth0", "192.168.1.2"), address("eth0", "203.0.113.7"), address("eth0", "2001:db8::1")];
        let mut all = good.to_vec();
        for ip in ["127.0.0.1", "169.254.1.1", "224.0.0.1", "::1", "fe80::1", "ff02::1", "10.83.4.5"] {
            all.push(address("eth0", ip));
        }
        all.push(address("eth1", "fd5a:1:2:3::9"));
        all.push(address("sm-home", "192.168.7.7"));
        all.push(address("br0", "192.168.7.8"));
        all.push(InterfaceAddress { scope: Scope::Link, ..address("eth0", "192.168.1.3") });
        all.push(InterfaceAddress { tentative: true, ..address("eth0", "2001:db8::2") });
        all.push(InterfaceAddress { duplicate: true, ..address("eth0", "2001:db8::3") });
        all.push(InterfaceAddress { deprecated: true, ..address("eth0", "2001:db8::4") });
        assert_eq!(texts(&usable(all, &own)), texts(&good));
    }

    #[test]
    fn the_port_is_that_of_the_socket_of_the_family_or_of_the_address() {
        let listen = |all: &[&str]| all.iter().map(|a| a.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let (four, six): (IpAddr, IpAddr) = ("192.168.1.2".parse().unwrap(), "2001:db8::1".parse().unwrap());
        let both = listen(&["0.0.0.0:1000", "[::]:2000"]);
        assert_eq!((port_of(&both, four), port_of(&both, six)), (Some(1000), Some(2000)));
        let only = listen(&["192.168.1.2:1000"]);
        assert_eq!((port_of(&only, four), port_of(&only, six)), (Some(1000), None));
        assert_eq!(port_of(&only, "192.168.1.3".parse().unwrap()), None);
    }

    #[test]
    fn a_few_of_each_family_are_told_those_of_the_default_route_first() {
        let mut all: Vec<_> = (1..=6).map(|n| address("docker0", &format!("172.17.0.{n}"))).collect();
        all.push(address("eth0", "192.168.1.2"));
        all.extend((1..=6).map(|n| address("eth0", &format!("2001:db8::{n}"))));
        all.push(InterfaceAddress { temporary: true, ..address("eth0", "2001:db8::99") });
        let routes = [route("eth0", Some("192.168.1.1")), route("eth0", Some("fe80::1"))];
        let chosen = chosen(&all.iter().collect::<Vec<_>>(), &routes);
        let texts: Vec<_> = chosen.iter().map(ToString::to_string).collect();
        let four = ["192.168.1.2", "172.17.0.1", "172.17.0.2", "172.17.0.3"];
        let six = ["2001:db8::1", "2001:db8::99", "2001:db8::2", "2001:db8::3"];
        assert_eq!(texts, [four, six].concat());
    }

    #[test]
    fn no_port_is_asked_for_without_a_router_or_with_a_public_address() {
        let (listen, own) = (["0.0.0.0:1000".parse().unwrap()], Own::default());
        let hosts = |all: &[&str]| all.iter().map(|a| a.parse().unwrap()).collect::<BTreeSet<IpAddr>>();
        let why = |all: &[&str], route| basis(&listen, &hosts(all), &[route], &own).unwrap_err();
        assert_eq!(why(&["192.168.1.2"], route("ppp0", None)), "there is no IPv4 router");
        let routed = || route("eth0", Some("127.0.0.1"));
        assert_eq!(why(&["192.168.1.2", "203.0.113.7"], routed()), "this machine has a public IPv4 address");
        assert!(why(&["192.168.1.2"], routed()).starts_with("the router is not reached"));
        for (ip, private) in
            [("192.168.1.2", true), ("100.64.0.9", true), ("100.128.0.1", false), ("172.32.0.1", false)]
        {
            assert_eq!(is_private(ip.parse().unwrap()), private, "{ip}");
        }
    }

    #[test]
    fn standing_still_is_noticed() {
        assert!(!has_slept(UPKEEP) && !has_slept(UPKEEP * 4));
        assert!(has_slept(Duration::from_secs(26)));
    }
}
