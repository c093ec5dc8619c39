//! Who is sent to and heard from, and by which address of this machine, where it has several.
//!
//! An answer that leaves by another address is nobody's to who waits for it, and no NAT lets it in. A socket that is bound to
//! no address in particular leaves the choice to the routing table, which knows nothing of the question.

use std::net::{IpAddr, SocketAddr};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

/// Who is at the other end: an address, or that and one of this machine.
pub trait Remote: Copy + PartialEq {
    /// Heard from there, at this address of this machine, if that is known.
    fn heard(address: SocketAddr, local: Option<IpAddr>) -> Self;
    /// Where it is.
    fn address(&self) -> SocketAddr;
    /// By which address of this machine it is sent to. None: whichever the system chooses.
    fn local(&self) -> Option<IpAddr>;
}

impl Remote for SocketAddr {
    fn heard(address: SocketAddr, _: Option<IpAddr>) -> Self {
        address
    }

    fn address(&self) -> SocketAddr {
        *self
    }

    fn local(&self) -> Option<IpAddr> {
        None
    }
}

impl Remote for (SocketAddr, Option<IpAddr>) {
    fn heard(address: SocketAddr, local: Option<IpAddr>) -> Self {
        (address, local.filter(|ip| !no_source(*ip)))
    }

    fn address(&self) -> SocketAddr {
        self.0
    }

    fn local(&self) -> Option<IpAddr> {
        self.1
    }
}

/// Is it none to send from: of a group or of all, or of one link, which is not known without that link?
fn no_source(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(a) => a.is_multicast() || a.is_broadcast() || a.is_unspecified(),
        IpAddr::V6(a) => a.is_multicast() || a.is_unicast_link_local() || a.is_unspecified(),
    }
}

/// Has this machine several addresses of one family? So it is taken where that cannot be learned.
pub fn several_addresses() -> bool {
    let Ok(all) = getifaddrs() else { return true };
    let up = all.filter(|i| {
        i.flags.contains(InterfaceFlags::IFF_UP) && !i.flags.contains(InterfaceFlags::IFF_LOOPBACK)
    });
    let (mut v4, mut v6) = (0, 0);
    for address in up.filter_map(|i| i.address) {
        v4 += usize::from(address.as_sockaddr_in().is_some());
        v6 += usize::from(address.as_sockaddr_in6().is_some_and(|a| !no_source(a.ip().into())));
    }
    v4 > 1 || v6 > 1
}
