//! `shadowmesh-relay`: forwards between the members of networks it knows nothing of.

mod acme;
mod args;
mod config;
mod http;
mod init;
mod logging;
mod metrics;
mod paths;
mod run;
mod state;
mod streams;
mod tcp;
mod tls;

use shadowmesh_control::Problem;
use std::io::{Write, stderr, stdout};
use std::process::ExitCode;

fn main() -> ExitCode {
    let args = args::parse();
    let json = args.json;
    match args::dispatch(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => fail(json, &problem),
    }
}

fn fail(json: bool, problem: &Problem) -> ExitCode {
    if json {
        print(&serde_json::json!({ "schema": "shadowmesh/error/1", "error": problem }).to_string());
    } else {
        let _closed = writeln!(stderr(), "error: {problem}");
    }
    ExitCode::from(problem.exit as u8)
}

/// A line on the standard output. A pipe that was closed is no error.
fn print(line: &str) {
    let mut out = stdout().lock();
    let _closed = writeln!(out, "{line}").and_then(|()| out.flush());
}
