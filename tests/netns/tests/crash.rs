//! Crashes cost seconds: of the relay, and of a client at any moment of its start. `make crash` does more of them
//! (CRASHES) and writes down what it found.
#![allow(clippy::unwrap_used, reason = "a test; clippy exempts only functions marked as such")]

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use shadowmesh_host::clock::Clock;
use shadowmesh_netns_tests::{Evening, Measured, wait_until};

const SECONDS: fn(u64) -> Duration = Duration::from_secs;

/// How many crashes were asked for.
fn asked() -> Option<u32> {
    std::env::var("CRASHES").ok().map(|n| n.parse().unwrap())
}

/// A moment from 0 to 1500 ms; every second one from 0 to 200, while the start is under way.
fn moment(number: u32) -> Duration {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(number);
    let until = if number.is_multiple_of(2) { 1500 } else { 200 };
    Duration::from_millis(hasher.finish() % (until + 1))
}

#[test]
fn a_killed_relay_costs_three_seconds_at_most() {
    let mut measured = asked().map(|_| Measured::new("crash-relay"));
    let mut e = Evening::new("a killed relay", &["laptop", "pi"]);
    e.network("home");
    let address = e.machines[1].address();
    let arguments = ["-oL", "ping", "-n", "-i", "0.02", &address];
    let ping = e.machines[0].host.spawn("ping", "stdbuf", &arguments, &[]);
    ping.wait_for("icmp_seq=100 ", SECONDS(10));
    let answers = || ping.output().matches(" time=").count();
    let mut worst = Duration::ZERO;
    for round in 0..if asked().is_some() { 5 } else { 2 } {
        e.relay.kill();
        std::thread::sleep(SECONDS(2));
        let (before, clock) = (answers(), Clock::new());
        e.relay = e.spawn_relay();
        wait_until("an answer through the new relay", SECONDS(20), || (answers() > before).then_some(()));
        let took = clock.now();
        println!("round {round}: an answer {took:?} after the relay's start");
        worst = worst.max(took);
        // It stays.
        let before = answers();
        wait_until("a second of answers", SECONDS(4), || (answers() >= before + 50).then_some(()));
    }
    if let Some(measured) = &mut measured {
        measured.line(
            "crash-relay",
            "from the start of a killed relay to the next answer, the slowest of 5",
            worst.as_secs_f64(),
            "s",
            "<= 3",
            worst <= SECONDS(3),
        );
    }
    assert!(worst <= SECONDS(3), "{worst:?}");
}

#[test]
fn a_client_killed_at_any_moment_comes_back_the_same() {
    let mut measured = asked().map(|_| Measured::new("crash"));
    let count = asked().unwrap_or(10);
    let e = Evening::new("a killed client", &["laptop", "pi"]);
    e.network("home");
    let (laptop, pi) = (&e.machines[0], &e.machines[1]);
    let who = || {
        let status = pi.json(&["status"]);
        ["node", "id", "name", "device", "ipv4", "ipv6"].map(|k| {
            let value = status["networks"][0][k].clone();
            assert!(value.is_string(), "no {k}: {status}");
            value
        })
    };
    let (before, clock) = (who(), Clock::new());
    let (mut wrong, mut slowest) = (vec![], Duration::ZERO);
    pi.crash();
    for number in 0..count {
        // A start that is killed, the command along with the daemon; then one that is let be, and killed too.
        let starting = pi.start("up", &["up"]);
        let moment = moment(number);
        std::thread::sleep(moment);
        pi.crash();
        drop(starting);
        let began = clock.now();
        let (code, text) = pi.say(&["up"]);
        slowest = slowest.max(clock.now() - began);
        let now = (code == 0).then(who);
        if now.as_ref() != Some(&before) {
            println!(
                "crash {number}, after {moment:?}: {code} {text}\n{now:?} instead of {before:?}\n{}",
                pi.log()
            );
            wrong.push(moment);
        }
        if number + 1 < count {
            pi.crash();
        }
    }
    let end = Clock::new();
    while pi.host.ping(&laptop.address(), 1).rtt_ms.is_empty() && end.now() < SECONDS(20) {}
    let (reached, back) = (end.now() < SECONDS(5), end.now());
    println!(
        "{count} crashes in {:?}, {} wrong, slowest start {slowest:?}, the other reached {back:?} after",
        clock.now(),
        wrong.len()
    );
    if let Some(measured) = &mut measured {
        let what = "starts after a SIGKILL at a random moment of one that do not bring the same machine back";
        let goal = format!("= 0 of {count}");
        measured.line("crash-client", what, wrong.len() as f64, "", &goal, wrong.is_empty());
        let seconds = slowest.as_secs_f64();
        measured.line("crash-start", "the slowest of them", seconds, "s", "<= 10", seconds <= 10.0);
        let seconds = back.as_secs_f64();
        measured.line(
            "crash-reach",
            "from the end of the last `up` to an answer of the other",
            seconds,
            "s",
            "<= 5",
            reached,
        );
    }
    assert!(wrong.is_empty(), "{wrong:?}");
    assert!(reached, "{}", pi.log());
    assert_eq!(who(), before);
}
