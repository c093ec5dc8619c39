//! The commands that look: `status`, `peers`, `ping` and the lists.

use super::At;
use super::print::{age, parts, rtt, table};
use shadowmesh_control::{
    Identity, Invites, Line, NetworkStatus, PeerStatus, Ping, PingReply, Problem, Status, Why,
};

pub async fn status(at: &At<'_>) -> Result<(), Problem> {
    let printer = at.printer;
    let mut status: Status = at.client.get("/v1/status").await?;
    if at.wanted.is_some() {
        let name = at.network().await?;
        status.networks.retain(|n| n.name == name);
    }
    if printer.json {
        printer.object(&status);
        return Ok(());
    }
    if status.networks.is_empty() {
        printer.line("The daemon is running, and there is no network here yet.");
        printer.line("  Make one:  sudo shadowmesh network create NAME --relay URL");
        printer.line("  or join:   sudo shadowmesh join URL");
    }
    for (i, network) in status.networks.iter().enumerate() {
        if i > 0 {
            printer.line("");
        }
        for line in network_lines(network, printer.columns) {
            printer.line(line);
        }
        for problem in &network.problems {
            printer.warning(problem);
        }
    }
    Ok(())
}

fn network_lines(n: &NetworkStatus, room: Option<usize>) -> Vec<String> {
    let reachable = n.peers.iter().filter(|p| p.path != "none" && p.secured.is_some()).count();
    let state = match (n.up, n.peers.len()) {
        (false, _) if n.ended.is_some() => "revoked".to_owned(),
        (false, _) => "down".to_owned(),
        (true, 0) => "no other members yet".to_owned(),
        (true, all) => format!("{reachable} of {all} peers reachable"),
    };
    let ipv4 = n.ipv4.as_deref().unwrap_or("—");
    let first = format!("{:<9}{:<10}{ipv4}", n.name, n.interface);
    let mut lines = parts(&[&first, &n.ipv6, &state], 9, room);
    for r in &n.relays {
        let how = match (r.up, r.rtt) {
            (true, Some(t)) => format!("{}  {}", r.by, rtt(t)),
            (true, None) => r.by.clone(),
            (false, _) => "no answer".into(),
        };
        lines.extend(parts(&[&format!("{:<9}{}", "relay", r.place), &how], 9, room));
    }
    if let Some(bridge) = &n.bridge {
        lines.push(format!("{:<9}{bridge}", "bridge"));
    }
    if !n.peers.is_empty() {
        lines.push(String::new());
        let rows: Vec<_> = n.peers.iter().map(row).collect();
        lines.extend(table(&["PEER", "ADDRESS", "PATH", "RTT", "LOSS", "MTU", "SECURED"], &rows, room));
    }
    lines
}

/// How a peer is reached, in words.
fn path(p: &PeerStatus) -> String {
    match (p.secured.is_some(), p.path.as_str(), &p.via, p.heard_ago) {
        (true, path, Some(via), _) => format!("{path}  {via}"),
        (true, path, None, _) => path.to_owned(),
        (false, _, _, Some(ago)) => format!("last seen {} ago", age(ago)),
        (false, ..) => "not needed yet".to_owned(),
    }
}

fn row(p: &PeerStatus) -> Vec<String> {
    let address = p.ipv4.clone().unwrap_or_else(|| p.ipv6.clone());
    let Some(secured) = &p.secured else { return vec![p.name.clone(), address, format!("—  {}", path(p))] };
    vec![
        p.name.clone(),
        address,
        path(p),
        p.rtt.map_or("—".into(), rtt),
        p.loss.map_or("—".into(), |l| format!("{:.0} %", l * 100.0)),
        p.mtu.map_or("—".into(), |m| m.to_string()),
        p.secured_ago.map_or(secured.clone(), |a| format!("{secured}, {} ago", age(a))),
    ]
}

