//! Where this machine may be reached: every address of every interface, the default routes, and word of their changes.

use super::{Netlink, NetlinkError, address_of};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHop, RouteNextHopFlags,
    RouteType,
};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use rtnetlink::{MulticastGroup, RouteMessageBuilder};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use tokio::sync::mpsc;

/// What wakes a watcher. Not neighbours: they come and go with every packet.
const GROUPS: [MulticastGroup; 5] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv6Route,
];

/// How far an address reaches (RFC 4007; `ip address` calls it scope).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Everywhere that routes lead.
    Global,
    /// A site: long out of use.
    Site,
    /// The link alone.
    Link,
    /// This machine alone.
    Host,
}

/// An address, and the interface that has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The interface.
    pub interface: String,
    /// The address.
    pub ip: IpAddr,
    /// Length of its network part.
    pub prefix: u8,
    /// How far it reaches.
    pub scope: Scope,
    /// Duplicate address detection is still running (IPv6).
    pub tentative: bool,
    /// Somebody else on the link has it (IPv6).
    pub duplicate: bool,
    /// No new connections from it: it ends soon.
    pub deprecated: bool,
    /// One of those that change every day (IPv6, RFC 8981).
    pub temporary: bool,
}

/// A default route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultRoute {
    /// Of IPv6, not IPv4.
    pub ipv6: bool,
    /// The interface; empty for one that is gone.
    pub interface: String,
    /// The router; `None` where everything is on the link.
    pub gateway: Option<IpAddr>,
    /// The lowest is taken.
    pub metric: u32,
}

/// A router, and the interface that it is behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    /// Its address.
    pub address: Ipv4Addr,
    /// The interface.
    pub interface: String,
}

impl Netlink {
    /// Every address of every interface that is up and has a carrier.
    pub async fn all_addresses(&self) -> Result<Vec<InterfaceAddress>, NetlinkError> {
        let links = self.links().await?;
        let messages = self.list("listing addresses", || self.handle.address().get().execute()).await?;
        let usable = |l: &&LinkMessage| l.header.flags.contains(LinkFlags::Up | LinkFlags::Running);
        let of = |message: &AddressMessage| {
            let link = links.iter().find(|l| l.header.index == message.header.index).filter(usable)?;
            interface_address(name(link)?, message)
        };
        Ok(messages.iter().filter_map(of).collect())
    }

    /// The default routes of both families, the preferred ones first.
    pub async fn default_routes(&self) -> Result<Vec<DefaultRoute>, NetlinkError> {
        let names = self.link_names().await?;
        let mut found = vec![];
        for query in
            [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
        {
            let ipv6 = query.header.address_family == rtnetlink::packet_route::AddressFamily::Inet6;
            let routes = match self.list("listing routes", || self.handle.route().get(query).execute()).await
            {
                // A kernel without IPv6.
                Err(NetlinkError::Failed { source, .. })
                    if ipv6
                        && matches!(source.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT)) =>
                {
                    continue;
                }
                other => other?,
            };
            found.extend(routes.iter().filter_map(|r| default_route(r, ipv6, &names)));
        }
        found.sort_by_key(|r| (r.ipv6, r.metric));
        Ok(found)
    }

    /// The IPv4 router that everything goes to; `None` without a default route, or where that has no router.
    pub async fn gateway(&self) -> Result<Option<Gateway>, NetlinkError> {
        Ok(gateway_of(&self.default_routes().await?))
    }

    /// The bridge (or bond) that an interface is a port of.
    pub async fn controller(&self, interface: &str) -> Result<Option<String>, NetlinkError> {
        let link = self.link(interface).await?;
        let index = link.attributes.iter().find_map(|a| match a {
            LinkAttribute::Controller(index) if *index != 0 => Some(*index),
            _ => None,
        });
        let Some(index) = index else { return Ok(None) };
        Ok(self.link_names().await?.into_iter().find(|(i, _)| *i == index).map(|(_, name)| name))
    }

