//! The addresses that follow from a NodeId, and the choice of a network's IPv4 subnet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use shadowmesh_crypto::{Label, kdf};

use crate::{
    NetworkId, NodeId, ParseError,
    codec::{Put, Reader},
};

/// How many candidates [`assign_ipv4`] looks at.
const MAX_TRIES: u32 = 4096;

/// Subnets `10.x.0.0/16` that other software likes to take without asking: home routers, OpenVPN, k3s, Kubernetes.
const CROWDED: [u8; 9] = [0, 1, 8, 10, 42, 43, 88, 96, 244];

/// A node's overlay MAC address: 46 bits of hash, locally administered, unicast.
pub fn mac(node: &NodeId) -> [u8; 6] {
    let [a, b, c, d, e, f, ..] = kdf::hash(Label::Mac, &[&node.0]);
    [a & 0xFC | 0x02, b, c, d, e, f]
}

/// The network's IPv6 prefix, a /64: `fd`, 40 bits of the network id, subnet 0 (RFC 4193).
pub fn prefix6(network: &NetworkId) -> Ipv6Addr {
    let [a, b, c, d, e, ..] = network.0;
    Ipv6Addr::from([0xFD, a, b, c, d, e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
}

/// A node's overlay IPv6 address: the network's prefix and 64 bits of hash.
pub fn ipv6(network: &NetworkId, node: &NodeId) -> Ipv6Addr {
    let [a, b, c, d, e, f, g, h, ..] = kdf::hash(Label::Address6, &[&node.0]);
    let low = Ipv6Addr::from([0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d, e, f, g, h]);
    Ipv6Addr::from_bits(prefix6(network).to_bits() | low.to_bits())
}

/// The IPv4 address for a node in a subnet: the first free candidate, and the counter that gave it.
///
/// Candidates follow from the NodeId and the counter, so that issuers that cannot talk seldom disagree. Addresses
/// that end in .0 or .255, and the subnet's own first and last one, are left out. `None` when 4,096 candidates are
/// taken.
pub fn assign_ipv4(
    subnet: (Ipv4Addr, u8),
    node: &NodeId,
    taken: impl Fn(Ipv4Addr) -> bool,
) -> Option<(Ipv4Addr, u32)> {
    let hosts = u32::MAX.checked_shr(subnet.1.into()).unwrap_or(0);
    (0..MAX_TRIES).find_map(|counter| {
        let [a, b, c, d, ..] = kdf::hash(Label::Address4, &[&node.0, &counter.to_be_bytes()]);
        let host = u32::from_be_bytes([a, b, c, d]) & hosts;
        let address = Ipv4Addr::from_bits(subnet.0.to_bits() & !hosts | host);
        let usable = host != 0 && host != hosts && !matches!(address.octets(), [.., 0 | 255]);
        (usable && !taken(address)).then_some((address, counter))
    })
}

/// A /16 for a new network that overlaps none of this machine's routes (default routes aside): `10.x.0.0`, and
/// `172.16.0.0` to `172.31.0.0` where a route takes all of those. Never 100.64.0.0/10: carriers use it.
pub fn choose_subnet(local_routes: &[(Ipv4Addr, u8)], seed: &[u8]) -> Option<(Ipv4Addr, u8)> {
    let free = |address: &Ipv4Addr| {
        local_routes.iter().filter(|(_, len)| *len > 0).all(|&(route, len)| {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(len.min(16).into())).unwrap_or(0);
            (route.to_bits() ^ address.to_bits()) & mask != 0
        })
    };
    // A fixed order of all 256, begun at a place that the seed chooses and walked with an odd step.
    let [start, step, ..] = kdf::hash(Label::Subnet4, &[seed]);
    let order = (0..=255u8).map(|i| start.wrapping_add(i.wrapping_mul(step | 1)));
    let tens = order.clone().filter(|x| !CROWDED.contains(x)).map(|x| Ipv4Addr::new(10, x, 0, 0));
    let others = order.filter(|x| *x < 16).map(|x| Ipv4Addr::new(172, 16 + x, 0, 0));
    tens.chain(others).find(free).map(|address| (address, 16))
}

/// An IP prefix: address with its host bits zero, and length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    address: IpAddr,
    len: u8,
}

impl Prefix {
    /// Checks the length (0 to 32 or 128), and that the host bits are zero.
    ///
    /// # Errors
    ///
    /// [`ParseError::Invalid`].
    pub fn new(address: IpAddr, len: u8) -> Result<Self, ParseError> {
        let fits = match address {
            IpAddr::V4(v4) => len <= 32 && v4.to_bits() & u32::MAX.checked_shr(len.into()).unwrap_or(0) == 0,
            IpAddr::V6(v6) => {
                len <= 128 && v6.to_bits() & u128::MAX.checked_shr(len.into()).unwrap_or(0) == 0
            }
        };
        if fits { Ok(Prefix { address, len }) } else { Err(ParseError::Invalid("an IP prefix is malformed")) }
    }

