//! A machine whose device is a port of a Linux bridge: hosts of its LAN are in the network, as far as its certificate lets
//! them.
#![allow(clippy::unwrap_used, reason = "a test; clippy exempts only functions marked as such")]

use std::time::Duration;

use shadowmesh_netns_tests::{Evening, Host, wait_until};

/// A bridge on a machine, with a host of the LAN on it.
fn with_printer(e: &mut Evening, machine: usize, address: &str) -> Host {
    let printer = e.lab.host("printer");
    let host = &e.machines[machine].host;
    host.ip("link add br0 type bridge");
    host.ip("link set br0 up");
    let wire = e.lab.wire(host, &[], &printer, &[address]);
    e.machines[machine].host.ip(&format!("link set {} master br0", wire.a));
    printer
}

fn configure(e: &Evening, machine: usize, bridge: &str) {
    let directory = &e.machines[machine].directory;
    std::fs::create_dir_all(directory).unwrap();
    let text = format!("networks:\n  home:\n    bridge: {bridge}\n");
    std::fs::write(directory.join("config.yaml"), text).unwrap();
}

#[test]
fn hosts_behind_a_machine_are_in_the_network() {
    let mut e = Evening::new("bridging", &["laptop", "pi", "desk"]);
    let printer = with_printer(&mut e, 1, "192.168.7.9/24");
    configure(&e, 1, "br0");
    let (laptop, pi, desk) = (&e.machines[0], &e.machines[1], &e.machines[2]);
    laptop.must(&["network", "create", "home", "--relay", &e.urls[0], "--device", "laptop"]);
    let (code, said) = laptop.say(&["invite", "pi", "--bridge", "vlan:9999"]);
    assert!(code == 2 && said.contains("vlan:9999"), "{code}: {said}");
    for (machine, more) in [(pi, &["--bridge", "any"][..]), (desk, &[])] {
        let name = machine.host.name();
        let url = laptop.must(&[&["invite", name], more].concat());
        machine.must(&["join", url.trim(), "--name", name]);
    }

    // The machine itself is reached as before, at the bridge.
    laptop.host.must_reach(&pi.address(), 10);
    pi.host.must_reach(&laptop.address(), 10);
    let at_bridge = pi.host.ip("address show dev br0");
    assert!(at_bridge.contains(&pi.address()) && at_bridge.contains(&pi.address6()), "{at_bridge}");
    assert!(!pi.host.ip("address show dev sm-home").contains(&pi.address()));
    assert_eq!(pi.json(&["status"])["networks"][0]["bridge"], "br0");

    // Hosts of the LAN are, too, with frames as large as theirs.
    laptop.host.ip("address add 192.168.7.1/24 dev sm-home");
    desk.host.ip("address add 192.168.7.2/24 dev sm-home");
    for machine in [laptop, desk] {
        machine.host.must_reach("192.168.7.9", 10);
    }
    printer.must_reach("192.168.7.2", 10);
    let said = printer
        .run("ping", &["-n", "-c", "5", "-i", "0.05", "-W", "2", "-s", "1472", "-M", "do", "192.168.7.1"]);
    assert!(said.contains(" 0% packet loss"), "{said}");
    // And the network's members are there for them, by addresses that the roster answers for.
    printer.ip(&format!("route add {} dev {}", desk.address(), printer_interface(&printer)));
    desk.host.ip("route replace 192.168.7.0/24 dev sm-home");
    printer.must_reach(&desk.address(), 10);

    // A host that takes a member's address is not believed, and is counted where it came from.
    let interface = printer_interface(&printer);
    printer.ip(&format!("address add {}/128 dev {interface} nodad", desk.address6()));
    printer.ip(&format!("-6 route add {}/128 dev {interface}", laptop.address6()));
    let _unanswered = printer
        .try_run("ping", &["-6", "-n", "-c", "2", "-W", "1", "-I", &desk.address6(), &laptop.address6()]);
    wait_until("the drop to be counted", Duration::from_secs(5), || {
        let drops = &pi.json(&["status"])["networks"][0]["drops"];
        drops["source_address"].as_u64().filter(|n| *n > 0)
    });

    // The bridge stays, the network's addresses do not.
    let address = pi.address();
    pi.must(&["down"]);
    let at_bridge = pi.host.ip("address show dev br0");
    assert!(!at_bridge.contains(&address) && !at_bridge.contains("inet6 fd"), "{at_bridge}");
    pi.must(&["up"]);
    printer.must_reach("192.168.7.1", 10);
}

fn printer_interface(printer: &Host) -> String {
    let said = printer.run("ip", &["-o", "-4", "address", "show", "to", "192.168.7.9"]);
    said.split_whitespace().nth(1).unwrap().to_owned()
}

#[test]
fn a_bridge_that_may_not_or_is_not() {
    let mut e = Evening::new("no bridging", &["laptop", "pi"]);
    let _printer = with_printer(&mut e, 1, "192.168.7.9/24");
    e.network("home");
    let (laptop, pi) = (&e.machines[0], &e.machines[1]);
    pi.must(&["down"]);
    configure(&e, 1, "br0");
    let (code, said) = pi.say(&["up"]);
    assert!(
        code != 0 && said.contains("may not bridge in \"home\"") && said.contains("--bridge any"),
        "{code}: {said}"
    );
    assert!(!pi.host.ip("link").contains("sm-home"));

    laptop.must(&["revoke", "pi", "--yes"]);
    pi.must(&["leave", "--network", "home", "--yes"]);
    pi.must(&["down"]);
    configure(&e, 1, "br9");
    let url = laptop.must(&["invite", "pi", "--bridge", "any"]);
    pi.must(&["join", url.trim(), "--name", "pi"]);
    let problems = pi.json(&["status"])["networks"][0]["problems"].to_string();
    assert!(problems.contains("no interface named `br9`"), "{problems}");
    // It is there as soon as the bridge is.
    pi.host.ip("link add br9 type bridge");
    pi.host.ip("link set br9 up");
    wait_until("the device to join", Duration::from_secs(30), || {
        pi.host.ip("link show dev sm-home").contains("master br9").then_some(())
    });
    laptop.host.must_reach(&pi.address(), 10);
}
