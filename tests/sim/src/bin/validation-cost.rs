//! What finding a direct path again costs each side in CPU time: REQUEST, RESPONSE, COMPLETE, what the path takes, and the
//! move to it. `validation-cost [--report FILE]`

use shadowmesh_sim::world::{Setup, Weather, World, address};
use std::time::{Duration, Instant};

const ROUNDS: usize = 500;

#[expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]
fn clock() -> Instant {
    Instant::now()
}

/// What is due at both, and what they send each other until they are silent; the time that each took. Nothing waits, so
/// elapsed time is CPU time, other work on the machine aside.
fn exchange(w: &mut World, took: &mut [Duration; 2]) {
    let now = w.now;
    for (n, took) in took.iter_mut().enumerate() {
        let began = clock();
        w.nodes[n].endpoint.handle_all_timeouts(now);
        *took += began.elapsed();
    }
    let mut silent = 0;
    for n in [0, 1].into_iter().cycle() {
        let (other, mut sent) = (1 - n, 0);
        while let Some((to, bytes)) = w.nodes[n].endpoint.poll_transmit() {
            sent += 1;
            // The relay is not asked here.
            if to == address(other) {
                let began = clock();
                let e = &mut w.nodes[other].endpoint;
                e.data.rx.batch().push(address(n), &bytes);
                e.open(now, |_| ());
                took[other] += began.elapsed();
            }
        }
        silent = if sent == 0 { silent + 1 } else { 0 };
        if silent == 2 {
            return;
        }
    }
}

fn main() {
    let report = std::env::args().skip_while(|a| a != "--report").nth(1);
    let mut w = World::new(1, Setup { direct: true, ..Setup::plain(2, true) }, Weather::CALM);
    w.send(0, 1, 100);
    w.run(Duration::from_secs(3));
    let mut sides: [Vec<Duration>; 2] = [vec![], vec![]];
    for _ in 0..ROUNDS {
        assert!(w.is_direct(0, 1) && w.is_direct(1, 0), "the path was not found again: {:?}", w.events);
        w.run(Duration::from_secs(70));
        let now = w.now;
        w.nodes[0].endpoint.node.network_changed(now);
        w.nodes[0].endpoint.settle(now);
        let mut took = [Duration::ZERO; 2];
        for _ in 0..10 {
            w.now = w.now + Duration::from_millis(30);
            exchange(&mut w, &mut took);
        }
        w.run(Duration::from_secs(1));
        for (all, took) in sides.iter_mut().zip(took) {
            all.push(took);
        }
    }
    let mut lines = vec![];
    for (side, mut all) in ["asks", "answers"].into_iter().zip(sides) {
        all.sort();
        let micros = all[all.len() / 2].as_secs_f64() * 1e6;
        println!("the side that {side}: {micros:.0} µs, median of {ROUNDS}");
        lines.push(format!(
            "{{\"id\":\"6-validation-{side}\",\"what\":\"CPU of a path's validation, search and move at the side that {side}, median of {ROUNDS}\",\"value\":{micros:.0},\"unit\":\"µs\",\"goal\":\"< 100\",\"holds\":{}}}",
            micros < 100.0
        ));
    }
    if let Some(file) = report
        && let Err(e) = std::fs::write(&file, format!("[{}]\n", lines.join(",\n ")))
    {
        eprintln!("error: {file} cannot be written: {e}");
        std::process::exit(1);
    }
}
