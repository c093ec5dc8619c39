//! `netcheck` behind each kind of router: what it says of mapping and filtering is what the router does, as far as a relay
//! can tell, with its one address; and all of it with a STUN server that has two (coturn).
#![allow(clippy::unwrap_used, reason = "a test; clippy exempts only functions marked as such")]

use serde_json::Value;
use shadowmesh_netns_tests::{Internet, Machine, NatKind, Process, RELAY, VPS4, wait_until};
use std::net::UdpSocket;
use std::time::Duration;

const SECONDS: Duration = Duration::from_secs(1);

/// What is said of the family that the machine has.
fn family(said: &Value, kind: NatKind) -> Value {
    said[if kind == NatKind::V6Only { "ipv6" } else { "ipv4" }].clone()
}

fn write(machine: &Machine, configuration: &str) {
    std::fs::create_dir_all(&machine.directory).unwrap();
    std::fs::write(machine.directory.join("config.yaml"), configuration).unwrap();
}

#[test]
fn the_relay_alone_tells_mapping_and_half_of_filtering() {
    let mut internet = Internet::new("netcheck by the relay");
    let url = internet.urls[0].clone();
    for kind in NatKind::ALL {
        let machine = internet.machine(kind.name(), kind);
        let clock = shadowmesh_host::clock::Clock::new();
        let said = machine.json(&["netcheck", "--relay", &url]);
        assert!(clock.now() < 5 * SECONDS, "{kind}: {:?}", clock.now());
        assert_eq!(said["schema"], "shadowmesh/netcheck/1");
        let blocked = kind == NatKind::UdpBlocked;
        assert_eq!(said["udp"], !blocked, "{kind}");
        assert_eq!(said["servers"][0]["place"], format!("{RELAY}:443"));
        assert_eq!(
            (&said["servers"][0]["stun"], &said["servers"][0]["second_port"]),
            (&(!blocked).into(), &(!blocked).into())
        );
        assert_eq!(said["forged"], 0, "{kind}");
        assert_eq!(said["servers"][0]["tcp"], true, "{kind}: {said}");
        let advice = said["advice"].as_str().unwrap();
        let found = family(&said, kind);
        assert_eq!(found["mapping"].as_str(), kind.mapping(), "{kind}");
        let filtering = match kind.filtering() {
            Some("endpoint-independent" | "address-dependent") => Some("not-port-dependent"),
            other => other,
        };
        assert_eq!(found["filtering"].as_str(), filtering, "{kind}");
        if blocked {
            assert!(advice.starts_with("No UDP") && advice.contains("carry all by TCP"), "{advice}");
            continue;
        }
        let public = internet.public(&machine).to_owned();
        let nat = !matches!(kind, NatKind::Open | NatKind::Firewall | NatKind::V6Only);
        assert_eq!(
            (found["address"].as_str(), found["nat"].as_bool()),
            (Some(&public[..]), Some(nat)),
            "{kind}"
        );
        assert_eq!(found["port_preserved"], kind != NatKind::Symmetric, "{kind}");
        assert_eq!(advice.contains("symmetric mapping"), kind == NatKind::Symmetric, "{kind}: {advice}");
        // Routers of this lab turn nothing back.
        assert_eq!(found["hairpin"].as_bool(), nat.then_some(false), "{kind}");
        // And for people.
        if matches!(kind, NatKind::PortRestricted | NatKind::Symmetric | NatKind::Open) {
            let text = machine.must(&["netcheck", "--relay", &url]);
            assert!(
                text.starts_with("UDP       yes") && text.contains(&public) && text.contains("\n→ "),
                "{text}"
            );
        }
    }
}

/// A STUN server with two addresses and two ports.
fn coturn(internet: &Internet) -> Process {
    let directory = internet.lab.directory().join("coturn");
    std::fs::create_dir_all(&directory).unwrap();
    let (pid, database) = (directory.join("pid"), directory.join("db"));
    let arguments = [
        "-n",
        "--stun-only",
        "--no-tls",
        "--no-dtls",
        "--no-cli",
        "--log-file=stdout",
        "-L",
        VPS4[0],
        "-L",
        VPS4[1],
        "--listening-port=3478",
        "--alt-listening-port=3479",
        "--pidfile",
        pid.to_str().unwrap(),
        "--userdb",
        database.to_str().unwrap(),
    ];
    let server = internet.vps.spawn("coturn", "turnserver", &arguments, &[]);
    let probe = internet.vps.enter(|| UdpSocket::bind((VPS4[0], 0))).unwrap();
    probe.set_read_timeout(Some(SECONDS / 4)).unwrap();
    wait_until("coturn", 15 * SECONDS, || {
        let asked = shadowmesh_stun::request([1; 12], shadowmesh_stun::Change::default());
        probe.send_to(&asked, (VPS4[0], 3478)).ok()?;
        let mut buffer = [0; 600];
        let length = probe.recv(&mut buffer).ok()?;
        shadowmesh_stun::parse_response(&buffer[..length])?.other
    });
    server
}

