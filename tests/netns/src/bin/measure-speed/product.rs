//! The product as a contender: the shipped daemons, started as a person would.

use std::path::Path;
use std::time::Duration;

use shadowmesh_netns_tests::{
    Lab, Machine, make_home, make_network, make_relay, spawn_relay, wait_for_relay,
};

use crate::contender::Overlay;
use crate::net::Net;

const READY: Duration = Duration::from_secs(10);

/// Two daemons that know each other's address.
pub fn direct(net: &Net, suite: &str) -> Overlay {
    let members = make_network(net.lab.directory(), &["a", "b"]);
    let mut overlay = Overlay::to(&members[1].ipv4.to_string());
    for (role, end, member) in [("a", &net.a, &members[0]), ("b", &net.b, &members[1])] {
        let other = if role == "a" { "b" } else { "a" };
        let text = format!(
            "listen: [\"udp://0.0.0.0:4000\"]\nnetworks:\n  home:\n    peers: {{{other}: {{endpoints: \
             [\"udp://{}:4000\"]}}}}\n",
            end.other
        );
        configure(&member.directory, &text, suite);
        let directory = member.directory.display().to_string();
        let environment = [("SHADOWMESH_DIR", directory.as_str()), ("SHADOWMESH_ALLOW_ROOT", "1")];
        let daemon = end.host.spawn("daemon", Lab::binary("shadowmesh"), &["daemon"], &environment);
        daemon.wait_for("ready", READY);
        overlay.add(role, daemon);
    }
    overlay
}

/// Two daemons that can reach a relay on the router, and nothing else.
pub fn relayed(net: &Net, suite: &str) -> Overlay {
    net.r.sysctl("net/ipv4/ip_forward", "0");
    let state = net.lab.directory().join("relay").display().to_string();
    let urls = make_relay(&net.r, &state, net.a.router);
    // On one address: it answers from that to both sides.
    let listen = ["--listen".to_owned(), format!("udp://{}:443", net.a.router)];
    let relay = spawn_relay(&net.r, &state, &listen);
    wait_for_relay(&net.r);
    let machines = [&net.a, &net.b].map(|end| {
        let directory = net.lab.directory().join(end.host.name());
        configure(&directory, "", suite);
        Machine { host: end.host.clone(), directory, environment: vec![] }
    });
    make_home(&machines, &urls[0], "home");
    let mut overlay = Overlay::to(&machines[1].address());
    overlay.add("relay", relay);
    // Their daemons were started by the commands.
    for (role, machine) in ["a", "b"].into_iter().zip(&machines) {
        overlay.daemons.extend(machine.processes().into_iter().map(|pid| (role, pid)));
    }
    overlay
}

fn configure(directory: &Path, text: &str, suite: &str) {
    std::fs::create_dir_all(directory).expect("a directory of its own");
    let text = format!("{text}crypto: {{suites: [{suite}]}}\n");
    std::fs::write(directory.join("config.yaml"), text).expect("a configuration");
}
