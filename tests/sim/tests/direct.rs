//! Sessions move from the relay to paths that need none, through every pair of NATs that lets them, without losing a
//! frame; they go back when such a path dies; and nobody is flooded whom a member names.

use shadowmesh_proto::{Route, Time};
use shadowmesh_sim::cast::{CAST, relay_address};
use shadowmesh_sim::nat::NatKind;
use shadowmesh_sim::world::{Setup, Weather, World, address};
use shadowmesh_wire::candidate::{Candidate, CandidateKind};
use std::net::SocketAddr;
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);

fn setup(nodes: usize) -> Setup {
    Setup { direct: true, ..Setup::plain(nodes, true) }
}

/// What is before a node, the nearest first.
const SHELTERS: [(&str, &[NatKind]); 6] = [
    ("open", &[]),
    ("full cone", &[NatKind::FULL_CONE]),
    ("address restricted", &[NatKind::ADDRESS_RESTRICTED]),
    ("port restricted", &[NatKind::PORT_RESTRICTED]),
    ("double", &[NatKind::PORT_RESTRICTED, NatKind::PORT_RESTRICTED]),
    ("symmetric", &[NatKind::SYMMETRIC]),
];

fn sheltered(seed: u64, a: &[NatKind], b: &[NatKind], weather: Weather) -> World {
    let mut w = World::new(seed, setup(2), weather);
    a.iter().for_each(|kind| w.shelter(0, *kind));
    b.iter().for_each(|kind| w.shelter(1, *kind));
    w
}

/// Plays until both have a direct path; how long that took.
fn until_direct(w: &mut World, most: Duration) -> Option<Duration> {
    let began = w.now;
    while w.now.since(began) < most {
        if w.is_direct(0, 1) && w.is_direct(1, 0) {
            return Some(w.now.since(began));
        }
        w.send(0, 1, 100);
        w.run(5 * MS);
    }
    None
}

/// Every pair of mappings that do not depend on whom they are for is direct, and a symmetric one with whoever lets in
/// more than the port that it sent to. [P-PATHS]
#[test]
fn every_pair_of_nats() {
    for (i, (name_a, a)) in SHELTERS.iter().enumerate() {
        for (name_b, b) in &SHELTERS[i..] {
            let strict = |name: &str| ["port restricted", "double", "symmetric"].contains(&name);
            let expected = !(*name_b == "symmetric" && strict(name_a));
            for seed in 0..4 {
                let mut w = sheltered(seed, a, b, Weather::CALM);
                let took = until_direct(&mut w, Duration::from_secs(3));
                assert_eq!(took.is_some(), expected, "{name_a} with {name_b}: {:?}", w.events);
                assert!(took.is_none_or(|t| t < 300 * MS), "{name_a} with {name_b} took {took:?}");
                let n = w.send(0, 1, 100);
                w.run(100 * MS);
                assert!(w.judge.arrived(n));
            }
        }
    }
}

