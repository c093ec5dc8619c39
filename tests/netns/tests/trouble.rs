//! What goes wrong around a running daemon: its device is deleted, its sockets' system calls fail. It says so, does not
//! spin, and goes on when it can.
#![allow(clippy::unwrap_used, reason = "a test; clippy exempts only functions marked as such")]

use std::time::Duration;

use nix::sys::signal::Signal;
use shadowmesh_netns_tests::{Host, Lab, Pair, cpu, wait_until};

const SECONDS: fn(u64) -> Duration = Duration::from_secs;

struct Two {
    a: Host,
    pair: Pair,
    _lab: Lab,
}

fn two(test: &str, more: &str) -> Two {
    let mut lab = Lab::new(test);
    let (a, b) = (lab.host("a"), lab.host("b"));
    lab.wire(&a, &["10.1.0.2/24"], &b, &["10.1.0.3/24"]);
    let pair = Pair::start(lab.directory(), [(&a, "10.1.0.2"), (&b, "10.1.0.3")], more);
    a.must_reach(&pair.to(), 10);
    Two { a, pair, _lab: lab }
}

#[test]
fn a_deleted_device_is_told_and_the_daemon_stays() {
    for more in ["data_threads: off\n", "data_threads: 2\n"] {
        let t = two("deleted device", more);
        t.a.ip("link delete sm-home");
        let daemon = &t.pair.daemons[0];
        daemon.wait_for("the network device `sm-home` was deleted", SECONDS(5));
        assert!(daemon.is_running());
        let status = t.pair.json(0, &t.a, &["status"]);
        let network = &status["networks"][0];
        assert_eq!(network["up"], false, "{status}");
        assert!(network["problems"].to_string().contains("was deleted"), "{status}");
        let before = cpu(daemon.id());
        std::thread::sleep(SECONDS(1));
        let spent = cpu(daemon.id()) - before;
        assert!(spent < Duration::from_millis(100), "{spent:?} in a second");
        // A new one is made by `up`.
        let mut up = t.a.command(Lab::binary("shadowmesh"));
        up.arg("up").env("SHADOWMESH_DIR", &t.pair.members[0].directory);
        assert!(up.status().unwrap().success());
        t.a.must_reach(&t.pair.to(), 20);
    }
}

/// The kernel has no memory for what is sent (ENOBUFS), by fault injection: all waits, at little cost, and goes on after.
#[test]
fn a_socket_without_buffers_is_waited_for() {
    for more in ["data_threads: off\n", "data_threads: 2\n"] {
        let t = two("no buffers", more);
        let daemon = &t.pair.daemons[0];
        let pid = daemon.id().to_string();
        let inject = "inject=sendmmsg:error=ENOBUFS";
        let strace = t.a.spawn(
            "strace",
            "strace",
            &["-f", "-qq", "-e", "trace=sendmmsg", "-e", inject, "-p", &pid],
            &[],
        );
        let to = t.pair.to();
        let ping = t.a.spawn("ping", "ping", &["-n", "-i", "0.1", "-c", "40", "-W", "3", &to], &[]);
        wait_until("calls that fail", SECONDS(10), || strace.output().contains("ENOBUFS").then_some(()));
        let (before, calls) = (cpu(daemon.id()), strace.output().matches("ENOBUFS").count());
        std::thread::sleep(SECONDS(1));
        let (spent, calls) = (cpu(daemon.id()) - before, strace.output().matches("ENOBUFS").count() - calls);
        println!("{calls} failing calls and {spent:?} of CPU in a second");
        assert!((1..3000).contains(&calls), "{calls}");
        strace.signal(Signal::SIGINT);
        strace.wait(SECONDS(5));
        ping.wait(SECONDS(15));
        let said = ping.output();
        println!("{}", said.lines().last().unwrap_or_default());
        assert!(
            said.contains("40 packets transmitted, 40 received") && !said.contains("duplicates"),
            "{said}"
        );
    }
}
