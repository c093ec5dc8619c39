//! A partition hides a revocation; it ends, and within a second of the first packet that crosses again the revoked
//! member is cut, however long it lasted and whoever had given up on whom.

use shadowmesh_crypto::secret::Secret;
use shadowmesh_identity::fact::{Body, Reason};
use shadowmesh_identity::{Certificate, Fact, NodeId, Seed, Tombstone};
use shadowmesh_proto::Time;
use shadowmesh_sim::cast::{CAST, EPOCH, relay_address};
use shadowmesh_sim::world::{Setup, Weather, World, address};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

const MS: fn(u64) -> Duration = Duration::from_millis;
/// The member that is revoked, and the one that the news cannot reach.
const GONE: usize = 3;
const HIDDEN: usize = 2;

/// How long partitions last: sessions and relay links outlive the first ones, and end in the last ones.
const PARTITIONS: [u64; 9] = [300, 1_000, 2_500, 4_000, 7_000, 11_000, 17_000, 31_000, 64_000];

fn revoke(w: &mut World) {
    let (now, node) = (w.now, w.nodes[GONE].id);
    w.nodes[0].endpoint.node.revoke(now, &node, Reason::LOST).expect("revoked");
    w.nodes[0].endpoint.settle(now);
    w.drain(0);
}

fn knows(w: &World, n: usize) -> bool {
    w.nodes[n].endpoint.node.roster().member(&w.nodes[GONE].id).is_some_and(|m| m.revoked.is_some())
}

/// Both ways between the hidden one and these.
fn part(w: &mut World, from: &[SocketAddr]) {
    for a in from {
        w.cut.insert((*a, address(HIDDEN)));
        w.cut.insert((address(HIDDEN), *a));
    }
}

/// Heals, and gives the time from the first datagram that the hidden one gets from these until it knows.
fn heal(w: &mut World, from: &[SocketAddr], mut each: impl FnMut(&mut World)) -> Duration {
    w.cut.clear();
    w.first.clear();
    let healed = w.now;
    while !knows(w, HIDDEN) {
        assert!(
            w.now.since(healed) < Duration::from_secs(60),
            "never heard of: {} {:?}",
            w.drops(),
            w.events
        );
        each(w);
        w.run(MS(5));
    }
    let first = from.iter().filter_map(|a| w.first.get(&(*a, address(HIDDEN)))).min();
    w.now.since(*first.unwrap_or(&Time(u64::MAX)))
}

fn of_delay(delay: u64) -> Weather {
    Weather { delay: MS(delay), ..Weather::CALM }
}

/// By known addresses: the revoked one streams to the hidden one through all of it. [P-CUT] [P-PUSH]
#[test]
fn behind_a_partition_of_known_addresses() {
    let mut worst = Duration::ZERO;
    for (seed, lasts) in PARTITIONS.into_iter().enumerate() {
        for busy in [false, true] {
            let mut w = World::new(seed as u64, Setup::plain(4, false), of_delay(25));
            for n in 0..3 {
                w.send(GONE, n, 100);
                w.send(n, (n + 1) % 3, 100);
            }
            w.run(Duration::from_secs(if busy { 3 } else { 90 }));
            let away = [address(0), address(1)];
            part(&mut w, &away);
            // The revoked one is not to hear it either: it would end by itself.
            for a in away {
                w.cut.insert((a, address(GONE)));
            }
            w.run(MS(100));
            revoke(&mut w);
            let mut last = 0;
            let end = w.now + MS(lasts);
            while w.now < end {
                last = w.send(GONE, HIDDEN, 100);
                if busy {
                    w.send(HIDDEN, 0, 100);
                }
                w.run(MS(50));
            }
            w.run(MS(50));
            assert!(w.judge.arrived(last), "no partition hid the news: {}", w.drops());
            let took = heal(&mut w, &away, |w| {
                w.send(GONE, HIDDEN, 100);
            });
            println!("{lasts} ms, busy {busy}: {took:?}");
            assert!(took < Duration::from_secs(1), "a partition of {lasts} ms, busy {busy}: {took:?}");
            let after = w.send(GONE, HIDDEN, 100);
            w.run(Duration::from_secs(1));
            assert!(!w.judge.arrived(after), "a revoked member still talks");
            worst = worst.max(took);
        }
    }
    println!("the slowest: {worst:?}");
}

