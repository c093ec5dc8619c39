//! The configuration: small, all optional, unknown keys refused. Defaults stand here and nowhere else.

mod read;
mod show;

pub use crate::tunnel::Proxy as Proxied;
pub use read::duration;
use shadowmesh_control::{Exit, Problem};
use shadowmesh_crypto::aead::{Suite, has_aes};
use shadowmesh_identity::{HostPort, Name, NodeId, RelayUrl};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// The smallest and largest MTU of a device.
pub const MTU: std::ops::RangeInclusive<u16> = 1280..=9216;
/// Threads that data can move on, for each direction: a session has lanes for three.
pub const MAX_DATA_THREADS: u8 = shadowmesh_proto::THREADS as u8 - 1;
/// Between rekeys.
pub const REKEY: std::ops::RangeInclusive<Duration> = Duration::from_secs(2)..=Duration::from_secs(3600);

/// The configuration, checked.
#[derive(Debug)]
pub struct Config {
    /// This node's name in networks it makes or joins; without one, the machine's.
    pub name: Option<Name>,
    /// Who may change things besides root.
    pub operator: Option<Operator>,
    /// Where UDP is listened; port 0: one is chosen and kept.
    pub listen: Vec<SocketAddr>,
    /// Relays besides those the networks bring.
    pub relays: Vec<RelayUrl>,
    /// STUN servers besides the relays.
    pub stun: Vec<HostPort>,
    /// The HTTP proxy by which a relay is reached where nothing else leads to it, besides that of the environment.
    pub http_proxy: Option<Proxied>,
    /// Look for paths without a relay.
    pub direct: bool,
    /// Ask the router for a port.
    pub port_mapping: bool,
    /// Look for members on the same network.
    pub lan_discovery: bool,
    /// Threads that data moves on, for each direction, 0 for none of their own; `None`: as there are cores for them.
    pub data_threads: Option<u8>,
    /// Ciphers and keys.
    pub crypto: Crypto,
    /// What differs for a network, by its name.
    pub networks: BTreeMap<Name, Network>,
    /// The local proxy.
    pub proxy: Proxy,
    /// Where metrics are served over TCP; nothing: nowhere.
    pub metrics: Option<SocketAddr>,
    /// What is logged.
    pub log: Log,
    /// Keys that the file sets, as paths (`crypto.rekey`).
    set: BTreeSet<String>,
}

/// Who may change things besides root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operator {
    /// By number.
    Uid(u32),
    /// By name.
    User(String),
}

/// Ciphers and keys.
#[derive(Debug, Clone, PartialEq)]
pub struct Crypto {
    /// Allowed cipher suites.
    pub suites: Vec<Suite>,
    /// Between rekeys.
    pub rekey: Duration,
    /// Always: there is no handshake without the post-quantum half.
    pub require_post_quantum: bool,
}

impl Crypto {
    /// The suites, the one that this machine does faster first.
    pub fn preferred(&self) -> Vec<Suite> {
        let mut suites = self.suites.clone();
        suites.sort_by_key(|s| (*s == Suite::Aes256Gcm) != has_aes());
        suites
    }
}

/// What differs for one network.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    /// The device's name.
    pub interface: String,
    /// Largest payload of a frame.
    pub mtu: u16,
    /// A Linux bridge to join.
    pub bridge: Option<String>,
    /// What of the other members' services this machine takes.
    pub accept: Accept,
    /// Known addresses of peers, by name.
    pub peers: BTreeMap<PeerName, Vec<SocketAddr>>,
}

/// A peer in the configuration.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum PeerName {
    /// By its name.
    Name(Name),
    /// By its NodeId.
    Node(NodeId),
}

/// What of the other members' services this machine takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accept {
    /// Names.
    pub dns: bool,
    /// Addresses from a member's DHCP server.
    pub dhcp: bool,
    /// Addresses and routes from a member's router advertisements.
    pub router_advertisements: bool,
}

/// The local proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Hops of its circuits.
    pub hops: u8,
}

/// What is logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub level: tracing::Level,
    /// How.
    pub format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Colours on a terminal, plain elsewhere.
    Auto,
    /// Plain lines.
    Plain,
    /// A JSON object a line.
    Json,
}

