//! The seeds, their mutations, and everything that was ever found: each through every target.

use shadowmesh_fuzz::{TARGETS, seeds};
use shadowmesh_proto::Rng;

#[test]
fn seeds_and_their_mutations() {
    let mut dice = Rng::from_seed([9; 32]);
    for (name, target) in TARGETS {
        let rounds = if *name == "facts" { 40 } else { 200 };
        for seed in seeds() {
            target(&seed);
            for _ in 0..rounds {
                let mut b = seed.clone();
                for _ in 0..1 + dice.below(4) {
                    match dice.below(4) {
                        0 if !b.is_empty() => {
                            let i = dice.below(b.len() as u64) as usize;
                            b[i] ^= 1 << dice.below(8);
                        }
                        1 if !b.is_empty() => b.truncate(dice.below(b.len() as u64) as usize),
                        2 => b.push(dice.u64() as u8),
                        _ if !b.is_empty() => {
                            let i = dice.below(b.len() as u64) as usize;
                            b[i] = dice.u64() as u8;
                        }
                        _ => {}
                    }
                }
                target(&b);
            }
        }
    }
}

#[test]
fn what_was_found_once() {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (name, target) in TARGETS {
        for file in std::fs::read_dir(corpus.join(name)).into_iter().flatten().flatten() {
            target(&std::fs::read(file.path()).unwrap());
        }
    }
}
