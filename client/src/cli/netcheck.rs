//! `netcheck`: what lies between this machine and the others, in a few lines and one of advice.

use super::At;
use super::print::{parts, rtt, usage};
use crate::config::Config;
use crate::daemon::netcheck;
use shadowmesh_control::{Netcheck, NetcheckFamily, NetcheckLifetime, NetcheckServer, Problem};
use shadowmesh_identity::RelayUrl;

pub async fn show(at: &At<'_>, relay: Option<String>, lifetime: Option<u64>) -> Result<(), Problem> {
    let relay = relay.map(|url| url.parse::<RelayUrl>().map_err(|e| usage(e.to_string()))).transpose()?;
    at.printer.waiting("asking the relays; this takes up to three seconds");
    let mut found: Netcheck = match relay {
        Some(url) => {
            // Without a daemon there may be no configuration either.
            let stun = Config::load(&at.paths.config).map(|c| c.stun).unwrap_or_default();
            netcheck::by_relay(&url, &stun).await
        }
        None => at.client.get(&at.path("/netcheck").await?).await?,
    };
    if let Some(most) = lifetime {
        try_lifetime(at, &mut found, most).await;
    }
    at.printer.clear_waiting();
    if at.printer.json {
        at.printer.object(&found);
        return Ok(());
    }
    for line in lines(&found, at.printer.columns) {
        at.printer.line(line);
    }
    Ok(())
}

/// By sockets of this program: a daemon need not wait for minutes. Of the family that the other lines are about.
async fn try_lifetime(at: &At<'_>, found: &mut Netcheck, most: u64) {
    let v4 = found.ipv4.is_some();
    let Some(family) = found.ipv4.as_mut().or(found.ipv6.as_mut()) else { return };
    let mut last = NetcheckLifetime { problem: Some("no server answers STUN".into()), ..Default::default() };
    for server in found.servers.iter().filter(|s| s.stun) {
        let named = tokio::net::lookup_host(&server.place).await;
        let Some(address) = named.ok().and_then(|mut all| all.find(|a| a.is_ipv4() == v4)) else { continue };
        let wait = |so_far: u64| {
            at.printer.waiting(&format!(
                "a silent mapping was kept for {so_far} s; up to {most} s are tried (--lifetime=SECONDS)"
            ));
        };
        wait(0);
        last = netcheck::lifetime(address, most, wait).await;
        if last.at_least.is_some() || last.less_than.is_some() {
            break;
        }
    }
    family.mapping_lifetime = Some(last);
}

/// A label and its value.
fn pair(label: &str, value: &str) -> String {
    format!("{label:<10}{value}")
}

