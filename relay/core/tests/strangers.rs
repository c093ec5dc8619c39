//! What strangers send: whatever it is, nothing panics, and what they can make a relay hold is bounded.

mod common;

use common::*;
use proptest::prelude::*;
use shadowmesh_relay_core::Config;
use shadowmesh_wire::DropReason;
use std::time::Duration;

/// Mangled pieces of true traffic, and noise with a likely first byte.
fn datagram() -> impl Strategy<Value = (u8, Vec<u8>, Vec<(u16, u8)>, u16)> {
    let first = prop_oneof![Just(0xc1u8), 0x40u8..0x4b, Just(0x80), any::<u8>()];
    (
        first,
        prop::collection::vec(any::<u8>(), 0..1300),
        prop::collection::vec((any::<u16>(), any::<u8>()), 0..4),
        any::<u16>(),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_bytes_are_survived(noise in prop::collection::vec(datagram(), 1..200)) {
        let mut t = Table::new(Config { open: true, ..Config::default() });
        let (_, p) = t.network(1, 2);
        let a = t.anonymous();
        t.run(Duration::from_secs(1));
        let to = t.handle(p[1]);
        let from = "203.0.113.4:44".parse().unwrap();
        for (i, (first, mut bytes, flips, pick)) in noise.into_iter().enumerate() {
            if let Some(b) = bytes.first_mut() {
                *b = first;
            }
            t.inject(from, &bytes);
            // True packets with a few bytes changed: behind a header, in a session, of a handshake.
            let mut real = match pick % 3 {
                0 => t.packet(p[0], to, &bytes),
                1 => t.packet(a, 0, &bytes),
                _ => {
                    let n = t.anonymous();
                    let now = t.now;
                    t.peers[n].deaf = true;
                    t.peers[n].link.handle_timeout(now, &mut t.rng);
                    t.peers[n].link.poll_transmit().unwrap().1
                }
            };
            for (at, value) in flips {
                let at = usize::from(at) % real.len();
                real[at] = value;
            }
            real.truncate(real.len() - usize::from(pick % 7 == 0));
            t.inject(if i % 2 == 0 { from } else { t.peers[p[0]].address }, &real);
            t.run(Duration::from_millis(u64::from(pick % 50)));
        }
        // The clients of before are there, and served.
        prop_assert_eq!(t.relay.clients().0, 2);
        let before = t.peers[p[1]].got.len();
        t.send(p[0], to, b"still here");
        prop_assert_eq!(t.peers[p[1]].got.len(), before + 1);
        prop_assert_eq!(t.relay.networks(), 1);
    }
}

/// Anonymous openings without end, from one address and from many: every bound holds, and a client of a network still
/// gets in.
#[test]
fn anonymous_floods_are_bounded() {
    let config = Config {
        max_anonymous: 40,
        max_anonymous_per_prefix: 5,
        max_pending: 60,
        max_clients: 100,
        handshake_rate: 1000.0,
        ..Config::default()
    };
    let mut t = Table::new(config);
    let network = Network::new(1);
    t.register(&network);
    for _ in 0..20 {
        let n = t.anonymous();
        t.peers[n].address.set_ip("203.0.113.1".parse().unwrap());
        t.peers[n].address.set_port(1000 + n as u16);
    }
    t.run(Duration::from_secs(3));
    assert_eq!(t.relay.clients().1, 5);
    for _ in 0..100 {
        t.anonymous();
    }
    t.run(Duration::from_secs(3));
    assert!(t.relay.clients().1 <= 40 && t.relay.pending() <= 60);
    assert!(t.drops(DropReason::OverLimit) > 0);
    let p = t.pseudonym(&network);
    t.run(Duration::from_secs(5));
    assert!(t.peers[p].link.is_up());
}

/// A network fills what is its own, and no more; who is in may come again.
#[test]
fn a_network_fills_its_own_share() {
    let mut t =
        Table::new(Config { max_clients_per_network: 5, handshake_rate: 1000.0, ..Config::default() });
    let (network, first) = t.network(1, 5);
    let more: Vec<usize> = (0..5).map(|_| t.pseudonym(&network)).collect();
    t.run(Duration::from_secs(5));
    assert_eq!(t.relay.clients(), (5, 0));
    assert!(more.iter().all(|p| !t.peers[*p].link.is_up()));
    let (_, other) = t.network(2, 2);
    assert!(other.iter().all(|p| t.peers[*p].link.is_up()));
    // A client that comes again while its old session stands takes its own place.
    for p in &more {
        t.peers[*p].deaf = true;
    }
    let key_holder = first[0];
    t.restart();
    t.run(Duration::from_secs(20));
    assert!(t.peers[key_holder].link.is_up());
    assert_eq!(t.relay.clients(), (7, 0));
}

/// One client's locators are bounded, and go with it.
#[test]
fn locators_are_bounded() {
    use shadowmesh_wire::control::Control;
    let bounds = Config { max_locators_per_client: 64, max_locators_per_network: 100, ..Config::default() };
    let mut t = Table::new(bounds);
    let (_, p) = t.network(1, 2);
    for c in &p {
        for n in 0..200u8 {
            let locator = [n ^ (*c as u8) << 7 ^ 0x55; 32];
            t.peers[*c].link.send_control(&Control::OpenLocator { locator, lifetime: u32::MAX });
            t.settle();
        }
    }
    assert_eq!(t.relay.open_locators(), 100);
    t.peers[p[0]].link.send_control(&Control::Bye);
    t.settle();
    t.peers[p[0]].deaf = true;
    assert_eq!(t.relay.open_locators(), 36);
    t.peers[p[1]].deaf = true;
    t.run(Duration::from_secs(100));
    assert_eq!((t.relay.open_locators(), t.relay.clients()), (0, (0, 0)));
}

/// A puzzle is asked for above the threshold, solved, and clients come in.
#[test]
fn a_puzzle_under_load() {
    let mut t = Table::new(Config { puzzle_above: 20, handshake_rate: 10_000.0, ..Config::default() });
    let (_, _) = t.network(1, 1);
    let many: Vec<usize> = (0..150).map(|_| t.anonymous()).collect();
    t.run(Duration::from_secs(1));
    let late = t.anonymous();
    t.run(Duration::from_millis(5));
    assert!(t.relay.puzzle() > 0);
    let again: Vec<usize> = (0..40).map(|_| t.anonymous()).collect();
    t.run(Duration::from_secs(4));
    for p in many.iter().chain(&again).chain([&late]) {
        assert!(t.peers[*p].link.is_up());
    }
}
