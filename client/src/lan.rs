//! `lan`: announces a node on its LANs by multicast DNS and tells which others do, in a process of its own. The daemon runs
//! it (`daemon/lan.rs` says why); nobody else needs it.

use mdns_sd::{IfKind, ServiceDaemon, ServiceEvent, ServiceInfo};
use nix::sys::resource::{Resource, setrlimit};
use serde::{Deserialize, Serialize};
use shadowmesh_control::Problem;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// What is announced and looked for (RFC 6763 section 4.1).
const SERVICE: &str = "_shadowmesh._udp.local.";
/// The library remembers whatever is said on the LAN: it has so much for that, and ends with it.
const MEMORY: u64 = 32 << 20;
/// Addresses of one instance that are passed on.
const MAX_ADDRESSES: usize = 8;
/// The last words take no longer.
const GOODBYE: Duration = Duration::from_millis(500);

/// What is announced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announced {
    /// Of the instance, and of the host.
    pub name: String,
    /// The port.
    pub port: u16,
    /// Where this machine has it.
    pub addresses: Vec<IpAddr>,
    /// Interfaces by which nothing is said or heard.
    pub without: Vec<String>,
}

/// One that was heard of, a line of JSON each. One without addresses is there no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    /// Its name.
    pub name: String,
    /// Where it says it is.
    pub addresses: Vec<SocketAddr>,
}

/// Announces, and prints who is heard, until the input ends.
///
/// # Errors
///
/// What is to be announced cannot be read, or multicast DNS cannot be spoken here.
pub fn main(text: &str) -> Result<(), Problem> {
    let announced: Announced =
        serde_json::from_str(text).map_err(|e| Problem::failed(format!("this cannot be announced: {e}")))?;
    // What it is started by is called `exe`.
    let _called_otherwise = nix::sys::prctl::set_name(c"shadowmesh-lan");
    // Of what is written to: stacks and heap.
    setrlimit(Resource::RLIMIT_DATA, MEMORY, MEMORY)
        .map_err(|e| Problem::failed(format!("no limit of memory: {e}")))?;
    speak(&announced).map_err(|e| Problem::failed(format!("multicast DNS: {e}")))
}

fn speak(announced: &Announced) -> mdns_sd::Result<()> {
    let daemon = ServiceDaemon::new()?;
    let mut without: Vec<IfKind> = announced.without.iter().map(IfKind::from).collect();
    without.extend([IfKind::LoopbackV4, IfKind::LoopbackV6]);
    daemon.disable_interface(without)?;
    let host = format!("{}.local.", announced.name);
    let service = ServiceInfo::new(
        SERVICE,
        &announced.name,
        &host,
        &announced.addresses[..],
        announced.port,
        &[] as &[(&str, &str)],
    )?;
    daemon.register(service)?;
    let heard = daemon.browse(SERVICE)?;
    let ended = daemon.clone();
    std::thread::spawn(move || {
        // The daemon closes it, also by its own end.
        let _all = std::io::stdin().lock().read_to_end(&mut vec![]);
        if let Ok(done) = ended.shutdown() {
            let _said_or_late = done.recv_timeout(GOODBYE);
        }
        std::process::exit(0);
    });
    for event in heard.iter() {
        let Some(heard) = told(event).filter(|h| h.name != announced.name) else { continue };
        let line = serde_json::to_string(&heard).unwrap_or_default();
        if writeln!(std::io::stdout(), "{line}").is_err() {
            break;
        }
    }
    Ok(())
}

fn told(event: ServiceEvent) -> Option<Heard> {
    let name = |full: &str| Some(full.strip_suffix(SERVICE)?.strip_suffix('.')?.to_ascii_lowercase());
    match event {
        ServiceEvent::ServiceResolved(s) => {
            let mut ips: Vec<IpAddr> = s.addresses.iter().map(|a| a.to_ip_addr()).collect();
            ips.sort();
            ips.truncate(MAX_ADDRESSES);
            let addresses = ips.into_iter().map(|ip| SocketAddr::new(ip, s.port)).collect();
            Some(Heard { name: name(&s.fullname)?, addresses })
        }
        ServiceEvent::ServiceRemoved(_, full) => Some(Heard { name: name(&full)?, addresses: vec![] }),
        _ => None,
    }
}
