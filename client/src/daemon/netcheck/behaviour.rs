//! What the NAT does, from what servers have seen (RFC 5780 section 4, in the words of RFC 4787). No I/O.

use shadowmesh_wire::candidate::Mapping;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// On what something depends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depends {
    /// On nothing of the other end.
    Independent,
    /// On its address.
    Address,
    /// On its address and port.
    AddressAndPort,
    /// Mapping: on the one or the other; one port of each address was asked.
    Something,
    /// Filtering: not on the port; on the address, perhaps.
    NotPort,
}

impl Depends {
    /// The word for programs.
    pub fn word(self) -> &'static str {
        match self {
            Depends::Independent => "endpoint-independent",
            Depends::Address => "address-dependent",
            Depends::AddressAndPort => "address-and-port-dependent",
            Depends::Something => "dependent",
            Depends::NotPort => "not-port-dependent",
        }
    }
}

/// What one socket was told: who was asked, and where he saw the socket.
pub type Seen = (SocketAddr, SocketAddr);

/// The port outside. `local` is the socket's own address: where that is seen, there is no NAT to ask about.
pub fn mapping(local: Option<SocketAddr>, seen: &[Seen]) -> Option<Depends> {
    let seen = outside(local, seen);
    let mut by_address: BTreeMap<IpAddr, Vec<Seen>> = BTreeMap::new();
    for s in &seen {
        by_address.entry(s.0.ip()).or_default().push(*s);
    }
    let differ = |all: &[Seen]| all.iter().map(|s| s.1).collect::<BTreeSet<_>>().len() > 1;
    let asked = seen.iter().map(|s| s.0).collect::<BTreeSet<_>>().len();
    let several_ports = by_address.values().any(|all| all.iter().any(|s| s.0.port() != all[0].0.port()));
    match seen.first() {
        None => None,
        Some(_) if by_address.values().any(|all| differ(all)) => Some(Depends::AddressAndPort),
        Some(_) if differ(&seen) => Some(if several_ports { Depends::Address } else { Depends::Something }),
        Some(first) => (asked > 1 || Some(first.1) == local).then_some(Depends::Independent),
    }
}

/// Without those who see the socket as it is, if others do not: they are on this side of the NAT.
pub fn outside(local: Option<SocketAddr>, seen: &[Seen]) -> Vec<Seen> {
    let beyond: Vec<Seen> = seen.iter().filter(|s| Some(s.1) != local).copied().collect();
    if beyond.is_empty() { seen.to_vec() } else { beyond }
}

/// What of an answer that was asked for from elsewhere came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Came {
    /// From the server's other port: nothing, where that port is not known to answer.
    pub from_port: Option<bool>,
    /// From its other address: nothing, where it has none.
    pub from_address: Option<bool>,
}

/// Who may come in. Each server was asked from sockets that had sent nothing but that.
pub fn filtering(all: &[Came]) -> Option<Depends> {
    let port = fold(all.iter().map(|c| c.from_port));
    let address = fold(all.iter().map(|c| c.from_address));
    match (address, port) {
        (Some(true), _) => Some(Depends::Independent),
        (_, Some(false)) => Some(Depends::AddressAndPort),
        (Some(false), Some(true)) => Some(Depends::Address),
        (None, Some(true)) => Some(Depends::NotPort),
        (Some(false) | None, None) => None,
    }
}

/// One that came is proof; one that did not may have been lost, or held back elsewhere.
fn fold(all: impl Iterator<Item = Option<bool>>) -> Option<bool> {
    all.flatten().reduce(|a, b| a || b)
}

/// What members are told of it.
pub fn told(mapping: Option<Depends>) -> Mapping {
    match mapping {
        None => Mapping::Unknown,
        Some(Depends::Independent) => Mapping::Independent,
        Some(_) => Mapping::Dependent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// Asked, seen: in short.
    fn seen(all: &[(&str, &str)]) -> Vec<Seen> {
        all.iter().map(|(asked, seen)| (at(asked), at(seen))).collect()
    }

    const LOCAL: &str = "192.168.1.2:5000";
    const HERE: &str = "198.51.100.1:5000";
    const THERE: &str = "198.51.100.1:5001";
    const ELSEWHERE: &str = "198.51.100.1:5002";

    fn of(all: &[(&str, &str)]) -> Option<Depends> {
        mapping(Some(at(LOCAL)), &seen(all))
    }

    #[test]
    fn a_mapping_is_told_by_what_differs() {
        let (a1, a2, b1, b2) = ("203.0.113.1:1", "203.0.113.1:2", "203.0.113.2:1", "203.0.113.2:2");
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[(a1, HERE)]), None);
        assert_eq!(of(&[(a1, HERE), (a1, HERE)]), None);
        assert_eq!(of(&[(a1, HERE), (a2, HERE)]), Some(Depends::Independent));
        assert_eq!(of(&[(a1, HERE), (b1, HERE)]), Some(Depends::Independent));
        assert_eq!(of(&[(a1, HERE), (a2, THERE)]), Some(Depends::AddressAndPort));
        assert_eq!(of(&[(a1, HERE), (b1, THERE)]), Some(Depends::Something));
        assert_eq!(of(&[(a1, HERE), (a2, HERE), (b1, THERE), (b2, THERE)]), Some(Depends::Address));
        assert_eq!(of(&[(a1, HERE), (a2, THERE), (b1, ELSEWHERE)]), Some(Depends::AddressAndPort));
        assert_eq!(of(&[(a1, HERE), (a2, HERE), (b1, HERE), (b2, THERE)]), Some(Depends::AddressAndPort));
    }

    #[test]
    fn without_a_nat_one_answer_is_enough() {
        assert_eq!(of(&[("203.0.113.1:1", LOCAL)]), Some(Depends::Independent));
        // A relay in the same LAN sees what is inside, and says nothing of the NAT.
        let mixed = [("192.168.1.9:1", LOCAL), ("203.0.113.1:1", HERE)];
        assert_eq!(of(&mixed), None);
        let more = [("192.168.1.9:1", LOCAL), ("203.0.113.1:1", HERE), ("203.0.113.1:2", HERE)];
        assert_eq!(of(&more), Some(Depends::Independent));
        assert_eq!(mapping(None, &seen(&[("203.0.113.1:1", HERE)])), None);
    }

    #[test]
    fn filtering_is_told_by_what_came() {
        let came = |from_address, from_port| Came { from_address, from_port };
        for (address, port, said) in [
            (None, None, None),
            (Some(false), None, None),
            (None, Some(true), Some(Depends::NotPort)),
            (None, Some(false), Some(Depends::AddressAndPort)),
            (Some(true), None, Some(Depends::Independent)),
            (Some(true), Some(true), Some(Depends::Independent)),
            (Some(false), Some(true), Some(Depends::Address)),
            (Some(false), Some(false), Some(Depends::AddressAndPort)),
        ] {
            assert_eq!(filtering(&[came(address, port)]), said, "{address:?} {port:?}");
        }
        // What one saw come in comes in.
        let two = [came(None, Some(false)), came(Some(true), Some(true))];
        assert_eq!(filtering(&two), Some(Depends::Independent));
        assert_eq!(filtering(&[]), None);
    }

    #[test]
    fn members_are_told_whether_it_depends() {
        assert_eq!(told(None), Mapping::Unknown);
        assert_eq!(told(Some(Depends::Independent)), Mapping::Independent);
        for d in [Depends::Address, Depends::AddressAndPort, Depends::Something] {
            assert_eq!(told(Some(d)), Mapping::Dependent);
        }
    }
}
