//! Candidates: addresses at which a member may be reached without a relay (RFC 8445 section 4), as CANDIDATES tells them.

use crate::{Reader, WireError, Writer};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Candidates of one member at most.
pub const MAX_CANDIDATES: usize = 16;
/// Bytes of an address: IPv6, or IPv4 mapped into it (RFC 4291 section 2.5.5.2), and a port.
pub const ADDRESS: usize = 18;

/// How a candidate was found. In the order in which they are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum CandidateKind {
    /// An interface's own address.
    Host = 1,
    /// A port that a router has opened (PCP, NAT-PMP, UPnP IGD).
    Mapped = 2,
    /// Where a relay, or a STUN server, sees it.
    Reflexive = 3,
    /// Where a packet of the peer has come from. Never told: who sees it has it.
    PeerReflexive = 4,
}

/// How this side's NAT maps (RFC 4787 section 4.1), as far as is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Mapping {
    /// Not found out.
    #[default]
    Unknown = 0,
    /// The same address and port for all: endpoint-independent, or no NAT.
    Independent = 1,
    /// Every destination sees another port: address-dependent, or address and port-dependent.
    Dependent = 2,
}

impl Mapping {
    pub(crate) fn parse(b: u8) -> Result<Self, WireError> {
        use Mapping::*;
        [Unknown, Independent, Dependent].into_iter().find(|m| *m as u8 == b).ok_or(WireError::Malformed)
    }
}

/// An address that leads to no one other machine, wherever it is told (RFC 6890): unspecified, loopback, link-local,
/// multicast or IPv4 broadcast.
pub fn is_special(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            ip.is_unspecified()
                || ip.is_loopback()
                || ip.is_link_local()
                || ip.is_multicast()
                || ip.is_broadcast()
        }
        IpAddr::V6(ip) => {
            ip.is_unspecified() || ip.is_loopback() || ip.is_unicast_link_local() || ip.is_multicast()
        }
    }
}

/// A candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Candidate {
    /// How it was found.
    pub kind: CandidateKind,
    /// Where.
    pub address: SocketAddr,
}

impl Candidate {
    pub(crate) fn emit(&self, w: &mut Writer<'_>) {
        w.u8(self.kind as u8);
        emit_address(w, &self.address);
    }

    pub(crate) fn parse(r: &mut Reader<'_>) -> Result<Self, WireError> {
        use CandidateKind::*;
        let byte = r.u8()?;
        let kind = [Host, Mapped, Reflexive].into_iter().find(|k| *k as u8 == byte);
        Ok(Candidate { kind: kind.ok_or(WireError::Malformed)?, address: parse_address(r)? })
    }
}

/// Appends an address. Scope and flow of an IPv6 one are not told: they mean something on one machine alone.
pub fn emit_address(w: &mut Writer<'_>, address: &SocketAddr) {
    let ip = match address.ip() {
        IpAddr::V4(a) => a.to_ipv6_mapped(),
        IpAddr::V6(a) => a,
    };
    w.bytes(&ip.octets()).u16(address.port());
}

/// Reads one.
///
/// # Errors
/// `Truncated`.
pub fn parse_address(r: &mut Reader<'_>) -> Result<SocketAddr, WireError> {
    let ip = Ipv6Addr::from(r.array::<16>()?).to_canonical();
    Ok(SocketAddr::new(ip, r.u16()?))
}
