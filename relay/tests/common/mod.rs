//! The shipped binary in a process of its own. (Its clients: `tests/clients`.)
#![allow(dead_code, clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// A state directory of its own, removed at the end.
pub struct Dir(pub PathBuf);

impl Dir {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("sm-relay-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Dir(dir)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_shadowmesh-relay"));
        c.args(arguments).env("SHADOWMESH_DIR", &self.0).stdin(Stdio::null());
        c
    }

    pub fn call(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Standard output of a command that must succeed.
    pub fn say(&self, arguments: &[&str]) -> String {
        let o = self.call(arguments);
        assert!(o.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&o.stderr));
        String::from_utf8(o.stdout).unwrap()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _left = std::fs::remove_dir_all(&self.0);
    }
}

/// A running relay; killed when it is dropped.
pub struct Process {
    pub child: Child,
    pub udp: SocketAddr,
    /// The second port.
    pub stun: Option<SocketAddr>,
    pub http: SocketAddr,
    /// The first address for TCP, if there is one.
    pub tcp: Option<SocketAddr>,
}

impl Process {
    pub fn start(dir: &Dir, listen: &str) -> Self {
        Self::start_as(dir, listen, &["--allow-root"])
    }

    pub fn start_as(dir: &Dir, listen: &str, who: &[&str]) -> Self {
        let listen = format!("udp://{listen}");
        let mut arguments = vec!["--json", "run", "--http", "127.0.0.1:0", "--listen", &listen];
        arguments.extend(who);
        let mut child = dir.command(&arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said: serde_json::Value = serde_json::from_str(&line).unwrap();
        let address = |v: &serde_json::Value| v.as_str().unwrap().parse().unwrap();
        let stun = said["stun"].get(0).map(address);
        let tcp = said["tcp"][0].as_str().map(|t| t.parse().unwrap());
        Process { child, udp: address(&said["listen"][0]), stun, http: address(&said["http"]), tcp }
    }

    pub fn get(&self, path: &str) -> (u16, String) {
        use std::io::{Read, Write};
        let mut s = std::net::TcpStream::connect(self.http).unwrap();
        write!(s, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        s.read_to_string(&mut text).unwrap();
        (text[9..12].parse().unwrap(), text)
    }

    /// One number out of /metrics.
    pub fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.get("/metrics");
        let line = text.lines().find(|l| l.starts_with(&format!("shadowmesh_relay_{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).rsplit(' ').next().unwrap().parse().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}
