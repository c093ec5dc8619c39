//! `network create` and `join`: how a network comes to be here. All or nothing: it is written when everything it needs
//! is there, as a whole.

use super::status::SKEW;
use super::{Daemon, control};
use crate::errand::{self, Machine, Start};
use crate::state::{Meta, NewNetwork};
use crate::tunnel::Target;
use shadowmesh_control::{CreateNetwork, Exit, Join, Line, Problem, Step};
use shadowmesh_crypto::Secret;
use shadowmesh_crypto::sign::SigningKey;
use shadowmesh_host::clock::Clock;
use shadowmesh_identity::fact::Body;
use shadowmesh_identity::{
    Access, Certificate, DAY, Fact, Genesis, Invite, Name, NodeId, RelayUrl, Roles, Seed, address,
};
use shadowmesh_proto::join::{JoinConfig, JoinError, JoinProgress, Joined, Joiner, Registered, Registrar};
use std::net::Ipv4Addr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;

/// A certificate lives that long; admins renew it.
const LIFETIME: u64 = 365 * DAY;
/// The first session with the inviter is waited for that long; it may come later.
const FIRST_PEER: Duration = Duration::from_secs(5);
/// So often a machine may have been revoked in one network.
const MAX_INCARNATION: u32 = 100;

type Lines = mpsc::Sender<Line>;

async fn step(lines: &Lines, what: &str, detail: String) {
    let step = Step { what: what.into(), detail };
    let _asker_went_away = lines.send(Line::Step(step)).await;
}

async fn warn(lines: &Lines, text: String) {
    let _asker_went_away = lines.send(Line::Warning(text)).await;
}

/// For people.
fn ms(d: Duration) -> String {
    let ms = d.as_secs_f64() * 1000.0;
    if ms < 1.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}

fn crypto(what: &str) -> impl Fn(shadowmesh_crypto::Error) -> Problem + '_ {
    move |e| Problem::failed(format!("{what} could not be made: {e}"))
}

fn bad(what: &str, e: impl std::fmt::Display) -> Problem {
    Problem::new(Exit::Usage, format!("{what}: {e}"))
}

/// What this machine is to be called: as asked, as configured, as proposed, or as the machine calls itself.
fn device_name(daemon: &Daemon, asked: Option<&str>, proposed: Option<Name>) -> Result<Name, Problem> {
    if let Some(asked) = asked {
        return asked.parse().map_err(|e| bad(&format!("\"{asked}\" cannot be this machine's name"), e));
    }
    let configured = daemon.config.read().unwrap_or_else(PoisonError::into_inner).name.clone();
    let host = || {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
        Name::from_hint(name.trim())
    };
    let fallback = || "node".parse().ok();
    let name = proposed.or(configured).or_else(host).or_else(fallback);
    name.ok_or_else(|| Problem::failed("this machine has no name; give one with --name"))
}

/// Runs something that blocks on another thread.
async fn apart<R: Send + 'static>(
    work: impl FnOnce() -> Result<R, Problem> + Send + 'static,
) -> Result<R, Problem> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Problem::failed(e.to_string()))?
}

