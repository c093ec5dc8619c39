//! Addresses, MTU and state of interfaces, by rtnetlink and `/proc/sys`. For the control plane, on tokio.
//!
//! Everything is about the network namespace that the process (or the thread that made the [`Netlink`]) is
//! in. Nothing is run, nothing is written to files of the distribution; what is set on the TAP goes with it.

mod reach;

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use futures_util::{Stream, StreamExt, TryStreamExt};
use rtnetlink::packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteType};
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage};

use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder, new_connection};
use tokio::sync::Mutex;

pub use reach::{DefaultRoute, Gateway, InterfaceAddress, Scope, gateway_of, source_for};

/// What netlink refused.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No interface of this name.
    #[error("there is no interface named `{0}`")]
    NoSuchLink(String),
    /// It is another kind of interface.
    #[error("`{0}` is no bridge; make one (ip link add {0} type bridge) or name another")]
    NotBridge(String),
    /// Not allowed.
    #[error("{0} needs root or CAP_NET_ADMIN")]
    NoPrivilege(&'static str),
    /// IPv6 is switched off for the interface or the machine.
    #[error("IPv6 is switched off for `{0}` on this machine")]
    NoIpv6(String),
    /// Anything else.
    #[error("{what} did not work: {source}")]
    Failed {
        /// What was asked for.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// Length of its network part.
    pub prefix: u8,
    /// Duplicate address detection is still running (IPv6, the first second or two).
    pub tentative: bool,
    /// Somebody else on the link has this address (IPv6).
    pub duplicate: bool,
}

/// An IPv4 network that this machine reaches without a router, or by a route more special than the default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteV4 {
    /// The network.
    pub network: Ipv4Addr,
    /// Length of the network part; never 0.
    pub prefix: u8,
    /// The interface; empty for one that is gone.
    pub interface: String,
}

/// A netlink socket. Clones share it. Make it inside a tokio runtime.
#[derive(Debug, Clone)]
pub struct Netlink {
    handle: Handle,
    /// Held while something is listed.
    listing: Arc<Mutex<()>>,
}

impl Netlink {
    /// Opens the socket in the calling thread's network namespace and starts the task that reads it.
    pub fn new() -> Result<Netlink, NetlinkError> {
        let (connection, handle, _) = new_connection()
            .map_err(|source| NetlinkError::Failed { what: "opening a netlink socket", source })?;
        tokio::spawn(connection);
        Ok(Netlink { handle, listing: Arc::default() })
    }

    /// Whether there is an interface of this name.
    pub async fn link_exists(&self, name: &str) -> Result<bool, NetlinkError> {
        match self.link(name).await {
            Ok(_) => Ok(true),
            Err(NetlinkError::NoSuchLink(_)) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The interface's hardware address, MTU, queue length and whether it is up.
    pub async fn link_state(&self, name: &str) -> Result<LinkState, NetlinkError> {
        let link = self.link(name).await?;
        let mut state = LinkState { up: link.header.flags.contains(LinkFlags::Up), ..LinkState::default() };
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::Address(a) => state.mac = a.as_slice().try_into().ok(),
                LinkAttribute::Mtu(mtu) => state.mtu = *mtu,
                LinkAttribute::TxQueueLen(n) => state.txqueuelen = *n,
                _ => {}
            }
        }
        Ok(state)
    }

