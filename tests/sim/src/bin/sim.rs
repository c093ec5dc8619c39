//! Plays worlds: `sim [--from N] [--worlds M] [--report FILE] [--stop-at-first]`. A failure prints its number; `--from N --worlds 1` replays it.

use shadowmesh_sim::many::Wanted;
use shadowmesh_sim::plan::Plan;

fn main() {
    let wanted = Wanted::from_args("sim");
    let (sum, failures) = wanted.play(|seed| Plan::draw(seed).play());
    for (seed, broken) in &failures {
        let short: String = if wanted.worlds == 1 {
            format!("{broken}\n{:#?}", Plan::draw(*seed))
        } else {
            broken.chars().take(700).collect()
        };
        println!("world {seed}: {short}");
    }
    println!(
        "{} worlds from {}: {} frames sent, {} delivered ({} superframes joined again), {} datagrams, {} replies to a stranger, {} virtual hours, {} failed",
        wanted.worlds,
        wanted.from,
        sum.sent,
        sum.delivered,
        sum.joined,
        sum.datagrams,
        sum.replies,
        sum.seconds / 3600,
        failures.len()
    );
    wanted.end("9-worlds", "invariants broken", failures.len());
}
