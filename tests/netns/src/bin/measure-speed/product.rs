//! The product as a contender: the shipped daemons, started as a person would.

use shadowmesh_netns_tests::{Machine, Pair, make_home, make_relay, spawn_relay, wait_for_relay};

use crate::contender::Overlay;
use crate::net::Net;

/// Two daemons that know each other's address.
pub fn direct(net: &Net, suite: &str) -> Overlay {
    let ends = [&net.a, &net.b].map(|end| (&end.host, end.address));
    let pair = Pair::start(net.lab.directory(), ends, &suites(suite));
    let mut overlay = Overlay::to(&pair.to());
    for (role, daemon) in ["a", "b"].into_iter().zip(pair.daemons) {
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
        std::fs::create_dir_all(&directory).expect("a directory of its own");
        std::fs::write(directory.join("config.yaml"), suites(suite)).expect("a configuration");
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

/// The only suite that may be used.
fn suites(suite: &str) -> String {
    format!("crypto: {{suites: [{suite}]}}\n")
}
