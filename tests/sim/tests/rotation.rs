//! After a revocation the relay's access secret changes: the revoked member is out there, the others go on, who slept
//! finds back, and an admin killed in the middle does it again.

use shadowmesh_crypto::kem::SecretKey;
use shadowmesh_identity::fact::{Body, Reason};
use shadowmesh_identity::{Certificate, DAY, Fact, HostPort, Leaf, Location, NodeId, Roles, Seed};
use shadowmesh_sim::cast::{CAST, EPOCH, STAGE, relay_address};
use shadowmesh_sim::world::{Setup, Weather, World, address};
use std::time::Duration;

const MS: fn(u64) -> Duration = Duration::from_millis;
const SECONDS: fn(u64) -> Duration = Duration::from_secs;
const GONE: usize = 3;

fn world(seed: u64) -> World {
    let mut w = World::new(seed, Setup::plain(4, true), Weather { delay: MS(20), ..Weather::CALM });
    for (a, b) in (0..4).flat_map(|a| (0..4).map(move |b| (a, b))).filter(|(a, b)| a != b) {
        w.send(a, b, 100);
    }
    w.run(SECONDS(3));
    w
}

fn revoke(w: &mut World, who: usize) {
    let (now, node) = (w.now, w.nodes[who].id);
    w.nodes[0].endpoint.node.revoke(now, &node, Reason::LOST).expect("revoked");
    w.nodes[0].endpoint.settle(now);
    w.drain(0);
}

/// After how many revocations the access secret that a node knows was drawn.
fn ended(w: &World, n: usize) -> u32 {
    let relays = w.nodes[n].endpoint.node.roster().relays();
    relays.iter().find(|(relay, _)| *relay == STAGE.relay).map(|(_, a)| a.ended).expect("a relay")
}

fn way(w: &mut World, n: usize, there: bool) {
    for way in [(address(n), relay_address()), (relay_address(), address(n))] {
        if there {
            w.cut.remove(&way);
        } else {
            w.cut.insert(way);
        }
    }
}

/// Nothing is lost between those who stay, while their links are made anew; a minute later the revoked one has none.
/// [P-ROTATE] [P-FORMER]
#[test]
fn the_others_go_on() {
    for seed in 0..5 {
        let mut w = world(seed);
        w.deaf.insert(address(GONE));
        revoke(&mut w, GONE);
        let stay = [(0, 1), (1, 2), (2, 0), (1, 0), (2, 1), (0, 2)];
        for i in 0..1500 {
            let (a, b) = stay[i % stay.len()];
            w.send(a, b, 200);
            w.run(MS(4));
        }
        assert_eq!((ended(&w, 0), ended(&w, 1), ended(&w, 2)), (1, 1, 1), "{:?}", w.events);
        w.run(SECONDS(1));
        assert_eq!(w.judge.missing(), [], "seed {seed}: {}", w.drops());
        assert_eq!(w.nodes[0].endpoint.node.rotations().count(), 0);
        assert_eq!(ended(&w, GONE), 0, "the revoked one heard the new secret");
        w.run(SECONDS(70));
        assert_eq!(w.relay_clients().0, 3);
    }
}

/// Who slept finds back by the former secret, is told the new one, and has a proper link. [P-FORMER]
#[test]
fn who_slept_finds_back() {
    for away in [SECONDS(20), SECONDS(120), SECONDS(1200)] {
        let mut w = world(7);
        way(&mut w, 2, false);
        w.run(SECONDS(1));
        revoke(&mut w, GONE);
        w.run(away);
        assert_eq!((ended(&w, 1), ended(&w, 2)), (1, 0));
        way(&mut w, 2, true);
        let began = w.now;
        while ended(&w, 2) == 0 {
            assert!(w.now.since(began) < SECONDS(20), "away for {away:?}: {} {:?}", w.drops(), w.events);
            w.run(MS(10));
        }
        println!("away for {away:?}: told {:?} after", w.now.since(began));
        w.run(SECONDS(2));
        let (a, b) = (w.send(2, 1, 100), w.send(1, 2, 100));
        w.run(SECONDS(1));
        assert!(w.judge.arrived(a) && w.judge.arrived(b), "{}", w.drops());
        w.run(SECONDS(70));
        assert_eq!(w.relay_clients().0, 3);
    }
}

