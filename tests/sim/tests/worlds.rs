//! The first worlds, in every test run; `make sim` plays ten thousand and goes on from any number.

#[test]
fn the_first_worlds_hold() {
    for seed in 0..60 {
        if let Err(broken) = shadowmesh_sim::plan::Plan::draw(seed).play() {
            panic!("world {seed}: {broken}");
        }
    }
}