    /// The first address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The length, in bits.
    pub fn prefix_len(&self) -> u8 {
        self.len
    }

    /// Whether an address lies inside.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                (a.to_bits() ^ b.to_bits()) & !u32::MAX.checked_shr(self.len.into()).unwrap_or(0) == 0
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                (a.to_bits() ^ b.to_bits()) & !u128::MAX.checked_shr(self.len.into()).unwrap_or(0) == 0
            }
            _ => false,
        }
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, ParseError> {
        let address = match reader.u8()? {
            4 => IpAddr::from(reader.array::<4>()?),
            6 => IpAddr::from(reader.array::<16>()?),
            _ => return Err(ParseError::Invalid("an IP prefix is of neither version 4 nor 6")),
        };
        Prefix::new(address, reader.u8()?)
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        match self.address {
            IpAddr::V4(v4) => {
                out.put_u8(4);
                out.put(&v4.octets());
            }
            IpAddr::V6(v6) => {
                out.put_u8(6);
                out.put(&v6.octets());
            }
        }
        out.put_u8(self.len);
    }
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn macs_are_local_and_unicast(id: [u8; 32]) {
            prop_assert_eq!(mac(&NodeId(id))[0] & 3, 2);
        }

        #[test]
        fn ipv6_is_in_the_networks_prefix(id: [u8; 32], network: [u8; 32]) {
            let address = ipv6(&NetworkId(network), &NodeId(id)).octets();
            prop_assert_eq!(address[0], 0xFD);
            prop_assert_eq!(&address[1..6], &network[..5]);
            prop_assert_eq!(&address[6..8], &[0, 0]);
        }

        #[test]
        fn ipv4_is_usable_and_free(id: [u8; 32], len in 8u8..=30) {
            let subnet = (Ipv4Addr::from_bits(0x0A4D_0000 & !(u32::MAX >> len)), len);
            let (first, counter) = assign_ipv4(subnet, &NodeId(id), |_| false).unwrap();
            let prefix = Prefix::new(subnet.0.into(), len).unwrap();
            prop_assert!(prefix.contains(first.into()) && first != subnet.0);
            prop_assert!(!matches!(first.octets()[3], 0 | 255));
            if let Some((second, later)) = assign_ipv4(subnet, &NodeId(id), |a| a == first) {
                prop_assert!(second != first && later > counter && prefix.contains(second.into()));
            }
        }

        #[test]
        fn the_subnet_avoids_local_routes(x: u8, len in 0u8..=32, seed: Vec<u8>) {
            let routes = [(Ipv4Addr::new(10, x, 0, 0), len), (Ipv4Addr::new(192, 168, 1, 0), 24)];
            let (subnet, 16) = choose_subnet(&routes, &seed).unwrap() else { panic!() };
            let mask = if len == 0 { u32::MAX } else { u32::MAX << (32 - len.min(16)) };
            prop_assert!((subnet.to_bits() ^ routes[0].0.to_bits()) & mask != 0 || len == 0);
            prop_assert!(subnet.octets()[0] == 10 || (len <= 8 && len > 0));
        }
    }

    #[test]
    fn every_subnet_taken_is_said() {
        assert_eq!(
            choose_subnet(&[(Ipv4Addr::new(10, 0, 0, 0), 8), (Ipv4Addr::new(172, 16, 0, 0), 12)], b""),
            None
        );
    }

    #[test]
    fn a_full_subnet_is_said() {
        assert_eq!(assign_ipv4((Ipv4Addr::new(10, 0, 0, 0), 30), &NodeId([1; 32]), |_| true), None);
    }

    #[test]
    fn prefixes_know_their_bounds() {
        let net = Prefix::new("192.0.2.0".parse().unwrap(), 24).unwrap();
        assert!(net.contains("192.0.2.255".parse().unwrap()) && !net.contains("192.0.3.0".parse().unwrap()));
        assert!(!net.contains("2001:db8::1".parse().unwrap()));
        assert!(Prefix::new("0.0.0.0".parse().unwrap(), 0).unwrap().contains("8.8.8.8".parse().unwrap()));
        assert!(Prefix::new("::".parse().unwrap(), 0).unwrap().contains("::1".parse().unwrap()));
        assert!(Prefix::new("192.0.2.1".parse().unwrap(), 24).is_err());
        assert!(Prefix::new("192.0.2.1".parse().unwrap(), 33).is_err());
        assert!(Prefix::new("::1".parse().unwrap(), 129).is_err());
    }
}
