//! Where a client is, and by which of the relay's addresses.

use std::net::{IpAddr, SocketAddr};

/// A path between a client and the relay. Both ends are of it: an answer that leaves by another of the relay's addresses is
/// nobody's to who waits for it, and no NAT lets it in (RFC 4787, 5: filtering).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FourTuple {
    /// The client's address and port.
    pub remote: SocketAddr,
    /// The relay's address, where it has several: what is sent leaves by it. None: whichever the system chooses. Its port is
    /// that of the socket.
    pub local: Option<IpAddr>,
}

impl From<SocketAddr> for FourTuple {
    fn from(remote: SocketAddr) -> FourTuple {
        FourTuple { remote, local: None }
    }
}
