//! What a session may and may not do, seen from the wire.

use shadowmesh_proto::Time;
use shadowmesh_sim::world::{Setup, Weather, World, address};
use std::time::Duration;

/// A responder whose initiator never confirms sends nothing in the session, however much it has to say. [P-CONFIRM]
#[test]
fn nothing_before_the_confirmation() {
    let mut w = World::new(1, Setup::plain(2, false), Weather::CALM);
    // Node 1 can begin nothing itself, and nothing that node 0 says inside the session arrives.
    w.filter = Some(|from, bytes| {
        from == address(1) && bytes[0] == 0x41 || from == address(0) && bytes[0] >> 6 == 0b10
    });
    w.send(0, 1, 100);
    w.run(Duration::from_millis(500));
    for _ in 0..50 {
        w.send(1, 0, 100);
        w.run(Duration::from_millis(100));
    }
    assert!(w.sent(address(1), 0x44) >= 3, "the responder never answered");
    assert_eq!(w.sent_data(address(1)), 0);
    w.filter = None;
    let n = w.send(1, 0, 100);
    w.run(Duration::from_secs(5));
    assert!(w.judge.arrived(n), "{}", w.drops());
}

/// Openings that came to nothing (here: killed in the middle, five times) are held, and keep the next one out no moment.
/// [P-CONFIRM]
#[test]
fn what_came_to_nothing_keeps_nobody_out() {
    let mut w = World::new(5, Setup::plain(2, false), Weather::CALM);
    // Node 1 begins nothing itself, and its answers are lost.
    w.filter = Some(|from, bytes| from == address(1) && matches!(bytes[0], 0x41 | 0x44));
    for _ in 0..5 {
        w.send(0, 1, 100);
        let before = w.sent(address(1), 0x44);
        while w.sent(address(1), 0x44) == before {
            assert!(w.now < Time(10_000_000_000), "never answered: {}", w.drops());
            w.run(Duration::from_millis(10));
        }
        w.restart(0);
    }
    w.filter = Some(|from, bytes| from == address(1) && bytes[0] == 0x41);
    let n = w.send(0, 1, 100);
    w.run(Duration::from_secs(1));
    assert!(w.judge.arrived(n), "{}", w.drops());
}

/// Past one and a half times the interval an old key sends nothing; a new handshake does. [P-HARDSTOP]
#[test]
fn an_old_key_stops() {
    let s = Setup { rekey: Duration::from_secs(10), ..Setup::plain(2, false) };
    let mut w = World::new(2, s, Weather::CALM);
    w.send(0, 1, 100);
    w.run(Duration::from_secs(1));
    w.filter = Some(|_, _| true);
    w.run(Duration::from_secs(20));
    let before = w.sent_data(address(0));
    for _ in 0..20 {
        w.send(0, 1, 100);
        w.run(Duration::from_millis(100));
    }
    assert_eq!(w.sent_data(address(0)), before, "an expired key still sends");
    w.filter = None;
    w.run(Duration::from_secs(5));
    let n = w.send(0, 1, 100);
    w.run(Duration::from_secs(2));
    assert!(w.judge.arrived(n), "{}", w.drops());
}

/// Six members, nobody sends anything: each keeps sessions with three or more, and all are connected. [P-NEIGHBOUR]
#[test]
fn neighbours_keep_the_mesh_together() {
    let mut w = World::new(3, Setup::plain(6, false), Weather::CALM);
    w.run(Duration::from_secs(5));
    let mut edges = vec![];
    for (i, n) in w.nodes.iter().enumerate() {
        let peers: Vec<_> =
            n.endpoint.node.peer_status().into_iter().filter(|p| p.route.is_some()).map(|p| p.node).collect();
        assert!(peers.len() >= 3, "node {i} has {} sessions", peers.len());
        edges.push(peers);
    }
    let (mut seen, mut todo) = (vec![0], vec![0]);
    while let Some(i) = todo.pop() {
        for (j, n) in w.nodes.iter().enumerate() {
            if edges[i].contains(&n.id) && !seen.contains(&j) {
                seen.push(j);
                todo.push(j);
            }
        }
    }
    assert_eq!(seen.len(), 6);
}

/// Who copies every packet, flips bits, races the copies from elsewhere and replays them, but takes nothing away, takes
/// nothing away. [P-ROUTE] [P-REPLAY]
#[test]
fn an_attacker_who_only_adds() {
    for seed in 0..10 {
        let mut w = World::new(seed, Setup::plain(2, false), Weather::CALM);
        w.send(0, 1, 60);
        w.run(Duration::from_secs(1));
        w.weather = Weather { attack: 1000, jitter: Duration::from_millis(5), ..Weather::CALM };
        for i in 0..500 {
            w.send(i % 2, (i + 1) % 2, 60 + i % 1400);
            w.run(Duration::from_millis(5));
        }
        w.run(Duration::from_secs(1));
        assert_eq!(w.judge.missing(), [], "seed {seed}: {}", w.drops());
    }
}
