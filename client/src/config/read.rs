//! From the file's text to the checked configuration.

use super::{Accept, Config, Log, LogFormat, MAX_DATA_THREADS, MTU, Network, Operator, PeerName, REKEY};
use serde::Deserialize;
use serde_saphyr::{Spanned, options};
use shadowmesh_control::{Exit, Problem};
use shadowmesh_crypto::aead::Suite;
use shadowmesh_identity::{Name, NodeId};
use std::collections::HashMap;
use std::fmt::Display;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

/// A scalar as it stands in the file, and where.
type Text = Spanned<String>;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Raw {
    name: Option<Text>,
    operator: Option<Text>,
    listen: Option<Vec<Text>>,
    relays: Option<Vec<Text>>,
    stun: Option<Vec<Text>>,
    http_proxy: Option<Text>,
    direct: Option<Text>,
    port_mapping: Option<Text>,
    lan_discovery: Option<Text>,
    data_threads: Option<Text>,
    crypto: Option<RawCrypto>,
    networks: Option<HashMap<Text, Option<RawNetwork>>>,
    proxy: Option<RawProxy>,
    metrics: Option<RawMetrics>,
    log: Option<RawLog>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawCrypto {
    suites: Option<Vec<Text>>,
    rekey: Option<Text>,
    require_post_quantum: Option<Text>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawNetwork {
    interface: Option<Text>,
    mtu: Option<Text>,
    bridge: Option<Text>,
    accept: Option<RawAccept>,
    peers: Option<HashMap<Text, Option<RawPeer>>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawAccept {
    dns: Option<Text>,
    dhcp: Option<Text>,
    router_advertisements: Option<Text>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawPeer {
    endpoints: Option<Vec<Text>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawProxy {
    listen: Option<Text>,
    hops: Option<Text>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawMetrics {
    listen: Option<Text>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawLog {
    level: Option<Text>,
    format: Option<Text>,
}

/// Where we are: for messages, and to note what is set.
struct At<'a> {
    file: &'a str,
    config: Config,
}

impl At<'_> {
    /// What is wrong with a value.
    fn bad(&self, key: &str, text: &Text, allowed: impl Display) -> Problem {
        let line = text.referenced.line();
        let (file, value) = (self.file, shortened(&text.value));
        let what = format!("{file}, line {line}: `{key}` is {value}; {allowed}");
        // What an identity's parser says is a sentence already.
        Problem::new(Exit::Config, what)
    }

    /// A scalar, by a function that may refuse it; `null` is as if it were not there.
    fn one<T>(
        &mut self,
        key: &str,
        text: Option<Text>,
        allowed: &str,
        take: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, Problem> {
        let Some(text) = text else { return Ok(None) };
        match take(text.value.trim()) {
            Some(value) => {
                self.config.set.insert(key.to_owned());
                Ok(Some(value))
            }
            None => Err(self.bad(key, &text, format_args!("{allowed} is allowed"))),
        }
    }

    /// A scalar with a parser that says what is wrong by itself.
    fn parsed<T: FromStr<Err: Display>>(
        &mut self,
        key: &str,
        text: Option<Text>,
    ) -> Result<Option<T>, Problem> {
        let Some(text) = text else { return Ok(None) };
        let value = text.value.trim().parse().map_err(|e| self.bad(key, &text, e))?;
        self.config.set.insert(key.to_owned());
        Ok(Some(value))
    }

    fn list<T>(
        &mut self,
        key: &str,
        list: Option<Vec<Text>>,
        allowed: &str,
        take: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<Vec<T>>, Problem> {
        let Some(list) = list else { return Ok(None) };
        let all = list.into_iter().map(|text| {
            take(text.value.trim()).ok_or_else(|| self.bad(key, &text, format_args!("{allowed} is allowed")))
        });
        let all = all.collect::<Result<Vec<T>, Problem>>()?;
        self.config.set.insert(key.to_owned());
        Ok(Some(all))
    }

    fn flag(&mut self, key: &str, text: Option<Text>) -> Result<Option<bool>, Problem> {
        self.one(key, text, "true or false", |t| match t {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        })
    }
}

fn shortened(value: &str) -> String {
    if value.chars().count() <= 60 {
        value.to_owned()
    } else {
        value.chars().take(60).chain(['…']).collect()
    }
}

pub(super) fn parse(file: &str, text: &str) -> Result<Config, Problem> {
    let options = options! { with_snippet: false };
    let raw: Option<Raw> =
        serde_saphyr::from_str_with_options(text, options).map_err(|e| syntax(file, &e))?;
    let raw = raw.unwrap_or_default();
    let mut at = At { file, config: Config::default() };
    let udp = "udp://ADDRESS:PORT";

    at.config.name = at.parsed("name", raw.name)?;
    at.config.operator = at.one("operator", raw.operator, "a user's name or number", operator)?;
    if let Some(listen) = at.list("listen", raw.listen, udp, endpoint)? {
        at.config.listen = listen;
    }
    for relay in raw.relays.iter().flatten() {
        let url = relay.value.parse().map_err(|e| at.bad("relays", relay, e))?;
        at.config.relays.push(url);
    }
    if raw.relays.is_some() {
        at.config.set.insert("relays".into());
    }
    let server = |t: &str| t.strip_prefix("stun://")?.parse().ok();
    if let Some(stun) = at.list("stun", raw.stun, "stun://HOST:PORT", server)? {
        at.config.stun = stun;
    }
    let allowed = "http://[USER:PASSWORD@]HOST:PORT, or null,";
    at.config.http_proxy = at.one("http_proxy", raw.http_proxy, allowed, |t| t.parse().ok())?;
    if let Some(direct) = at.flag("direct", raw.direct)? {
        at.config.direct = direct;
    }
    let on = |t: &str| [("auto", true), ("off", false)].iter().find(|(k, _)| *k == t).map(|(_, v)| *v);
    if let Some(on) = at.one("port_mapping", raw.port_mapping, "auto or off", on)? {
        at.config.port_mapping = on;
    }
    if let Some(on) = at.flag("lan_discovery", raw.lan_discovery)? {
        at.config.lan_discovery = on;
    }
    let threads = |t: &str| match t {
        "auto" => Some(None),
        "off" => Some(Some(0)),
        "on" => Some(Some(1)),
        n => n.parse().ok().filter(|n| (1..=MAX_DATA_THREADS).contains(n)).map(Some),
    };
    if let Some(threads) = at.one(
        "data_threads",
        raw.data_threads,
        "auto, off, or how many for each direction, 1 to 3",
        threads,
    )? {
        at.config.data_threads = threads;
    }
    crypto(&mut at, raw.crypto.unwrap_or_default())?;
    for (name, raw) in raw.networks.unwrap_or_default() {
        let known: Name = name.value.parse().map_err(|e| at.bad("networks", &name, e))?;
        let network = network(&mut at, &known, raw.unwrap_or_default())?;
        at.config.networks.insert(known, network);
    }
    let proxy = raw.proxy.unwrap_or_default();
    if let Some(listen) = at.one("proxy.listen", proxy.listen, "ADDRESS:PORT", |t| t.parse().ok())? {
        at.config.proxy.listen = listen;
    }
    let hops = |t: &str| t.parse().ok().filter(|n| (1..=5).contains(n));
    if let Some(hops) = at.one("proxy.hops", proxy.hops, "a whole number from 1 to 5", hops)? {
        at.config.proxy.hops = hops;
    }
    let metrics = raw.metrics.unwrap_or_default();
    at.config.metrics =
        at.one("metrics.listen", metrics.listen, "ADDRESS:PORT, or null,", |t| t.parse().ok())?;
    log(&mut at, raw.log.unwrap_or_default())?;
    Ok(at.config)
}

fn crypto(at: &mut At<'_>, raw: RawCrypto) -> Result<(), Problem> {
    let suites = at.list("crypto.suites", raw.suites, "aes-256-gcm or chacha20-poly1305", |t| match t {
        "aes-256-gcm" => Some(Suite::Aes256Gcm),
        "chacha20-poly1305" => Some(Suite::ChaCha20Poly1305),
        _ => None,
    })?;
    if let Some(suites) = suites {
        if suites.is_empty() {
            let what = format!("{}: `crypto.suites` is empty; at least one is needed", at.file);
            return Err(Problem::new(Exit::Config, what));
        }
        at.config.crypto.suites = suites;
    }
    let rekey = |t: &str| duration(t).filter(|d| REKEY.contains(d));
    let allowed = "a duration from 2s to 1h, like 30s or 2m,";
    if let Some(rekey) = at.one("crypto.rekey", raw.rekey, allowed, rekey)? {
        at.config.crypto.rekey = rekey;
    }
    if let Some(text) = &raw.require_post_quantum
        && text.value.trim() == "false"
    {
        let allowed = "true is allowed: there is no session without it";
        return Err(at.bad("crypto.require_post_quantum", text, allowed));
    }
    at.flag("crypto.require_post_quantum", raw.require_post_quantum)?;
    Ok(())
}

fn network(at: &mut At<'_>, name: &Name, raw: RawNetwork) -> Result<Network, Problem> {
    let key = |k: &str| format!("networks.{name}.{k}");
    let mut network = Network::default_for(name);
    let device = |t: &str| {
        let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        (matches!(t.len(), 1..=15) && t.bytes().all(fine) && t != "." && t != "..").then(|| t.to_owned())
    };
    let allowed = "a name of 1 to 15 letters, digits, `-`, `_` and `.`";
    if let Some(interface) = at.one(&key("interface"), raw.interface, allowed, device)? {
        network.interface = interface;
    }
    let allowed = format!("a whole number from {} to {}", MTU.start(), MTU.end());
    let mtu = |t: &str| t.parse().ok().filter(|n| MTU.contains(n));
    if let Some(mtu) = at.one(&key("mtu"), raw.mtu, &allowed, mtu)? {
        network.mtu = mtu;
    }
    network.bridge = at.one(&key("bridge"), raw.bridge, "the name of a bridge, or null,", device)?;
    let accept = raw.accept.unwrap_or_default();
    let Accept { dns, dhcp, router_advertisements } = network.accept;
    network.accept = Accept {
        dns: at.flag(&key("accept.dns"), accept.dns)?.unwrap_or(dns),
        dhcp: at.flag(&key("accept.dhcp"), accept.dhcp)?.unwrap_or(dhcp),
        router_advertisements: at
            .flag(&key("accept.router_advertisements"), accept.router_advertisements)?
            .unwrap_or(router_advertisements),
    };
    if raw.peers.is_some() {
        at.config.set.insert(key("peers"));
    }
    for (peer, raw) in raw.peers.unwrap_or_default() {
        let known = match (peer.value.parse::<NodeId>(), peer.value.parse::<Name>()) {
            (Ok(node), _) => PeerName::Node(node),
            (_, Ok(name)) => PeerName::Name(name),
            (_, Err(e)) => return Err(at.bad(&key("peers"), &peer, e)),
        };
        let endpoints = raw.and_then(|p| p.endpoints);
        let key = key(&format!("peers.{}.endpoints", peer.value));
        let addresses =
            at.list(&key, endpoints, "udp://ADDRESS:PORT", |t| endpoint(t).filter(|a| a.port() != 0))?;
        network.peers.insert(known, addresses.unwrap_or_default());
    }
    Ok(network)
}

fn log(at: &mut At<'_>, raw: RawLog) -> Result<(), Problem> {
    let Log { level, format } = at.config.log.clone();
    let known = |t: &str| t.parse().ok().filter(|_| t.bytes().all(|b| b.is_ascii_lowercase()));
    let level = at.one("log.level", raw.level, "error, warn, info, debug or trace", known)?.unwrap_or(level);
    let known = |t: &str| match t {
        "auto" => Some(LogFormat::Auto),
        "plain" => Some(LogFormat::Plain),
        "json" => Some(LogFormat::Json),
        _ => None,
    };
    let format = at.one("log.format", raw.format, "auto, plain or json", known)?.unwrap_or(format);
    at.config.log = Log { level, format };
    Ok(())
}

fn operator(text: &str) -> Option<Operator> {
    if let Ok(uid) = text.parse() {
        return Some(Operator::Uid(uid));
    }
    let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'@');
    (matches!(text.len(), 1..=64) && text.bytes().all(fine)).then(|| Operator::User(text.to_owned()))
}

fn endpoint(text: &str) -> Option<SocketAddr> {
    text.strip_prefix("udp://")?.parse().ok()
}

/// `30s`, `2m`, `24h`, `7d`, `250ms`: a whole number and its unit.
pub fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let seconds = |n: u64| number.checked_mul(n).map(Duration::from_secs);
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => seconds(1),
        "m" => seconds(60),
        "h" => seconds(3600),
        "d" => seconds(86_400),
        _ => None,
    }
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