/// A symmetric NAT, and a strict one: many sockets here, many ports there, and soon two of them meet; nothing is sent so to
/// whom the relay has not seen. [P-PUNCH]
#[test]
fn symmetric_with_strict() {
    use shadowmesh_wire::candidate::Mapping::{Dependent, Independent};
    let mut direct = 0;
    for seed in 0..30 {
        let (a, b): (&[NatKind], &[NatKind]) = match seed % 3 {
            0 => (&[NatKind::SYMMETRIC], &[NatKind::PORT_RESTRICTED]),
            1 => (&[NatKind::PORT_RESTRICTED], &[NatKind::SYMMETRIC]),
            _ => (&[NatKind::PORT_RESTRICTED, NatKind::PORT_RESTRICTED], &[NatKind::SYMMETRIC]),
        };
        let mut w = sheltered(seed, a, b, Weather::CALM);
        for (n, kinds) in [a, b].into_iter().enumerate() {
            let mapping = if kinds.contains(&NatKind::SYMMETRIC) { Dependent } else { Independent };
            let now = w.now;
            w.nodes[n].endpoint.node.set_mapping(now, mapping);
            w.nodes[n].endpoint.settle(now);
        }
        if let Some(took) = until_direct(&mut w, Duration::from_secs(10)) {
            direct += u32::from(took < Duration::from_secs(5));
            let sent = [w.send(0, 1, 1000), w.send(1, 0, 1000)];
            w.run(Duration::from_secs(20));
            assert!(sent.iter().all(|n| w.judge.arrived(*n)), "seed {seed}: {} {:?}", w.drops(), w.events);
            assert!(w.is_direct(0, 1) && w.is_direct(1, 0), "{:?}", w.events);
        }
    }
    assert!(direct >= 28, "{direct} of 30 within five seconds");
    // A member lies of where it is: only what the relay says counts.
    let mut w = World::new(4, setup(2), Weather::CALM);
    let victim = SocketAddr::from(([203, 0, 113, 9], 53));
    let now = w.now;
    w.nodes[0].endpoint.node.set_mapping(now, Independent);
    w.nodes[0].endpoint.settle(now);
    w.nodes[1].endpoint.node.set_mapping(now, Dependent);
    w.cut.insert((address(0), address(1)));
    let list = vec![Candidate { kind: CandidateKind::Reflexive, address: victim }];
    w.nodes[1].endpoint.node.set_candidates(now, list);
    w.nodes[1].endpoint.settle(now);
    until_direct(&mut w, Duration::from_secs(60));
    let (got, probed) = (w.sent_to(victim.ip()), w.sent_to(address(1).ip()));
    assert!(
        got <= 12 && probed > 1500,
        "{got} to the victim, {probed} to where the relay sees it {:?} {:?}",
        w.now,
        w.events
    );
}

/// Two behind one NAT that does not turn packets round, by their own addresses; with the relay gone they go on.
#[test]
fn on_one_lan() {
    let mut w = sheltered(1, &[NatKind::PORT_RESTRICTED], &[NatKind::PORT_RESTRICTED], Weather::CALM);
    w.lan.insert((0, 1));
    until_direct(&mut w, Duration::from_secs(1)).expect("a path by the LAN");
    w.run(2 * Duration::from_secs(1));
    let status = w.nodes[0].endpoint.node.peer_status();
    let route = status.iter().find(|p| p.node == w.nodes[1].id).and_then(|p| p.route);
    assert_eq!(route, Some(Route::Udp(address(1))), "{:?}", w.events);
    w.kill_relay();
    for _ in 0..100 {
        let n = w.send(0, 1, 100);
        w.run(Duration::from_secs(1));
        assert!(w.judge.arrived(n), "lost at {:?}", w.now);
    }
}

/// The relay is 80 ms away, the direct path one: nothing is lost in the move, nor comes twice, whatever the weather
/// reorders. [P-MOVE]
#[test]
fn a_move_loses_nothing() {
    for seed in 0..20 {
        let weather = Weather { delay: MS / 2, jitter: (seed % 3) as u32 * MS, attack: 20, ..Weather::CALM };
        let nat = [NatKind::ALL[seed as usize % 3]];
        let mut w = sheltered(seed, &nat, &nat, weather);
        w.nodes.iter_mut().for_each(|n| n.endpoint.data.lag = (seed as u32 % 2) * 20 * MS);
        for n in 0..2 {
            w.delay.insert((address(n), relay_address()), 20 * MS);
        }
        w.send(0, 1, 100);
        w.send(1, 0, 100);
        while !w.events.iter().any(|(_, e)| e.contains("PeerUp")) {
            w.run(MS);
        }
        w.run(50 * MS);
        for i in 0..6000 {
            w.send(i % 2, 1 - i % 2, 1200);
            if i % 50 == 0 {
                w.send_super(i % 2, 1 - i % 2, 20_000);
            }
            w.run(MS / 10);
        }
        assert!(w.is_direct(0, 1) && w.is_direct(1, 0), "{:?}", w.events);
        w.run(Duration::from_secs(1));
        assert_eq!(w.judge.missing(), [], "seed {seed}: {} {:?}", w.drops(), w.events);
    }
}

