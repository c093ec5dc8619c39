//! `why PEER`: by which path it is reached, since when, what was tried, and the one thing that would change it.

use super::mapping::MappingState;
use super::status::blocked;
use super::tcp::Carried;
use crate::cli::print::age;
use crate::engine::Inside;
use shadowmesh_control::{Why, WhyPath, WhyTried};
use shadowmesh_identity::NodeId;
use shadowmesh_proto::{PathsStatus, Route, Tried};
use shadowmesh_wire::candidate::{Candidate, CandidateKind, Mapping};
use std::net::{IpAddr, SocketAddr};

/// What is known of the way to a member; `None`: it is no peer. `mapping` is what this machine's router has opened, or why
/// it has not; `carried` the relays that are reached by TCP.
pub fn answer(
    inside: &Inside<'_>,
    node: &NodeId,
    mapping: &MappingState,
    carried: &[Carried],
) -> Option<Why> {
    let n = &inside.endpoint.node;
    let paths = n.paths_status(node)?;
    let peer = n.peer_status().into_iter().find(|p| p.node == *node)?;
    let name = n.roster().member(node)?.name().to_owned();
    let relays = n.relay_status();
    let named = |route: &Route| match *route {
        Route::Udp(a) => ("direct", Some(a.to_string())),
        Route::Relay { relay, .. } => ("relay", relays.get(relay as usize).map(|r| r.place.to_string())),
    };
    let (path, via) = paths.route.as_ref().map_or(("none", None), named);
    let since = paths.route.map(|_| inside.now.since(paths.since).as_secs_f64());
    let ago = since.map(age).unwrap_or_default();
    let place = via.as_deref().unwrap_or("a relay");
    let answer = match path {
        "direct" => format!("{name} is reached directly at {place} since {ago}, because {}.", paths.why),
        "relay" => {
            format!("{name} is reached through the relay {place} since {ago}, because {}.", by_relay(&paths))
        }
        _ => match peer.last_rx {
            Some(at) => format!(
                "{name} does not answer; it was heard {} ago.",
                age(inside.now.since(at).as_secs_f64())
            ),
            None => format!("Nothing was sent to {name} yet, so that no path to it was looked for."),
        },
    };
    let own = n.candidates();
    let mut notes = vec![];
    for r in &relays {
        let by = carried.iter().find(|c| Some(c.local) == r.address);
        notes.extend(by.map(|c| blocked(&r.place.to_string(), c)));
    }
    if path == "relay" && paths.why != FIRST {
        notes.push(format!("It came to that because {}.", paths.why));
    }
    let symmetric = match n.mapping() {
        Mapping::Dependent => true,
        Mapping::Independent => false,
        Mapping::Unknown => varies(own, paths.sees),
    };
    if symmetric {
        notes.push("The router here gives every destination another port (symmetric mapping).".into());
    }
    match mapping {
        MappingState::Open { by, external, .. } => {
            notes.push(format!("The router here has opened {external} for it ({by})."));
        }
        MappingState::None { why } => notes.push(format!("No port is open in the router here: {why}.")),
        MappingState::Off | MappingState::Looking => {}
    }
    let change = (path == "relay").then(|| change(&name, &paths, own)).flatten();
    let proved = paths.paths.iter().enumerate().map(|(i, (route, rtt, mtu))| {
        let (path, via) = named(route);
        let rtt = rtt.map(|r| r.as_secs_f64());
        WhyPath { path: path.into(), via, carries: i == 0, rtt, mtu: *mtu as u32 }
    });
    let proved = proved.collect();
    let tried = paths.tried.iter().map(|t| tried(t, own)).collect();
    let rtt = peer.rtt.map(|r| r.as_secs_f64());
    let schema = "shadowmesh/why/1".into();
    Some(Why {
        schema,
        peer: name,
        path: path.into(),
        via,
        since_ago: since,
        rtt,
        answer,
        notes,
        paths: proved,
        tried,
        change,
    })
}

/// The node's words for a session that has not moved.
const FIRST: &str = "the session was made by it";

/// Why there is no direct path.
fn by_relay(paths: &PathsStatus) -> &'static str {
    match paths {
        p if !p.looking => "direct paths are switched off here (`direct: false` in the configuration)",
        p if !p.told => "the other machine has not said yet where it may be reached",
        p if p.tried.is_empty() => {
            "the other machine names no address: it may have switched direct paths off"
        }
        p if p.tried.iter().all(|t| t.rtt.is_none()) => "no direct path answered",
        _ => "the direct paths that answered were lost, or are slower",
    }
}