/// Makes a network, and registers it at its relays.
pub async fn create(
    daemon: Arc<Daemon>,
    asked: CreateNetwork,
    lines: Lines,
) -> Result<serde_json::Value, Problem> {
    let _one_at_a_time = daemon.making.lock().await;
    let name: Name =
        asked.name.parse().map_err(|e| bad(&format!("\"{}\" cannot be a network's name", asked.name), e))?;
    if daemon.state.network_names()?.contains(&name) {
        return Err(Problem::failed(format!("there is a network called \"{name}\" here already"))
            .fix(format!("See it:  shadowmesh network show --network {name}")));
    }
    let urls = relay_urls(&daemon, &asked.relays)?;
    let device = device_name(&daemon, asked.device.as_deref(), None)?;
    let (seed, seed_is_new) = match daemon.state.seed()? {
        Some(seed) => (seed, false),
        None => (Seed::random(), true),
    };
    let number = next_root(&daemon).await;
    let root = seed.root_key(number).map_err(crypto("the root key"))?;
    let nonce = *Secret::<16>::random().expose();
    let subnet4 = subnet(&daemon, asked.subnet.as_deref(), &nonce).await?;
    let unix = Clock::new().unix();
    let genesis = Genesis { name: name.clone(), root: root.public().clone(), created: unix, nonce, subnet4 };
    let network = genesis.id();
    let identity = seed.identity_key(&network, 0).map_err(crypto("the identity"))?;
    let node = NodeId::of(identity.public());
    let (ipv4, _) = address::assign_ipv4(subnet4, &node, |_| false)
        .ok_or_else(|| Problem::failed("the subnet has no free address"))?;
    step(&lines, "identity", format!("{device}  {}", node.short())).await;

    let signed = |n: u64, body: Body, by_root: bool, subject: NodeId| {
        let key = if by_root { &root } else { &identity };
        Fact::sign(key, network, subject, n, unix, &body)
            .map(|f| f.into_fact().bytes().to_vec())
            .map_err(|e| Problem::failed(e.to_string()))
    };
    let certificate = Certificate {
        key: identity.public().clone(),
        name: device.clone(),
        roles: Roles::ADMIN.with(Roles::MEMBER),
        tags: vec![],
        ipv4: Some(ipv4),
        // An hour back: the others' clocks may be a little behind.
        not_before: unix.saturating_sub(3600),
        not_after: unix + LIFETIME,
        serial: *Secret::<16>::random().expose(),
        bridge: super::admin::bridge(&asked.bridge)?,
    };
    let mut facts = vec![signed(1, Body::Certificate(certificate), true, node)?];
    let mut owners = vec![];
    for (n, url) in urls.into_iter().enumerate() {
        let registered = register(&daemon, &url, &lines).await?;
        let access =
            Access { address: url.address.clone(), tag: registered.tag, secret: registered.access, ended: 0 };
        facts.push(signed(n as u64 + 2, Body::Access(access), false, url.relay)?);
        owners.push((url.relay, registered.owner));
        let rtt = registered.rtt.map(|r| format!("  {}", ms(r))).unwrap_or_default();
        step(&lines, "relay", format!("{}{rtt}", url.address)).await;
    }
    if seed_is_new {
        daemon.state.store_seed(&seed)?;
    }
    let meta = Meta { incarnation: 0, device: device.to_string(), port: 0, up: true, root: Some(number) };
    daemon.state.add_network(&name, &NewNetwork { genesis, facts, meta, owners })?;
    let prefix6 = address::prefix6(&network);
    step(&lines, "network", format!("{name}  {}/{}, {prefix6}/64", subnet4.0, subnet4.1)).await;
    up(&daemon, &name, &lines).await
}

/// Joins a network by an invite.
pub async fn join(daemon: Arc<Daemon>, asked: Join, lines: Lines) -> Result<serde_json::Value, Problem> {
    let _one_at_a_time = daemon.making.lock().await;
    let invite: Invite = asked.url.parse().map_err(|e| bad("this is no invite", e))?;
    let network = invite.network;
    for n in daemon.networks.lock().await.values() {
        if n.genesis.id() == network {
            if let Some(ended) = n.failure.as_ref().filter(|_| n.is_ended()) {
                return Err(ended.clone());
            }
            return Err(Problem::failed(format!("this machine is in \"{}\" already", n.name))
                .fix("See how it is:  shadowmesh status")
                .fix(format!("To join anew:  shadowmesh leave --network {}", n.name)));
        }
    }
    let device = device_name(&daemon, asked.device.as_deref(), invite.name.clone())?;
    let name = daemon.state.free_name(&invite.network_name)?;
    let seed = daemon.state.seed()?.unwrap_or_else(Seed::random);
    let mut incarnation = daemon.state.incarnation(&network)?;
    let mut revoked = None;
    let (joined, node) = loop {
        let identity = Arc::new(seed.identity_key(&network, incarnation).map_err(crypto("the identity"))?);
        let node = NodeId::of(identity.public());
        match ask(&daemon, &asked.url, &seed, identity, device.clone(), &lines).await? {
            Ok(joined) => break (joined, node),
            // A revoked identity never comes back; the seed has others, and the invite is not used up by asking.
            Err(JoinError::Revoked(why)) if incarnation < MAX_INCARNATION => {
                incarnation += 1;
                revoked = Some(why);
            }
            Err(e @ (JoinError::Used(_) | JoinError::Expired(_) | JoinError::Refused(_))) => {
                // By the revoked identity itself, perhaps.
                return Err(match revoked {
                    Some(why) => errand::problem(&JoinError::Revoked(format!("{why}, and {e}"))),
                    None => errand::problem(&e),
                });
            }
            Err(e) => return Err(errand::problem(&e)),
        }
    };
    if revoked.is_some() {
        daemon.state.set_incarnation(&network, incarnation)?;
    }
    let parsed: Vec<Fact> = joined.facts.iter().filter_map(|f| Fact::parse(f).ok()).collect();
    let certificate =
        |of: NodeId| parsed.iter().filter(|f| f.subject() == of).filter_map(|f| f.certificate()).next_back();
    let inviter = certificate(joined.inviter).map_or_else(|| joined.inviter.short(), |c| c.name.to_string());
    let device = certificate(node).map_or(device, |c| c.name.clone());
    step(&lines, "invite", format!("{name}, from {inviter}")).await;
    if joined.skew > SKEW {
        let behind = crate::cli::print::age(joined.skew as f64);
        let text =
            format!("this machine's clock is {behind} behind {inviter}'s; set it:  timedatectl set-ntp true");
        warn(&lines, text).await;
    }
    step(&lines, "certificate", "verified (ML-DSA-87 + Ed25519)".into()).await;
    step(&lines, "identity", format!("{device}  {}", node.short())).await;
    let meta = Meta { incarnation, device: device.to_string(), port: 0, up: true, root: None };
    let new = NewNetwork { genesis: joined.genesis, facts: joined.facts, meta, owners: vec![] };
    daemon.state.add_network(&name, &new)?;
    let done = up(&daemon, &name, &lines).await?;
    first_peer(&daemon, &name, joined.inviter, &inviter, &lines).await;
    Ok(done)
}