/// When the direct path is cut, in either direction or in both, under traffic one way or both ways, it flows by the relay
/// within 300 ms; and by the path again when that is mended. [P-FALLBACK]
#[test]
fn a_cut_is_noticed() {
    for case in 0..9 {
        let (cut, traffic) = (case % 3, case / 3);
        let mut w = sheltered(case, &[NatKind::PORT_RESTRICTED], &[NatKind::FULL_CONE], Weather::CALM);
        until_direct(&mut w, Duration::from_secs(1)).expect("a direct path");
        let flow = |w: &mut World, d: Duration| {
            let (end, mut gap, mut last) = (w.now + d, Duration::ZERO, w.now);
            while w.now < end {
                let mut sent = vec![];
                if traffic != 1 {
                    sent.push(w.send(0, 1, 800));
                }
                if traffic != 0 {
                    sent.push(w.send(1, 0, 800));
                }
                w.run(20 * MS);
                if sent.iter().all(|n| w.judge.arrived(*n)) {
                    gap = gap.max(w.now.since(last));
                    last = w.now;
                }
            }
            gap.max(w.now.since(last))
        };
        assert!(flow(&mut w, Duration::from_secs(2)) < 50 * MS);
        let (a, b) = (address(0), address(1));
        if cut != 1 {
            w.cut.insert((a, b));
        }
        if cut != 0 {
            w.cut.insert((b, a));
        }
        let gap = flow(&mut w, Duration::from_secs(3));
        assert!(gap <= 300 * MS, "cut {cut} traffic {traffic}: {gap:?} {:?}", w.events);
        assert!(!w.is_direct(0, 1) && !w.is_direct(1, 0), "cut {cut} traffic {traffic} {:?}", w.events);
        w.cut.clear();
        let gap = flow(&mut w, Duration::from_secs(20));
        assert!(gap <= 50 * MS, "{gap:?}");
        assert!(w.is_direct(0, 1) && w.is_direct(1, 0), "cut {cut} traffic {traffic} {:?}", w.events);
    }
}

/// Counters begin anew with new keys: a cut is noticed as soon then as before. [P-FALLBACK]
#[test]
fn a_cut_after_a_rekey() {
    let s = Setup { rekey: Duration::from_secs(10), ..setup(2) };
    let mut w = World::new(2, s, Weather::CALM);
    until_direct(&mut w, Duration::from_secs(1)).expect("a direct path");
    let pass = |w: &mut World, seconds: u64| {
        for _ in 0..seconds * 100 {
            w.send(0, 1, 800);
            w.run(10 * MS);
        }
    };
    let rekeys = |w: &World| w.nodes[0].endpoint.node.peer_status().iter().map(|p| p.rekeys.0).sum::<u64>();
    // A new session begins with the same lanes, so that the second has those of the one before.
    for _ in 0..2 {
        pass(&mut w, 8);
        let before = rekeys(&w);
        while rekeys(&w) == before {
            pass(&mut w, 1);
        }
    }
    assert!(w.is_direct(0, 1));
    w.cut.insert((address(0), address(1)));
    w.run(20 * MS);
    pass(&mut w, 1);
    assert!(!w.is_direct(0, 1), "{:?}", w.events);
}

/// The router is switched off and on, and gives other ports: by the relay, then directly again.
#[test]
fn a_nat_restarts() {
    for seed in 0..8 {
        let kind = NatKind::ALL[seed as usize % 3];
        let mut w = sheltered(seed, &[kind], &[NatKind::PORT_RESTRICTED], Weather::CALM);
        until_direct(&mut w, Duration::from_secs(1)).expect("a direct path");
        w.run(Duration::from_secs(2));
        w.nats.get_mut(&0).expect("a NAT")[0].restart();
        let mut last = w.now;
        for _ in 0..600 {
            let sent = [w.send(0, 1, 300), w.send(1, 0, 300)];
            w.run(50 * MS);
            if sent.iter().all(|n| w.judge.arrived(*n)) {
                assert!(w.now.since(last) < Duration::from_secs(4), "{kind:?} {:?}", w.events);
                last = w.now;
            }
        }
        assert!(w.now.since(last) < 100 * MS);
        assert!(w.is_direct(0, 1) && w.is_direct(1, 0), "{kind:?} {:?}", w.events);
    }
}