pub async fn peers(at: &At<'_>) -> Result<(), Problem> {
    let printer = at.printer;
    let network: NetworkStatus = at.client.get(&at.path("").await?).await?;
    if let Some(ended) = network.ended {
        return Err(ended);
    }
    if printer.json {
        printer.object(&serde_json::json!({
            "schema": "shadowmesh/peers/1", "network": network.name, "peers": network.peers,
        }));
        return Ok(());
    }
    let rows: Vec<_> = network
        .peers
        .iter()
        .map(|p| {
            vec![
                p.name.clone(),
                p.ipv4.clone().unwrap_or("—".into()),
                p.ipv6.clone(),
                p.roles.clone(),
                path(p),
            ]
        })
        .collect();
    printer.table(&["PEER", "IPV4", "IPV6", "ROLES", "PATH"], &rows);
    Ok(())
}

/// Pings that are sent, if no number is given; and while a path without relay is waited for: a minute's.
const PINGS: u32 = 4;
const LOOKS: u32 = 300;

pub async fn ping(at: &At<'_>, peer: &str, count: Option<u32>, until_direct: bool) -> Result<(), Problem> {
    let count = count.unwrap_or(if until_direct { LOOKS } else { PINGS });
    let printer = at.printer;
    let path = at.path("/ping").await?;
    let asked = Ping { peer: peer.to_owned(), count, until_direct };
    let mut replies = vec![];
    let result = at
        .client
        .stream(&path, &asked, |line| {
            if let Line::Reply(reply) = line {
                if !printer.json {
                    printer.line(reply_line(peer, &reply));
                }
                replies.push(reply);
            }
        })
        .await;
    if printer.json && result.is_ok() {
        printer
            .object(&serde_json::json!({ "schema": "shadowmesh/ping/1", "peer": peer, "replies": replies }));
    }
    result.map(|_| ())
}

pub async fn why(at: &At<'_>, peer: &str) -> Result<(), Problem> {
    // A name with a slash or the like would be another request.
    let name: String = peer.chars().filter(|c| c.is_ascii_alphanumeric() || "-_.:".contains(*c)).collect();
    let why: Why = at.client.get(&at.path(&format!("/why/{name}")).await?).await?;
    if at.printer.json {
        at.printer.object(&why);
        return Ok(());
    }
    at.printer.line(&why.answer);
    for note in &why.notes {
        at.printer.line(format!("  {note}"));
    }
    for (i, p) in why.paths.iter().enumerate() {
        let what = if i == 0 { "paths" } else { "" };
        let carries = if p.carries { "carries" } else { "rests" };
        let time = p.rtt.map_or("—".into(), rtt);
        let via = p.via.as_deref().unwrap_or_default();
        at.printer.line(format!("  {what:<8}{:<9} {via}  {time}  MTU {}  {carries}", p.path, p.mtu));
    }
    for (i, t) in why.tried.iter().enumerate() {
        let what = if i == 0 { "tried" } else { "" };
        let held = if t.held_back > 0 { ", and no more for now" } else { "" };
        let outcome = match t.rtt {
            Some(seconds) => format!("answered in {}", rtt(seconds)),
            None if t.sent == 0 => "not asked yet".to_owned(),
            None => format!("{} probes: no answer{held}", t.sent),
        };
        at.printer.line(format!("  {what:<8}{:<9} {}: {outcome}", t.kind, t.address));
    }
    if let Some(change) = &why.change {
        at.printer.line(format!("What you can change: {change}"));
    }
    Ok(())
}

fn reply_line(peer: &str, r: &PingReply) -> String {
    match (r.rtt, &r.path, &r.via) {
        (Some(t), Some(path), via) => {
            format!("{peer}  {:<8}  {path}  {}", rtt(t), via.as_deref().unwrap_or_default())
                .trim_end()
                .to_owned()
        }
        _ => format!("{peer}  no answer"),
    }
}

