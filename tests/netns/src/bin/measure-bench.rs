//! `make bench`: promises that are measured on the shipped programs, in namespaces, three machines behind three NATs and a
//! relay. Issue lines: shares of three who talk at once, time from nothing to the first ping reply, memory of an idle
//! daemon. (What a handshake costs is measured by `handshake-cost`.)

use serde_json::Value;
use shadowmesh_netns_tests::Evening;
use shadowmesh_netns_tests::{Measured, median, rss, wait_until};
use std::time::{Duration, Instant};

fn main() {
    let mut measured = Measured::new("bench");
    join(&mut measured);
    shares(&mut measured);
}

/// From nothing (no daemon, no identity) to the first reply to a ping, with its parts; the median of five.
#[expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]
fn join(measured: &mut Measured) {
    let names = ["inviter", "joiner"];
    let mut whole = vec![];
    let mut parts = vec![];
    let mut memory = 0.0;
    for round in 0..5 {
        let e = Evening::new(&format!("join {round}"), &names);
        let (a, b) = (&e.machines[0], &e.machines[1]);
        a.must(&["network", "create", "home", "--relay", &e.urls[0], "--device", "inviter"]);
        wait_until("the relay link", Duration::from_secs(10), || {
            (a.json(&["status"])["networks"][0]["relays"][0]["up"] == true).then_some(())
        });
        let url = a.must(&["invite", "joiner"]).lines().next().unwrap_or_default().to_owned();
        let inviter = a.address();
        let began = Instant::now();
        b.must(&["join", &url]);
        let joined = began.elapsed();
        wait_until("a reply", Duration::from_secs(10), || {
            b.host.try_run("ping", &["-c", "1", "-W", "1", &inviter]).status.success().then_some(())
        });
        whole.push(began.elapsed().as_secs_f64());
        parts.push(joined.as_secs_f64());
        if round == 4 {
            // Idle: nobody sends but the daemons themselves.
            std::thread::sleep(Duration::from_secs(10));
            memory = b.processes().iter().map(|p| rss(*p) / 1024.0).fold(0.0, f64::max);
        }
    }
    let (whole, parts) = (median(whole), median(parts));
    measured.line(
        "3-join",
        "from nothing to the first ping reply, median of 5",
        whole,
        "s",
        "< 2",
        whole < 2.0,
    );
    measured.line("3-join-command", "of it, until `join` says that it is up", parts, "s", "", true);
    measured.line("12-rss", "resident memory of an idle daemon", memory, "MiB", "<= 12", memory <= 12.0);
}

/// Three talk at once, all pairs, both ways: rates, and what was dropped and why.
fn shares(measured: &mut Measured) {
    let seconds: u64 = std::env::var("BENCH_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(30);
    let e = Evening::new("three at once", &["one", "two", "three"]);
    let m = &e.machines;
    m[0].must(&["network", "create", "home", "--relay", &e.urls[0], "--device", "one"]);
    wait_until("the relay link", Duration::from_secs(10), || {
        (m[0].json(&["status"])["networks"][0]["relays"][0]["up"] == true).then_some(())
    });
    for (i, name) in [(1, "two"), (2, "three")] {
        let url = m[0].must(&["invite", name]).lines().next().unwrap_or_default().to_owned();
        m[i].must(&["join", &url]);
    }
    let addresses: Vec<String> = m.iter().map(|m| m.address()).collect();
    for (i, j) in [(0, 1), (0, 2), (1, 2)] {
        m[i].host.must_reach(&addresses[j], 20);
    }
    let pairs = [(0, 1), (0, 2), (1, 2)];
    let mut running = vec![];
    for (n, (i, j)) in pairs.iter().enumerate() {
        let port = (5300 + n).to_string();
        let server = m[*j].host.spawn(&format!("server{n}"), "iperf3", &["-s", "-1", "-p", &port], &[]);
        std::thread::sleep(Duration::from_millis(300));
        let time = seconds.to_string();
        let arguments = ["-c", &addresses[*j], "-p", &port, "-t", &time, "--bidir", "-J"];
        running.push((server, m[*i].host.spawn(&format!("client{n}"), "iperf3", &arguments, &[])));
    }
    let mut rates = vec![];
    for ((_, client), (i, j)) in running.iter().zip(pairs) {
        client.wait(Duration::from_secs(seconds + 20));
        let out: Value = serde_json::from_str(&client.output()).unwrap_or_default();
        let sums = &out["end"];
        for (key, from, to) in [("sum_received", i, j), ("sum_received_bidir_reverse", j, i)] {
            let mbit = sums[key]["bits_per_second"].as_f64().unwrap_or(0.0) / 1e6;
            let what = format!("{} to {} while all six streams run", m[from].host.name(), m[to].host.name());
            measured.line("2-rate", &what, mbit, "Mbit/s", "> 0", mbit > 0.0);
            rates.push(mbit);
        }
    }
    let (least, most) =
        (rates.iter().copied().fold(f64::MAX, f64::min), rates.iter().copied().fold(0.0, f64::max));
    let share = most / least.max(0.001);
    measured.line("2-shares", "largest rate over the smallest", share, "x", "<= 2", share <= 2.0);
    for machine in m {
        let drops = &machine.json(&["status"])["networks"][0]["drops"];
        println!("{}: dropped {drops}", machine.host.name());
        // The kernel of the other side takes no more, or the relay's: that is congestion. These are not.
        for reason in
            ["replayed", "too_old", "bad_tag", "unknown_index", "source_mac", "source_address", "no_session"]
        {
            let n = drops[reason].as_f64().unwrap_or(0.0);
            let what = format!("{} at {}", reason, machine.host.name());
            measured.line("2-drops", &what, n, "packets", "0", n == 0.0);
        }
    }
}