    /// Adds an address with its network. Adding what is there already is no error. Nobody is asked whether an IPv6
    /// address is taken: who assigned it knows, an answer could come from anyone, and it would be useless for a second
    /// or two.
    pub async fn add_address(&self, name: &str, ip: IpAddr, prefix: u8) -> Result<(), NetlinkError> {
        let index = self.link(name).await?.header.index;
        let mut request = self.handle.address().add(index, ip, prefix);
        if ip.is_ipv6() {
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        let result = request.execute().await;
        match result.map_err(|e| failed("adding an address", e)) {
            Err(NetlinkError::Failed { source, .. }) if source.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            Err(NetlinkError::NoPrivilege(_)) if ip.is_ipv6() && ipv6_is_off(name) => {
                Err(NetlinkError::NoIpv6(name.into()))
            }
            other => other,
        }
    }

    /// Takes an address away. That it is not there is no error.
    pub async fn remove_address(&self, name: &str, ip: IpAddr) -> Result<(), NetlinkError> {
        for message in self.address_messages(name).await? {
            if address_of(&message).is_some_and(|a| a.ip == ip) {
                let result = self.handle.address().del(message).execute().await;
                result.map_err(|e| failed("removing an address", e))?;
            }
        }
        Ok(())
    }

    /// The interface's addresses, both families.
    pub async fn addresses(&self, name: &str) -> Result<Vec<Address>, NetlinkError> {
        Ok(self.address_messages(name).await?.iter().filter_map(address_of).collect())
    }

    /// Sets the MTU.
    pub async fn set_mtu(&self, name: &str, mtu: u32) -> Result<(), NetlinkError> {
        self.change(name, "setting the MTU", |m| m.mtu(mtu)).await
    }

    /// Brings the interface up.
    pub async fn set_up(&self, name: &str) -> Result<(), NetlinkError> {
        self.change(name, "bringing the interface up", |m| m.up()).await
    }

    /// Has frames go straight to the interface's own queues. A TAP never tells the kernel to wait, so that a queueing
    /// discipline before it holds nothing, and makes one for each of the 256 queues that it could have: megabytes. To be
    /// done while it is down.
    pub async fn without_qdisc(&self, name: &str) -> Result<(), NetlinkError> {
        let index = self.link(name).await?.header.index;
        let mut message = TcMessage::with_index(index as i32);
        message.header.parent = TcHandle::ROOT;
        message.attributes.push(TcAttribute::Kind("noqueue".into()));
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewQueueDiscipline(message));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        let what = "removing the queueing discipline";
        let mut answers = self.handle.clone().request(request).map_err(|e| failed(what, e))?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(e) = answer.payload
                && e.code.is_some()
            {
                return Err(failed(what, rtnetlink::Error::NetlinkError(e)));
            }
        }
        Ok(())
    }

    /// Makes the interface a port of a bridge. That it is one already is no error.
    pub async fn join_bridge(&self, name: &str, bridge: &str) -> Result<(), NetlinkError> {
        let link = self.link(bridge).await?;
        let is_bridge = |i: &LinkInfo| matches!(i, LinkInfo::Kind(InfoKind::Bridge));
        let of_bridge =
            |a: &LinkAttribute| matches!(a, LinkAttribute::LinkInfo(all) if all.iter().any(is_bridge));
        if !link.attributes.iter().any(of_bridge) {
            return Err(NetlinkError::NotBridge(bridge.into()));
        }
        let index = link.header.index;
        let port = self.link(name).await?;
        if port.attributes.contains(&LinkAttribute::Controller(index)) {
            return Ok(());
        }
        self.change(name, "joining the bridge", |m| m.controller(index)).await
    }

    /// Takes the interface down.
    pub async fn set_down(&self, name: &str) -> Result<(), NetlinkError> {
        self.change(name, "taking the interface down", |m| m.down()).await
    }

    /// Sets how many frames may wait in the kernel.
    pub async fn set_txqueuelen(&self, name: &str, frames: u32) -> Result<(), NetlinkError> {
        let attribute = LinkAttribute::TxQueueLen(frames);
        self.change(name, "setting the queue length", |m| m.append_extra_attribute(attribute)).await
    }

    /// The IPv4 networks in this machine's tables except the default route and loopback: what a new subnet
    /// must not overlap. Several tables are looked at, since VPNs often keep their own.
    pub async fn local_routes_v4(&self) -> Result<Vec<RouteV4>, NetlinkError> {
        let names = self.link_names().await?;
        let query = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let routes = self.list("listing routes", || self.handle.route().get(query).execute()).await?;
        let mut found = Vec::new();
        for route in routes {
            let prefix = route.header.destination_prefix_length;
            if route.header.kind != RouteType::Unicast || prefix == 0 {
                continue;
            }
            let (mut network, mut interface) = (None, String::new());
            for attribute in &route.attributes {
                match attribute {
                    RouteAttribute::Destination(RouteAddress::Inet(ip)) => network = Some(*ip),
                    RouteAttribute::Oif(index) => {
                        interface = names
                            .iter()
                            .find(|(i, _)| i == index)
                            .map(|(_, n)| n.clone())
                            .unwrap_or_default();
                    }
                    _ => {}
                }
            }
            if let Some(network) = network.filter(|n| !n.is_loopback()) {
                let entry = RouteV4 { network, prefix, interface };
                if !found.contains(&entry) {
                    found.push(entry);
                }
            }
        }
        Ok(found)
    }

    async fn link(&self, name: &str) -> Result<LinkMessage, NetlinkError> {
        let result = self.handle.link().get().match_name(name).execute().try_next().await;
        match result.map_err(|e| failed("looking at an interface", e)) {
            Ok(Some(link)) => Ok(link),
            Ok(None) => Err(NetlinkError::NoSuchLink(name.into())),
            Err(NetlinkError::Failed { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => {
                Err(NetlinkError::NoSuchLink(name.into()))
            }
            Err(e) => Err(e),
        }
    }

    /// All that a query gives. One after the other: while the kernel lists something for a socket it refuses another list
    /// there (EBUSY).
    async fn list<T, S: Stream<Item = Result<T, rtnetlink::Error>>>(
        &self,
        what: &'static str,
        query: impl FnOnce() -> S,
    ) -> Result<Vec<T>, NetlinkError> {
        let _one_at_a_time = self.listing.lock().await;
        query().try_collect().await.map_err(|e| failed(what, e))
    }

    async fn links(&self) -> Result<Vec<LinkMessage>, NetlinkError> {
        self.list("listing interfaces", || self.handle.link().get().execute()).await
    }

    async fn link_names(&self) -> Result<Vec<(u32, String)>, NetlinkError> {
        Ok(self.links().await?.iter().filter_map(|l| Some((l.header.index, reach::name(l)?))).collect())
    }

    async fn address_messages(&self, name: &str) -> Result<Vec<AddressMessage>, NetlinkError> {
        let index = self.link(name).await?.header.index;
        let query = || self.handle.address().get().set_link_index_filter(index).execute();
        self.list("listing addresses", query).await
    }

    async fn change(
        &self,
        name: &str,
        what: &'static str,
        with: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
    ) -> Result<(), NetlinkError> {
        let index = self.link(name).await?.header.index;
        let message = with(LinkUnspec::new_with_index(index)).build();
        self.handle.link().set(message).execute().await.map_err(|e| failed(what, e))
    }
}

/// What an interface is like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkState {
    /// Administratively up.
    pub up: bool,
    /// Hardware address, if it has one of six bytes.
    pub mac: Option<[u8; 6]>,
    /// Largest payload.
    pub mtu: u32,
    /// Frames that may wait in the kernel.
    pub txqueuelen: u32,
}

