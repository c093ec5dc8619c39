//! Members that name a victim's address as their own: what reaches it from honest members stays within the bound that the
//! protocol states. HOSTILE=n for another number of them.
#![allow(clippy::unwrap_used, reason = "a test; clippy exempts only functions marked as such")]

use shadowmesh_host::clock::Clock;
use shadowmesh_netns_tests::{Lab, Machine, make_home, make_relay, spawn_relay, wait_for_relay, wait_until};
use std::time::Duration;

const VICTIM: &str = "203.0.113.9";
const HONEST: usize = 2;
/// An honest member sends a victim no more within it: five packets, and one after 2, 4, 8 and 16 s. [P-BUDGET]
const WATCHED: Duration = Duration::from_secs(40);
const BOUND: u64 = 9;

#[test]
fn a_victim_that_members_name() {
    let hostile = std::env::var("HOSTILE").ok().and_then(|n| n.parse().ok()).unwrap_or(6);
    let mut lab = Lab::new("a victim");
    // All namespaces share Linux's table of neighbours, 1,024 of them unless told otherwise; every member has all others.
    if (HONEST + hostile).pow(2) > 500 {
        for family in ["ipv4", "ipv6"] {
            for (limit, neighbours) in [("gc_thresh3", "65536"), ("gc_thresh2", "32768")] {
                std::fs::write(format!("/proc/sys/net/{family}/neigh/default/{limit}"), neighbours).unwrap();
            }
        }
    }
    let (relay, victim) = (lab.host("vps"), lab.host("victim"));
    let hosts: Vec<_> = (0..HONEST + hostile).map(|n| lab.host(&format!("m{n}"))).collect();
    let addresses: Vec<String> =
        (0..hosts.len()).map(|n| format!("203.0.{}.{}/16", 114 + n / 200, n % 200 + 10)).collect();
    let places: Vec<[&str; 1]> = addresses.iter().map(|a| [a.as_str()]).collect();
    let own = format!("{VICTIM}/16");
    let own = [own.as_str()];
    let mut members: Vec<(_, &[&str])> = vec![(&relay, &["203.0.113.2/16"]), (&victim, &own)];
    members.extend(hosts.iter().zip(&places).map(|(h, a)| (h, &a[..])));
    lab.lan("switch", &members);
    for (n, host) in hosts.iter().enumerate() {
        // They reach the relay and the victim, not each other: so they go on looking for a path.
        host.nft(
            "table inet apart {\n chain in {\n  type filter hook input priority 0;\n  \
             ip saddr 203.0.114.0/23 udp dport != 443 drop\n }\n}\n",
        );
        if n >= HONEST {
            // They do not answer ARP for it.
            host.sysctl("net/ipv4/conf/all/arp_ignore", "1");
            host.ip("link add lie type veth peer name nobody");
            host.ip(&format!("address add {VICTIM}/32 dev lie"));
            host.ip("link set lie up");
            host.ip("link set nobody up");
        }
    }
    // Sent by honest members alone: those who say that they are the victim reach themselves there.
    victim.nft("table inet count {\n chain in {\n  type filter hook input priority 0;\n  meta l4proto udp counter\n }\n}\n");
    let state = lab.directory().join("relay").display().to_string();
    let urls = make_relay(&relay, &state, "203.0.113.2");
    let _relay = spawn_relay(&relay, &state, &[]);
    wait_for_relay(&relay);
    let machines: Vec<Machine> =
        hosts.iter().map(|host| Machine::configured(&lab, host, "port_mapping: off\n")).collect();
    let clock = Clock::new();
    make_home(&machines, &urls[0], "home");
    // All have sessions with all that are honest, and keep them.
    let targets: Vec<String> = machines[..HONEST].iter().map(Machine::address).collect();
    std::thread::scope(|scope| {
        for machine in &machines[HONEST..] {
            let targets = &targets;
            scope.spawn(move || {
                for _ in 0..WATCHED.as_secs() / 2 {
                    for to in targets {
                        machine.host.try_run("ping", &["-n", "-c", "1", "-W", "1", to]);
                    }
                    std::thread::sleep(Duration::from_secs(1));
                }
            });
        }
    });
    let counted = || {
        let said = victim.run("nft", &["-j", "list", "chain", "inet", "count", "in"]);
        let value: serde_json::Value = serde_json::from_str(&said).unwrap();
        let rules = value["nftables"].as_array().unwrap().iter();
        rules
            .filter_map(|r| r["rule"]["expr"].as_array())
            .flatten()
            .find_map(|e| e["counter"]["packets"].as_u64())
            .unwrap()
    };
    let got = wait_until("a count", Duration::from_secs(1), || Some(counted()));
    // What a minute more brings is one packet from each: joining takes its time, too.
    let minutes = clock.now().as_secs() / 60 + 1;
    let most = HONEST as u64 * (BOUND + minutes);
    println!("{hostile} members named the victim; it got {got} packets in {minutes} minutes, at most {most}");
    assert!((1..=most).contains(&got), "{got} packets, at most {most}");
}
