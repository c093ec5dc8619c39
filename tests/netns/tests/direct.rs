//! Machines behind NATs meet by relay and go direct, where that can be; a path that is cut is left, and taken again.
#![allow(clippy::unwrap_used, reason = "a test; clippy exempts only functions marked as such")]

use std::time::Duration;

use shadowmesh_netns_tests::{Direction, Flow, Internet, Machine, Met, NatKind, meet, wait_until, watch};

const SECONDS: fn(u64) -> Duration = Duration::from_secs;

/// Two that have met, and how.
fn met(kinds: [NatKind; 2], patience: Duration) -> (Internet, Machine, Machine, Met) {
    let mut internet = Internet::new(&format!("{} and {}", kinds[0], kinds[1]));
    let (a, b) = (internet.machine("a", kinds[0]), internet.machine("b", kinds[1]));
    meet(&internet, &a, &b).unwrap();
    let met = watch(&a, &b, patience);
    println!("{} and {}: {met:?}", kinds[0], kinds[1]);
    assert!(met.first.is_some_and(|t| t < SECONDS(1)), "the first frame: {met:?}");
    (internet, a, b, met)
}

#[test]
fn pairs_go_direct_within_two_seconds() {
    use NatKind::*;
    for kinds in [
        [PortRestricted, PortRestricted],
        [FullCone, Symmetric],
        [Firewall, DoubleNat],
        [PortMapping, Symmetric],
    ] {
        let (.., met) = met(kinds, SECONDS(5));
        assert!(met.direct.is_some_and(|t| t < SECONDS(2)), "{kinds:?}: {met:?}");
    }
}

#[test]
fn two_symmetric_nats_stay_by_relay_and_that_is_said() {
    let (_internet, a, b, met) = met([NatKind::Symmetric; 2], SECONDS(10));
    assert_eq!(met.direct, None);
    assert!(a.both_by(&b, "relay"));
    assert!(a.must(&["why", "b"]).contains("relay"));
}

#[test]
fn in_one_lan_by_its_addresses() {
    let mut internet = Internet::new("one LAN");
    let a = internet.machine("a", NatKind::PortRestricted);
    let b = internet.on_lan_of("b", &a);
    meet(&internet, &a, &b).unwrap();
    let met = watch(&a, &b, SECONDS(5));
    assert!(met.direct.is_some_and(|t| t < SECONDS(2)), "{met:?}");
    for (me, other) in [(&a, &b), (&b, &a)] {
        let via = me.path_to(other).unwrap().via;
        assert!(via.starts_with(&format!("{}:", internet.address(other))), "{via}");
    }
}

/// Under a hundred datagrams a second: nothing comes for a second at most, and the direct path is back by itself.
#[test]
fn a_cut_path_is_left_within_a_second_and_taken_again() {
    let (mut internet, a, b, met) = met([NatKind::PortRestricted; 2], SECONDS(5));
    assert!(met.direct.is_some(), "{met:?}");
    let address = b.overlay();
    for direction in [Direction::There, Direction::Both] {
        let flow = Flow::start(&a.host, &b.host, &address, 100.0);
        wait_until("the flow", SECONDS(5), || flow.comes().then_some(()));
        let cut = flow.now();
        internet.cut(&a, &b, direction);
        std::thread::sleep(SECONDS(2));
        let (mended, by) = (flow.now(), a.path_to(&b).unwrap());
        internet.mend(&a, &b);
        wait_until("the direct path", SECONDS(15), || a.both_by(&b, "direct").then_some(()));
        std::thread::sleep(Duration::from_millis(500));
        let (end, flown) = (flow.now(), flow.stop());
        let (gap, moved) = (flown.gap(cut, mended), flown.counts(mended, end));
        println!("cut {direction:?}: nothing for {gap:?}; around the move back {moved:?}");
        assert!(gap <= SECONDS(1) && by.path == "relay", "{gap:?}, {by:?}");
        assert_eq!((moved.lost, moved.repeated), (0, 0), "{moved:?}");
    }
}