fn address_of(message: &AddressMessage) -> Option<Address> {
    let (mut local, mut address, mut flags) = (None, None, AddressFlags::empty());
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point link IFA_ADDRESS is the other end; IFA_LOCAL is always ours.
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Flags(f) => flags = *f,
            _ => {}
        }
    }
    Some(Address {
        ip: local.or(address)?,
        prefix: message.header.prefix_len,
        tentative: flags.contains(AddressFlags::Tentative),
        duplicate: flags.contains(AddressFlags::Dadfailed),
    })
}

/// Keeps the kernel from taking addresses and routes that members of the network announce: router
/// advertisements are not accepted and no address is made from them. Link-local addresses stay.
pub fn disable_ipv6_autoconf(name: &str) -> Result<(), NetlinkError> {
    for key in ["accept_ra", "autoconf"] {
        write_ipv6_conf(name, key, "0")?;
    }
    Ok(())
}

/// Lets the kernel take router advertisements on this interface, even where the machine forwards.
pub fn enable_ipv6_autoconf(name: &str) -> Result<(), NetlinkError> {
    write_ipv6_conf(name, "accept_ra", "2")?;
    write_ipv6_conf(name, "autoconf", "1")
}

fn write_ipv6_conf(name: &str, key: &str, value: &str) -> Result<(), NetlinkError> {
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return Err(NetlinkError::NoSuchLink(name.into()));
    }
    // By the calling thread's namespace: /proc/sys/net follows the task that opens it.
    let path = format!("/proc/sys/net/ipv6/conf/{name}/{key}");
    std::fs::write(path, value).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound if nix::net::if_::if_nametoindex(name).is_err() => {
            NetlinkError::NoSuchLink(name.into())
        }
        io::ErrorKind::NotFound => NetlinkError::NoIpv6(name.into()),
        io::ErrorKind::PermissionDenied => NetlinkError::NoPrivilege("changing IPv6 settings"),
        _ => NetlinkError::Failed { what: "changing IPv6 settings", source },
    })
}

fn ipv6_is_off(name: &str) -> bool {
    match std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6")) {
        Ok(text) => text.trim() == "1",
        Err(_) => true,
    }
}

fn failed(what: &'static str, error: rtnetlink::Error) -> NetlinkError {
    let source = match error {
        rtnetlink::Error::NetlinkError(ErrorMessage { code: Some(code), .. }) => {
            io::Error::from_raw_os_error(code.get().abs())
        }
        other => io::Error::other(other),
    };
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => NetlinkError::NoPrivilege(what),
        _ => NetlinkError::Failed { what, source },
    }
}
