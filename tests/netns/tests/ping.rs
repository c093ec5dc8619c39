//! A ping crosses: two daemons that know each other's address, a router between.
#![allow(clippy::unwrap_used, reason = "a test; clippy exempts only functions marked as such")]

use std::net::UdpSocket;
use std::time::Duration;

use nix::sys::signal::Signal;
use shadowmesh_netns_tests::{
    Evening, Host, Lab, Member, Pair, iperf3, received_mbit, thread_cpu, wait_until,
};

const SECONDS: fn(u64) -> Duration = Duration::from_secs;

struct Two {
    a: Host,
    r: Host,
    b: Host,
    pair: Pair,
    _lab: Lab,
}

/// The command line on a host.
fn say(host: &Host, member: &Member, arguments: &[&str]) -> (bool, String) {
    let mut command = host.command(Lab::binary("shadowmesh"));
    command.args(arguments).env("SHADOWMESH_DIR", &member.directory);
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

//   a (10.1.0.2) --- r --- (10.2.0.2) b
fn two(test: &str, config: &str) -> Two {
    let mut lab = Lab::new(test);
    let (a, r, b) = (lab.host("a"), lab.router("r"), lab.host("b"));
    lab.wire(&a, &["10.1.0.2/24"], &r, &["10.1.0.1/24"]);
    lab.wire(&r, &["10.2.0.1/24"], &b, &["10.2.0.2/24"]);
    a.default_route("10.1.0.1");
    b.default_route("10.2.0.1");
    let pair = Pair::start(lab.directory(), [(&a, "10.1.0.2"), (&b, "10.2.0.2")], config);
    Two { a, r, b, pair, _lab: lab }
}

#[test]
fn a_ping_crosses_both_ways_at_all_sizes() {
    crosses(&two("a ping crosses", "data_threads: off\n"), 3);
}

#[test]
fn and_so_it_does_with_data_threads() {
    // The node's, its worker's and the control plane's, and one for each direction.
    crosses(&two("data threads", "data_threads: on\n"), 5);
}

/// Several threads for each direction: streams are spread over them, and nothing is lost between them.
#[test]
fn flows_are_spread_over_data_threads() {
    let p = two("many data threads", "data_threads: 3\n");
    crosses(&p, 3 + 6);
    let (mbit, drops) = nine_streams(&p, SECONDS(2));
    // Sending threads here, receiving ones there.
    let busy = |n: usize, kind| thread_cpu(p.pair.daemons[n].id(), kind);
    let (tx, rx) = (busy(0, "sm-tx"), busy(1, "sm-rx"));
    println!("nine streams: {mbit:.0} Mbit/s; sending {tx:.0?}, receiving {rx:.0?}; drops {drops}");
    assert!(mbit > 100.0);
    for times in [tx, rx] {
        let busy = times.iter().filter(|t| **t >= Duration::from_millis(60)).count();
        assert!(times.len() == 3 && busy >= 2, "{times:?}");
    }
    assert_eq!(drops, serde_json::json!({}));
}

/// A router on the way that joins packets of two threads into one message, which one reader gets: it hands on what is not
/// its own.
#[test]
fn what_was_joined_across_threads_arrives() {
    let p = two("joined across threads", "data_threads: 3\n");
    for (host, interface) in [(&p.a, "eth0"), (&p.r, "eth0"), (&p.r, "eth1"), (&p.b, "eth0")] {
        let features = ["tso", "off", "gso", "off", "tx-udp-segmentation", "off", "gro", "on"];
        host.run("ethtool", &[&["-K", interface][..], &features].concat());
    }
    p.a.must_reach(&p.pair.to(), 10);
    // Long enough to be sure that it happens.
    let (mbit, drops) = nine_streams(&p, SECONDS(5));
    println!("nine streams over cards: {mbit:.0} Mbit/s; drops {drops}");
    assert_eq!(drops, serde_json::json!({}));
}

/// By a relay, behind whose header the index is read.
#[test]
fn data_threads_by_relay() {
    let e = Evening::new("data threads by relay", &["near", "far"]);
    for m in &e.machines {
        std::fs::create_dir_all(&m.directory).unwrap();
        std::fs::write(m.directory.join("config.yaml"), "data_threads: 3\n").unwrap();
    }
    e.network("home");
    let (near, far) = (&e.machines[0], &e.machines[1]);
    near.host.must_reach(&far.address(), 10);
    let mbit = received_mbit(&iperf3(&near.host, &far.host, &far.address(), &["-P", "9"], SECONDS(3), || ()));
    let drops = far.json(&["status"])["networks"][0]["drops"].clone();
    println!("nine streams by relay: {mbit:.0} Mbit/s; drops {drops}");
    assert!(mbit > 50.0);
    let count = |why: &str| drops[why].as_u64().unwrap_or(0);
    assert_eq!(["unknown_index", "queue_full", "bad_mac", "replayed"].map(count), [0; 4], "{drops}");
}

/// A program that sends more than the daemon carries loses its own frames, not those of others: the device has a queue for
/// each of several flows.
#[test]
fn a_flood_does_not_keep_others_out() {
    let p = two("a flood", "");
    let to = p.pair.to();
    p.a.must_reach(&to, 10);
    let dropped = || {
        let text = p.a.run("cat", &["/sys/class/net/sm-home/statistics/tx_dropped"]);
        text.trim().parse::<u64>().unwrap()
    };
    // Datagrams, since ping tries again what the device would not take. One flood in four has their queue by chance; another,
    // from another port, is another flow.
    let (a, b, address) = (&p.a, &p.b, p.pair.members[1].ipv4);
    let receiver = b.enter(|| UdpSocket::bind((address, 0)).unwrap());
    receiver.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let sender = a.enter(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    sender.connect(receiver.local_addr().unwrap()).unwrap();
    // The first is lost while neighbours find each other.
    wait_until("a datagram", SECONDS(5), || {
        sender.send(&[0]).ok().and_then(|_| receiver.recv(&mut [0]).ok())
    });
    let lost = |n: u32| {
        let (before, mut lost) = (dropped(), 0.0);
        iperf3(&p.a, &p.b, &to, &["-u", "-l", "64", "-b", "0"], SECONDS(2), || {
            std::thread::sleep(Duration::from_millis(500));
            std::thread::scope(|scope| {
                let arrived =
                    scope.spawn(|| (0..100).take_while(|_| receiver.recv(&mut [0]).is_ok()).count());
                for _ in 0..100 {
                    let _full = sender.send(&[0]);
                    std::thread::sleep(Duration::from_millis(10));
                }
                lost = 1.0 - arrived.join().unwrap() as f64 / 100.0;
            });
        });
        let flooded = dropped() - before;
        println!("flood {n}: {flooded} of its frames dropped at the device, {lost:.2} of the others");
        assert!(flooded > 1000, "the flood was no flood: {flooded}");
        lost
    };
    assert!((1..=5).any(|n| lost(n) < 0.02), "others were lost beside every flood");
}

/// Mbit/s of nine TCP streams, and what was dropped where they arrive.
fn nine_streams(p: &Two, time: Duration) -> (f64, serde_json::Value) {
    let mbit = received_mbit(&iperf3(&p.a, &p.b, &p.pair.to(), &["-P", "9"], time, || ()));
    (mbit, p.pair.json(1, &p.b, &["status"])["networks"][0]["drops"].clone())
}

fn crosses(p: &Two, threads: usize) {
    let found = std::fs::read_dir(format!("/proc/{}/task", p.pair.daemons[0].id())).unwrap().flatten();
    let names = found.filter_map(|t| std::fs::read_to_string(t.path().join("comm")).ok());
    let ours = names.filter(|n| n.starts_with("sm-")).count();
    assert_eq!(ours + 1, threads, "threads of the daemon");
    let (one, two) = (&p.pair.members[0], &p.pair.members[1]);
    for (host, other) in [(&p.a, two), (&p.b, one)] {
        host.must_reach(&other.ipv4.to_string(), 10);
        host.must_reach(&other.ipv6.to_string(), 10);
        for size in ["1400", "8000"] {
            for address in [other.ipv4.to_string(), other.ipv6.to_string()] {
                let said =
                    host.run("ping", &["-n", "-c", "5", "-i", "0.05", "-W", "2", "-s", size, &address]);
                assert!(said.contains(" 0% packet loss"), "{said}");
            }
        }
    }
    // What the commands say about it.
    let (ok, text) = say(&p.a, one, &["status"]);
    assert!(
        ok && text.contains("1 of 1 peers reachable") && text.contains("direct  10.2.0.2:4000"),
        "{text}"
    );
    println!("{text}");
    let (ok, text) = say(&p.a, one, &["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(ok && status["schema"] == "shadowmesh/status/1");
    assert_eq!(status["networks"][0]["peers"][0]["name"], "two");
    assert_eq!(status["networks"][0]["interface"], "sm-home");
    let (ok, text) = say(&p.b, two, &["ping", "one", "-c", "2"]);
    assert!(ok && text.lines().count() == 2 && text.contains("direct  10.1.0.2:4000"), "{text}");
    let (ok, text) = say(&p.b, two, &["ping", "nobody"]);
    assert!(!ok && text.contains("has no member \"nobody\""), "{text}");

    // TCP, for a second each way: nothing gets stuck.
    let mbit = received_mbit(&iperf3(&p.a, &p.b, &two.ipv4.to_string(), &[], SECONDS(2), || ()));
    println!("TCP through the mesh: {mbit:.0} Mbit/s");
    assert!(mbit > 20.0, "{mbit} Mbit/s");
}

#[test]
fn a_killed_daemon_is_back_within_five_seconds() {
    let mut p = two("killed and back", "");
    let (address, other) = (p.pair.members[1].ipv4.to_string(), p.pair.members[0].ipv4.to_string());
    p.a.must_reach(&address, 10);
    p.pair.daemons[1].kill();
    assert!(p.a.ping(&address, 2).rtt_ms.is_empty());
    p.pair.daemons[1] = p.pair.daemon(1, &p.b);
    wait_until("an answer after the restart", SECONDS(5), || {
        (!p.a.ping(&address, 1).rtt_ms.is_empty()).then_some(())
    });
    p.b.must_reach(&other, 5);
}

#[test]
fn a_daemon_ends_cleanly_and_says_goodbye() {
    let p = two("clean end", "");
    let address = p.pair.members[1].ipv4.to_string();
    p.a.must_reach(&address, 10);
    p.pair.daemons[1].signal(Signal::SIGTERM);
    assert!(p.pair.daemons[1].wait(SECONDS(5)).success());
    p.pair.daemons[0].wait_for("peer is down", SECONDS(3));
    assert!(!p.pair.members[1].directory.join("run/control.sock").exists());
    let (ok, text) = say(&p.b, &p.pair.members[1], &["status"]);
    assert!(!ok && text.starts_with("error: the daemon is not running."), "{text}");
    // A configuration that is wrong stops nothing that runs, and says so.
    let config = p.pair.members[0].directory.join("config.yaml");
    std::fs::write(&config, "networks: {home: {mtu: 20000}}\n").unwrap();
    p.pair.daemons[0].signal(Signal::SIGHUP);
    p.pair.daemons[0].wait_for("`networks.home.mtu` is 20000", SECONDS(3));
    assert!(p.pair.daemons[0].is_running());
}

#[test]
fn a_subnet_in_use_leaves_ipv6_alone_until_it_is_free() {
    let p = two("overlap", "");
    let (ipv4, ipv6) = (p.pair.members[1].ipv4.to_string(), p.pair.members[1].ipv6.to_string());
    p.a.must_reach(&ipv4, 10);
    p.a.ip("link add dummy0 type veth peer name dummy1");
    p.a.ip("address add 10.83.4.1/24 dev dummy0");
    p.a.ip("link set dummy0 up");
    p.a.ip("link set dummy1 up");
    p.pair.daemons[0].wait_for("overlaps dummy0", SECONDS(10));
    wait_until("the IPv4 address to go", SECONDS(5), || {
        p.a.addresses("sm-home").iter().all(|a| a.is_ipv6()).then_some(())
    });
    p.a.must_reach(&ipv6, 5);
    p.a.ip("link delete dummy0");
    wait_until("the IPv4 address to come back", SECONDS(10), || {
        p.a.addresses("sm-home").iter().any(|a| a.is_ipv4()).then_some(())
    });
    p.a.must_reach(&ipv4, 5);
}
