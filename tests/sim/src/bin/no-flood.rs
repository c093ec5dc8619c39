//! Plays worlds in which members name a victim: `no-flood [--from N] [--worlds M] [--report FILE] [--stop-at-first]`.

use shadowmesh_sim::flood;
use shadowmesh_sim::many::Wanted;

fn main() {
    let wanted = Wanted::from_args("no-flood");
    let (sum, failures) = wanted.play(flood::play);
    for (seed, broken) in &failures {
        println!("world {seed}: {broken}");
    }
    println!(
        "{} worlds from {}: {} packets to victims in {} virtual hours, {} failed",
        wanted.worlds,
        wanted.from,
        sum.joined,
        sum.seconds / 3600,
        failures.len()
    );
    wanted.end("7-flood", "victims that got more than the bound", failures.len());
}