fn yes(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

fn lines(n: &Netcheck, room: Option<usize>) -> Vec<String> {
    let put = |all: &[String]| -> Vec<String> {
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        parts(&all, 10, room).into_iter().map(|l| l.trim_end().to_owned()).collect()
    };
    let address = |f: &Option<NetcheckFamily>| match f {
        Some(f) if f.nat => format!("{} through NAT", f.address),
        Some(f) => format!("{}, no NAT", f.address),
        None => "no answer".into(),
    };
    let mut lines = put(&[
        pair("UDP", yes(n.udp)),
        format!("IPv4  {}", address(&n.ipv4)),
        format!("IPv6  {}", address(&n.ipv6)),
    ]);
    if let Some(f) = n.ipv4.as_ref().or(n.ipv6.as_ref()) {
        let word = |w: &Option<String>| match w.as_deref() {
            None => "not known".to_owned(),
            Some("endpoint-independent") => "endpoint-independent".into(),
            Some(word) => word.replace('-', " "),
        };
        let mut known =
            vec![pair("Mapping", &word(&f.mapping)), format!("Filtering  {}", word(&f.filtering))];
        known.extend(f.hairpin.map(|h| format!("Hairpin  {}", yes(h))));
        known.extend(f.port_preserved.filter(|_| f.nat).map(|p| format!("Port preserved  {}", yes(p))));
        lines.extend(put(&known));
        lines.extend(f.mapping_lifetime.as_ref().map(|l| format!("Mapping lifetime  {}", kept(l))));
    }
    if let Some(opened) = &n.port_map {
        lines.push(format!("{:<10}{opened}", "Port map"));
    } else if let Some(why) = &n.no_port_map {
        lines.push(format!("{:<10}none: {why}", "Port map"));
    }
    if let Some(ahead) = n.clock_ahead {
        lines.push(format!("{:<10}{ahead:+} s against the relay", "Clock"));
    }
    for (kind, label) in [("relay", "Relays"), ("stun", "STUN")] {
        for (i, s) in n.servers.iter().filter(|s| s.kind == kind).enumerate() {
            let label = if i == 0 { label } else { "" };
            lines.push(format!("{label:<10}{}  {}", s.place, how(s)));
        }
    }
    if n.forged > 0 {
        lines.push(format!("{} answers were not asked for, and not believed.", n.forged));
    }
    lines.push(format!("→ {}", n.advice));
    lines
}

/// For how long a silent mapping was kept.
fn kept(l: &NetcheckLifetime) -> String {
    let known = match (l.at_least, l.less_than) {
        (Some(a), Some(b)) => format!("from {a} to {b} s"),
        (Some(a), None) => format!("over {a} s"),
        (None, Some(b)) => format!("under {b} s"),
        (None, None) => "not known".into(),
    };
    let short = l.less_than.is_some_and(|b| b <= 20);
    let more = if short { ": too short for paths without traffic, which keep alive every 15 s" } else { "" };
    match &l.problem {
        Some(why) => format!("{known}: {why}"),
        None => format!("{known}{more}"),
    }
}

fn how(s: &NetcheckServer) -> String {
    if let Some(problem) = &s.problem {
        return problem.clone();
    }
    let udp = match (s.udp, s.rtt) {
        (false, _) if s.tcp.is_some() => "no answer by udp".to_owned(),
        (false, _) => "no answer".into(),
        (true, Some(t)) if s.stun => format!("{} udp", rtt(t)),
        (true, Some(t)) => format!("{} udp, no STUN", rtt(t)),
        (true, None) => "udp, no STUN".into(),
    };
    match (&s.tcp_by, s.tcp_connect, &s.tcp_problem) {
        (Some(by), Some(t), _) if by.contains(" by ") => format!("{udp}, {by} in {}", rtt(t)),
        (Some(_), Some(t), _) => format!("{udp}, tcp in {}", rtt(t)),
        (.., Some(why)) => format!("{udp}, no tcp: {why}"),
        _ => udp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> Netcheck {
        Netcheck {
            schema: "shadowmesh/netcheck/1".into(),
            udp: true,
            ipv4: Some(NetcheckFamily {
                address: "203.0.113.9".into(),
                nat: true,
                mapping: Some("endpoint-independent".into()),
                filtering: Some("address-and-port-dependent".into()),
                hairpin: Some(false),
                port_preserved: Some(true),
                mapping_lifetime: None,
                server_addresses: 1,
            }),
            ipv6: None,
            port_map: Some("PCP at 192.168.1.1, 203.0.113.9:41990".into()),
            no_port_map: None,
            servers: vec![NetcheckServer {
                kind: "relay".into(),
                place: "relay.example.net:443".into(),
                udp: true,
                stun: true,
                second_port: true,
                rtt: Some(0.018),
                tcp: Some(true),
                tcp_by: Some("tcp 203.0.113.2:443".into()),
                tcp_connect: Some(0.061),
                tcp_problem: None,
                problem: None,
            }],
            clock_ahead: Some(0),
            forged: 0,
            advice: "Most peers will be direct.".into(),
        }
    }

    #[test]
    fn it_reads_well() {
        let said = lines(&found(), None);
        let expected = [
            "UDP       yes  IPv4  203.0.113.9 through NAT  IPv6  no answer",
            "Mapping   endpoint-independent  Filtering  address and port dependent  Hairpin  no  Port preserved  yes",
            "Port map  PCP at 192.168.1.1, 203.0.113.9:41990",
            "Clock     +0 s against the relay",
            "Relays    relay.example.net:443  18 ms udp, tcp in 61 ms",
            "→ Most peers will be direct.",
        ];
        assert_eq!(said, expected);
        assert!(lines(&found(), Some(60)).iter().all(|l| l.chars().count() <= 60));
    }

    #[test]
    fn what_is_not_known_is_not_said_to_be() {
        let mut n =
            Netcheck { udp: false, ipv4: None, port_map: None, clock_ahead: None, forged: 2, ..found() };
        n.servers[0] = NetcheckServer {
            udp: false,
            stun: false,
            rtt: None,
            tcp: Some(false),
            tcp_by: None,
            tcp_connect: None,
            tcp_problem: Some("tcp 203.0.113.2:443: refused".into()),
            ..n.servers[0].clone()
        };
        let expected = [
            "UDP       no  IPv4  no answer  IPv6  no answer",
            "Relays    relay.example.net:443  no answer by udp, no tcp: tcp 203.0.113.2:443: refused",
            "2 answers were not asked for, and not believed.",
            "→ Most peers will be direct.",
        ];
        assert_eq!(lines(&n, None), expected);
    }
}
