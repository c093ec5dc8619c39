//! Two relays kept warm: when the one that carries is killed, the other does, and nothing else is lost. And a relay with two
//! addresses, which answers from the one that it was asked at.
#![allow(clippy::unwrap_used, reason = "a test; clippy exempts only functions marked as such")]

use shadowmesh_netns_tests::{
    Flow, Host, Lab, Machine, Process, make_home, make_relay, spawn_relay, wait_for_relay, wait_until,
};
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const SECONDS: fn(u64) -> Duration = Duration::from_secs;

#[test]
fn the_other_relay_takes_over() {
    let mut lab = Lab::new("two relays");
    let hosts: Vec<_> = ["a", "b", "r1", "r2"].iter().map(|name| lab.host(name)).collect();
    let addresses: Vec<String> = (1..=4).map(|n| format!("203.0.113.{n}/24")).collect();
    let places: Vec<[&str; 1]> = addresses.iter().map(|a| [a.as_str()]).collect();
    let members: Vec<_> = hosts.iter().zip(&places).map(|(h, a)| (h, &a[..])).collect();
    lab.lan("switch", &members);
    let mut urls = vec![];
    let mut relays = vec![];
    for (n, host) in hosts[2..].iter().enumerate() {
        let state = lab.directory().join(host.name()).display().to_string();
        urls.extend(make_relay(host, &state, &format!("203.0.113.{}", n + 3)).into_iter().next());
        relays.push(spawn_relay(host, &state, &[]));
        wait_for_relay(host);
    }
    // What is shown here are the relays.
    let machine = |n: usize| Machine::configured(&lab, &hosts[n], "direct: false\n");
    let (a, b) = (machine(0), machine(1));
    a.must(&["network", "create", "home", "--relay", &urls[0], "--relay", &urls[1], "--device", "a"]);
    let both_up = |m: &Machine| {
        let relays = m.json(&["status"])["networks"][0]["relays"].clone();
        relays.as_array().is_some_and(|r| r.len() == 2 && r.iter().all(|r| r["up"] == true)).then_some(())
    };
    wait_until("both relays", SECONDS(10), || both_up(&a));
    let url = a.must(&["invite", "b"]).trim().to_owned();
    let (code, said) = b.say(&["join", &url, "--name", "b"]);
    assert_eq!(code, 0, "{said}\n{}\n{}", a.log(), b.log());
    wait_until("both relays", SECONDS(10), || both_up(&b));
    b.host.must_reach(&a.address(), 10);
    let via = || a.path_to(&b).filter(|p| p.path == "relay").map(|p| p.via);
    let before = wait_until("a path by relay", SECONDS(5), via);
    let flow = Flow::start(&a.host, &b.host, &b.overlay(), 500.0);
    std::thread::sleep(SECONDS(3));
    let killed = flow.now();
    relays[usize::from(before.contains("203.0.113.4"))].kill();
    wait_until("the other relay", SECONDS(15), || via().filter(|v| *v != before));
    std::thread::sleep(SECONDS(2));
    let end = flow.now();
    let flown = flow.stop();
    let gap = flown.gap(killed, end);
    println!("nothing came for {gap:?}; before it {:?}", flown.counts(Duration::ZERO, killed - SECONDS(1)));
    assert!(gap < SECONDS(6), "{gap:?}");
    assert_eq!(flown.counts(Duration::ZERO, killed - SECONDS(1)).lost, 0);
    let after = flown.counts(end - SECONDS(1), end - SECONDS(1) / 2);
    assert!(after.sent > 100 && after.lost == 0, "{after:?}");
}

/// A relay that listens on all addresses of its host, and is known by one that the routing table would not answer from;
/// the client's firewall, as any, lets in only who was asked.
struct TwoAddresses {
    _lab: Lab,
    _relay: Process,
    machines: Vec<Machine>,
    stranger: Host,
}

