//! The harness itself: machines reach each other, wires misbehave as told, nothing is left behind.
#![allow(clippy::unwrap_used, reason = "a test; clippy exempts only functions marked as such")]

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use shadowmesh_netns_tests::{Lab, Profile, wait_until};

//   a (10.1.0.2) --- r --- (10.2.0.2) b
#[test]
fn two_hosts_reach_each_other_through_a_router() {
    let mut lab = Lab::new("two hosts and a router");
    let (a, r, b) = (lab.host("a"), lab.router("r"), lab.host("b"));
    let wire = lab.wire(&a, &["10.1.0.2/24", "fd01::2/64"], &r, &["10.1.0.1/24", "fd01::1/64"]);
    assert_eq!((wire.a.as_str(), wire.b.as_str()), ("eth0", "eth0"));
    let wire = lab.wire(&r, &["10.2.0.1/24", "fd02::1/64"], &b, &["10.2.0.2/24", "fd02::2/64"]);
    assert_eq!((wire.a.as_str(), wire.b.as_str()), ("eth1", "eth0"));
    assert_eq!(a.addresses("eth0").len(), 2);
    for (host, via4, via6) in [(&a, "10.1.0.1", "fd01::1"), (&b, "10.2.0.1", "fd02::1")] {
        host.default_route(via4);
        host.default_route(via6);
    }
    a.must_reach("10.2.0.2", 5);
    a.must_reach("fd02::2", 5);
    assert!(b.ping("10.1.0.2", 3).median_ms() < 20.0);
    r.ip("link set eth1 down");
    assert!(a.ping("10.2.0.2", 2).rtt_ms.is_empty());
}

#[test]
fn a_lossy_wire_delays_by_what_was_asked() {
    let mut lab = Lab::new("delay");
    let (a, b) = (lab.host("a"), lab.host("b"));
    let profile = Profile { delay: Duration::from_millis(20), ..Profile::default() };
    let wire = lab.lossy(&a, &["10.1.0.1/24"], &b, &["10.1.0.2/24"], profile);
    a.must_reach("10.1.0.2", 5);
    let ping = a.ping("10.1.0.2", 20);
    assert_eq!(ping.rtt_ms.len(), 20);
    let rtt = ping.median_ms();
    assert!((40.0..48.0).contains(&rtt), "20 ms each way gave {rtt} ms");
    wire.set(Profile::default());
    let rtt = a.ping("10.1.0.2", 20).median_ms();
    assert!(rtt < 8.0, "no delay gave {rtt} ms");
    wire.set(Profile { loss: 1.0, ..Profile::default() });
    assert!(a.ping("10.1.0.2", 3).rtt_ms.is_empty());
    wire.set(Profile { duplicate: 1.0, ..Profile::default() });
    // The answer to each of two requests, each repeated: four answers.
    let answers = a.ping("10.1.0.2", 10).rtt_ms.len();
    assert!((36..=40).contains(&answers), "{answers}");
}

#[test]
fn a_lossy_wire_loses_its_share_in_a_way_that_can_be_repeated() {
    let lost = |seed| {
        let mut lab = Lab::new("loss");
        let (a, b) = (lab.host("a"), lab.host("b"));
        let quiet = |host: &shadowmesh_netns_tests::Host| {
            host.sysctl("net/ipv6/conf/all/disable_ipv6", "1");
            host.sysctl("net/ipv6/conf/default/disable_ipv6", "1");
        };
        quiet(&a);
        quiet(&b);
        let profile = Profile { loss: 0.3, seed, ..Profile::default() };
        let _wire = lab.lossy(&a, &["10.1.0.1/24"], &b, &["10.1.0.2/24"], profile);
        // Known neighbours, so that only the datagrams draw from chance.
        let mac = |host: &shadowmesh_netns_tests::Host| {
            let text = host.ip("-br link show eth0");
            text.split_whitespace().nth(2).unwrap().to_owned()
        };
        a.ip(&format!("neighbour replace 10.1.0.2 lladdr {} dev eth0 nud permanent", mac(&b)));
        let receiver = b.enter(|| std::net::UdpSocket::bind("10.1.0.2:7").unwrap());
        let sender = a.enter(|| std::net::UdpSocket::bind("10.1.0.1:0").unwrap());
        receiver.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        for i in 0..200u8 {
            sender.send_to(&[i], "10.1.0.2:7").unwrap();
        }
        let mut got = Vec::new();
        let mut buf = [0; 10];
        while receiver.recv(&mut buf).is_ok() {
            got.push(buf[0]);
        }
        got
    };
    let first = lost(7);
    assert!((110..170).contains(&first.len()), "of 200 with 30 % loss: {}", first.len());
    assert_eq!(first, lost(7));
    assert_ne!(first, lost(8));
}

