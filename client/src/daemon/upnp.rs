//! Ports of a router by UPnP (Internet Gateway Device), asked for in a process of its own.
//!
//! Whoever on the LAN answers first sends XML, and the library makes a tree of it, seventy times its size. So that is a
//! child with a limit of memory, which lives as long as a request, and the daemon reads one line of it.

use crate::upnp::{Asked, Said};
use shadowmesh_crypto::Secret;
use std::net::Ipv4Addr;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::timeout;

/// A child has said all by then.
const ANSWER: Duration = Duration::from_secs(8);
/// And that is no longer.
const LONGEST: u64 = 4096;
/// External ports that are tried when the one wished for is taken.
const PORTS: usize = 4;

/// The router, as one that maps ports.
#[derive(Debug, Clone)]
pub struct Service {
    router: Ipv4Addr,
    /// Our address, as the router sees it.
    own: Ipv4Addr,
    external: Ipv4Addr,
}

/// Looks for the router.
pub async fn find(router: Ipv4Addr, own: Ipv4Addr) -> Result<Service, String> {
    let external = match ask(&Asked::Address { router, own }).await? {
        Said::Address(ip) => ip,
        other => return Err(other.as_error()),
    };
    Ok(Service { router, own, external })
}

/// Has a child ask, and reads its answer.
async fn ask(asked: &Asked) -> Result<Said, String> {
    let text = serde_json::to_string(asked).map_err(|e| e.to_string())?;
    let mut child = Command::new("/proc/self/exe")
        .args(["upnp", &text])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| format!("no process for it: {e}"))?;
    let mut answer = vec![];
    let pipe = child.stdout.take().ok_or("no pipe")?;
    let read = timeout(ANSWER, pipe.take(LONGEST).read_to_end(&mut answer)).await;
    read.map_err(|_| "no answer".to_owned())?.map_err(|e| e.to_string())?;
    // It has closed its output, or is ended with this.
    drop(child);
    serde_json::from_slice(&answer).map_err(|_| "what it answers cannot be read".into())
}

impl Service {
    /// The router's address outside.
    pub fn external_address(&self) -> Ipv4Addr {
        self.external
    }

    /// Has a port outside, `wished` or another, lead to `port` here, for `lifetime`. Gives the port outside, and for how
    /// long it is so.
    pub async fn add(&self, wished: u16, port: u16, lifetime: Duration) -> Result<(u16, Duration), String> {
        let random = Secret::<{ 2 * PORTS }>::random();
        let others = random.expose().chunks(2).map(|b| u16::from_be_bytes([b[0], b[1]]) | 0x8000);
        let seconds = lifetime.as_secs() as u32;
        for external in std::iter::once(wished).chain(others) {
            let (router, own) = (self.router, self.own);
            match ask(&Asked::Add { router, own, external, port, seconds }).await? {
                Said::Done => return Ok((external, lifetime)),
                Said::Taken => {}
                other => return Err(other.as_error()),
            }
        }
        Err("its ports are taken".into())
    }

    /// Takes a mapping away.
    pub async fn remove(&self, external: u16) -> Result<(), String> {
        match ask(&Asked::Remove { router: self.router, own: self.own, external }).await? {
            Said::Done => Ok(()),
            other => Err(other.as_error()),
        }
    }
}