#[test]
fn a_server_with_two_addresses_tells_all() {
    let mut internet = Internet::new("netcheck by coturn");
    let url = internet.urls[0].clone();
    let _coturn = coturn(&internet);
    for kind in NatKind::ALL.into_iter().filter(|k| *k != NatKind::V6Only) {
        let machine = internet.machine(kind.name(), kind);
        write(&machine, &format!("stun: [\"stun://{}:3478\"]\n", VPS4[0]));
        let found = family(&machine.json(&["netcheck", "--relay", &url]), kind);
        assert_eq!(found["mapping"].as_str(), kind.mapping(), "{kind}");
        assert_eq!(found["filtering"].as_str(), kind.filtering(), "{kind}");
        if kind.mapping().is_some() {
            assert_eq!(found["server_addresses"], 2, "{kind}");
        }
    }
}

#[test]
fn how_long_a_silent_mapping_is_kept() {
    let mut internet = Internet::new("netcheck of lifetimes");
    let url = internet.urls[0].clone();
    // The router's seconds, those that are tried, and what is found.
    let cases = [
        (NatKind::PortRestricted, Some(15), "30", (Some(10), Some(20)), "from 10 to 20 s: too short"),
        (NatKind::Symmetric, Some(60), "20", (Some(20), None), "over 20 s"),
        (NatKind::V6Only, Some(5), "10", (None, Some(10)), "under 10 s: too short"),
        (NatKind::Open, None, "10", (Some(10), None), "over 10 s"),
    ];
    let machines = cases.map(|(kind, seconds, ..)| {
        let machine = internet.machine(kind.name(), kind);
        seconds.into_iter().for_each(|s| internet.keep_flows(&machine, s));
        machine
    });
    std::thread::scope(|scope| {
        for ((kind, _, most, expected, words), machine) in cases.into_iter().zip(&machines) {
            let asked = ["netcheck".to_owned(), "--relay".into(), url.clone(), format!("--lifetime={most}")];
            let arguments = asked.clone();
            scope.spawn(move || {
                let arguments = arguments.each_ref().map(String::as_str);
                let said = family(&machine.json(&arguments), kind)["mapping_lifetime"].clone();
                let found = (said["at_least"].as_u64(), said["less_than"].as_u64());
                assert_eq!(found, expected, "{kind}: {said}");
            });
            scope.spawn(move || {
                let text = machine.must(&asked.each_ref().map(String::as_str));
                assert!(text.contains(&format!("\nMapping lifetime  {words}")), "{kind}: {text}");
            });
        }
    });
}

/// Returns when the daemon has told its node how the NAT maps.
fn told(machine: &Machine, mapping: &str) {
    wait_until("what the NAT does", 10 * SECONDS, || {
        machine.log().contains(&format!("mapping={mapping}")).then_some(())
    });
}

#[test]
fn the_daemon_finds_out_by_itself_and_answers() {
    let mut internet = Internet::new("netcheck of a daemon");
    let urls = internet.urls.clone();
    let machines = [(NatKind::Symmetric, "Dependent"), (NatKind::PortMapping, "Independent")];
    for ((kind, mapping), url) in machines.into_iter().zip(&urls) {
        let machine = internet.machine(kind.name(), kind);
        write(&machine, "log: {level: debug}\n");
        machine.must(&["network", "create", "town", "--relay", url]);
        told(&machine, mapping);
        let log = machine.log();
        let of = |what: &str| log.lines().find(|l| l.contains(what)).unwrap_or_default();
        println!("{}\n{}", of("relay is up"), of("NAT looked at"));
        let said = machine.json(&["netcheck"]);
        assert_eq!(said["ipv4"]["mapping"].as_str(), kind.mapping());
        let relay = &said["servers"][0];
        assert!(relay["udp"] == true && relay["rtt"].as_f64().is_some_and(|s| s < 0.1), "{relay}");
        assert_eq!(said["clock_ahead"].as_i64().map(|s| s.abs() <= 1), Some(true));
        if kind == NatKind::PortMapping {
            wait_until("the router's port", 15 * SECONDS, || {
                let said = machine.json(&["netcheck"]);
                let opened = said["port_map"].as_str()?.to_owned();
                assert!(opened.starts_with("PCP at 192.168.1.1, "), "{opened}");
                said["advice"].as_str().filter(|a| a.contains("because PCP opens a port")).map(|_| ())
            });
        }
        // Another network: it is looked at anew.
        internet.change_address(&machine);
        wait_until("a second look", 10 * SECONDS, || {
            let anew = |l: &str| {
                l.contains("a look at the NAT") && l.contains("changed=true") && l.contains(mapping)
            };
            machine.log().lines().any(anew).then_some(())
        });
        machine.must(&["down"]);
    }
}