/// Asks the inviter for a certificate. The seed is stored when that goes out, and not before: an invite that was used for
/// an identity which a crash forgot would be lost, and who gets no further may have other words to restore.
async fn ask(
    daemon: &Daemon,
    url: &str,
    seed: &Seed,
    identity: Arc<SigningKey>,
    name: Name,
    lines: &Lines,
) -> Result<Result<Joined, JoinError>, Problem> {
    let invite: Invite = url.parse().map_err(|e| bad("this is no invite", e))?;
    let suites = daemon.config.read().unwrap_or_else(PoisonError::into_inner).crypto.preferred();
    let (state, mut waiting) = (daemon.state.clone(), waiting_lines(lines));
    let mut unstored = state.seed()?.is_none().then(|| Seed::new(seed.secret().duplicate()));
    let watch = move |joiner: &Joiner| {
        if matches!(joiner.progress(), JoinProgress::Claim | JoinProgress::Bundle)
            && let Some(seed) = unstored.take()
        {
            state.store_seed(&seed)?;
        }
        waiting(joiner.waiting());
        Ok(())
    };
    apart(move || {
        let (mut relays, mut targets, mut unknown) = (vec![], vec![], None);
        for meeting in &invite.relays {
            match errand::resolve(&meeting.address) {
                Ok(address) => {
                    relays.push((meeting.relay, address));
                    let (relay, place) = (meeting.relay, meeting.address.clone());
                    targets.push(Target { relay, place, address: Some(address) });
                }
                Err(p) => unknown = Some(p),
            }
        }
        if let (true, Some(p)) = (relays.is_empty(), unknown) {
            return Err(p);
        }
        let config = JoinConfig { invite, relays, identity, name, suites };
        errand::run(targets, |s: Start| Joiner::new(config, s.now, s.unix, s.seed), watch)
    })
    .await
}

/// Waits a little for the first session, since that is what people look for next.
async fn first_peer(daemon: &Arc<Daemon>, name: &Name, peer: NodeId, called: &str, lines: &Lines) {
    let Ok((_, engine)) = daemon.engine(name.as_str()).await else { return };
    let _asker_went_away = lines.send(Line::Waiting(format!("a first answer of {called}"))).await;
    let (to, mut pongs) = mpsc::channel(4);
    let asked = engine.call(move |inside| inside.ping(&peer, to).is_some()).await;
    if !matches!(asked, Ok(true)) {
        return;
    }
    if let Ok(Some(pong)) = tokio::time::timeout(FIRST_PEER, pongs.recv()).await {
        let how = match pong.source {
            shadowmesh_proto::handshake::Source::Udp(_) => "direct",
            shadowmesh_proto::handshake::Source::Relay { .. } => "through relay",
        };
        step(lines, &format!("peer {called}"), format!("{how}, {}", ms(pong.rtt))).await;
    }
}