/// Sixty more members that one node knows of; they are away.
fn others(w: &mut World, n: usize) {
    let (network, unix) = (CAST.genesis.id(), EPOCH);
    for i in 0..60u8 {
        let seed = Seed::new(shadowmesh_crypto::Secret::new([i + 100; 32]));
        let identity = seed.identity_key(&network, 0).expect("identity");
        let (id, admin) = (NodeId::of(identity.public()), &CAST.members[0].identity);
        let certificate = Certificate {
            key: identity.public().clone(),
            name: format!("other{i}").parse().expect("name"),
            roles: Roles::MEMBER,
            tags: vec![],
            ipv4: None,
            not_before: unix - DAY,
            not_after: unix + DAY,
            serial: [i; 16],
            bridge: Default::default(),
        };
        let place = relay_address().to_string().parse::<HostPort>().expect("a place");
        let leaf = Leaf {
            key: Box::new(SecretKey::generate().expect("a key").public().clone()),
            not_before: unix - DAY,
            not_after: unix + DAY,
            suites: 3,
            locations: vec![Location { relay: STAGE.relay, address: place, handle: u64::from(i) + 1 }],
        };
        for (signer, body) in [(&**admin, Body::Certificate(certificate)), (&identity, Body::Leaf(leaf))] {
            let fact = Fact::sign(signer, network, id, 100 + u64::from(i), unix - DAY, &body);
            w.nodes[n].endpoint.node.add_fact(w.now, fact.expect("a fact"));
            w.nodes[n].endpoint.settle(w.now);
        }
    }
}

/// Its guests send to one and to all, it is sent much, and the network is bad: none of that drowns what it asks for.
/// What they send then arrives as soon as the link is a proper one. [P-FORMER]
#[test]
fn who_slept_finds_back_under_load() {
    for seed in 0..10 {
        let mut w = world(seed);
        way(&mut w, 2, false);
        w.run(SECONDS(1));
        revoke(&mut w, GONE);
        w.run(SECONDS(120));
        assert_eq!((ended(&w, 1), ended(&w, 2)), (1, 0));
        others(&mut w, 2);
        w.weather = Weather { delay: MS(20), jitter: MS(10), loss: 100, ..Weather::CALM };
        way(&mut w, 2, true);
        let began = w.now;
        let (mut i, mut shown) = (0, false);
        while ended(&w, 2) == 0 {
            assert!(w.now.since(began) < SECONDS(10), "seed {seed}: {} {:?}", w.drops(), w.events);
            // 5 MB a second from it, and as much to it.
            w.send(2, [0, 1, GONE][i % 3], 1200);
            w.send([0, 1][i % 2], 2, 1200);
            if i % 40 == 0 {
                w.send_all(2, w.nodes[2].id.mac(), 1200);
            }
            w.run(Duration::from_micros(250));
            i += 1;
            shown |= w.nodes[2].endpoint.node.relay_status()[0].former;
        }
        println!("seed {seed}: told {:?} after", w.now.since(began));
        w.weather = Weather { delay: MS(20), ..Weather::CALM };
        let told = w.now;
        while !{
            let last = w.send(2, 1, 100);
            w.run(MS(100));
            w.judge.arrived(last)
        } {
            assert!(w.now.since(told) < SECONDS(5), "seed {seed}: {}", w.drops());
        }
        assert!(shown && !w.nodes[2].endpoint.node.relay_status()[0].former);
    }
}

