//! Two machines of an [`Internet`] make a network: how soon they reach each other, and by which path.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::Value;
use shadowmesh_host::clock::Clock;

use crate::{Internet, Machine};

/// A command that has not ended by then has failed.
const PATIENCE: Duration = Duration::from_secs(15);

/// How a machine reaches a peer, as it says.
#[derive(Debug, Clone, PartialEq)]
pub struct PathTo {
    /// `direct`, `relay` or `none`.
    pub path: String,
    /// The address, or the relay's place.
    pub via: String,
}

/// How two machines came to reach each other; times from when they began.
#[derive(Debug, Clone, PartialEq)]
pub struct Met {
    /// The first ping through the mesh was answered.
    pub first: Option<Duration>,
    /// Both said that the other is reached directly.
    pub direct: Option<Duration>,
    /// What each said in the end.
    pub paths: [Option<PathTo>; 2],
}

impl Machine {
    /// A command, to its end, without showing it. What it said is the error of one that failed or did not end.
    pub fn quietly(&self, arguments: &[&str]) -> Result<String, String> {
        let process = self.start(arguments[0], arguments);
        // The log is that of all commands of this name.
        let before = process.output().len();
        let clock = Clock::new();
        let status = loop {
            match process.exit_status() {
                None if clock.now() < PATIENCE => std::thread::sleep(Duration::from_millis(2)),
                ended => break ended,
            }
        };
        let said = process.output().get(before..).unwrap_or_default().to_owned();
        match status {
            Some(s) if s.success() => Ok(said),
            Some(s) => Err(format!("{arguments:?}: {s}: {said}")),
            None => Err(format!("{arguments:?} did not end: {said}")),
        }
    }

    /// What its daemon answers on the control socket; nothing while there is none. For asking often: no process is started.
    pub fn get(&self, path: &str) -> Option<Value> {
        let mut stream = UnixStream::connect(self.directory.join("run/control.sock")).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: shadowmesh\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        serde_json::from_str(text.split_once("\r\n\r\n")?.1).ok()
    }

    fn network(&self, key: &str) -> Option<Value> {
        Some(self.get("/v1/status")?["networks"][0][key].clone())
    }

    /// Its overlay IPv4 address.
    pub fn overlay(&self) -> String {
        let value = self.network("ipv4").unwrap_or_default();
        value.as_str().unwrap_or_else(|| panic!("{} has no address", self.host.name())).to_owned()
    }

    /// How it reaches a peer now.
    pub fn path_to(&self, peer: &Machine) -> Option<PathTo> {
        let peers = self.network("peers")?;
        let peer = peers.as_array()?.iter().find(|p| p["name"] == peer.host.name())?;
        let text = |key: &str| peer[key].as_str().unwrap_or_default().to_owned();
        Some(PathTo { path: text("path"), via: text("via") })
    }

    /// Whether both say that they reach each other in that way.
    pub fn both_by(&self, peer: &Machine, path: &str) -> bool {
        [self.path_to(peer), peer.path_to(self)].iter().flatten().filter(|p| p.path == path).count() == 2
    }
}

/// The first makes a network at the internet's relay, the second joins it. Returns when `join` has.
pub fn meet(internet: &Internet, a: &Machine, b: &Machine) -> Result<(), String> {
    let [one, two] = [a.host.name(), b.host.name()];
    a.quietly(&["network", "create", "home", "--relay", &internet.urls[0], "--device", one])?;
    wait(|| a.network("relays").is_some_and(|r| r[0]["up"] == true)).ok_or("no relay link stands")?;
    let url = a.quietly(&["invite", two])?;
    b.quietly(&["join", url.trim(), "--name", two])?;
    Ok(())
}

/// The second one's daemon ends, all routers forget what went between the two, and a new daemon starts. Returns when `up`
/// has.
pub fn meet_again(internet: &Internet, a: &Machine, b: &Machine) -> Result<(), String> {
    b.quietly(&["down"])?;
    // It has said goodbye; what is said of the path is then of the new one.
    wait(|| a.path_to(b).is_none_or(|p| p.path != "direct")).ok_or("the first holds on to the old path")?;
    internet.forget_flows(a, b);
    b.quietly(&["up"])?;
    Ok(())
}

/// From now on: the second pings the first through the mesh until it is answered; and both are watched for that long, or
/// until both say that the path is direct.
pub fn watch(a: &Machine, b: &Machine, patience: Duration) -> Met {
    let clock = Clock::new();
    let (first, direct) = std::thread::scope(|scope| {
        let direct = scope.spawn(|| {
            while clock.now() < patience {
                if a.both_by(b, "direct") {
                    return Some(clock.now());
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            None
        });
        (first_answer(a, b, &clock, patience), direct.join().expect("the one that watches"))
    });
    Met { first, direct, paths: [a.path_to(b), b.path_to(a)] }
}

fn first_answer(a: &Machine, b: &Machine, clock: &Clock, patience: Duration) -> Option<Duration> {
    let mut to = None;
    while clock.now() < patience {
        to = to.or_else(|| Some(a.network("ipv4")?.as_str()?.to_owned()));
        let ping = |to: &String| b.host.try_run("ping", &["-n", "-c", "1", "-W", "1", to]).status.success();
        if to.as_ref().is_some_and(ping) {
            return Some(clock.now());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}

fn wait(mut holds: impl FnMut() -> bool) -> Option<()> {
    let clock = Clock::new();
    while clock.now() < PATIENCE {
        if holds() {
            return Some(());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}