impl Network {
    /// The defaults for the network of this name.
    pub fn default_for(name: &Name) -> Self {
        // An interface's name has 15 bytes.
        let short: String = name.as_str().chars().take(12).collect();
        Network {
            interface: format!("sm-{}", short.trim_end_matches('-')),
            mtu: 1500,
            bridge: None,
            accept: Accept { dns: true, dhcp: false, router_advertisements: false },
            peers: BTreeMap::new(),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Config {
            name: None,
            operator: None,
            listen: vec![SocketAddr::from(([0; 4], 0)), SocketAddr::from(([0u8; 16], 0))],
            relays: vec![],
            stun: vec![],
            http_proxy: None,
            direct: true,
            port_mapping: true,
            lan_discovery: true,
            data_threads: None,
            crypto: Crypto {
                suites: vec![Suite::Aes256Gcm, Suite::ChaCha20Poly1305],
                rekey: Duration::from_secs(120),
                require_post_quantum: true,
            },
            networks: BTreeMap::new(),
            proxy: Proxy { listen: SocketAddr::from(([127, 0, 0, 1], 1080)), hops: 1 },
            metrics: None,
            log: Log { level: tracing::Level::INFO, format: LogFormat::Auto },
            set: BTreeSet::new(),
        }
    }
}

impl Config {
    /// Reads a file; without one there are the defaults.
    ///
    /// # Errors
    ///
    /// A [`Problem`] that names file, line, key, value and what is allowed.
    pub fn load(path: &Path) -> Result<Self, Problem> {
        match std::fs::read_to_string(path) {
            Ok(text) => Config::parse(&path.display().to_string(), &text),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Config::default()),
            Err(e) => Err(Problem::new(Exit::Config, format!("{} cannot be read: {e}", path.display()))),
        }
    }

    /// Takes the text of a file; `file` is for messages.
    ///
    /// # Errors
    ///
    /// As [`Config::load`].
    pub fn parse(file: &str, text: &str) -> Result<Self, Problem> {
        read::parse(file, text)
    }

    /// All of it as YAML, what the file does not set marked as default.
    pub fn show(&self) -> String {
        show::yaml(self)
    }

    /// All of it as JSON.
    pub fn json(&self) -> serde_json::Value {
        show::json(self)
    }

    /// Keys whose values differ in another configuration, as paths.
    pub fn differences(&self, other: &Config) -> Vec<String> {
        let mut keys = vec![];
        show::differences("", &self.json(), &other.json(), &mut keys);
        keys
    }

    /// What holds for a network.
    pub fn network(&self, name: &Name) -> Network {
        self.networks.get(name).cloned().unwrap_or_else(|| Network::default_for(name))
    }

