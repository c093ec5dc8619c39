//! The whole configuration as it holds, for people and for programs.

use super::{Config, LogFormat, Network, Operator, PeerName};
use serde_json::{Value, json};
use shadowmesh_crypto::aead::Suite;
use std::fmt::Write;
use std::time::Duration;

/// Each key on a line, in the order of the example file; what the file does not set ends in `# default`.
pub(super) fn yaml(config: &Config) -> String {
    let mut out = Out { config, text: String::new() };
    let list = |items: Vec<String>| format!("[{}]", items.join(", "));
    let quoted = |t: String| format!("\"{t}\"");
    out.key(0, "name", "name", config.name.as_ref().map_or("null".into(), ToString::to_string));
    let operator = match &config.operator {
        None => "null".into(),
        Some(Operator::Uid(uid)) => uid.to_string(),
        Some(Operator::User(name)) => name.clone(),
    };
    out.key(0, "operator", "operator", operator);
    out.key(
        0,
        "listen",
        "listen",
        list(config.listen.iter().map(|a| quoted(format!("udp://{a}"))).collect()),
    );
    out.key(0, "relays", "relays", list(config.relays.iter().map(|r| quoted(r.to_string())).collect()));
    let stun = config.stun.iter().map(|s| quoted(format!("stun://{s}"))).collect();
    out.key(0, "stun", "stun", list(stun));
    // Without its login; what is shown is copied into tickets.
    let proxy = config.http_proxy.as_ref().map_or("null".into(), |p| quoted(p.to_string()));
    out.key(0, "http_proxy", "http_proxy", proxy);
    out.key(0, "direct", "direct", config.direct.to_string());
    out.key(0, "port_mapping", "port_mapping", if config.port_mapping { "auto" } else { "off" }.into());
    out.key(0, "lan_discovery", "lan_discovery", config.lan_discovery.to_string());
    out.key(0, "data_threads", "data_threads", threads(config));
    out.head(0, "crypto");
    out.key(
        1,
        "suites",
        "crypto.suites",
        list(config.crypto.suites.iter().map(|s| suite(*s).into()).collect()),
    );
    out.key(1, "rekey", "crypto.rekey", duration(config.crypto.rekey));
    let required = config.crypto.require_post_quantum.to_string();
    out.key(1, "require_post_quantum", "crypto.require_post_quantum", required);
    out.head(0, "networks");
    for (name, network) in &config.networks {
        out.head(1, name.as_str());
        out.network(name.as_str(), network);
    }
    out.head(0, "proxy");
    out.key(1, "listen", "proxy.listen", quoted(config.proxy.listen.to_string()));
    out.key(1, "hops", "proxy.hops", config.proxy.hops.to_string());
    out.head(0, "metrics");
    let metrics = config.metrics.map_or("null".into(), |a| quoted(a.to_string()));
    out.key(1, "listen", "metrics.listen", metrics);
    out.head(0, "log");
    out.key(1, "level", "log.level", config.log.level.to_string().to_lowercase());
    out.key(1, "format", "log.format", format(config.log.format).into());
    out.text
}

struct Out<'a> {
    config: &'a Config,
    text: String,
}

impl Out<'_> {
    fn head(&mut self, depth: usize, name: &str) {
        let _infallible = writeln!(self.text, "{}{name}:", "  ".repeat(depth));
    }

    fn key(&mut self, depth: usize, name: &str, path: &str, value: String) {
        // A key that the example sets to null is set, too; only its value is none.
        let mark = if self.config.set.contains(path) || value == "null" { "" } else { "  # default" };
        let _infallible = writeln!(self.text, "{}{name}: {value}{mark}", "  ".repeat(depth));
    }

    fn network(&mut self, name: &str, network: &Network) {
        let path = |k: &str| format!("networks.{name}.{k}");
        self.key(2, "interface", &path("interface"), network.interface.clone());
        self.key(2, "mtu", &path("mtu"), network.mtu.to_string());
        self.key(2, "bridge", &path("bridge"), network.bridge.clone().unwrap_or_else(|| "null".into()));
        self.head(2, "accept");
        self.key(3, "dns", &path("accept.dns"), network.accept.dns.to_string());
        self.key(3, "dhcp", &path("accept.dhcp"), network.accept.dhcp.to_string());
        let taken = network.accept.router_advertisements.to_string();
        self.key(3, "router_advertisements", &path("accept.router_advertisements"), taken);
        if network.peers.is_empty() {
            self.key(2, "peers", &path("peers"), "{}".into());
            return;
        }
        self.head(2, "peers");
        for (peer, addresses) in &network.peers {
            let list: Vec<_> = addresses.iter().map(|a| format!("\"udp://{a}\"")).collect();
            let peer = peer_name(peer);
            let _infallible = writeln!(self.text, "      {peer}: {{endpoints: [{}]}}", list.join(", "));
        }
    }
}

