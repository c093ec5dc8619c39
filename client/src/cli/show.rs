//! `status`, `peers`, `ping`: what is so.

use super::print::{Printer, age, rtt, table};
use shadowmesh_control::{Client, Line, NetworkStatus, PeerStatus, Ping, PingReply, Problem, Status};

pub async fn status(client: &Client, wanted: Option<&str>, printer: &Printer) -> Result<(), Problem> {
    let mut status: Status = client.get("/v1/status").await?;
    if let Some(name) = wanted {
        super::network(client, Some(name)).await?;
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
        for line in network_lines(network) {
            printer.line(line);
        }
        for problem in &network.problems {
            printer.warning(problem);
        }
    }
    Ok(())
}

fn network_lines(n: &NetworkStatus) -> Vec<String> {
    let reachable = n.peers.iter().filter(|p| p.path != "none" && p.secured.is_some()).count();
    let state = match (n.up, n.peers.len()) {
        (false, _) => "down".to_owned(),
        (true, 0) => "no other members yet".to_owned(),
        (true, all) => format!("{reachable} of {all} peers reachable"),
    };
    let ipv4 = n.ipv4.as_deref().unwrap_or("—");
    let mut lines = vec![format!("{:<9}{:<10}{ipv4}  {}  {state}", n.name, n.interface, n.ipv6)];
    for r in &n.relays {
        let how = match (r.up, r.rtt) {
            (true, Some(t)) => format!("udp  {}", rtt(t)),
            (true, None) => "udp".into(),
            (false, _) => "no answer".into(),
        };
        lines.push(format!("{:<9}{}  {how}", "relay", r.place));
    }
    if !n.peers.is_empty() {
        lines.push(String::new());
        let rows: Vec<_> = n.peers.iter().map(row).collect();
        lines.extend(table(&["PEER", "ADDRESS", "PATH", "RTT", "LOSS", "MTU", "SECURED"], &rows));
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
        p.mtu.to_string(),
        p.secured_ago.map_or(secured.clone(), |a| format!("{secured}, {} ago", age(a))),
    ]
}

pub async fn peers(client: &Client, wanted: Option<&str>, printer: &Printer) -> Result<(), Problem> {
    let name = super::network(client, wanted).await?;
    let network: NetworkStatus = client.get(&format!("/v1/networks/{name}")).await?;
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
    for line in table(&["PEER", "IPV4", "IPV6", "ROLES", "PATH"], &rows) {
        printer.line(line);
    }
    Ok(())
}

pub async fn ping(
    client: &Client,
    wanted: Option<&str>,
    peer: &str,
    count: u32,
    printer: &Printer,
) -> Result<(), Problem> {
    let name = super::network(client, wanted).await?;
    let asked = Ping { peer: peer.to_owned(), count };
    let mut replies = vec![];
    let result = client
        .stream(&format!("/v1/networks/{name}/ping"), &asked, |line| {
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
