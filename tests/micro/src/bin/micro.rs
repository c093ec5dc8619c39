//! Runs one piece of the hot path for a counter of instructions: `micro NAME RUNS`; alone: prints their names, what each
//! run counts, and how many of those it has.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut pieces = shadowmesh_micro::pieces();
    let [name, runs] = arguments.as_slice() else {
        pieces.iter().for_each(|p| println!("{} {} {}", p.name, p.each, p.count));
        return ExitCode::SUCCESS;
    };
    let (Some(piece), Ok(runs)) = (pieces.iter_mut().find(|p| p.name == name), runs.parse()) else {
        eprintln!("usage: micro NAME RUNS");
        return ExitCode::FAILURE;
    };
    for _ in 0..runs {
        piece.measured_run();
    }
    ExitCode::SUCCESS
}
