//! What a running program uses, and what a relay says of itself.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::Host;

/// Resident memory of a process in KiB (`VmRSS` of proc(5)); 0 when it is gone.
pub fn rss(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or("0");
    line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0.0)
}

/// Processor time of all threads of a process that live now (`schedstat` of proc(5): to the nanosecond).
pub fn cpu(pid: u32) -> Duration {
    thread_cpu(pid, "").iter().sum()
}

/// That of each thread whose name begins so.
pub fn thread_cpu(pid: u32, name: &str) -> Vec<Duration> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of = |path: std::path::PathBuf| -> Option<Duration> {
        let read = |what: &str| std::fs::read_to_string(path.join(what)).ok();
        let text = read("comm").filter(|n| n.starts_with(name)).and_then(|_| read("schedstat"))?;
        text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
    };
    tasks.filter_map(|t| of(t.path())).collect()
}

/// UDP datagrams over IPv4 that came to sockets of a process's network namespace, those that found a full queue included
/// (`/proc/net/snmp`: `InDatagrams`, `RcvbufErrors`).
pub fn udp_arrived(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/snmp")).unwrap_or_default();
    let mut lines = text.lines().filter_map(|l| l.strip_prefix("Udp: "));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let wanted =
        names.split(' ').zip(values.split(' ')).filter(|(n, _)| ["InDatagrams", "RcvbufErrors"].contains(n));
    wanted.filter_map(|(_, v)| v.parse::<f64>().ok()).sum()
}

/// A relay's `/metrics` by name and labels, without their common prefix; asked on its own host.
pub fn metrics(relay: &Host, address: &str) -> BTreeMap<String, f64> {
    let text = relay.enter(|| {
        let mut stream = TcpStream::connect(address).expect("a relay with --http");
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("a request");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("an answer");
        text
    });
    let line = |l: &str| {
        let (name, value) = l.strip_prefix("shadowmesh_relay_")?.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}
