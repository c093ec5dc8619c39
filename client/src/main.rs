//! `shadowmesh`: the daemon and the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    shadowmesh::cli::main()
}
