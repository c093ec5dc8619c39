//! The optional configuration file: small, unknown keys refused, every default in one place.

use crate::paths::Paths;
use crate::print;
use serde::Deserialize;
use serde_saphyr::{Spanned, options};
use shadowmesh_control::{Exit, Problem};
use shadowmesh_relay_core::Config as Limits;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use tracing::Level;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Plain, in colour on a terminal.
    Auto,
    /// Plain.
    Plain,
    /// A JSON object a line.
    Json,
}

/// The second port, by which clients learn what their NAT does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StunPort {
    /// The one after that for clients, or any if that is taken.
    Auto,
    /// None.
    Off,
    /// This one.
    Port(u16),
}

impl std::fmt::Display for StunPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StunPort::Auto => f.write_str("auto"),
            StunPort::Off => f.write_str("off"),
            StunPort::Port(port) => port.fmt(f),
        }
    }
}

/// A certificate in PEM with those above it, and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate's file.
    pub certificate: PathBuf,
    /// The key's.
    pub key: PathBuf,
}

/// A public authority that is asked for a certificate (ACME).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// Its directory's URL.
    pub directory: String,
    /// Roots that its own certificate is known by, in PEM; the system's if none.
    pub roots: Option<PathBuf>,
}

/// What `letsencrypt` stands for.
const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";

/// The checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// In place of what `init` was told.
    pub listen: Option<Vec<SocketAddr>>,
    /// A second port, for STUN alone.
    pub stun: StunPort,
    /// Where TCP is listened for clients whose UDP is blocked, in place of where UDP is; empty: nowhere.
    pub tcp: Option<Vec<SocketAddr>>,
    /// The host's own certificate, in place of one that is made.
    pub tls: Option<TlsFiles>,
    /// Who is asked for one.
    pub authority: Option<Authority>,
    /// How many connections there may be over TCP, and of one IPv4 address or IPv6 /56.
    pub tcp_connections: (usize, usize),
    /// For /metrics and its like.
    pub http: Option<SocketAddr>,
    /// What the relay allows.
    pub limits: Limits,
    /// Least severe lines that are logged.
    pub level: Level,
    /// And how.
    pub format: LogFormat,
    /// Keys that stand in the file.
    set: Vec<&'static str>,
}

impl Default for Config {
    fn default() -> Self {
        let (level, format) = (Level::INFO, LogFormat::Auto);
        Config {
            listen: None,
            stun: StunPort::Auto,
            tcp: None,
            tls: None,
            authority: None,
            tcp_connections: (4096, 256),
            http: None,
            limits: Limits::default(),
            level,
            format,
            set: vec![],
        }
    }
}