#[test]
fn a_bandwidth_can_be_set_both_ways() {
    let mut lab = Lab::new("bandwidth");
    let (a, b) = (lab.host("a"), lab.host("b"));
    lab.wire(&a, &["10.1.0.1/24"], &b, &["10.1.0.2/24"]);
    a.shape("eth0", 5, 50);
    assert!(a.run("tc", &["qdisc", "show", "dev", "eth0"]).contains("rate 5Mbit"));
    let _wire =
        lab.lossy(&a, &["10.2.0.1/24"], &b, &["10.2.0.2/24"], Profile { kbit: 1000, ..Profile::default() });
    a.must_reach("10.2.0.2", 5);
    let said = a.run("ping", &["-n", "-c", "3", "-s", "1400", "-i", "0.2", "10.2.0.2"]);
    // 1442 bytes at 1 Mbit/s are 11.5 ms each way.
    let time: f64 =
        said.lines().find_map(|l| l.split_once("time=")?.1.split(' ').next()?.parse().ok()).unwrap();
    assert!((23.0..32.0).contains(&time), "{said}");
}

#[test]
fn a_lan_and_a_nat() {
    let mut lab = Lab::new("lan behind nat");
    let (a, b, nat, out) = (lab.host("a"), lab.host("b"), lab.router("nat"), lab.host("out"));
    lab.lan("lan", &[(&a, &["192.168.1.2/24"]), (&b, &["192.168.1.3/24"]), (&nat, &["192.168.1.1/24"])]);
    let wire = lab.wire(&nat, &["203.0.113.1/24"], &out, &["203.0.113.2/24"]);
    nat.masquerade(&wire.a, true);
    a.default_route("192.168.1.1");
    a.must_reach("192.168.1.3", 5);
    a.must_reach("203.0.113.2", 5);
    let server = out.enter(|| std::net::UdpSocket::bind("203.0.113.2:9").unwrap());
    server.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let client = a.enter(|| std::net::UdpSocket::bind("192.168.1.2:5000").unwrap());
    client.send_to(b"x", "203.0.113.2:9").unwrap();
    let (_, from) = server.recv_from(&mut [0; 10]).unwrap();
    assert_eq!(from.ip().to_string(), "203.0.113.1");
    out.ip("route add 192.168.1.0/24 via 203.0.113.1");
    assert!(out.ping("192.168.1.2", 2).rtt_ms.is_empty(), "a stranger came in");
}

#[test]
fn programs_run_inside_are_watched_and_end_with_the_test() {
    let mut lab = Lab::new("programs");
    let host = lab.host("h");
    let namespace = host.namespace().to_owned();
    let echo = host.spawn(
        "echo",
        "sh",
        &["-c", "echo begun $WORD; read x; echo got $x; sleep 60"],
        &[("WORD", "w")],
    );
    echo.wait_for("begun w", Duration::from_secs(5));
    echo.say("hello");
    assert!(echo.wait_for("got hello", Duration::from_secs(5)).contains("begun"));
    assert!(echo.is_running());
    echo.signal(Signal::SIGTERM);
    echo.wait(Duration::from_secs(5));
    let in_background = host.spawn("bg", "sh", &["-c", "setsid sleep 1234 & echo pid $!; wait"], &[]);
    let said = in_background.wait_for("pid", Duration::from_secs(5));
    let pid: u32 = said.split_whitespace().last().unwrap().parse().unwrap();
    let failing = host.try_run("false", &[]);
    assert!(!failing.status.success());
    let directory = lab.directory().to_owned();
    drop(in_background);
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    drop(lab);
    wait_until("the end of a program in the background", Duration::from_secs(5), || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    });
    assert!(!Path::new("/run/netns").join(namespace).exists());
    assert!(!directory.exists());
}

#[test]
fn what_a_killed_run_left_is_removed() {
    // A pid that no process has: above the kernel's limit.
    let name = "sm4194999-0-left";
    let made = std::process::Command::new("ip").args(["netns", "add", name]).status().unwrap();
    assert!(made.success(), "needs root; run: sudo -E make test");
    drop(Lab::new("leftovers"));
    assert!(!Path::new("/run/netns").join(name).exists());
}
