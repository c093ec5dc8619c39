//! Two members and a network between them: the first session, loss, rekey, restart.

use shadowmesh_sim::world::{Setup, Weather, World};
use std::time::Duration;

/// The first frames wait for the session and all arrive.
#[test]
fn first_frames_arrive() {
    let mut w = World::new(1, Setup::plain(2, false), Weather::CALM);
    for _ in 0..10 {
        w.send(0, 1, 100);
        w.send(1, 0, 1514);
    }
    w.run(Duration::from_secs(1));
    assert_eq!(w.judge.missing(), [], "{} {:?}", w.drops(), w.events);
}

/// No frame is lost or repeated across rekeys, simultaneous ones too, with late snapshots. [P-REKEY] [P-GRACE] [P-INSTALL]
#[test]
fn rekeys_lose_nothing() {
    for both in [false, true] {
        for seed in 0..20 {
            let lag = Duration::from_millis(seed % 5 * 7);
            let s = Setup { rekey: Duration::from_secs(2), rekey_both: both, lag, ..Setup::plain(2, false) };
            let mut w = World::new(seed, s, Weather::CALM);
            w.send(0, 1, 60);
            w.run(Duration::from_secs(1));
            for i in 0..2000 {
                w.send(i % 2, (i + 1) % 2, 60 + i % 1400);
                w.run(Duration::from_millis(5));
            }
            w.run(Duration::from_secs(1));
            assert_eq!(w.judge.missing(), [], "seed {seed}, both {both}: {}", w.drops());
        }
    }
}

/// With loss, repeats and reordering: sessions still come and keys still change; nothing is delivered twice.
#[test]
fn rough_weather() {
    let rough = Weather {
        delay: Duration::from_millis(20),
        jitter: Duration::from_millis(40),
        loss: 200,
        repeat: 100,
        attack: 50,
    };
    for seed in 0..20 {
        let s = Setup { rekey: Duration::from_secs(5), rekey_both: seed % 2 == 0, ..Setup::plain(2, false) };
        let mut w = World::new(seed, s, rough);
        for i in 0..2000 {
            w.send(i % 2, (i + 1) % 2, 100);
            w.run(Duration::from_millis(10));
        }
        assert!(w.judge.delivered > 1200, "seed {seed}: {} of 2000; {}", w.judge.delivered, w.drops());
        w.weather = Weather::CALM;
        w.run(Duration::from_secs(5));
        let (a, b) = (w.send(0, 1, 64), w.send(1, 0, 64));
        w.run(Duration::from_secs(1));
        assert!(w.judge.arrived(a) && w.judge.arrived(b), "seed {seed} did not heal: {}", w.drops());
    }
}

/// Both start at once, always, and meet in one session. [P-SIMOPEN]
#[test]
fn both_start_at_once() {
    for seed in 0..100 {
        let weather = Weather {
            delay: Duration::from_millis(10),
            jitter: Duration::from_millis(seed % 30),
            loss: seed % 3 * 150,
            repeat: seed % 2 * 100,
            attack: seed % 5 * 20,
        };
        let mut w = World::new(seed, Setup::plain(2, false), weather);
        w.send(0, 1, 100);
        w.send(1, 0, 100);
        w.run(Duration::from_secs(8));
        w.weather = Weather::CALM;
        w.run(Duration::from_secs(8));
        for _ in 0..3 {
            let (a, b) = (w.send(0, 1, 64), w.send(1, 0, 64));
            w.run(Duration::from_secs(4));
            assert!(w.judge.arrived(a) && w.judge.arrived(b), "seed {seed}: {} {:?}", w.drops(), w.events);
        }
    }
}

/// A peer killed without a word comes back with its identity, and is reached again within seconds.
#[test]
fn restart_is_survived() {
    for seed in 0..20 {
        let mut w = World::new(seed, Setup::plain(2, false), Weather::CALM);
        w.send(0, 1, 100);
        w.run(Duration::from_secs(1 + seed));
        w.restart((seed % 2) as usize);
        w.run(Duration::from_secs(4));
        let (a, b) = (w.send(0, 1, 64), w.send(1, 0, 64));
        w.run(Duration::from_secs(1));
        assert!(w.judge.arrived(a) && w.judge.arrived(b), "seed {seed}: {} {:?}", w.drops(), w.events);
    }
}
