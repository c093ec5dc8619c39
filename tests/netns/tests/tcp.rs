//! Where UDP is blocked: a network is made, joined and used by TCP 443 alone, also through an HTTP proxy, and goes back to
//! UDP when that is let through.
#![allow(clippy::unwrap_used, reason = "a test; clippy exempts only functions marked as such")]

use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use shadowmesh_host::clock::Clock;
use shadowmesh_netns_tests::{Internet, Machine, Measured, NatKind, RELAY, VPS4, wait_until};

const GOAL: Duration = Duration::from_secs(3);
const BACK: Duration = Duration::from_secs(5);

/// nftables in the router of a machine.
fn nft(machine: &Machine, command: &str) {
    let namespace = format!("{}-nat", machine.host.namespace());
    let mut nft = Command::new("ip");
    nft.args(["netns", "exec", &namespace, "nft"]).args(command.split_whitespace());
    let output = nft.output().unwrap();
    assert!(output.status.success(), "{nft:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// From now on UDP leaves, and what answers it comes back.
fn let_udp_through(machine: &Machine) {
    nft(machine, "insert rule inet nat forward meta l4proto udp accept");
}

/// From now on no UDP passes, not even that of old flows.
fn block_udp(machine: &Machine) {
    nft(machine, "insert rule inet nat forward meta l4proto udp drop");
}

fn relay_of(machine: &Machine) -> Value {
    machine.get("/v1/status").map_or(Value::Null, |s| s["networks"][0]["relays"][0].clone())
}

fn is_by(machine: &Machine, by: &str) -> bool {
    let relay = relay_of(machine);
    relay["up"] == true && relay["by"] == by
}

/// The first makes a network, the second joins it; how long each took.
fn make(internet: &Internet, a: &Machine, b: &Machine) -> [Duration; 2] {
    let clock = Clock::new();
    let [one, two] = [a.host.name(), b.host.name()];
    a.quietly(&["network", "create", "home", "--relay", &internet.urls[0], "--device", one]).unwrap();
    let created = clock.now();
    wait_until("the relay link", Duration::from_secs(10), || (relay_of(a)["up"] == true).then_some(()));
    let url = a.quietly(&["invite", two]).unwrap();
    let clock = Clock::new();
    b.quietly(&["join", url.trim(), "--name", two]).unwrap();
    let joined = clock.now();
    println!("created in {created:?}, joined in {joined:?}");
    [created, joined]
}

#[test]
fn by_tcp_alone_and_back() {
    let mut measured = Measured::new("tcp");
    let mut internet = Internet::new("TCP alone");
    let a = internet.machine("a", NatKind::UdpBlocked);
    let b = internet.machine("b", NatKind::UdpBlocked);
    let [created, joined] = make(&internet, &a, &b);
    let within = |took: Duration, goal: Duration| took < goal;
    let secs = |d: Duration| d.as_secs_f64();
    measured.line(
        "8-tcp-create",
        "a network made by TCP 443 alone",
        secs(created),
        "s",
        "< 3",
        within(created, GOAL),
    );
    measured.line("8-tcp-join", "and joined", secs(joined), "s", "< 3", within(joined, GOAL));
    assert!(created < GOAL && joined < GOAL, "created in {created:?}, joined in {joined:?}");
    assert!(is_by(&a, "tcp") && is_by(&b, "tcp"), "{} {}\n{}", relay_of(&a), relay_of(&b), b.log());
    let said = b.json(&["status"])["networks"][0]["problems"].to_string();
    assert!(said.contains("UDP seems blocked here"), "{said}");
    let address = a.overlay();
    b.host.must_reach(&address, 5);

    // A ping goes on all the while, and loses nothing.
    let ping = b.host.spawn("ping", "ping", &["-n", "-i", "0.05", "-w", "30", &address], &[]);
    std::thread::sleep(Duration::from_millis(500));
    let clock = Clock::new();
    let_udp_through(&b);
    wait_until("b by UDP again", Duration::from_secs(20), || is_by(&b, "udp").then_some(()));
    let back = clock.now();
    println!("b is back on UDP after {back:?}");
    measured.line(
        "8-tcp-back",
        "back on UDP when it is let through",
        secs(back),
        "s",
        "< 5",
        within(back, BACK),
    );
    assert!(back < BACK, "{back:?}");
    std::thread::sleep(Duration::from_secs(2));
    ping.signal(nix::sys::signal::Signal::SIGINT);
    ping.wait(Duration::from_secs(5));
    assert!(ping.output().contains(" 0% packet loss"), "{}", ping.output());
    let moved = b.log().matches("relay is up").count();
    assert_eq!(moved, 1, "the session was made anew:\n{}", b.log());

    // Blocked again: the same session by TCP, by the connection that is kept, or another.
    let clock = Clock::new();
    block_udp(&b);
    wait_until("b by TCP again", Duration::from_secs(20), || is_by(&b, "tcp").then_some(()));
    println!("b is by TCP again after {:?}", clock.now());
    b.host.must_reach(&address, 10);
}

#[test]
fn through_an_http_proxy() {
    let mut internet = Internet::new("an HTTP proxy");
    let proxy = VPS4[1];
    let directory = internet.lab.directory().display().to_string();
    let config = format!("{directory}/tinyproxy.conf");
    let text =
        format!("Port 3128\nListen {proxy}\nTimeout 600\nMaxClients 20\nLogLevel Info\nConnectPort 443\n");
    std::fs::write(&config, text).unwrap();
    // It looks the name up itself.
    let names = format!("/etc/netns/{}", internet.vps.namespace());
    std::fs::create_dir_all(&names).unwrap();
    std::fs::write(format!("{names}/hosts"), format!("{} {RELAY}\n", VPS4[0])).unwrap();
    let tinyproxy = internet.vps.spawn("tinyproxy", "tinyproxy", &["-d", "-c", &config], &[]);
    wait_until("the proxy", Duration::from_secs(5), || {
        internet.vps.run("ss", &["-ltn"]).contains(":3128").then_some(())
    });
    let mut a = internet.machine("a", NatKind::UdpBlocked);
    let mut b = internet.machine("b", NatKind::UdpBlocked);
    for m in [&mut a, &mut b] {
        nft(m, &format!("insert rule inet nat forward ip daddr {proxy} tcp dport 3128 accept"));
        nft(m, &format!("insert rule inet nat forward ip daddr {} drop", VPS4[0]));
        nft(m, "insert rule inet nat forward meta nfproto ipv6 drop");
        // The proxy alone knows the relay's name.
        let hosts = format!("/etc/netns/{}/hosts", m.host.namespace());
        std::fs::write(hosts, "127.0.0.1 localhost\n").unwrap();
        m.environment.push(("https_proxy", "http://203.0.113.3:3128"));
    }
    let [created, joined] = make(&internet, &a, &b);
    assert!(created < GOAL && joined < GOAL, "created in {created:?}, joined in {joined:?}");
    let relay = relay_of(&b);
    assert!(
        relay["by"] == "tcp" && relay["address"].to_string().contains("by http://203.0.113.3:3128"),
        "{relay}"
    );
    b.host.must_reach(&a.overlay(), 5);
    let log = tinyproxy.output();
    assert!(log.contains("CONNECT relay.test:443"), "{log}");
    let mut measured = Measured::new("tcp-proxy");
    let what = "joined through an HTTP proxy alone";
    measured.line("8-tcp-proxy", what, joined.as_secs_f64(), "s", "< 3", joined < GOAL);
}
