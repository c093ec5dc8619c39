//! `init`, `url`, `token new`: everything that runs once and prints.

use crate::args::Init;
use crate::paths::Paths;
use crate::{print, state};
use shadowmesh_control::Problem;
use shadowmesh_crypto::secret::Secret;
use shadowmesh_host::store::Dir;
use shadowmesh_host::udp::{Udp, UdpError};
use shadowmesh_identity::{HostPort, Seed};
use shadowmesh_proto::Rng;
use shadowmesh_relay_core::Durable;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::{Command, Stdio};

/// The port when none is said.
const PORT: u16 = 443;
const UNIT: &str = "shadowmesh-relay.service";

/// `HOST`, `HOST:PORT`, `[V6]:PORT`, or an IPv6 address by itself.
pub fn public(text: &str) -> Result<HostPort, String> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    let alone = bare.parse::<Ipv6Addr>().is_ok() || !text.contains(':');
    let parsed = if alone { HostPort::new(bare, PORT) } else { text.parse() };
    parsed.map_err(|e| e.to_string())
}

/// Every address of the machine, with this port.
pub fn everywhere(port: u16) -> Vec<SocketAddr> {
    vec![
        SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port),
        SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port),
    ]
}

/// A generator seeded by the system.
pub fn rng() -> Rng {
    Rng::from_seed(*Secret::<32>::random().expose())
}

fn step(what: &str, detail: &str) {
    print(&format!("✓ {what:<34}{detail}"));
}

/// Makes a relay.
pub fn init(paths: &Paths, args: &Init, json: bool) -> Result<(), Problem> {
    if state::exists(paths)? {
        return Err(Problem::failed(format!("there is a relay in {} already", paths.state.display()))
            .fix("Its URL:             shadowmesh-relay url")
            .fix("A URL with a token:  shadowmesh-relay token new"));
    }
    let listen = if args.listen.is_empty() { everywhere(args.public.port()) } else { args.listen.clone() };
    // What cannot be had now would be found out by the service, where nobody looks.
    let bound = Udp::bind(&listen).map_err(|e| taken(&e))?;
    let by_tcp = crate::tcp::bind(&bound.local_addrs());
    if let (false, Err((address, e))) = (json, by_tcp) {
        print(&format!(
            "! tcp {address}: {e}. Clients whose UDP is blocked cannot come; see `tcp` in relay.yaml."
        ));
    }
    drop(bound);

    let dir = Dir::open(&paths.state).map_err(|e| state::stored(&e))?;
    let (seed, mut rng) = (Seed::random(), rng());
    let durable = Durable::new(&mut rng);
    state::create(&dir, &seed, &durable, &args.public, listen.clone())?;
    drop(dir);
    let loaded = state::load(paths)?;
    let identity = paths.state.join("identity");
    let urls: Vec<String> =
        (0..args.tokens).map(|_| loaded.url(Some(loaded.durable.mint(&mut rng))).with_token()).collect();
    let ports = ports(&listen);
    if !json {
        step("identity made", &identity.display().to_string());
    }
    let running = paths.system && start_unit();
    if json {
        print(
            &serde_json::json!({
                "schema": "shadowmesh/relay-init/1",
                "relay": loaded.id.to_string(),
                "url": loaded.url(None).to_string(),
                "urls": urls,
                "identity": identity,
                "listen": listen,
                "running": running,
            })
            .to_string(),
        );
        return Ok(());
    }
    if running {
        step("listening", &ports);
        step(
            "reachable from outside",
            "cannot be known from here; run `shadowmesh netcheck --relay <url>` on another machine",
        );
    } else {
        step("ports are free", &ports);
        print("It does not run yet. Start it:  shadowmesh-relay run");
    }
    if !urls.is_empty() {
        print("Give this to the people who will use it (each URL registers one network):");
        for url in urls {
            print(&format!("  {url}"));
        }
    }
    Ok(())
}

fn ports(listen: &[SocketAddr]) -> String {
    let mut ports: Vec<u16> = listen.iter().map(SocketAddr::port).collect();
    ports.dedup();
    let both = |p: &u16| format!("udp {p}, tcp {p}");
    ports.iter().map(both).collect::<Vec<_>>().join(", ")
}

/// Enables and starts the unit, where there is one; says whether it runs.
fn start_unit() -> bool {
    let systemctl = |arguments: &[&str]| {
        let mut command = Command::new("systemctl");
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|s| s.success())
    };
    std::path::Path::new("/run/systemd/system").is_dir()
        && systemctl(&["cat", UNIT])
        && systemctl(&["enable", "--now", UNIT])
        && systemctl(&["is-active", UNIT])
}

/// Why an address cannot be listened on, with what to do.
pub fn taken(error: &UdpError) -> Problem {
    let problem = Problem::failed(error.to_string());
    match error {
        UdpError::InUse(_) => {
            problem.fix("Choose another port:  --listen udp://0.0.0.0:<port>, and the same in --public")
        }
        UdpError::NoPrivilege(_) => Problem::new(shadowmesh_control::Exit::NotPermitted, error.to_string())
            .fix("Run it as root (sudo), or listen on a port from 1024 up."),
        _ => problem,
    }
}

/// Prints the URL without a token: for people whose network is registered, and for `netcheck`.
pub fn url(paths: &Paths, json: bool) -> Result<(), Problem> {
    let url = state::load(paths)?.url(None).to_string();
    if json {
        print(&serde_json::json!({ "schema": "shadowmesh/relay-url/1", "url": url }).to_string());
    } else {
        print(&url);
    }
    Ok(())
}

/// Prints URLs with fresh tokens. The running relay is not asked: it knows its own tokens by their MAC.
pub fn tokens(paths: &Paths, count: u16, json: bool) -> Result<(), Problem> {
    let (loaded, mut rng) = (state::load(paths)?, rng());
    let urls: Vec<String> =
        (0..count).map(|_| loaded.url(Some(loaded.durable.mint(&mut rng))).with_token()).collect();
    if json {
        print(&serde_json::json!({ "schema": "shadowmesh/relay-token/1", "urls": urls }).to_string());
    } else {
        for url in urls {
            print(&url);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_with_and_without_a_port() {
        let all = [
            ("relay.example.net", "relay.example.net:443"),
            ("relay.example.net:4242", "relay.example.net:4242"),
            ("192.0.2.1", "192.0.2.1:443"),
            ("2001:db8::1", "[2001:db8::1]:443"),
            ("[2001:db8::1]", "[2001:db8::1]:443"),
            ("[2001:db8::1]:99", "[2001:db8::1]:99"),
        ];
        for (text, full) in all {
            assert_eq!(public(text).unwrap().to_string(), full);
        }
        for wrong in ["", "a b", "x:0", "x:99999", "-x"] {
            assert!(public(wrong).is_err(), "{wrong}");
        }
    }
}