fn a_relay_with_two_addresses(
    relay: [&str; 2],
    public: &str,
    others: [&str; 3],
    listen: &[&str],
) -> TwoAddresses {
    let mut lab = Lab::new("a relay with two addresses");
    let hosts: Vec<_> = ["a", "b", "vps", "stranger"].iter().map(|name| lab.host(name)).collect();
    let places = [&others[..1], &others[1..2], &relay[..], &others[2..]];
    lab.lan("switch", &hosts.iter().zip(places).collect::<Vec<_>>());
    for host in &hosts[..2] {
        host.nft(concat!(
            "table inet f {\nchain i { type filter hook input priority 0; policy accept;\n",
            "meta l4proto udp ct state new,invalid iifname != \"lo\" iifname != \"sm-*\" drop\n}\n}\n"
        ));
    }
    let state = lab.directory().join("relay").display().to_string();
    let urls = make_relay(&hosts[2], &state, public);
    let mut more: Vec<String> = ["--tcp", "off"].map(str::to_owned).into();
    more.extend(listen.iter().flat_map(|l| ["--listen".to_owned(), (*l).to_owned()]));
    let relay = spawn_relay(&hosts[2], &state, &more);
    wait_for_relay(&hosts[2]);
    let machines: Vec<_> =
        hosts[..2].iter().map(|host| Machine::configured(&lab, host, "direct: false\n")).collect();
    make_home(&machines, &urls[0], "home");
    machines[0].host.must_reach(&machines[1].address(), 10);
    let status = machines[0].json(&["status"]);
    assert_eq!(status["networks"][0]["relays"][0]["by"], "udp", "{status}");
    TwoAddresses { _lab: lab, _relay: relay, machines, stranger: hosts[3].clone() }
}

/// Of the relay, which Linux sends from the first of; of the two clients and a stranger.
const V4: ([&str; 2], [&str; 3]) =
    (["203.0.113.3/24", "203.0.113.7/24"], ["203.0.113.1/24", "203.0.113.2/24", "203.0.113.9/24"]);

#[test]
fn a_relay_answers_from_the_address_it_was_asked_at() {
    a_relay_with_two_addresses(V4.0, "203.0.113.7", V4.1, &[]);
}

/// A stranger writes to the other address in a client's name, far more often than the client does to its own.
#[test]
fn no_stranger_moves_a_client_to_another_address_of_the_relay() {
    let t = a_relay_with_two_addresses(V4.0, "203.0.113.7", V4.1, &[]);
    let listen = t.machines[0].json(&["status"])["networks"][0]["listen"][0].as_str().unwrap().to_owned();
    let port = listen.rsplit(':').next().unwrap();
    t.stranger.nft(&format!(
        "table ip n {{\nchain p {{ type nat hook postrouting priority 100; udp dport 443 snat to 203.0.113.1:{port}\n}}\n}}\n"
    ));
    let (socket, over) =
        (t.stranger.enter(|| UdpSocket::bind("203.0.113.9:0").unwrap()), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let spoofing = scope.spawn(|| {
            let mut sent = 0;
            while !over.load(Ordering::Relaxed) {
                for first in [0xc1, 0x01] {
                    sent += usize::from(socket.send_to(&[first; 200], "203.0.113.3:443").is_ok());
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            sent
        });
        std::thread::sleep(SECONDS(1) / 4);
        let to = t.machines[1].address();
        let said = t.machines[0].host.run("ping", &["-n", "-c", "20", "-i", "0.05", "-W", "1", &to]);
        over.store(true, Ordering::Relaxed);
        assert!(said.contains(" 0% packet loss"), "{said}");
        assert!(spoofing.join().unwrap() > 1000);
    });
}

#[test]
fn a_relay_answers_from_the_ipv6_address_it_was_asked_at() {
    // Of these, Linux sends from the last.
    let relay = ["2001:db8::3/64", "2001:db8::7/64"];
    let others = ["2001:db8::1/64", "2001:db8::2/64", "2001:db8::9/64"];
    a_relay_with_two_addresses(relay, "[2001:db8::3]", others, &[]);
}

#[test]
fn a_relay_answers_by_the_socket_it_was_asked_at() {
    let listen = ["udp://203.0.113.3:443", "udp://203.0.113.7:443"];
    a_relay_with_two_addresses(V4.0, "203.0.113.7", V4.1, &listen);
}