    /// Says when interfaces, addresses or routes of this machine change. Several changes may be said once; what has changed
    /// is to be looked up. Needs no privilege. Call it inside a tokio runtime.
    pub fn watch() -> Result<mpsc::Receiver<()>, NetlinkError> {
        let opening = |source| NetlinkError::Failed { what: "watching for changes of the network", source };
        let mut socket = TokioSocket::new(NETLINK_ROUTE).map_err(opening)?;
        let groups = GROUPS.iter().fold(0, |all, g| all | 1 << (*g as u32 - 1));
        socket.socket_mut().bind(&SocketAddr::new(0, groups)).map_err(opening)?;
        let (changed, changes) = mpsc::channel(1);
        tokio::spawn(async move {
            // That there is a message is all that counts, so that a cut one will do.
            let mut memory = [0; 64];
            loop {
                let mut space = &mut memory[..];
                let heard = tokio::select! {
                    heard = socket.recv(&mut space) => heard,
                    () = changed.closed() => return,
                };
                match heard {
                    Ok(()) => {}
                    // Too many at once: something has changed.
                    Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {}
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    Err(_) => return,
                }
                // Full: whoever waits will be told anyway.
                let _told_already = changed.try_send(());
            }
        });
        Ok(changes)
    }
}

/// The IPv4 router among default routes.
pub fn gateway_of(routes: &[DefaultRoute]) -> Option<Gateway> {
    let first = routes.iter().filter(|r| !r.ipv6).min_by_key(|r| r.metric)?;
    match first.gateway {
        Some(IpAddr::V4(address)) => Some(Gateway { address, interface: first.interface.clone() }),
        _ => None,
    }
}

/// The address that packets to another are sent from. None is sent.
pub fn source_for(destination: IpAddr) -> io::Result<IpAddr> {
    let any: IpAddr =
        if destination.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    // Any port: one that nobody hears either.
    socket.connect((destination, 9))?;
    Ok(socket.local_addr()?.ip())
}

pub(super) fn name(link: &LinkMessage) -> Option<String> {
    link.attributes.iter().find_map(|a| match a {
        LinkAttribute::IfName(n) => Some(n.clone()),
        _ => None,
    })
}

fn interface_address(interface: String, message: &AddressMessage) -> Option<InterfaceAddress> {
    let address = address_of(message)?;
    let header = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    let flags = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Flags(f) => Some(*f),
        _ => None,
    });
    let flags = flags.unwrap_or(header);
    Some(InterfaceAddress {
        interface,
        ip: address.ip,
        prefix: address.prefix,
        scope: match message.header.scope {
            AddressScope::Universe => Scope::Global,
            AddressScope::Link => Scope::Link,
            AddressScope::Host | AddressScope::Nowhere => Scope::Host,
            _ => Scope::Site,
        },
        tentative: flags.contains(AddressFlags::Tentative) && !flags.contains(AddressFlags::Optimistic),
        duplicate: flags.contains(AddressFlags::Dadfailed),
        deprecated: flags.contains(AddressFlags::Deprecated),
        // For IPv4 the same bit says that it is not the first of its network.
        temporary: address.ip.is_ipv6() && flags.contains(AddressFlags::Secondary),
    })
}

fn default_route(route: &RouteMessage, ipv6: bool, names: &[(u32, String)]) -> Option<DefaultRoute> {
    let header = &route.header;
    let table = route.attributes.iter().find_map(|a| match a {
        RouteAttribute::Table(t) => Some(*t),
        _ => None,
    });
    let main = table.unwrap_or(header.table.into()) == u32::from(RouteHeader::RT_TABLE_MAIN);
    let dead = header.flags.intersects(RouteFlags::Dead | RouteFlags::Linkdown);
    let default = header.destination_prefix_length == 0 && header.kind == RouteType::Unicast;
    if !main || dead || !default {
        return None;
    }
    let (mut gateway, mut interface, mut metric) = (None, None, 0);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Gateway(a) => gateway = ip(a),
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Priority(n) => metric = *n,
            // Several at once: the first that works stands for all.
            RouteAttribute::MultiPath(hops) => {
                let dead = RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown;
                let hop: &RouteNextHop = hops.iter().find(|h| !h.flags.intersects(dead))?;
                interface = Some(hop.interface_index);
                gateway = hop.attributes.iter().find_map(|a| match a {
                    RouteAttribute::Gateway(a) => ip(a),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let interface = names.iter().find(|(i, _)| Some(*i) == interface).map(|(_, n)| n.clone());
    Some(DefaultRoute { ipv6, interface: interface.unwrap_or_default(), gateway, metric })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(a) => Some((*a).into()),
        RouteAddress::Inet6(a) => Some((*a).into()),
        _ => None,
    }
}