/// Killed before the relay was asked, or after it has answered and before anybody was told: it does it again. [P-ROTATE]
#[test]
fn an_admin_killed_in_the_middle() {
    for answered in [false, true] {
        let mut w = world(8);
        if answered {
            w.rotations_unsaid = true;
        }
        revoke(&mut w, GONE);
        w.run(if answered { SECONDS(5) } else { MS(500) });
        assert_eq!((ended(&w, 0), ended(&w, 1)), (0, 0));
        w.rotations_unsaid = false;
        w.restart(0);
        w.run(SECONDS(5));
        for n in 0..3 {
            assert_eq!(ended(&w, n), 1, "answered {answered}, node {n}: {:?}", w.events);
        }
        let numbers = [w.send(0, 1, 100), w.send(1, 2, 100), w.send(2, 0, 100)];
        w.run(SECONDS(2));
        for n in numbers {
            assert!(w.judge.arrived(n), "answered {answered}: {} {:?}", w.drops(), w.events);
        }
        w.run(SECONDS(70));
        assert_eq!(w.relay_clients().0, 3);
    }
}

/// A relay that is away meanwhile is asked until it answers; several revocations are several secrets. [P-ROTATE]
#[test]
fn a_relay_that_was_away_is_asked_again() {
    let mut w = world(9);
    w.kill_relay();
    revoke(&mut w, GONE);
    w.run(SECONDS(40));
    assert_eq!(w.nodes[0].endpoint.node.rotations().map(|(r, _)| r).collect::<Vec<NodeId>>(), [STAGE.relay]);
    w.start_relay();
    w.run(SECONDS(60));
    assert_eq!((ended(&w, 0), ended(&w, 1), ended(&w, 2)), (1, 1, 1));
    revoke(&mut w, 2);
    w.run(SECONDS(10));
    assert_eq!((ended(&w, 0), ended(&w, 1), ended(&w, 2)), (2, 2, 1));
    let n = w.send(0, 1, 100);
    w.run(SECONDS(1));
    assert!(w.judge.arrived(n), "{}", w.drops());
}

/// A member that has not heard of the revocation does not hand the new secret to the revoked one. [P-ROTATE]
#[test]
fn the_secret_waits_for_the_tombstone() {
    let mut w = World::new(10, Setup::plain(4, false), Weather { delay: MS(20), ..Weather::CALM });
    for n in 0..4 {
        let now = w.now;
        w.nodes[n].endpoint.node.add_fact(now, STAGE.access.clone());
        w.nodes[n].endpoint.settle(now);
    }
    w.run(SECONDS(5));
    // The admin is away.
    for n in 1..4 {
        w.cut.insert((address(0), address(n)));
    }
    // Node 2 has the secret, and not the tombstone that it followed.
    let now = w.now;
    let access = {
        let known = w.nodes[0].endpoint.node.roster().relays();
        let (_, known) = known.into_iter().find(|(r, _)| *r == STAGE.relay).expect("a relay");
        let body = shadowmesh_identity::fact::Body::Access(shadowmesh_identity::Access {
            address: known.address.clone(),
            tag: known.tag,
            secret: shadowmesh_crypto::Secret::new([5; 32]),
            ended: 1,
        });
        let admin = &shadowmesh_sim::cast::CAST.members[0].identity;
        let network = shadowmesh_sim::cast::CAST.genesis.id();
        shadowmesh_identity::Fact::sign(admin, network, STAGE.relay, 50, shadowmesh_sim::cast::EPOCH, &body)
    };
    w.nodes[2].endpoint.node.add_fact(now, access.expect("signed"));
    w.nodes[2].endpoint.settle(now);
    w.drain(2);
    w.run(SECONDS(30));
    assert_eq!((ended(&w, 2), ended(&w, 1), ended(&w, GONE)), (1, 0, 0));
    let tombstone = shadowmesh_sim::cast::CAST.tombstone(GONE, 49);
    let now = w.now;
    w.nodes[2].endpoint.node.add_fact(now, tombstone);
    w.nodes[2].endpoint.settle(now);
    w.drain(2);
    w.run(SECONDS(30));
    assert_eq!((ended(&w, 2), ended(&w, 1), ended(&w, GONE)), (1, 1, 0));
}
