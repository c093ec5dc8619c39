//! `make bench`: the relay alone, of opaque datagrams. One client sends as fast as the relay takes it, another receives; both
//! are one thread of this program, which costs as little as it can, so that the relay has a core to itself.

use std::time::Duration;

use shadowmesh_identity::RelayUrl;
use shadowmesh_netns_tests::{Lab, Measured, cpu, make_relay, spawn_relay, wait_for_relay};
use shadowmesh_proto::handshake::Credential;
use shadowmesh_test_clients::{Clients, pseudonym};
use shadowmesh_wire::control::{Control, Status};
use shadowmesh_wire::relay::RELAY_HEADER;

const OWNER: [u8; 32] = [3; 32];
const ACCESS: [u8; 32] = [4; 32];
/// UDP payload on an Ethernet.
const DATAGRAM: usize = 1472;
/// Datagrams of one message: what an IP packet holds.
const BURST: usize = 44;
/// Of each round.
const TIME: Duration = Duration::from_secs(3);

fn main() {
    let rounds = std::env::var("BENCH_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(9);
    let mut measured = Measured::new("bench-relay");
    let mut lab = Lab::new("relay");
    let (vps, crowd) = (lab.host("vps"), lab.host("crowd"));
    lab.wire(&vps, &["203.0.113.2/24"], &crowd, &["203.0.113.1/24"]);
    vps.default_route("203.0.113.1");
    let state = lab.directory().join("relay").display().to_string();
    let url: RelayUrl = make_relay(&vps, &state, "203.0.113.2")[0].parse().expect("a relay's URL");
    let relay = spawn_relay(&vps, &state, &[]);
    wait_for_relay(&vps);
    let pid = relay.id();
    let mut found: Vec<[f64; 2]> = crowd.enter(|| {
        let mut clients = connected(&url);
        (1..=rounds)
            .map(|round| {
                let (bytes, spent, passed) = send(&mut clients, pid);
                let rates = [passed, spent].map(|t| bytes as f64 * 8.0 / t.as_secs_f64() / 1e9);
                println!("round {round}: {:.1} Gbit/s, {:.1} for a core", rates[0], rates[1]);
                rates
            })
            .collect()
    });
    found.sort_by(|a, b| a[1].total_cmp(&b[1]));
    let [rate, core] = found[found.len() / 2];
    let ends = format!("{:.1} to {:.1}", found[0][1], found[found.len() - 1][1]);
    measured.line(
        "5-relay",
        "the relay alone: opaque datagrams of 1472 B forwarded",
        rate,
        "Gbit/s",
        "",
        true,
    );
    let what = format!("and for a core of its own CPU time, median of {rounds} rounds, {ends}");
    measured.line("5-relay-core", &what, core, "Gbit/s", ">= 10", core >= 10.0);
}

/// A sender and a receiver of one network.
fn connected(url: &RelayUrl) -> Clients {
    let mut clients = Clients::new(url, &["203.0.113.2:443".parse().expect("an address")]);
    let token = *url.token.as_ref().expect("a token").expose();
    let local = || "203.0.113.1:0".parse().expect("an address");
    let creator = clients.add(Credential::Anonymous, local());
    clients.until("a session", |c| c[creator].link.rtt().is_some());
    clients.say(creator, &Control::Register { token, owner: OWNER, access: ACCESS });
    let done = Control::RegisterReply(Status::Ok);
    clients.until("the registration", |c| c[creator].controls.contains(&done));
    clients.say(creator, &Control::Bye);
    clients.all.clear();
    for _ in 0..2 {
        clients.add(pseudonym(&OWNER, &ACCESS), local());
    }
    clients.until("both", |c| c.iter().all(|c| c.link.rtt().is_some()));
    clients.join(1);
    clients
}

/// Bytes that crossed, the relay's CPU time, and the time that passed.
fn send(clients: &mut Clients, relay: u32) -> (u64, Duration, Duration) {
    let to = clients.all[1].grant.map_or(0, |g| g.handle);
    let payload = vec![0xa5; DATAGRAM - RELAY_HEADER];
    let _before = clients.drain(1);
    let (cpu_before, began) = (cpu(relay), clients.clock.now());
    let mut bytes = 0;
    while clients.clock.now() - began < TIME {
        for _ in 0..4 {
            clients.burst(0, to, &payload, BURST);
        }
        bytes += clients.drain(1);
    }
    (bytes, cpu(relay) - cpu_before, clients.clock.now() - began)
}
