//! Starting the daemon for a command that needs it: the unit where there is one, else in the background.

use super::At;
use shadowmesh_control::{Exit, Problem};
use std::fs::{DirBuilder, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A daemon that is not there by then has failed.
const PATIENCE: Duration = Duration::from_secs(15);
const STEP: Duration = Duration::from_millis(50);

/// Whether the service manager looks after the daemon here.
pub fn has_unit(at: &At<'_>) -> bool {
    let unit = || {
        Command::new("systemctl")
            .args(["cat", "shadowmesh.service"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
    };
    !at.paths.moved && Path::new("/run/systemd/system").is_dir() && unit().is_ok_and(|s| s.success())
}

/// Sees to it that a daemon answers; `true`: it was started now.
pub async fn ensure(at: &At<'_>) -> Result<bool, Problem> {
    if at.client.is_running().await? {
        return Ok(false);
    }
    if has_unit(at) {
        systemctl("start")?;
        wait(at, None).await?;
        at.printer.step("daemon", "started (shadowmesh.service)");
    } else {
        background(at).await?;
        at.printer.step("daemon", &format!("started in the background, logs to {}", at.paths.log.display()));
    }
    Ok(true)
}

/// `systemctl VERB shadowmesh`.
pub fn systemctl(verb: &str) -> Result<(), Problem> {
    let output = Command::new("systemctl").args([verb, "shadowmesh.service"]).stdin(Stdio::null()).output();
    let output = output.map_err(|e| Problem::failed(format!("systemctl could not be run: {e}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let why = said.lines().next().unwrap_or("it said nothing").trim_end_matches('.').to_owned();
    let denied = ["denied", "authentication", "Authentication"].iter().any(|w| said.contains(w));
    Err(Problem::new(
        if denied { Exit::NotPermitted } else { Exit::Failed },
        format!("the service did not {verb}: {why}"),
    )
    .fix("Look at why:  journalctl -u shadowmesh -n 20"))
}

async fn background(at: &At<'_>) -> Result<(), Problem> {
    let cannot = |what: &str, e: &std::io::Error| {
        let exit =
            if e.kind() == std::io::ErrorKind::PermissionDenied { Exit::NotPermitted } else { Exit::Failed };
        let p = Problem::new(exit, format!("the daemon could not be started: {what}: {e}"));
        if exit == Exit::NotPermitted { p.fix("Run it as root:  sudo shadowmesh …") } else { p }
    };
    // Its parents as this user makes directories: the daemon has to pass through them as another user.
    let parent = at.paths.state.parent().map_or(Ok(()), std::fs::create_dir_all);
    let made = parent.and_then(|()| match DirBuilder::new().mode(0o700).create(&at.paths.state) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    });
    made.map_err(|e| cannot(&at.paths.state.display().to_string(), &e))?;
    let mut options = File::options();
    options.create(true).append(true).read(true).mode(0o600);
    let mut log = options.open(&at.paths.log).map_err(|e| cannot(&at.paths.log.display().to_string(), &e))?;
    let from = log.seek(SeekFrom::End(0)).unwrap_or(0);
    let program = std::env::current_exe().map_err(|e| cannot("this program", &e))?;
    let copies =
        log.try_clone().and_then(|a| Ok((a, log.try_clone()?))).map_err(|e| cannot("its log", &e))?;
    let child = Command::new(&program)
        .args(["daemon", "--detached"])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(copies.0)
        .stderr(copies.1)
        .spawn()
        .map_err(|e| cannot(&program.display().to_string(), &e))?;
    wait(at, Some((child, log, from))).await
}

/// Waits until it answers. A child that ends before says why in its log.
async fn wait(at: &At<'_>, mut child: Option<(Child, File, u64)>) -> Result<(), Problem> {
    at.printer.waiting("the daemon");
    let mut waited = Duration::ZERO;
    while waited < PATIENCE {
        if at.client.is_running().await? {
            at.printer.clear_waiting();
            return Ok(());
        }
        if let Some((child, log, from)) = &mut child
            && let Ok(Some(status)) = child.try_wait()
        {
            return Err(ended(status.code(), log, *from));
        }
        tokio::time::sleep(STEP).await;
        waited += STEP;
    }
    Err(Problem::new(Exit::NoAnswer, "the daemon was started, and does not answer")
        .fix("Look at why:  shadowmesh logs"))
}

/// What a daemon said before its end, as a problem of ours.
fn ended(code: Option<i32>, log: &mut File, from: u64) -> Problem {
    let mut text = String::new();
    let read = log.seek(SeekFrom::Start(from)).and_then(|_| log.read_to_string(&mut text));
    let exit = match code {
        Some(4) => Exit::NotPermitted,
        Some(6) => Exit::Refused,
        Some(7) => Exit::Config,
        _ => Exit::Failed,
    };
    let said = text.rsplit_once("error: ").map(|(_, said)| said).filter(|_| read.is_ok());
    match said {
        Some(said) => {
            let mut lines = said.lines();
            let mut problem = Problem::new(exit, lines.next().unwrap_or_default());
            problem.fix = lines.map(|l| l.trim().to_owned()).filter(|l| !l.is_empty()).take(5).collect();
            problem
        }
        None => Problem::new(exit, "the daemon ended at once").fix("Look at why:  shadowmesh logs"),
    }
}
