//! `make bench`: a rekey every two seconds costs no frame. Two machines behind NATs, a line of 20 ms each way, through the
//! relay; first the rate that this machine carries without loss when nothing rekeys, then 70 % of it for a minute with
//! rekeys, then the same with both ends starting each of them at once.

use shadowmesh_netns_tests::{Evening, Measured, Profile, Streamed, stream, wait_until};
use std::time::Duration;

/// Bytes of UDP payload: what fills a frame of the overlay's MTU in one datagram is not needed to lose one.
const LEN: usize = 1000;

fn main() {
    let seconds = std::env::var("BENCH_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(60);
    let mut measured = Measured::new("bench-rekey");
    let line = Profile { delay: Duration::from_millis(20), limit: 1_000_000, ..Profile::default() };
    let mut e = Evening::with_line("rekey", &["near", "far"], line);
    e.network("home");
    let mut best = lossless(&e);
    // What ten seconds allow, a minute may not: somebody else's moment on a core is enough.
    while let s = send(&e, best, seconds)
        && s.lost > 0
    {
        println!("{best:.0} a second for {seconds} s: {s:?}");
        best *= 0.85;
    }
    measured.line("6-lossless", "datagrams of 1000 B a second without loss, no rekey", best, "/s", "", true);
    for both in [false, true] {
        rekey_every_two_seconds(&mut e, both);
        let before = rekeys(&e);
        let s = send(&e, 0.7 * best, seconds);
        if s.lost > 0 {
            tell_drops(&e);
        }
        let after = rekeys(&e);
        let n = if both { after.1 - before.1 } else { after.0 - before.0 };
        let name = if both { "both ends start each rekey at once" } else { "rekey every 2 s" };
        let least = 0.8 * seconds as f64 / 2.0;
        let mut line = |id, what: &str, value, unit, goal: &str, holds| {
            measured.line(id, &format!("{name}: {what}"), value, unit, goal, holds);
        };
        line("6-rate", "datagrams a second", s.rate, "/s", "70 % of that", s.rate >= 0.69 * best);
        line("6-rekeys", "of these", n, "", &format!(">= {least}"), n >= least);
        line("6-lost", &format!("of {} lost", s.sent), s.lost as f64, "frames", "0", s.lost == 0);
        line("6-twice", "delivered twice", s.repeated as f64, "frames", "0", s.repeated == 0);
    }
}

fn send(e: &Evening, rate: f64, seconds: u64) -> Streamed {
    let (near, far) = (&e.machines[0], &e.machines[1]);
    stream(&near.host, &far.host, &far.address(), rate, LEN, Duration::from_secs(seconds))
}

/// The highest rate, in steps of a tenth, at which ten seconds lose nothing.
fn lossless(e: &Evening) -> f64 {
    let (mut best, mut rate) = (0.0, 2000.0);
    loop {
        let s = send(e, rate, if rate < 8000.0 { 2 } else { 10 });
        println!("{rate:.0} a second asked: {s:?}");
        // A generator that cannot keep its pace says nothing about the network.
        if s.lost > 0 || s.rate < 0.95 * rate {
            assert!(best > 0.0, "not even {rate} a second pass without loss");
            return best;
        }
        best = s.rate;
        rate *= if rate < 8000.0 { 1.5 } else { 1.1 };
    }
}

/// Both daemons start anew with two seconds between rekeys.
fn rekey_every_two_seconds(e: &mut Evening, both: bool) {
    for m in &mut e.machines {
        m.must(&["down"]);
        let config = m.directory.join("config.yaml");
        std::fs::write(&config, "crypto: {rekey: 2s}\n")
            .unwrap_or_else(|e| panic!("{}: {e}", config.display()));
        m.environment = if both { vec![("SHADOWMESH_REKEY_BOTH", "1")] } else { vec![] };
    }
    for m in &e.machines {
        m.must(&["up"]);
    }
    e.machines[0].host.must_reach(&e.machines[1].address(), 20);
    wait_until("the first rekey", Duration::from_secs(20), || {
        (rekeys(e).0 + rekeys(e).1 > 0.0).then_some(())
    });
}

/// Where packets were dropped: by the programs, by the kernel before them.
fn tell_drops(e: &Evening) {
    for m in &e.machines {
        let log = m.log();
        let tail: Vec<&str> = log.lines().rev().take(20).collect();
        println!("{}: {}\n{tail:#?}", m.host.name(), m.json(&["status"])["networks"][0]["drops"]);
    }
    for host in e.machines.iter().map(|m| &m.host).chain([&e.vps]) {
        let snmp = host.run("cat", &["/proc/net/snmp"]);
        let udp: Vec<_> = snmp.lines().filter(|l| l.starts_with("Udp:")).collect();
        println!("{}: {udp:?}\n{}", host.name(), host.run("ip", &["-s", "link"]));
    }
}

/// Rekeys with the other machine, and of them those that both started at once.
fn rekeys(e: &Evening) -> (f64, f64) {
    let said = e.machines[0].json(&["status"]);
    let of = |n: usize| said["networks"][0]["peers"][0]["rekeys"][n].as_f64().unwrap_or(0.0);
    (of(0), of(1))
}