/// Nobody sends a frame, and a router gives another port: who is behind it is heard, and hears the answers. The other side
/// notices all the same that its own pings are not answered. [P-FALLBACK]
#[test]
fn a_nat_restarts_in_silence() {
    for seed in 0..8 {
        let mut w = sheltered(seed, &[NatKind::PORT_RESTRICTED], &[], Weather::CALM);
        until_direct(&mut w, Duration::from_secs(1)).expect("a direct path");
        w.run(Duration::from_secs(2));
        w.nats.get_mut(&0).expect("a NAT")[0].restart();
        w.run(Duration::from_secs(5));
        let n = w.send(1, 0, 300);
        w.run(100 * MS);
        assert!(w.judge.arrived(n), "{:?}", w.events);
    }
}

/// Whoever changes networks again and again does not wait for it longer each time. [P-FALLBACK]
#[test]
fn many_changes_of_network() {
    let mut w = sheltered(6, &[NatKind::PORT_RESTRICTED], &[NatKind::FULL_CONE], Weather::CALM);
    until_direct(&mut w, Duration::from_secs(1)).expect("a direct path");
    for i in 0..10 {
        let now = w.now;
        if i % 2 == 0 {
            w.nats.get_mut(&0).expect("a NAT")[0].restart();
        }
        w.nodes[0].endpoint.node.network_changed(now);
        w.nodes[0].endpoint.settle(now);
        w.drain(0);
        w.run(50 * MS);
        let took = until_direct(&mut w, Duration::from_secs(3));
        assert!(took.is_some_and(|t| t < 700 * MS), "change {i}: {took:?} {:?}", w.events);
    }
}

/// A path that becomes slower than the relay is left, unless the relay is as slow by now. [P-FALLBACK]
#[test]
fn a_path_that_becomes_slow() {
    for relay_too in [false, true] {
        let mut w = World::new(7, setup(2), Weather::CALM);
        until_direct(&mut w, Duration::from_secs(1)).expect("a direct path");
        let flow = |w: &mut World, seconds: u64| {
            for _ in 0..seconds * 50 {
                w.send(0, 1, 500);
                w.send(1, 0, 500);
                w.run(20 * MS);
            }
        };
        flow(&mut w, 3);
        w.delay.insert((address(0), address(1)), 50 * MS);
        if relay_too {
            (0..2).for_each(|n| {
                w.delay.insert((address(n), relay_address()), 25 * MS);
            });
        }
        flow(&mut w, 5);
        assert!(w.is_direct(0, 1), "left for a few slow answers: {:?}", w.events);
        flow(&mut w, 10);
        assert_eq!(w.is_direct(0, 1), relay_too, "{:?}", w.events);
    }
}

/// A direct path's first round trip takes long, as on a machine that is busy starting: it is measured again, not left for
/// half a minute. [P-MOVE]
#[test]
fn a_first_answer_that_is_slow() {
    for (slow, most) in [(150 * MS, 700 * MS), (1500 * MS, Duration::from_secs(4))] {
        let mut w = World::new(9, setup(2), Weather::CALM);
        w.delay.insert((address(0), address(1)), 60 * MS);
        w.delay.insert((address(1), address(0)), 60 * MS);
        let began = w.now;
        assert_eq!(until_direct(&mut w, slow), None, "it is slower than the relay");
        w.delay.clear();
        let left = most - w.now.since(began);
        until_direct(&mut w, left)
            .unwrap_or_else(|| panic!("not direct {most:?} after it began: {:?}", w.events));
    }
}