/// A scalar as it stands in the file, and where.
type Text = Spanned<String>;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Raw {
    listen: Option<Vec<Text>>,
    stun_port: Option<Text>,
    tcp: Option<Vec<Text>>,
    tls: Option<RawTls>,
    http: Option<Text>,
    open: Option<Text>,
    limits: Option<RawLimits>,
    log: Option<RawLog>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawTls {
    certificate: Option<Text>,
    key: Option<Text>,
    acme: Option<Text>,
    acme_roots: Option<Text>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawLimits {
    networks: Option<Text>,
    clients: Option<Text>,
    clients_per_network: Option<Text>,
    clients_per_address: Option<Text>,
    handshakes_per_address: Option<Text>,
    client_rate: Option<Text>,
    network_rate: Option<Text>,
    tcp_connections: Option<Text>,
    tcp_connections_per_address: Option<Text>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawLog {
    level: Option<Text>,
    format: Option<Text>,
}

const COUNT: &str = "a whole number from 1 to 1000000";
const RATE: &str = "bytes a second, like 1.5MiB, or null,";

/// Takes one key's value, if it is there.
struct Take<'a> {
    file: &'a str,
    set: Vec<&'static str>,
}

impl Take<'_> {
    fn one<T>(
        &mut self,
        key: &'static str,
        text: Option<Text>,
        allowed: &str,
        take: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, Problem> {
        let Some(text) = text else { return Ok(None) };
        self.set.push(key);
        let value = text.value.trim();
        take(value).map(Some).ok_or_else(|| {
            let value: String = value.chars().take(60).collect();
            let (file, line) = (self.file, text.referenced.line());
            let what = format!("{file}, line {line}: `{key}` is {value}; {allowed} is allowed");
            Problem::new(Exit::Config, what)
        })
    }

    fn count(&mut self, key: &'static str, text: Option<Text>, into: &mut usize) -> Result<(), Problem> {
        let number = |t: &str| t.parse().ok().filter(|n| (1..=1_000_000).contains(n));
        if let Some(n) = self.one(key, text, COUNT, number)? {
            *into = n;
        }
        Ok(())
    }
}

/// `udp://ADDRESS:PORT`.
pub fn endpoint(text: &str) -> Result<SocketAddr, String> {
    let address = text.strip_prefix("udp://").and_then(|t| t.parse().ok());
    address.ok_or_else(|| "it is written udp://ADDRESS:PORT, like udp://0.0.0.0:443".to_owned())
}

/// `auto`, `off` or a port.
pub fn stun_port(text: &str) -> Result<StunPort, String> {
    match text {
        "auto" => Ok(StunPort::Auto),
        "off" => Ok(StunPort::Off),
        port => match port.parse() {
            Ok(port) if port != 0 => Ok(StunPort::Port(port)),
            _ => Err("it is auto, off, or a port from 1 to 65535".to_owned()),
        },
    }
}

/// Where TCP is listened; nothing: nowhere.
pub type TcpEndpoint = Option<SocketAddr>;

/// `tcp://ADDRESS:PORT`, or `off`.
pub fn tcp_endpoint(text: &str) -> Result<TcpEndpoint, String> {
    if text == "off" {
        return Ok(None);
    }
    let address = text.strip_prefix("tcp://").and_then(|t| t.parse().ok());
    address
        .map(Some)
        .ok_or_else(|| "it is written tcp://ADDRESS:PORT, like tcp://0.0.0.0:443, or off".to_owned())
}

/// Of an authority.
fn directory(text: &str) -> Option<String> {
    match text {
        "letsencrypt" => Some(LETS_ENCRYPT.to_owned()),
        _ => text.strip_prefix("https://").filter(|rest| rest.len() > 3).map(|_| text.to_owned()),
    }
}

/// `500KiB`, `1.5MiB`, `2GiB`, or a number of bytes.
fn size(text: &str) -> Option<u64> {
    let units = [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1), ("", 1)];
    let (number, unit) = units.iter().find_map(|(u, n)| Some((text.strip_suffix(u)?, *n)))?;
    let number: f64 = number.trim().parse().ok()?;
    let bytes = number * unit as f64;
    (bytes.is_finite() && (1024.0..1e15).contains(&bytes)).then_some(bytes as u64)
}

fn parse(file: &str, text: &str) -> Result<Config, Problem> {
    let options = options! { with_snippet: false };
    let raw: Option<Raw> =
        serde_saphyr::from_str_with_options(text, options).map_err(|e| syntax(file, &e))?;
    let raw = raw.unwrap_or_default();
    let (mut take, mut config) = (Take { file, set: vec![] }, Config::default());
    if let Some(list) = raw.listen {
        let all = list.into_iter().map(|t| {
            let one = take.one("listen", Some(t), "udp://ADDRESS:PORT", |t| endpoint(t).ok())?;
            one.ok_or_else(|| Problem::new(Exit::Config, "`listen` is empty"))
        });
        let all = all.collect::<Result<Vec<_>, _>>()?;
        if all.is_empty() {
            let what = format!("{file}: `listen` is empty; at least one udp://ADDRESS:PORT is needed");
            return Err(Problem::new(Exit::Config, what));
        }
        config.listen = Some(all);
    }
    let allowed = "auto, off or a port";
    if let Some(stun) = take.one("stun_port", raw.stun_port, allowed, |t| stun_port(t).ok())? {
        config.stun = stun;
    }
    if let Some(list) = raw.tcp {
        let mut all = vec![];
        for text in list {
            // An empty list is `off`, too.
            all.extend(
                take.one("tcp", Some(text), "tcp://ADDRESS:PORT", |t| tcp_endpoint(t).ok())?.flatten(),
            );
        }
        config.tcp = Some(all);
    }
    let path = |t: &str| Some(PathBuf::from(t)).filter(|p| p.is_absolute());
    let raw_tls = raw.tls.unwrap_or_default();
    let certificate = take.one("tls.certificate", raw_tls.certificate, "an absolute path, or null,", path)?;
    let key = take.one("tls.key", raw_tls.key, "an absolute path, or null,", path)?;
    let allowed = "letsencrypt, an https:// URL of a directory, or null,";
    let directory = take.one("tls.acme", raw_tls.acme, allowed, directory)?;
    let roots = take.one("tls.acme_roots", raw_tls.acme_roots, "an absolute path, or null,", path)?;
    if directory.is_some() && certificate.is_some() {
        let what = format!("{file}: both `tls.acme` and `tls.certificate` are set; one certificate is shown");
        return Err(Problem::new(Exit::Config, what));
    }
    if directory.is_none() && roots.is_some() {
        return Err(Problem::new(
            Exit::Config,
            format!("{file}: `tls.acme_roots` is set, and `tls.acme` is not"),
        ));
    }
    config.authority = directory.map(|directory| Authority { directory, roots });
    config.tls = match (certificate, key) {
        (Some(certificate), Some(key)) => Some(TlsFiles { certificate, key }),
        (None, None) => None,
        _ => {
            let what = format!("{file}: of `tls.certificate` and `tls.key` only one is set");
            return Err(Problem::new(Exit::Config, what));
        }
    };
    config.http = take.one("http", raw.http, "ADDRESS:PORT, or null,", |t| t.parse().ok())?;
    let flag = |t: &str| t.parse().ok();
    if let Some(open) = take.one("open", raw.open, "true or false", flag)? {
        config.limits.open = open;
    }
    let (raw_limits, limits) = (raw.limits.unwrap_or_default(), &mut config.limits);
    take.count("limits.networks", raw_limits.networks, &mut limits.max_networks)?;
    take.count("limits.clients", raw_limits.clients, &mut limits.max_clients)?;
    let per_network = raw_limits.clients_per_network;
    take.count("limits.clients_per_network", per_network, &mut limits.max_clients_per_network)?;
    let per_address = raw_limits.clients_per_address;
    take.count("limits.clients_per_address", per_address, &mut limits.max_clients_per_prefix)?;
    let per_second = |t: &str| t.parse::<f64>().ok().filter(|n| (1.0..=100_000.0).contains(n));
    let allowed = "a number from 1 to 100000, a second,";
    let handshakes = raw_limits.handshakes_per_address;
    if let Some(rate) = take.one("limits.handshakes_per_address", handshakes, allowed, per_second)? {
        limits.handshake_rate = rate;
    }
    limits.client_rate = take.one("limits.client_rate", raw_limits.client_rate, RATE, size)?;
    limits.network_rate = take.one("limits.network_rate", raw_limits.network_rate, RATE, size)?;
    let (all, each) = &mut config.tcp_connections;
    take.count("limits.tcp_connections", raw_limits.tcp_connections, all)?;
    take.count("limits.tcp_connections_per_address", raw_limits.tcp_connections_per_address, each)?;
    let log = raw.log.unwrap_or_default();
    let known = |t: &str| t.parse().ok().filter(|_| t.bytes().all(|b| b.is_ascii_lowercase()));
    if let Some(level) = take.one("log.level", log.level, "error, warn, info, debug or trace", known)? {
        config.level = level;
    }
    let known = |t: &str| match t {
        "auto" => Some(LogFormat::Auto),
        "plain" => Some(LogFormat::Plain),
        "json" => Some(LogFormat::Json),
        _ => None,
    };
    if let Some(format) = take.one("log.format", log.format, "auto, plain or json", known)? {
        config.format = format;
    }
    config.set = take.set;
    Ok(config)
}

/// The library's errors in our form.
fn syntax(file: &str, error: &serde_saphyr::Error) -> Problem {
    let line = error.location().map(|l| format!(", line {}", l.line())).unwrap_or_default();
    let what = match error.without_snippet() {
        serde_saphyr::Error::SerdeUnknownField { field, expected, .. } => {
            format!("{file}{line}: `{field}` is not a key here; allowed are {}", expected.join(", "))
        }
        other => {
            let text = other.to_string();
            let first = text.lines().find(|l| !l.trim().is_empty()).unwrap_or_default();
            format!("{file}{line}: {}", first.trim_start_matches("error: "))
        }
    };
    Problem::new(Exit::Config, what)
}

/// Reads a file; without one that was asked for by name, the defaults.
pub fn read(paths: &Paths, asked: Option<&Path>) -> Result<Config, Problem> {
    let path = asked.unwrap_or(&paths.config);
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&path.display().to_string(), &text),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && asked.is_none() => Ok(Config::default()),
        Err(e) => Err(Problem::new(Exit::Config, format!("{} could not be read: {e}", path.display()))),
    }
}

