//! `logs`: the file of a daemon in the background, else the journal.

use crate::paths::Paths;
use shadowmesh_control::{Exit, Problem};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::process::Command;
use std::time::Duration;

/// Lines shown to begin with.
const LINES: usize = 100;

pub fn show(paths: &Paths, follow: bool) -> Result<(), Problem> {
    if !paths.moved && std::path::Path::new("/run/systemd/system").is_dir() && !paths.log.exists() {
        let mut command = Command::new("journalctl");
        command.args(["--unit", "shadowmesh.service", "--no-hostname", "--lines", &LINES.to_string()]);
        if follow {
            command.arg("--follow");
        }
        let status =
            command.status().map_err(|e| Problem::failed(format!("journalctl could not be run: {e}")))?;
        return if status.success() {
            Ok(())
        } else {
            Err(Problem::failed("the journal could not be shown"))
        };
    }
    let file = std::fs::File::open(&paths.log).map_err(|e| {
        let p = |exit, why: &str| Problem::new(exit, format!("{} {why}", paths.log.display()));
        match e.kind() {
            ErrorKind::NotFound => {
                p(Exit::Failed, "is not there: a daemon in the foreground logs to its terminal")
            }
            ErrorKind::PermissionDenied => p(Exit::NotPermitted, "may not be read by this user")
                .fix("Run it as root:  sudo shadowmesh logs"),
            _ => p(Exit::Failed, &format!("cannot be read: {e}")),
        }
    })?;
    let broken = |e: std::io::Error| Problem::failed(format!("{} cannot be read: {e}", paths.log.display()));
    let mut reader = BufReader::new(file);
    let mut last: VecDeque<Vec<u8>> = VecDeque::new();
    loop {
        let mut line = vec![];
        if reader.read_until(b'\n', &mut line).map_err(broken)? == 0 {
            break;
        }
        last.push_back(line);
        if last.len() > LINES {
            last.pop_front();
        }
    }
    let mut out = std::io::stdout();
    for line in last {
        if out.write_all(&line).is_err() {
            return Ok(());
        }
    }
    if !follow {
        return Ok(());
    }
    let mut more = vec![];
    loop {
        more.clear();
        reader.read_to_end(&mut more).map_err(broken)?;
        // A pipe that was closed is the end that somebody wanted.
        if out.write_all(&more).and_then(|()| out.flush()).is_err() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
