//! Writes the seeds into a directory, one a file, for a fuzzer to begin with: `fuzz-seeds DIR`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(dir) = std::env::args_os().nth(1).map(std::path::PathBuf::from) else {
        eprintln!("usage: fuzz-seeds DIR");
        return ExitCode::FAILURE;
    };
    for (i, seed) in shadowmesh_fuzz::seeds().iter().enumerate() {
        if let Err(e) = std::fs::write(dir.join(format!("seed-{i}")), seed) {
            eprintln!("error: writing a seed into {}: {e}", dir.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
