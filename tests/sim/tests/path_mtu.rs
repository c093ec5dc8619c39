//! Path MTU discovery on links of all sizes, some of which shrink while a stream goes over them.

use shadowmesh_proto::Time;
use shadowmesh_sim::cast::relay_address;
use shadowmesh_sim::world::{Setup, Weather, World, address};
use std::net::SocketAddr;
use std::time::Duration;

const MS: fn(u64) -> Duration = Duration::from_millis;

/// The link that all packets from node 0 to node 1 go over.
fn link(relayed: bool) -> (SocketAddr, SocketAddr) {
    (address(0), if relayed { relay_address() } else { address(1) })
}

/// All four: told of what is too large or not, by relay or not.
fn worlds() -> impl Iterator<Item = Setup> {
    [(false, false), (false, true), (true, false), (true, true)]
        .into_iter()
        .map(|(relayed, refuses)| Setup { refuses, ..Setup::plain(2, relayed) })
}

/// A world in which node 0's only link takes packets of `mtu` bytes, with a session that
/// has just begun.
fn world(setup: Setup, mtu: usize) -> World {
    let link = link(setup.relayed);
    let mut w = World::new(8, setup, Weather::CALM);
    w.mtu.insert(link, mtu);
    // The relay's other link is no bottleneck.
    w.mtu.insert((relay_address(), address(1)), 9000);
    w.send(0, 1, 100);
    while [0, 1].iter().any(|n| figure(&w, *n).is_none()) {
        assert!(w.now < Time(10_000_000_000), "no session: {}", w.drops());
        w.run(MS(1));
    }
    w
}

/// The figure that `status` shows at a node of the other.
fn figure(w: &World, n: usize) -> Option<usize> {
    w.nodes[n].endpoint.node.peer_status().iter().find(|p| p.node == w.nodes[1 - n].id)?.mtu
}

/// Each is found within five seconds, from both ends, and frames of all sizes cross meanwhile. [P-PMTU]
#[test]
fn every_underlay_is_found() {
    for setup in worlds() {
        for mtu in [1280, 1400, 1420, 1492, 1500, 9000] {
            let mut w = world(setup.clone(), mtu);
            let began = w.now;
            while [0, 1].iter().any(|n| figure(&w, *n) != Some(mtu)) {
                assert!(
                    w.now.since(began) < Duration::from_secs(5),
                    "{mtu} not found: {:?} {:?}",
                    figure(&w, 0),
                    setup
                );
                w.send(0, 1, 1514);
                w.send_super(1, 0, 30_000);
                w.run(MS(50));
            }
            println!("{mtu}, relayed {}: found in {:?}", setup.relayed, w.now.since(began));
            w.run(Duration::from_secs(1));
            assert_eq!(w.judge.missing(), [], "{mtu}: {} {setup:?}", w.drops());
            // Nor does `status` speak of loss, though probes were lost.
            let status = w.nodes[0].endpoint.node.peer_status();
            assert_eq!(status.iter().find_map(|p| p.loss), Some(0.0), "{mtu}: {setup:?}");
        }
    }
}

/// The longest time in which nothing comes whole, while node 0 sends superframes all the time and the link shrinks.
fn longest_gap(w: &mut World, mtu: usize, relayed: bool) -> Duration {
    w.run(Duration::from_secs(5));
    let mut waiting = vec![];
    let (mut last, mut longest) = (w.now, Duration::ZERO);
    for i in 0..1600 {
        if i == 800 {
            w.mtu.insert(link(relayed), mtu);
        }
        waiting.push(w.send_super(0, 1, 20_000));
        w.run(MS(5));
        let before = waiting.len();
        waiting.retain(|n| !w.judge.arrived(*n));
        if waiting.len() < before {
            longest = longest.max(w.now.since(last));
            last = w.now;
        }
    }
    longest.max(w.now.since(last))
}

/// No gap is longer than a second; then the new size is used, in one direction and the other. [P-BLACKHOLE]
#[test]
fn a_path_that_shrinks() {
    for setup in worlds() {
        for (before, after) in [(9000, 1500), (9000, 1280), (1500, 1400), (1500, 1280)] {
            let (relayed, refuses) = (setup.relayed, setup.refuses);
            let mut w = world(setup.clone(), before);
            let gap = longest_gap(&mut w, after, relayed);
            println!("{before} to {after}, relayed {relayed}, told {refuses}: {gap:?}");
            let most = if refuses { MS(50) } else { Duration::from_secs(1) };
            assert!(gap < most, "{before} to {after}: {gap:?}; {}", w.drops());
            // Nothing large is sent from there: only the end that sent has noticed.
            assert_eq!(figure(&w, 0), Some(after), "{setup:?}");
            for _ in 0..100 {
                w.send(1, 0, 1514);
                w.send_super(1, 0, 20_000);
                w.run(MS(50));
            }
            assert_eq!(figure(&w, 1), Some(after), "{setup:?}");
        }
    }
}

/// Ten minutes later a path that has grown is used for what it is. [P-PMTU]
#[test]
fn a_path_that_grows() {
    let mut w = world(Setup::plain(2, false), 1400);
    w.run(Duration::from_secs(10));
    w.mtu.insert(link(false), 9000);
    w.run(Duration::from_secs(60));
    assert_eq!(figure(&w, 0), Some(1400));
    w.run(Duration::from_secs(600));
    assert_eq!(figure(&w, 0), Some(9000));
}

/// Whoever only listens, and a path that is quiet, cost next to nothing: no probes but those of the search.
#[test]
fn probes_are_few() {
    let mut w = world(Setup::plain(2, false), 1500);
    w.run(Duration::from_secs(10));
    let before = w.sent_data(address(0));
    for _ in 0..500 {
        w.send(1, 0, 1514);
        w.run(MS(100));
    }
    // A report every 100 ms, a ping a second, and what else the minute brings.
    let sent = w.sent_data(address(0)) - before;
    assert!(sent < 500 + 50 + 50, "{sent} datagrams from who only listens");
    assert!(w.now > Time(60_000_000_000));
}
