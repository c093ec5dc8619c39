//! What was found, in words: for programs, and the sentence of advice for people.

use super::behaviour::Depends;
use super::{Findings, Found, Server, by_tunnel};
use crate::daemon::mapping::MappingState;
use shadowmesh_control::{Netcheck, NetcheckFamily, NetcheckServer};
use shadowmesh_proto::RelayStatus;

/// The answer of the control API. `relays` is what the node knows of them, `mapping` what the router has opened.
pub fn report(
    findings: &Findings,
    servers: &[Server],
    relays: &[RelayStatus],
    mapping: &MappingState,
) -> Netcheck {
    let one = |(i, s): (usize, &Server)| {
        let link = relays.iter().find(|r| s.relay == Some(r.relay));
        let answered = [&findings.four, &findings.six].map(|f| f.answered.get(&i));
        let best = answered.iter().flatten().map(|a| a.0).min();
        let tcp = findings.tcp.get(&i).map(Result::as_ref);
        let connected = tcp.and_then(Result::ok);
        let link = link.filter(|l| !by_tunnel(l));
        let rtt = best.or(link.filter(|l| l.up).and_then(|l| l.rtt));
        NetcheckServer {
            kind: if s.relay.is_some() { "relay" } else { "stun" }.into(),
            place: s.place.to_string(),
            udp: best.is_some() || link.is_some_and(|l| l.up),
            stun: best.is_some(),
            second_port: answered.iter().flatten().any(|a| a.1),
            rtt: rtt.map(|d| d.as_secs_f64()),
            tcp: tcp.map(|t| t.is_ok()),
            tcp_by: connected.map(|(by, _)| by.clone()),
            tcp_connect: connected.map(|(_, took)| took.as_secs_f64()),
            tcp_problem: tcp.and_then(Result::err).cloned(),
            problem: findings.unknown.get(&i).cloned(),
        }
    };
    let servers: Vec<_> = servers.iter().enumerate().map(one).collect();
    let (udp, tcp) = (servers.iter().any(|s| s.udp), servers.iter().any(|s| s.tcp == Some(true)));
    let (port_map, no_port_map) = match mapping {
        MappingState::Open { by, external, router } => (Some(format!("{by} at {router}, {external}")), None),
        MappingState::None { why } => (None, Some(why.clone())),
        MappingState::Looking => (None, Some("the router is being asked".into())),
        MappingState::Off => (None, None),
    };
    Netcheck {
        schema: "shadowmesh/netcheck/1".into(),
        udp,
        ipv4: family(&findings.four),
        ipv6: family(&findings.six),
        advice: advice(findings, udp, tcp, mapping),
        port_map,
        no_port_map,
        servers,
        clock_ahead: relays.iter().find_map(|r| r.skew).map(|ahead| -ahead),
        forged: findings.four.forged.saturating_add(findings.six.forged),
    }
}

fn family(found: &Found) -> Option<NetcheckFamily> {
    let mapped = found.mapped()?;
    let nat = Some(mapped) != found.local;
    let addresses: std::collections::BTreeSet<_> = found.seen.iter().map(|s| s.0.ip()).collect();
    Some(NetcheckFamily {
        address: mapped.ip().to_string(),
        nat,
        mapping: found.mapping.map(|d| d.word().into()),
        filtering: found.filtering.map(|d| d.word().into()),
        hairpin: found.hairpin,
        mapping_lifetime: None,
        port_preserved: found.local.map(|l| l.port() == mapped.port()),
        server_addresses: addresses.len() as u32,
    })
}

/// What follows, in one sentence or two.
fn advice(findings: &Findings, udp: bool, tcp: bool, mapping: &MappingState) -> String {
    let main = if findings.four.seen.is_empty() { &findings.six } else { &findings.four };
    let nat = main.mapped().is_some_and(|m| Some(m) != main.local);
    let open = |d: Option<Depends>| matches!(d, Some(Depends::Independent | Depends::NotPort));
    let opened = match mapping {
        MappingState::Open { by, .. } => Some(*by),
        _ => None,
    };
    match (main.mapping, opened) {
        _ if !udp && tcp => "No UDP comes back: this network lets none out. The relays carry all by TCP, and no peer is direct. Ask \
                             who runs this network to let UDP out."
            .into(),
        _ if !udp => "No UDP comes back: this network lets none out, or the relays are down. Try from another network, or ask \
                      who runs this one to let UDP out."
            .into(),
        (None, _) if main.seen.is_empty() => {
            "The relays carry packets, and none answers STUN: what the NAT here does cannot be told.".into()
        }
        (_, Some(by)) => format!(
            "Most peers will be direct. A peer behind a symmetric NAT can still reach this machine, because {by} opens a port."
        ),
        (None, _) => "What the NAT here does cannot be told: no server has answered from two ports.".into(),
        (Some(Depends::Independent), _) if !nat && open(main.filtering) => {
            "Every peer that can send UDP can be direct: this machine has a public address.".into()
        }
        (Some(Depends::Independent), _) if !nat => {
            "Nearly every peer will be direct: this machine has a public address, behind a firewall.".into()
        }
        (Some(Depends::Independent), _) => {
            "Most peers will be direct. Those behind a symmetric NAT take some seconds more; UPnP, NAT-PMP or PCP in the router \
             here, or a forwarded port, spares them that."
                .into()
        }
        (Some(_), _) => "The router here gives every destination another port (symmetric mapping): peers behind ordinary NATs \
                         take some seconds to be direct, and those behind another such router stay on the relay. Turn on \
                         UPnP, NAT-PMP or PCP in it, or forward a UDP port."
            .into(),
    }
}