/// `config check`.
pub fn check(paths: &Paths, file: Option<PathBuf>, json: bool) -> Result<(), Problem> {
    read(paths, file.as_deref())?;
    let path = file.unwrap_or_else(|| paths.config.clone());
    if json {
        let object =
            serde_json::json!({ "schema": "shadowmesh/relay-config-check/1", "file": path, "ok": true });
        print(&object.to_string());
    } else {
        print(&format!("{} is in order", path.display()));
    }
    Ok(())
}

/// `config show`.
pub fn show(paths: &Paths, file: Option<PathBuf>, json: bool) -> Result<(), Problem> {
    let config = read(paths, file.as_deref())?;
    let l = &config.limits;
    let rate = |r: Option<u64>| r.map_or("null".to_owned(), |n| format!("{n}B"));
    let quoted = |a: &SocketAddr| format!("\"udp://{a}\"");
    let listen = config.listen.as_ref().map_or_else(
        || "null".to_owned(),
        |l| format!("[{}]", l.iter().map(quoted).collect::<Vec<_>>().join(", ")),
    );
    let tcp = config.tcp.as_ref().map_or_else(
        || "null".to_owned(),
        |l| format!("[{}]", l.iter().map(|a| format!("\"tcp://{a}\"")).collect::<Vec<_>>().join(", ")),
    );
    let file = |of: fn(&TlsFiles) -> &PathBuf| {
        config.tls.as_ref().map_or("null".to_owned(), |t| of(t).display().to_string())
    };
    let roots = config.authority.as_ref().and_then(|a| a.roots.as_ref());
    let http = config.http.map_or("null".to_owned(), |a| format!("\"{a}\""));
    let format = match config.format {
        LogFormat::Auto => "auto",
        LogFormat::Plain => "plain",
        LogFormat::Json => "json",
    };
    let all: [(&str, String); 20] = [
        ("listen", listen),
        ("stun_port", config.stun.to_string()),
        ("tcp", tcp),
        ("tls.certificate", file(|t| &t.certificate)),
        ("tls.key", file(|t| &t.key)),
        ("tls.acme", config.authority.as_ref().map_or("null".into(), |a| a.directory.clone())),
        ("tls.acme_roots", roots.map_or("null".into(), |r| r.display().to_string())),
        ("http", http),
        ("open", l.open.to_string()),
        ("limits.networks", l.max_networks.to_string()),
        ("limits.clients", l.max_clients.to_string()),
        ("limits.clients_per_network", l.max_clients_per_network.to_string()),
        ("limits.clients_per_address", l.max_clients_per_prefix.to_string()),
        ("limits.handshakes_per_address", l.handshake_rate.to_string()),
        ("limits.client_rate", rate(l.client_rate)),
        ("limits.network_rate", rate(l.network_rate)),
        ("limits.tcp_connections", config.tcp_connections.0.to_string()),
        ("limits.tcp_connections_per_address", config.tcp_connections.1.to_string()),
        ("log.level", config.level.to_string().to_lowercase()),
        ("log.format", format.to_owned()),
    ];
    if json {
        let keys: serde_json::Map<String, serde_json::Value> = all
            .iter()
            .map(|(key, value)| {
                let entry = serde_json::json!({ "value": value, "default": !config.set.contains(key) });
                ((*key).to_owned(), entry)
            })
            .collect();
        print(&serde_json::json!({ "schema": "shadowmesh/relay-config/1", "keys": keys }).to_string());
        return Ok(());
    }
    let mut section = "";
    for (key, value) in &all {
        let (head, name) = key.split_once('.').map_or(("", *key), |(h, n)| (h, n));
        if head != section {
            section = head;
            print(&format!("{head}:"));
        }
        let indent = if head.is_empty() { "" } else { "  " };
        let mark = if config.set.contains(key) { "" } else { "  # default" };
        print(&format!("{indent}{name}: {value}{mark}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../relay.example.yaml");

    /// The example has every key, and each with its default.
    #[test]
    fn the_example_is_the_defaults() {
        let (example, default) = (parse("relay.yaml", EXAMPLE).unwrap(), Config::default());
        assert_eq!(format!("{:?}", example.limits), format!("{:?}", default.limits));
        assert_eq!((example.listen, example.http, example.tcp, example.tls), (None, None, None, None));
        assert_eq!((example.stun, example.tcp_connections), (default.stun, default.tcp_connections));
        assert_eq!((example.level, example.format), (default.level, default.format));
        for key in
            ["listen", "http", "open", "networks", "clients", "clients_per_network", "clients_per_address"]
                .iter()
                .chain(&["handshakes_per_address", "client_rate", "network_rate", "level", "format"])
                .chain(&[
                    "stun_port",
                    "tcp",
                    "tls",
                    "certificate",
                    "key",
                    "acme",
                    "acme_roots",
                    "tcp_connections",
                    "tcp_connections_per_address",
                ])
        {
            assert!(EXAMPLE.contains(&format!("{key}:")), "{key} is not in the example");
        }
    }

    #[test]
    fn mistakes_name_line_key_and_what_is_allowed() {
        let say = |text: &str| parse("relay.yaml", text).unwrap_err();
        let p = say("open: false\nlimits:\n  clients: 0\n");
        assert_eq!(
            p.what,
            "relay.yaml, line 3: `limits.clients` is 0; a whole number from 1 to 1000000 is allowed"
        );
        assert_eq!(p.exit, Exit::Config);
        let p = say("open: false\nlisen: []\n");
        assert!(
            p.what.starts_with(
                "relay.yaml, line 2: `lisen` is not a key here; allowed are listen, stun_port, tcp"
            ),
            "{p}"
        );
        for (text, key) in [
            ("listen: [\"tcp://0.0.0.0:1\"]", "`listen` is tcp"),
            ("listen: []", "`listen` is empty"),
            ("stun_port: 0", "`stun_port` is 0; auto, off or a port is allowed"),
            ("tcp: [\"udp://0.0.0.0:1\"]", "`tcp` is udp"),
            ("tls: {key: a}", "`tls.key` is a"),
            ("tls: {key: /a}", "only one is set"),
            (
                "tls: {acme: http://a.example/dir}",
                "`tls.acme` is http://a.example/dir; letsencrypt, an https:// URL",
            ),
            ("tls: {acme: letsencrypt, certificate: /a, key: /b}", "both `tls.acme` and `tls.certificate`"),
            ("tls: {acme_roots: /a}", "`tls.acme` is not"),
            ("http: 9464", "`http` is 9464"),
            ("limits: {client_rate: 10}", "`limits.client_rate` is 10"),
            ("log: {level: loud}", "`log.level` is loud"),
            ("open: [", "line"),
        ] {
            assert!(say(text).what.contains(key), "{}", say(text));
        }
    }

    #[test]
    fn values_are_taken() {
        let c = parse("f", "http: 127.0.0.1:9464\nlimits: {client_rate: 1.5MiB, clients: 7}\nopen: true\n")
            .unwrap();
        assert_eq!(c.http, Some("127.0.0.1:9464".parse().unwrap()));
        assert_eq!((c.limits.client_rate, c.limits.max_clients, c.limits.open), (Some(1_572_864), 7, true));
        assert!(parse("f", "").is_ok());
        let authority = parse("f", "tls: {acme: letsencrypt}").unwrap().authority.unwrap();
        assert_eq!((&authority.directory[..], authority.roots), (LETS_ENCRYPT, None));
        let stun = |text| parse("f", text).unwrap().stun;
        assert_eq!((stun("stun_port: off"), stun("stun_port: 3478")), (StunPort::Off, StunPort::Port(3478)));
        assert_eq!((stun("stun_port: auto"), stun("")), (StunPort::Auto, StunPort::Auto));
        assert_eq!(parse("f", "tcp: []").unwrap().tcp, Some(vec![]));
        assert_eq!(
            parse("f", "tcp: [\"tcp://[::]:8443\"]").unwrap().tcp,
            Some(vec!["[::]:8443".parse().unwrap()])
        );
        let files = TlsFiles { certificate: "/c".into(), key: "/k".into() };
        assert_eq!(parse("f", "tls: {certificate: /c, key: /k}").unwrap().tls, Some(files));
        assert_eq!(endpoint("udp://[::]:443").unwrap(), "[::]:443".parse().unwrap());
    }
}
