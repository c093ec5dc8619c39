//! The first worlds, in every test run; `make sim` plays ten thousand and goes on from any number.

#[test]
fn the_first_worlds_hold() {
    let mut joined = 0;
    for seed in 0..60 {
        match shadowmesh_sim::plan::Plan::draw(seed).play() {
            Ok(outcome) => joined += outcome.joined,
            Err(broken) => panic!("world {seed}: {broken}"),
        }
    }
    assert!(joined > 100, "{joined} superframes were joined again: the worlds no longer play that");
}

/// Key material is another in each process (keys and signatures are randomised), and nothing that a world does may
/// follow from it: a failure is found again by its number. These worlds went other ways while rosters were compared by
/// buckets of ids.
#[test]
fn a_world_is_the_same_in_every_process() {
    let play = |world: &str| {
        let sim = std::process::Command::new(env!("CARGO_BIN_EXE_sim"))
            .args(["--from", world])
            .args(["--worlds", "1"])
            .output();
        let said = String::from_utf8(sim.expect("the simulator runs").stdout).expect("text");
        assert!(said.contains("1 worlds"), "{said}");
        said
    };
    for world in ["15", "64", "136"] {
        let first = play(world);
        for _ in 0..3 {
            assert_eq!(first, play(world));
        }
    }
}