    /// The operator's user id, if one is configured and exists.
    pub fn operator_uid(&self) -> Option<u32> {
        match self.operator.as_ref()? {
            Operator::Uid(uid) => Some(*uid),
            Operator::User(name) => Some(nix::unistd::User::from_name(name).ok()??.uid.as_raw()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../../docs/config.example.yaml");

    fn problem(text: &str) -> String {
        Config::parse("config.yaml", text).unwrap_err().to_string()
    }

    #[test]
    fn the_example_has_every_key_at_its_default() {
        let example = Config::parse("example", EXAMPLE).unwrap();
        let home: Name = "home".parse().unwrap();
        let mut default = Config::default();
        let mut network = Network::default_for(&home);
        network.peers = example.networks[&home].peers.clone();
        assert_eq!(network.peers.len(), 1);
        default.networks.insert(home, network);
        default.name = Some("laptop".parse().unwrap());
        // Nothing but the name and the one peer is other than without a file.
        let plain = |c: &Config| {
            c.show()
                .lines()
                .map(|l| l.split("  #").next().unwrap_or(l).trim_end().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(plain(&example), plain(&default));
        // And no key is left out of it.
        let missing: Vec<_> =
            default.show().lines().filter(|l| l.ends_with("# default")).map(str::to_owned).collect();
        assert!(missing.len() > 15, "{missing:?}");
        assert!(!example.show().contains("# default"), "{}", example.show());
    }

    #[test]
    fn what_is_shown_loads_again() {
        for config in [Config::default(), Config::parse("e", EXAMPLE).unwrap()] {
            let again = Config::parse("shown", &config.show()).unwrap();
            assert_eq!(again.show().replace("  # default", ""), config.show().replace("  # default", ""));
        }
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        for text in ["", "# nothing\n", "---\n", "networks:\n"] {
            let config = Config::parse("f", text).unwrap();
            assert_eq!(
                config.show().matches("# default").count(),
                Config::default().show().matches("# default").count(),
                "{text}"
            );
        }
    }

    #[test]
    fn errors_name_file_line_key_value_and_what_is_allowed() {
        for (text, said) in [
            (
                "networks:\n  home:\n    mtu: 20000\n",
                "config.yaml, line 3: `networks.home.mtu` is 20000; a whole number from 1280 to 9216 is allowed.",
            ),
            (
                "crypto: {rekey: 1}\n",
                "config.yaml, line 1: `crypto.rekey` is 1; a duration from 2s to 1h, like 30s or 2m, is allowed.",
            ),
            (
                "port_mapping: maybe\n",
                "config.yaml, line 1: `port_mapping` is maybe; auto or off is allowed.",
            ),
            (
                "http_proxy: ftp://a\n",
                "config.yaml, line 1: `http_proxy` is ftp://a; http://[USER:PASSWORD@]HOST:PORT, or null, is allowed.",
            ),
            ("direct: auto\n", "config.yaml, line 1: `direct` is auto; true or false is allowed."),
            (
                "listen: [\"tcp://0.0.0.0:0\"]\n",
                "config.yaml, line 1: `listen` is tcp://0.0.0.0:0; udp://ADDRESS:PORT is allowed.",
            ),
            (
                "stun: [\"stun:example.net\"]\n",
                "config.yaml, line 1: `stun` is stun:example.net; stun://HOST:PORT is allowed.",
            ),
            (
                "crypto:\n  suites: [des]\n",
                "config.yaml, line 2: `crypto.suites` is des; aes-256-gcm or chacha20-poly1305 is allowed.",
            ),
            (
                "crypto: {require_post_quantum: false}\n",
                "config.yaml, line 1: `crypto.require_post_quantum` is false; true is allowed: there is no session without it.",
            ),
            (
                "name: My Laptop\n",
                "config.yaml, line 1: `name` is My Laptop; a name is 1 to 63 of a-z, 0-9 and -, and neither begins nor ends with -.",
            ),
            (
                "networks:\n  home: {interface: a-very-long-interface-name}\n",
                "config.yaml, line 2: `networks.home.interface` is a-very-long-interface-name; a name of 1 to 15 letters, digits, `-`, `_` and `.` is allowed.",
            ),
        ] {
            assert_eq!(problem(text), said);
        }
        let unknown = problem("\nmut: 3\n");
        assert!(
            unknown.starts_with(
                "config.yaml, line 2: `mut` is not a key here; allowed are name, operator, listen"
            ),
            "{unknown}"
        );
        for (text, part) in [
            ("name: [a]\n", "line 1"),
            ("name: a\nname: b\n", "line 2"),
            ("a: [\n", "config.yaml, line"),
            ("networks: {home: {mtu: 1400, mtu: 1500}}\n", "mtu"),
        ] {
            assert!(problem(text).contains(part), "{}", problem(text));
        }
    }

    #[test]
    fn values_are_taken_as_written() {
        let config = Config::parse(
            "f",
            "operator: 1000\ndirect: false\nport_mapping: off\ndata_threads: off\ncrypto: {rekey: 90s, suites: [chacha20-poly1305]}\n\
             networks: {home: {interface: tap0, peers: {nas: {endpoints: [\"udp://192.0.2.7:41990\", \"udp://[2001:db8::1]:1\"]}}}}\n\
             metrics: {listen: \"127.0.0.1:9000\"}\nlog: {level: debug, format: json}\n",
        )
        .unwrap();
        assert_eq!(config.operator, Some(Operator::Uid(1000)));
        assert!(!config.direct && !config.port_mapping && config.data_threads == Some(0));
        assert_eq!(config.crypto.rekey, Duration::from_secs(90));
        assert_eq!(config.network(&"home".parse().unwrap()).interface, "tap0");
        assert_eq!(config.networks.values().next().unwrap().peers.values().next().unwrap().len(), 2);
        assert_eq!(config.metrics, Some("127.0.0.1:9000".parse().unwrap()));
        assert_eq!(config.log.format, LogFormat::Json);
        assert_eq!(
            Network::default_for(&"a-name-of-many-letters".parse().unwrap()).interface,
            "sm-a-name-of-ma"
        );
    }
}