/// Away from the relay, and back; or it is the admin that was away. [P-PUSH]
#[test]
fn behind_a_relay_that_cannot_be_reached() {
    for admin_away in [false, true] {
        for (seed, lasts) in PARTITIONS.into_iter().enumerate() {
            for busy in [false, true] {
                let mut w = World::new(seed as u64, Setup::plain(4, true), of_delay(25));
                for n in 0..3 {
                    w.send(GONE, n, 100);
                    w.send(n, (n + 1) % 3, 100);
                }
                w.run(Duration::from_secs(if busy { 3 } else { 90 }));
                if admin_away {
                    for (a, b) in [(address(0), relay_address()), (relay_address(), address(0))] {
                        w.cut.insert((a, b));
                    }
                } else {
                    part(&mut w, &[relay_address()]);
                }
                w.run(MS(100));
                revoke(&mut w);
                let end = w.now + MS(lasts);
                while w.now < end {
                    if busy {
                        w.send(HIDDEN, 0, 100);
                        w.send(0, 1, 100);
                    }
                    w.run(MS(50));
                }
                assert!(!knows(&w, HIDDEN));
                let first = if admin_away { address(0) } else { address(HIDDEN) };
                w.cut.clear();
                w.first.clear();
                let healed = w.now;
                while !knows(&w, HIDDEN) {
                    let late = w.now.since(healed) > Duration::from_secs(60);
                    assert!(!late, "never heard of: {} {:?}", w.drops(), w.events);
                    w.run(MS(5));
                }
                let crossed = w.first.get(&(relay_address(), first)).copied().unwrap_or(w.now);
                let took = w.now.since(crossed);
                println!("{lasts} ms, busy {busy}, admin away {admin_away}: {took:?}");
                assert!(took < Duration::from_secs(1), "{lasts} ms, busy {busy}, {admin_away}: {took:?}");
            }
        }
    }
}

/// It hears of its end, with the proof, and from then on says nothing. [P-FAREWELL]
#[test]
fn the_revoked_hear_it() {
    for relayed in [false, true] {
        // In the session that is cut; or after sleeping through it.
        for asleep in [false, true] {
            let mut w = World::new(7, Setup::plain(4, relayed), of_delay(25));
            for n in 0..3 {
                w.send(GONE, n, 100);
            }
            w.run(Duration::from_secs(3));
            let ways = if relayed { vec![relay_address()] } else { (0..3).map(address).collect() };
            if asleep {
                for a in &ways {
                    w.cut.insert((*a, address(GONE)));
                    w.cut.insert((address(GONE), *a));
                }
                w.run(Duration::from_secs(40));
            }
            revoke(&mut w);
            w.run(Duration::from_secs(if asleep { 40 } else { 0 }));
            w.cut.clear();
            let began = w.now;
            while !w.events.iter().any(|(n, e)| *n == GONE && e.contains("SelfRevoked")) {
                let late = w.now.since(began) > Duration::from_secs(40);
                assert!(
                    !late,
                    "relayed {relayed}, asleep {asleep}: it never heard; {} {:?}",
                    w.drops(),
                    w.events
                );
                w.send(GONE, 0, 100);
                w.run(MS(50));
            }
            println!("relayed {relayed}, asleep {asleep}: it heard after {:?}", w.now.since(began));
            assert!(knows(&w, GONE), "without the tombstone");
            w.run(Duration::from_secs(1));
            let before = w.datagrams_of(address(GONE));
            w.send(GONE, 1, 100);
            w.run(Duration::from_secs(60));
            assert_eq!(w.datagrams_of(address(GONE)), before, "it goes on sending");
            // Killed and started again, it knows.
            w.restart(GONE);
            w.run(Duration::from_secs(10));
            assert_eq!(w.datagrams_of(address(GONE)), before, "it begins anew");
        }
    }
}

/// A peer's word alone is nothing: who is refused without a tombstone goes on. [P-FAREWELL]
#[test]
fn a_word_is_no_proof() {
    let mut w = World::new(8, Setup::plain(3, false), of_delay(5));
    w.send(2, 1, 100);
    w.run(Duration::from_secs(1));
    // Node 1 holds a tombstone of node 2 by a signer that is nobody: node 2 hears it, and does not care.
    let forged = {
        let body = shadowmesh_identity::fact::Body::Tombstone(shadowmesh_identity::Tombstone {
            reason: Reason::LOST,
            void_after: None,
        });
        let member = &CAST.members[1];
        shadowmesh_identity::Fact::sign(&member.identity, CAST.genesis.id(), w.nodes[2].id, 99, EPOCH, &body)
    };
    let now = w.now;
    w.nodes[2].endpoint.node.add_fact(now, forged.expect("a fact"));
    w.nodes[2].endpoint.settle(now);
    w.drain(2);
    w.run(Duration::from_secs(1));
    assert!(!w.events.iter().any(|(_, e)| e.contains("SelfRevoked")));
    let n = w.send(2, 1, 100);
    w.run(Duration::from_secs(1));
    assert!(w.judge.arrived(n), "{}", w.drops());
}

