//! `upnp`: one request to a router by UPnP, in a process that ends with it. The daemon runs it (`daemon/upnp.rs` says why);
//! nobody else needs it.

use igd_next::aio::Gateway;
use igd_next::aio::tokio::{Tokio, search_gateway};
use igd_next::{AddPortError, PortMappingProtocol, SearchOptions};
use nix::sys::resource::{Resource, setrlimit};
use serde::{Deserialize, Serialize};
use shadowmesh_control::Problem;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::time::timeout;

/// A search lasts so long, and whoever else answers first is passed over so often.
const SEARCH: Duration = Duration::from_millis(2500);
const SEARCHES: u32 = 2;
/// A request is answered by then.
const ANSWER: Duration = Duration::from_secs(2);
/// A document of a router, and the tree that the library makes of it: who answers has so much, and ends with it.
const MEMORY: u64 = 32 << 20;
/// How a mapping is called in the router's list.
const DESCRIPTION: &str = "ShadowMesh";

/// What is asked of the router, by this machine's address as the router sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Asked {
    /// Its address outside.
    Address { router: Ipv4Addr, own: Ipv4Addr },
    /// That its UDP port `external` lead to `port` here, for so many seconds.
    Add { router: Ipv4Addr, own: Ipv4Addr, external: u16, port: u16, seconds: u32 },
    /// That it lead here no more.
    Remove { router: Ipv4Addr, own: Ipv4Addr, external: u16 },
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Said {
    /// The address outside.
    Address(Ipv4Addr),
    /// It is so.
    Done,
    /// Another machine has that port.
    Taken,
    /// In words why not.
    Failed(String),
}

impl Said {
    /// What is said when another answer was waited for.
    pub fn as_error(&self) -> String {
        match self {
            Said::Failed(why) => why.clone(),
            Said::Taken => "its port is taken".into(),
            Said::Address(_) | Said::Done => "an answer to something else".into(),
        }
    }
}

/// Asks, and prints the answer.
///
/// # Errors
///
/// What was asked cannot be read, or nothing can be run.
pub fn main(text: &str) -> Result<String, Problem> {
    let asked: Asked =
        serde_json::from_str(text).map_err(|e| Problem::failed(format!("this cannot be asked: {e}")))?;
    // What it is started by is called `exe`.
    let _called_otherwise = nix::sys::prctl::set_name(c"shadowmesh-upnp");
    // Of what is written to: stacks and heap.
    setrlimit(Resource::RLIMIT_DATA, MEMORY, MEMORY)
        .map_err(|e| Problem::failed(format!("no limit of memory: {e}")))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Problem::failed(format!("nothing can be run here: {e}")))?;
    let said = runtime.block_on(ask(&asked)).unwrap_or_else(Said::Failed);
    serde_json::to_string(&said).map_err(|e| Problem::failed(e.to_string()))
}

async fn ask(asked: &Asked) -> Result<Said, String> {
    match *asked {
        Asked::Address { router, own } => {
            let gateway = find(router, own).await?;
            match within(gateway.get_external_ip()).await?.map_err(|e| e.to_string())? {
                IpAddr::V4(ip) => Ok(Said::Address(ip)),
                IpAddr::V6(_) => Err("it has no IPv4 address outside".into()),
            }
        }
        Asked::Add { router, own, external, port, mut seconds } => {
            let (gateway, here) = (find(router, own).await?, SocketAddr::new(own.into(), port));
            loop {
                let asked = gateway.add_port(PortMappingProtocol::UDP, external, here, seconds, DESCRIPTION);
                match within(asked).await? {
                    Ok(()) => return Ok(Said::Done),
                    // One without end stays until it is removed: renewing it does no harm.
                    Err(AddPortError::OnlyPermanentLeasesSupported) if seconds > 0 => seconds = 0,
                    Err(AddPortError::PortInUse) => return Ok(Said::Taken),
                    Err(e) => return Err(e.to_string()),
                }
            }
        }
        Asked::Remove { router, own, external } => {
            let gateway = find(router, own).await?;
            let removed = within(gateway.remove_port(PortMappingProtocol::UDP, external)).await?;
            removed.map(|()| Said::Done).map_err(|e| e.to_string())
        }
    }
}

async fn within<T>(request: impl Future<Output = T>) -> Result<T, String> {
    timeout(ANSWER, request).await.map_err(|_| "no answer".to_owned())
}

/// Looks for the router; nobody else is asked anything.
async fn find(router: Ipv4Addr, own: Ipv4Addr) -> Result<Gateway<Tokio>, String> {
    let mut why = String::from("no answer");
    for _ in 0..SEARCHES {
        let mut options = SearchOptions::default();
        // The address chooses the interface, too.
        options.bind_addr = SocketAddr::new(own.into(), 0);
        (options.timeout, options.single_search_timeout) = (Some(SEARCH), Some(SEARCH));
        match search_gateway(options).await {
            Ok(gateway) if gateway.addr.ip() == IpAddr::V4(router) => return Ok(gateway),
            Ok(other) => why = format!("{} answered, which is not the router", other.addr.ip()),
            Err(e) => why = e.to_string(),
        }
    }
    Err(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_said_and_what_is_no_router_too() {
        assert!(main("{}").is_err());
        let nobody = Ipv4Addr::new(127, 0, 83, 9);
        let asked = Asked::Remove { router: nobody, own: Ipv4Addr::LOCALHOST, external: 9 };
        let said = main(&serde_json::to_string(&asked).unwrap()).unwrap();
        assert!(matches!(serde_json::from_str(&said).unwrap(), Said::Failed(_)), "{said}");
    }
}