pub async fn networks(at: &At<'_>) -> Result<(), Problem> {
    let status: Status = at.client.get("/v1/status").await?;
    let object = |n: &NetworkStatus| {
        serde_json::json!({
            "name": n.name, "id": n.id, "up": n.up, "interface": n.interface, "subnet4": n.subnet4,
            "members": n.peers.len() + 1,
        })
    };
    if at.printer.json {
        let networks: Vec<_> = status.networks.iter().map(object).collect();
        at.printer
            .object(&serde_json::json!({ "schema": "shadowmesh/network-list/1", "networks": networks }));
        return Ok(());
    }
    let rows: Vec<_> = status
        .networks
        .iter()
        .map(|n| {
            let state = if n.up { "up" } else { "down" };
            let members = if n.up { (n.peers.len() + 1).to_string() } else { "—".into() };
            vec![n.name.clone(), state.into(), n.interface.clone(), n.subnet4.clone(), members]
        })
        .collect();
    at.printer.table(&["NETWORK", "STATE", "INTERFACE", "SUBNET", "MEMBERS"], &rows);
    Ok(())
}

pub async fn network(at: &At<'_>) -> Result<(), Problem> {
    let n: NetworkStatus = at.client.get(&at.path("").await?).await?;
    if at.printer.json {
        at.printer.object(&serde_json::json!({ "schema": "shadowmesh/network-show/1", "network": n }));
        return Ok(());
    }
    let ends = n.certificate_ends.clone().unwrap_or("—".into());
    let relays: Vec<_> = n.relays.iter().map(|r| r.place.clone()).collect();
    for (what, value) in [
        ("name", n.name.clone()),
        ("id", n.id.clone()),
        ("state", if n.up { "up".into() } else { "down".to_owned() }),
        ("subnet", n.subnet4.clone()),
        ("interface", format!("{}, MTU {}", n.interface, n.mtu)),
        ("this machine", format!("{} ({})", n.device, n.roles)),
        ("node", n.node.clone()),
        ("addresses", format!("{}  {}", n.ipv4.as_deref().unwrap_or("—"), n.ipv6)),
        ("certificate", format!("until {ends}")),
        ("listens", n.listen.join(", ")),
        ("relays", if relays.is_empty() { "—".into() } else { relays.join(", ") }),
        ("members", if n.up { (n.peers.len() + 1).to_string() } else { "—".into() }),
    ] {
        at.printer.line(format!("{what:<13} {value}").trim_end());
    }
    for problem in &n.problems {
        at.printer.warning(problem);
    }
    Ok(())
}

pub async fn invites(at: &At<'_>) -> Result<(), Problem> {
    let list: Invites = at.client.get(&at.path("/invites").await?).await?;
    if at.printer.json {
        at.printer.object(&list);
        return Ok(());
    }
    let rows: Vec<_> = list
        .invites
        .iter()
        .map(|i| {
            let kind = if i.reusable { "several" } else { "one use" };
            let by = if i.used_by.is_empty() { "—".into() } else { i.used_by.join(", ") };
            let name = i.name.clone().unwrap_or("—".into());
            vec![i.id.clone(), name, i.state.clone(), kind.into(), i.expires.clone(), by]
        })
        .collect();
    at.printer.table(&["INVITE", "FOR", "STATE", "GOOD FOR", "UNTIL", "USED BY"], &rows);
    Ok(())
}

pub async fn identity(at: &At<'_>) -> Result<(), Problem> {
    let identity: Identity = at.client.get("/v1/identity").await?;
    if at.printer.json {
        at.printer.object(&identity);
        return Ok(());
    }
    if !identity.seed {
        at.printer.line("This machine has no identity yet; it is made with the first network.");
        return Ok(());
    }
    let rows: Vec<_> = identity
        .networks
        .iter()
        .map(|n| {
            let root = if n.root { "yes" } else { "no" };
            vec![n.network.clone(), n.device.clone(), n.node.clone(), root.into()]
        })
        .collect();
    at.printer.table(&["NETWORK", "NAME", "NODE", "ROOT KEY HERE"], &rows);
    Ok(())
}