/// With a tenth lost on every link, a fifth by relay, members in reach hear of it within a second but for a few, and
/// those within two. [P-PUSH]
#[test]
fn losses_do_not_hide_it() {
    let mut times = vec![];
    for seed in 0..60 {
        let weather = Weather { loss: 100, jitter: MS(10), ..of_delay(20) };
        let mut w = World::new(seed, Setup::plain(4, seed % 2 == 0), Weather { loss: 0, ..weather });
        for n in 0..3 {
            w.send(GONE, n, 100);
            w.send(n, (n + 1) % 3, 100);
        }
        w.run(Duration::from_secs(4));
        w.weather = weather;
        w.deaf.insert(address(GONE));
        let began = w.now;
        revoke(&mut w);
        while !(1..3).all(|n| knows(&w, n)) {
            assert!(w.now.since(began) < Duration::from_secs(5), "seed {seed}: {}", w.drops());
            w.run(MS(5));
        }
        times.push(w.now.since(began));
    }
    times.sort();
    let (middle, worst) = (times[times.len() / 2], times[times.len() - 1]);
    println!("one in ten lost: {middle:?} in the middle, {worst:?} at worst of {}", times.len());
    let late = times.iter().filter(|t| **t > Duration::from_secs(1)).count();
    assert!(late <= 3 && worst < Duration::from_secs(2), "{times:?}");
}

/// An admin whose word is void takes those with it whom it let in, and they hear it by its tombstone. [P-FAREWELL]
#[test]
fn whose_admin_was_revoked_hears_it() {
    let mut w = World::new(11, Setup::plain(4, false), of_delay(5));
    for (a, b) in [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)] {
        w.send(a, b, 100);
    }
    w.run(Duration::from_secs(2));
    let body = shadowmesh_identity::fact::Body::Tombstone(shadowmesh_identity::Tombstone {
        reason: Reason::COMPROMISED,
        void_after: Some(1),
    });
    let admin = w.nodes[0].id;
    let fact = shadowmesh_identity::Fact::sign(&CAST.root, CAST.genesis.id(), admin, 90, EPOCH, &body);
    let now = w.now;
    w.nodes[1].endpoint.node.add_fact(now, fact.expect("signed"));
    w.nodes[1].endpoint.settle(now);
    w.drain(1);
    w.run(Duration::from_secs(2));
    for n in 0..4 {
        assert!(
            w.events.iter().any(|(of, e)| *of == n && e.contains("SelfRevoked")),
            "node {n}: {:?}",
            w.events
        );
        let roster = w.nodes[n].endpoint.node.roster();
        let tombstone = roster.ending(&w.nodes[n].id).expect("a tombstone");
        assert_eq!(
            (tombstone.subject(), roster.name_of(&tombstone.signer())),
            (admin, "the network's root".into())
        );
    }
}

/// Twenty revoked members come back at once: sixteen are told, the others when there is room again; members notice nothing.
/// [P-FAREWELL]
#[test]
fn sixteen_farewells_at_once() {
    let mut w = World::new(12, Setup::plain(2, false), of_delay(25));
    w.send(0, 1, 100);
    w.run(Duration::from_secs(1));
    let (network, admin) = (CAST.genesis.id(), &CAST.members[0]);
    for n in 0..20 {
        let seed = Seed::new(Secret::new([100 + n as u8; 32]));
        let identity = Arc::new(seed.identity_key(&network, 0).expect("an identity"));
        let id = NodeId::of(identity.public());
        let like = CAST.members[GONE].certificate.fact().certificate().expect("a certificate").clone();
        let certificate = Body::Certificate(Certificate {
            key: identity.public().clone(),
            name: format!("gone{n}").parse().expect("a name"),
            ipv4: None,
            serial: [100 + n as u8; 16],
            ..like
        });
        let tombstone = Body::Tombstone(Tombstone { reason: Reason::LOST, void_after: None });
        let sign = |seq, body| Fact::sign(&admin.identity, network, id, seq, EPOCH, body).expect("signed");
        let (certificate, tombstone) = (sign(100 + 2 * n, &certificate), sign(101 + 2 * n, &tombstone));
        // It knows nobody but the admin, and slept through its revocation.
        let known = [&admin.certificate, &certificate].map(|f| f.fact().bytes().to_vec());
        for fact in [certificate, tombstone] {
            let now = w.now;
            w.nodes[0].endpoint.node.add_fact(now, fact);
            w.nodes[0].endpoint.settle(now);
        }
        w.enter_joined(identity, known.to_vec());
    }
    let now = w.now;
    w.nodes[0].endpoint.settle(now);
    w.drain(0);
    let told = |w: &World| {
        (2..22).filter(|n| w.events.iter().any(|(of, e)| of == n && e.contains("SelfRevoked"))).count()
    };
    for n in 2..22 {
        w.send(n, 0, 100);
    }
    let mut between = vec![];
    for i in 0..70 {
        between.push(w.send(i % 2, (i + 1) % 2, 100));
        w.run(MS(100));
    }
    assert_eq!(told(&w), 16, "{}", w.drops());
    assert!(between.into_iter().all(|n| w.judge.arrived(n)), "{}", w.drops());
    w.run(Duration::from_secs(8));
    assert_eq!(told(&w), 20, "{}", w.drops());
}