/// Do destinations see other ports of this machine, behind one address? For where no STUN server tells.
fn varies(own: &[Candidate], sees: Option<SocketAddr>) -> bool {
    let reflexive = own.iter().filter(|c| c.kind == CandidateKind::Reflexive).map(|c| c.address);
    let mut seen: Vec<SocketAddr> = reflexive.chain(sees).filter(SocketAddr::is_ipv4).collect();
    seen.sort();
    seen.windows(2).any(|w| w[0].ip() == w[1].ip() && w[0].port() != w[1].port())
}

fn tried(t: &Tried, own: &[Candidate]) -> WhyTried {
    let a = t.candidate.address;
    let kind = match (t.candidate.kind, a.ip()) {
        (CandidateKind::Host, IpAddr::V4(ip)) if ip.is_private() => "lan",
        (CandidateKind::Host, IpAddr::V6(ip)) if ip.is_unique_local() => "lan",
        (_, IpAddr::V6(_)) => "ipv6",
        (CandidateKind::Mapped, _) => "port map",
        (CandidateKind::PeerReflexive, _) => "seen",
        _ => "udp",
    };
    let kind =
        if kind == "ipv6" && !own.iter().any(|c| c.address.is_ipv6()) { "ipv6 (none here)" } else { kind };
    WhyTried {
        kind: kind.into(),
        address: a.to_string(),
        sent: t.sent,
        held_back: t.held_back,
        rtt: t.rtt.map(|r| r.as_secs_f64()),
    }
}

/// The one thing that would help most.
fn change(name: &str, paths: &PathsStatus, own: &[Candidate]) -> Option<String> {
    if !paths.looking {
        return Some("set `direct: true` in the configuration.".into());
    }
    if !paths.told || paths.tried.iter().any(|t| t.rtt.is_some()) {
        return None;
    }
    let host = own.iter().find(|c| c.kind == CandidateKind::Host && c.address.is_ipv4());
    let port = host.map_or(String::new(), |c| format!(" {} to {}", c.address.port(), c.address.ip()));
    Some(format!(
        "turn on UPnP, NAT-PMP or PCP in the router here or in that of {name}, or forward UDP port{port} in the router \
         here. One of them is enough."
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use shadowmesh_proto::Time;

    fn candidate(kind: CandidateKind, address: &str) -> Candidate {
        Candidate { kind, address: address.parse().unwrap() }
    }

    fn paths(tried: &[(CandidateKind, &str, Option<u64>)]) -> PathsStatus {
        let one = |(kind, address, ms): &(CandidateKind, &str, Option<u64>)| Tried {
            candidate: candidate(*kind, address),
            sent: 5,
            held_back: 0,
            rtt: ms.map(std::time::Duration::from_millis),
        };
        PathsStatus {
            route: None,
            since: Time(0),
            why: FIRST,
            looking: true,
            told: true,
            paths: vec![],
            tried: tried.iter().map(one).collect(),
            sees: None,
        }
    }

    #[test]
    fn each_reason_is_told_apart() {
        use CandidateKind::*;
        let silent = paths(&[(Host, "192.168.1.9:4000", None), (Reflexive, "203.0.113.9:4000", None)]);
        let answered = paths(&[(Host, "192.168.1.9:4000", None), (Reflexive, "203.0.113.9:4000", Some(3))]);
        let own = [candidate(Host, "192.168.1.2:41990")];
        assert_eq!(by_relay(&silent), "no direct path answered");
        let text = change("phone", &silent, &own).unwrap();
        assert!(text.contains("forward UDP port 41990 to 192.168.1.2") && text.contains("that of phone"));
        assert!(by_relay(&answered).contains("lost, or are slower"));
        assert_eq!(change("phone", &answered, &own), None);
        let off = PathsStatus { looking: false, ..silent.clone() };
        assert!(by_relay(&off).contains("switched off here"));
        assert!(change("phone", &off, &own).unwrap().contains("direct: true"));
        let untold = PathsStatus { told: false, ..silent.clone() };
        assert!(by_relay(&untold).contains("has not said yet"));
        assert!(by_relay(&paths(&[])).contains("names no address"));
        let kinds: Vec<String> = answered.tried.iter().map(|t| tried(t, &own).kind).collect();
        assert_eq!(kinds, ["lan", "udp"]);
    }

    #[test]
    fn a_symmetric_nat_shows_itself() {
        use CandidateKind::*;
        let own = [candidate(Host, "192.168.1.2:4000"), candidate(Reflexive, "203.0.113.9:5000")];
        let seen = |a: &str| Some(a.parse().unwrap());
        assert!(varies(&own, seen("203.0.113.9:6000")));
        assert!(!varies(&own, seen("203.0.113.9:5000")));
        assert!(!varies(&own, seen("192.168.1.2:4000")) && !varies(&own, None));
    }
}
