//! A relay for the tests of the client: the relay's core on one socket, its state in memory.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test tool")]

use shadowmesh_crypto::Secret;
use shadowmesh_host::clock::Clock;
use shadowmesh_host::udp::{RecvBatch, Udp};
use shadowmesh_host::wake::{Interest, Poller};
use shadowmesh_identity::{RelayUrl, Seed};
use shadowmesh_proto::{Rng, Time};
use shadowmesh_relay_core::{Config, Durable, Relay};
use std::time::Duration;

fn main() {
    let listen = std::env::args().nth(1).expect("an address to listen on");
    let udp = Udp::bind(&[listen.parse().expect("ADDRESS:PORT")]).expect("a socket");
    let identity = Seed::random().relay_identity().expect("an identity");
    let mut rng = Rng::from_seed(*Secret::<32>::random().expose());
    let durable = Durable::new(&mut rng);
    let clock = Clock::new();
    let now = || Time(clock.now().as_nanos() as u64);
    let mut relay =
        Relay::new(Config::default(), identity, durable, now(), clock.unix(), rng).expect("a relay");
    for _ in 0..4 {
        let url = RelayUrl {
            address: listen.parse().expect("a place"),
            relay: relay.id(),
            token: Some(relay.mint()),
        };
        println!("{}", url.with_token());
    }
    println!("ready");
    let (mut poller, mut batch) = (Poller::new(), RecvBatch::new(64, 2048));
    loop {
        let fds: Vec<_> = udp.fds().map(|fd| (fd, Interest::Read)).collect();
        let wait = relay.poll_timeout().map_or(Duration::from_secs(1), |at| at.since(now()));
        poller.wait(&fds, Some(wait)).expect("waiting");
        if udp.recv_batch(&mut batch).expect("receiving") > 0 {
            for (from, datagram) in batch.iter() {
                relay.handle_datagram(now(), from, datagram);
            }
        }
        if relay.poll_timeout().is_some_and(|at| at <= now()) {
            relay.handle_timeout(now());
        }
        while relay.poll_event().is_some() {}
        while let Some((to, datagram)) = relay.poll_transmit() {
            let _lost = udp.send_to(to, &datagram);
        }
    }
}