fn peer_name(peer: &PeerName) -> String {
    match peer {
        PeerName::Name(name) => name.to_string(),
        PeerName::Node(node) => node.to_string(),
    }
}

fn suite(suite: Suite) -> &'static str {
    match suite {
        Suite::Aes256Gcm => "aes-256-gcm",
        Suite::ChaCha20Poly1305 => "chacha20-poly1305",
    }
}

fn format(format: LogFormat) -> &'static str {
    match format {
        LogFormat::Auto => "auto",
        LogFormat::Plain => "plain",
        LogFormat::Json => "json",
    }
}

/// In the largest unit that leaves a whole number.
fn duration(d: Duration) -> String {
    let ms = d.as_millis();
    [(3_600_000, "h"), (60_000, "m"), (1000, "s")]
        .iter()
        .find(|(n, _)| ms.is_multiple_of(*n) && ms >= *n)
        .map_or_else(|| format!("{ms}ms"), |(n, unit)| format!("{}{unit}", ms / n))
}

/// Paths at which two objects differ.
pub(super) fn differences(path: &str, a: &Value, b: &Value, into: &mut Vec<String>) {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            let keys: std::collections::BTreeSet<_> = x.keys().chain(y.keys()).collect();
            for key in keys {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                let at = |o: &serde_json::Map<String, Value>| o.get(key).cloned().unwrap_or(Value::Null);
                if key != "set" {
                    differences(&path, &at(x), &at(y), into);
                }
            }
        }
        _ if a != b => into.push(path.to_owned()),
        _ => {}
    }
}

/// Everything as it holds; `set` names what the file says.
pub(super) fn json(config: &Config) -> Value {
    let networks: serde_json::Map<String, Value> = config
        .networks
        .iter()
        .map(|(name, n)| {
            let peers: serde_json::Map<String, Value> = n
                .peers
                .iter()
                .map(|(p, a)| {
                    let endpoints: Vec<_> = a.iter().map(|a| format!("udp://{a}")).collect();
                    (peer_name(p), json!({ "endpoints": endpoints }))
                })
                .collect();
            let accept = json!({
                "dns": n.accept.dns, "dhcp": n.accept.dhcp,
                "router_advertisements": n.accept.router_advertisements,
            });
            let value = json!({
                "interface": n.interface, "mtu": n.mtu, "bridge": n.bridge, "accept": accept, "peers": peers,
            });
            (name.to_string(), value)
        })
        .collect();
    json!({
        "schema": "shadowmesh/config-show/1",
        "set": config.set,
        "name": config.name.as_ref().map(ToString::to_string),
        "operator": config.operator.as_ref().map(|o| match o {
            Operator::Uid(uid) => json!(uid),
            Operator::User(name) => json!(name),
        }),
        "listen": config.listen.iter().map(|a| format!("udp://{a}")).collect::<Vec<_>>(),
        "relays": config.relays.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "stun": config.stun.iter().map(|s| format!("stun://{s}")).collect::<Vec<_>>(),
        "http_proxy": config.http_proxy.as_ref().map(ToString::to_string),
        "direct": config.direct,
        "port_mapping": config.port_mapping,
        "lan_discovery": config.lan_discovery,
        "data_threads": threads(config),
        "crypto": {
            "suites": config.crypto.suites.iter().map(|s| suite(*s)).collect::<Vec<_>>(),
            "rekey": config.crypto.rekey.as_secs_f64(),
            "require_post_quantum": config.crypto.require_post_quantum,
        },
        "networks": networks,
        "proxy": {"listen": config.proxy.listen.to_string(), "hops": config.proxy.hops},
        "metrics": {"listen": config.metrics.map(|a| a.to_string())},
        "log": {"level": config.log.level.to_string().to_lowercase(), "format": format(config.log.format)},
    })
}

fn threads(config: &Config) -> String {
    match config.data_threads {
        None => "auto".into(),
        Some(0) => "off".into(),
        Some(n) => n.to_string(),
    }
}