/// No relay is reached, and members announce themselves on the LAN: they meet there. Somebody announces others in their
/// names, which costs a few openings, and delays it. [P-LAN]
#[test]
fn nearby_without_a_relay() {
    for forged in [false, true] {
        let mut w = World::new(8, setup(2), Weather::CALM);
        w.kill_relay();
        w.send(0, 1, 100);
        w.run(Duration::from_secs(5));
        assert!(w.events.iter().all(|(_, e)| !e.contains("PeerUp")), "{:?}", w.events);
        let victim = SocketAddr::from(([192, 0, 2, 99], 7));
        for n in 0..2 {
            let there: Vec<_> = forged.then_some(victim).into_iter().chain([address(1 - n)]).collect();
            let (found, now) = ([(w.nodes[1 - n].id, there)], w.now);
            w.nodes[n].endpoint.node.set_nearby(now, &found);
            w.nodes[n].endpoint.settle(now);
            w.drain(n);
        }
        let most = Duration::from_secs(if forged { 30 } else { 1 });
        let took = until_direct(&mut w, most);
        assert!(took.is_some(), "forged {forged}: {:?}", w.events);
        let n = w.send(1, 0, 100);
        w.run(100 * MS);
        assert!(w.judge.arrived(n));
        let got = w.sent_to(victim.ip());
        assert!(got <= 60 && (got > 0) == forged, "{got} packets to who was named");
    }
}

/// Without a relay and without frames a path is kept open, with no more than NATs need.
#[test]
fn an_idle_path_stays() {
    let mut w = sheltered(3, &[NatKind::PORT_RESTRICTED], &[NatKind::PORT_RESTRICTED], Weather::CALM);
    until_direct(&mut w, Duration::from_secs(1)).expect("a direct path");
    w.run(Duration::from_secs(120));
    let sent = |w: &World| w.sent_data(address(0)) + w.sent_data(address(1));
    let before = sent(&w);
    w.run(Duration::from_secs(600));
    assert!(w.is_direct(0, 1) && w.is_direct(1, 0), "{:?}", w.events);
    // A ping and its answer each way every 15 s or so; and rosters are compared.
    let each_minute = (sent(&w) - before) / 10;
    assert!(each_minute < 40, "{each_minute} datagrams a minute");
    let n = w.send(0, 1, 100);
    w.run(100 * MS);
    assert!(w.judge.arrived(n));
}

/// Members name a victim's address, in all the ways that they can: what it gets from each honest member is five packets at
/// first, then ever fewer. [P-BUDGET]
#[test]
fn nobody_is_flooded() {
    let victim = SocketAddr::from(([203, 0, 113, 9], 53));
    let others = |n: u16| SocketAddr::new(victim.ip(), 1000 + n);
    let mut w = World::new(9, setup(5), Weather::CALM);
    for seconds in 0..120 {
        for hostile in 1..5 {
            // All ports that a message has room for, others each time.
            let list = (0..16).map(|i| Candidate {
                kind: CandidateKind::Host,
                address: if i == 0 { victim } else { others(seconds * 16 + i) },
            });
            let now = w.now;
            w.nodes[hostile].endpoint.node.set_candidates(now, list.collect());
            w.nodes[hostile].endpoint.settle(now);
            w.send(hostile, 0, 100);
            w.drain(hostile);
        }
        w.run(Duration::from_secs(1));
    }
    let got = w.sent_to(victim.ip());
    // Of the five, each is asked for the victim by the four others.
    assert!((10..=5 * 10).contains(&got), "{got} packets in two minutes");
    assert_eq!(w.now.since(Time(0)).as_secs() / 100, 1, "two minutes were played");
}

/// A node that shall not look for paths tells nothing and asks nobody; the other side's session goes on by the relay.
#[test]
fn one_side_does_not_want_it() {
    let mut w = World::new(5, Setup::plain(2, true), Weather::CALM);
    assert!(until_direct(&mut w, Duration::from_secs(3)).is_none());
    let direct = |n: usize| w.sent_data(address(n));
    assert_eq!((direct(0), direct(1)), (0, 0));
    assert_eq!(CAST.members[0].id, w.nodes[0].id);
}
