//! Certificates near their end are renewed by the admin's node, for members that are there; and who misses its own new
//! one is still known by the old.

use shadowmesh_identity::fact::Body;
use shadowmesh_identity::{Certificate, DAY, Fact};
use shadowmesh_sim::cast::{CAST, EPOCH};
use shadowmesh_sim::world::{Setup, Weather, World, address};
use std::time::Duration;

const SECONDS: fn(u64) -> Duration = Duration::from_secs;

fn world() -> World {
    let mut w =
        World::new(1, Setup::plain(4, false), Weather { delay: Duration::from_millis(10), ..Weather::CALM });
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        w.send(a, b, 100);
    }
    w.run(SECONDS(2));
    w
}

/// So many days have passed, for all clocks at once.
fn days_pass(w: &mut World, days: u64) {
    for n in 0..w.nodes.len() {
        let now = w.now;
        w.nodes[n].endpoint.node.set_wall(now, EPOCH + days * DAY + now.0 / 1_000_000_000);
        w.nodes[n].endpoint.settle(now);
    }
}

/// Days until node `of`'s certificate ends, as node `at` knows it.
fn left(w: &World, at: usize, of: usize) -> u64 {
    let node = &w.nodes[at].endpoint.node;
    let member = node.roster().member(&w.nodes[of].id).expect("a member");
    member.certificate.not_after.saturating_sub(node.unix(w.now)) / DAY
}

fn reach(w: &mut World, a: usize, b: usize) {
    let began = w.now;
    loop {
        let n = w.send(a, b, 100);
        w.run(Duration::from_millis(500));
        if w.judge.arrived(n) {
            return;
        }
        assert!(w.now.since(began) < SECONDS(20), "{a} does not reach {b}: {} {:?}", w.drops(), w.events);
    }
}

/// [P-RENEW]
#[test]
fn members_that_are_there_are_renewed() {
    let mut w = world();
    // Certificates of the cast have 300 days. Node 3 is away.
    for n in 0..3 {
        w.cut.insert((address(3), address(n)));
        w.cut.insert((address(n), address(3)));
    }
    days_pass(&mut w, 230);
    w.run(SECONDS(60));
    assert_eq!(left(&w, 1, 1), 69, "too early");
    days_pass(&mut w, 245);
    w.run(SECONDS(60));
    for (at, of) in [(0, 1), (1, 1), (2, 1), (0, 2), (1, 2), (2, 2)] {
        assert!(
            left(&w, at, of) > 360,
            "node {of} as node {at} knows it: {} days; {:?}",
            left(&w, at, of),
            w.events
        );
    }
    // Who is away is not; nor is the admin itself, whom only the root renews.
    assert!(left(&w, 0, 3) < 60 && left(&w, 0, 0) < 60);
    w.cut.clear();
    for (a, b) in [(3, 0), (1, 2), (2, 1)] {
        reach(&mut w, a, b);
    }
    w.run(SECONDS(20));
    assert!(left(&w, 3, 3) > 360, "{} days", left(&w, 3, 3));
    // Past the old end.
    days_pass(&mut w, 299);
    w.run(SECONDS(20));
    for (a, b) in [(1, 2), (2, 3), (3, 1)] {
        reach(&mut w, a, b);
    }
}

/// Cut off at the very moment: all others know its new certificate, it knows only the old one, and is still itself.
#[test]
fn who_missed_its_renewal_is_known() {
    let mut w = world();
    for n in [0, 1, 3] {
        w.cut.insert((address(2), address(n)));
        w.cut.insert((address(n), address(2)));
    }
    // The admin has not noticed yet, and renews it.
    days_pass(&mut w, 245);
    w.run(SECONDS(12));
    assert!(left(&w, 1, 2) > 360 && left(&w, 2, 2) < 60, "{} and {}", left(&w, 1, 2), left(&w, 2, 2));
    w.run(SECONDS(60));
    w.cut.clear();
    // Only it begins sessions, and so has to show who it is.
    w.filter = Some(|from, bytes| from != address(2) && bytes[0] == 0x41);
    for n in [0, 1, 3] {
        reach(&mut w, 2, n);
    }
    w.run(SECONDS(20));
    assert!(left(&w, 2, 2) > 360);
}

/// Member `of` renewed by the admin's key, at node `at`.
fn renew(w: &mut World, at: usize, of: usize, seq: u64) {
    let member = &CAST.members[of];
    let old = member.certificate.fact().certificate().expect("a certificate").clone();
    let body = Body::Certificate(Certificate { not_after: EPOCH + (300 + seq) * DAY, ..old });
    let fact = Fact::sign(&CAST.members[0].identity, CAST.genesis.id(), member.id, seq, EPOCH, &body);
    let now = w.now;
    w.nodes[at].endpoint.node.add_fact(now, fact.expect("signed"));
    w.nodes[at].endpoint.settle(now);
    w.drain(at);
}

fn rekeys(w: &World, at: usize, with: usize) -> u64 {
    let status = w.nodes[at].endpoint.node.peer_status();
    status.iter().find(|p| p.node == w.nodes[with].id).map_or(0, |p| p.rekeys.0)
}

/// Two who cannot reach the admin, nor for a moment each other, while one of them or each is renewed: only one knows. Then
/// a rekey is due; it goes through, whoever knows which certificate, and loses no frame. [P-REKEY]
#[test]
fn a_rekey_beside_a_renewal() {
    let due = SECONDS(25);
    // Who hears of whose renewal: (at, of).
    let stories: [&[(usize, usize)]; 6] =
        [&[(1, 1)], &[(2, 2)], &[(1, 2)], &[(2, 1)], &[(1, 1), (2, 2)], &[(1, 2), (2, 1)]];
    for (seed, heard) in stories.into_iter().enumerate() {
        for (loss, before) in [(0, 3000), (0, 300), (0, 10), (100, 300)] {
            let setup = Setup { rekey: due, ..Setup::plain(3, false) };
            let weather = Weather { delay: Duration::from_millis(10), ..Weather::CALM };
            let mut w = World::new(seed as u64, setup, weather);
            for (a, b) in [(1, 2), (0, 1), (0, 2)] {
                w.send(a, b, 100);
            }
            let began = w.now;
            w.run_until(began + due - Duration::from_millis(before + 100));
            for (a, b) in [(0, 1), (0, 2), (1, 2)] {
                w.cut.extend([(address(a), address(b)), (address(b), address(a))]);
            }
            for (seq, (at, of)) in (50..).zip(heard) {
                renew(&mut w, *at, *of, seq);
            }
            w.run(Duration::from_millis(100));
            w.cut.retain(|(from, to)| [from, to].contains(&&address(0)));
            w.weather.loss = loss;
            let mut done = None;
            while w.now.since(began) < due * 8 / 5 {
                w.send(1, 2, 100);
                w.send(2, 1, 100);
                w.run(Duration::from_millis(5));
                if rekeys(&w, 1, 2).min(rekeys(&w, 2, 1)) > 0 {
                    done = done.or(Some(w.now.since(began)));
                }
            }
            // Before the other side would try, an eighth later.
            let late = due * 9 / 8;
            assert!(done.is_some_and(|d| d < late), "{heard:?}, {before} ms, {loss}: {done:?} {}", w.drops());
            w.run(SECONDS(1));
            assert!(loss > 0 || w.judge.missing().is_empty(), "{heard:?}, {before} ms: {}", w.drops());
            for of in [1, 2] {
                assert_eq!(left(&w, 1, of), left(&w, 2, of), "{heard:?}: of node {of}");
            }
        }
    }
}