/// Starts what was stored, and says so.
async fn up(daemon: &Arc<Daemon>, name: &Name, lines: &Lines) -> Result<serde_json::Value, Problem> {
    match daemon.open(name).await {
        Ok(()) => {}
        // Where /dev/net/tun is root's alone, only a daemon that starts gets a device: the command sees to that.
        Err(p) if p.exit == Exit::NotPermitted => {
            return Ok(serde_json::json!({ "restart": true, "name": name.to_string(), "why": p.what }));
        }
        Err(mut p) => {
            p.what = format!("\"{name}\" is here now, but not up: {}", p.what);
            return Err(p);
        }
    }
    let status = control::status_of(daemon, name.as_str()).await?;
    let address = status.ipv4.clone().unwrap_or_else(|| status.ipv6.clone());
    step(lines, "up", format!("{}  {address}", status.interface)).await;
    for warning in &status.problems {
        warn(lines, warning.clone()).await;
    }
    Ok(serde_json::json!({ "network": status }))
}

fn relay_urls(daemon: &Daemon, asked: &[String]) -> Result<Vec<RelayUrl>, Problem> {
    let mut urls: Vec<RelayUrl> = vec![];
    for text in asked {
        let url: RelayUrl = text.parse().map_err(|e| bad("this is no relay's URL", e))?;
        urls.push(url);
    }
    let config = daemon.config.read().unwrap_or_else(PoisonError::into_inner);
    for url in &config.relays {
        // A copy by way of the text: the token cannot be cloned by accident.
        urls.extend(url.with_token().parse::<RelayUrl>());
    }
    let mut seen = std::collections::BTreeSet::new();
    urls.retain(|u| seen.insert(u.relay));
    Ok(urls)
}

/// One root key a network.
async fn next_root(daemon: &Daemon) -> u32 {
    let networks = daemon.networks.lock().await;
    networks.values().filter_map(|n| n.meta.root).max().map_or(0, |n| n + 1)
}

async fn register(daemon: &Daemon, url: &RelayUrl, lines: &Lines) -> Result<Registered, Problem> {
    let suites = daemon.config.read().unwrap_or_else(PoisonError::into_inner).crypto.preferred();
    let (relay, place) = (url.relay, url.address.clone());
    let token = url.token.as_ref().map(|t| *t.expose());
    let mut waiting = waiting_lines(lines);
    let watch = move |registrar: &Registrar| {
        waiting(registrar.waiting());
        Ok(())
    };
    apart(move || {
        let address = errand::resolve(&place)?;
        let targets = vec![Target { relay, place, address: Some(address) }];
        let make = |s: Start| Registrar::new(relay, address, token, suites, s.now, s.unix, s.seed);
        errand::run(targets, make, watch)?.map_err(|e| errand::problem(&e))
    })
    .await
    .map_err(|mut p| {
        p.what = format!("{}: {}", url.address, p.what);
        p
    })
}

/// Says what is waited for, when that changes.
fn waiting_lines(lines: &Lines) -> impl FnMut(&'static str) + Send + 'static {
    let (lines, mut told) = (lines.clone(), "");
    move |what| {
        if what != told {
            told = what;
            // Shown if there is room; nothing depends on it.
            let _full = lines.try_send(Line::Waiting(what.to_owned()));
        }
    }
}

/// The network's IPv4 subnet: as asked, or one that overlaps nothing on this machine.
async fn subnet(daemon: &Daemon, asked: Option<&str>, seed: &[u8]) -> Result<(Ipv4Addr, u8), Problem> {
    let allowed = "a private network like 10.83.0.0/16 (prefix length 8 to 30) is allowed";
    if let Some(text) = asked {
        let parsed = text.split_once('/').and_then(|(a, n)| Some((a.parse().ok()?, n.parse().ok()?)));
        let (address, len): (Ipv4Addr, u8) =
            parsed.ok_or_else(|| Problem::new(Exit::Usage, format!("--subnet is {text}; {allowed}")))?;
        let host_bits = u32::MAX.checked_shr(len.into()).unwrap_or(0);
        if !(8..=30).contains(&len) || address.to_bits() & host_bits != 0 || !address.is_private() {
            return Err(Problem::new(Exit::Usage, format!("--subnet is {text}; {allowed}")));
        }
        return Ok((address, len));
    }
    let routes = daemon.netlink.local_routes_v4().await.map_err(|e| Problem::failed(e.to_string()))?;
    let mut taken: Vec<_> = routes.into_iter().map(|r| (r.network, r.prefix)).collect();
    taken.extend(daemon.networks.lock().await.values().map(|n| n.genesis.subnet4));
    address::choose_subnet(&taken, seed).ok_or_else(|| {
        Problem::failed("no private IPv4 network is free on this machine")
            .fix("Name one:  --subnet 10.83.0.0/16")
    })
}
