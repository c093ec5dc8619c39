//! What an admin does: invites, revoking; and what every member may: up, down, leave.

use super::control::{Refused, Shared, no_network, status_of};
use super::network;
use axum::Json;
use axum::extract::{Path, State};
use shadowmesh_control::{CreateInvite, Exit, Invite, InviteEntry, Invites, Problem, Revoke, rfc3339};
use shadowmesh_crypto::Hash;
use shadowmesh_identity::book::{Record, Terms};
use shadowmesh_identity::fact::{Reason, Roles};
use shadowmesh_identity::{Bridge, Name, Seed};
use shadowmesh_proto::AdminError;

/// Hexadecimal digits of an invite's id, as people see it.
const ID_LEN: usize = 10;
/// An invite lives at most that long, seconds.
const MAX_EXPIRES: u64 = 30 * 86_400;

type Answer<T> = Result<Json<T>, Refused>;

fn gone(e: crate::engine::Gone) -> Problem {
    Problem::failed(e.to_string())
}

fn refused(error: &AdminError) -> Problem {
    let p = Problem::new(
        match error {
            AdminError::NotAdmin | AdminError::NeedsRoot => Exit::Refused,
            AdminError::Unknown => Exit::Usage,
            _ => Exit::Failed,
        },
        error.to_string(),
    );
    match error {
        AdminError::NotAdmin => p.fix("Ask an admin; who is one:  shadowmesh peers"),
        AdminError::NeedsRoot => p.fix("Do it on the machine that made the network."),
        AdminError::NoRelay => {
            p.fix("Make the network with a relay:  shadowmesh network create NAME --relay URL")
        }
        _ => p,
    }
}

fn stored(trouble: Option<String>) -> Result<(), Problem> {
    match trouble {
        None => Ok(()),
        Some(t) => {
            Err(Problem::failed(format!("it could not be stored: {t}")).fix("Make room, then try again."))
        }
    }
}

fn id_of(locator: &Hash) -> String {
    locator.iter().take(ID_LEN / 2).map(|b| format!("{b:02x}")).collect()
}

pub async fn create_invite(
    State(daemon): Shared,
    Path(name): Path<String>,
    Json(asked): Json<CreateInvite>,
) -> Answer<Invite> {
    let usage = |what: String| Problem::new(Exit::Usage, what);
    let parse = |what: &str, text: &str| {
        text.parse::<Name>().map_err(|e| usage(format!("\"{text}\" cannot be a {what}: {e}")))
    };
    let roles = match asked.role.as_deref() {
        None | Some("member") => Roles::MEMBER,
        Some("guest") => Roles::GUEST,
        Some("relay") => Roles::MEMBER.with(Roles::RELAY),
        Some("exit") => Roles::MEMBER.with(Roles::EXIT),
        Some("admin") => {
            return Err(usage("an invite makes no admins: only the network's root does".into()).into());
        }
        Some(other) => {
            return Err(usage(format!("--role is {other}; member, guest, relay or exit is allowed")).into());
        }
    };
    if !(60..=MAX_EXPIRES).contains(&asked.expires) {
        return Err(usage("--expires is outside of what is allowed: 1m to 30d".into()).into());
    }
    let wished = asked.name.as_deref().map(|n| parse("machine's name", n)).transpose()?;
    let tags = asked.tags.iter().map(|t| parse("tag", t)).collect::<Result<Vec<_>, _>>()?;
    let bridge = bridge(&asked.bridge)?;
    let (network, engine) = daemon.engine(&name).await?;
    let reusable = asked.reusable;
    let made = engine.change(move |inside| {
        let node = &mut inside.endpoint.node;
        let expires = node.unix(inside.now) + asked.expires;
        let terms = Terms { name: wished, roles, tags, bridge, expires, reusable };
        node.create_invite(inside.now, terms).map(|i| (i.locator(), i.to_url(), i.expires))
    });
    let (made, trouble) = made.await.map_err(gone)?;
    let (locator, url, expires) = made.map_err(|e| refused(&e))?;
    stored(trouble)?;
    Ok(Json(Invite {
        schema: "shadowmesh/invite/1".into(),
        network: network.to_string(),
        id: id_of(&locator),
        url: url.to_string(),
        expires: rfc3339(expires),
        reusable,
    }))
}

/// What a member may bridge, as people write it.
pub fn bridge(words: &[String]) -> Result<Bridge, Problem> {
    Bridge::from_words(words.iter().map(String::as_str))
        .map_err(|e| Problem::new(Exit::Usage, format!("--bridge: {e}")))
}

fn entry(locator: &Hash, record: &Record, now: u64) -> InviteEntry {
    let state = match record {
        r if r.cancelled => "cancelled",
        r if !r.uses.is_empty() && !r.terms.reusable => "used",
        r if now >= r.terms.expires => "expired",
        _ => "open",
    };
    InviteEntry {
        id: id_of(locator),
        name: record.terms.name.as_ref().map(ToString::to_string),
        state: state.into(),
        expires: rfc3339(record.terms.expires),
        reusable: record.terms.reusable,
        used_by: record.uses.iter().map(|u| u.name.to_string()).collect(),
    }
}

pub async fn invites(State(daemon): Shared, Path(name): Path<String>) -> Answer<Invites> {
    let (network, engine) = daemon.engine(&name).await?;
    let listed = engine.call(|inside| {
        let node = &inside.endpoint.node;
        let now = node.unix(inside.now);
        node.invites().iter().map(|(l, r)| entry(l, r, now)).collect::<Vec<_>>()
    });
    let mut invites = listed.await.map_err(gone)?;
    invites.sort_by(|a, b| b.expires.cmp(&a.expires));
    Ok(Json(Invites { schema: "shadowmesh/invite-list/1".into(), network: network.to_string(), invites }))
}

pub async fn cancel_invite(
    State(daemon): Shared,
    Path((name, id)): Path<(String, String)>,
) -> Answer<serde_json::Value> {
    let (_, engine) = daemon.engine(&name).await?;
    let wanted = id.to_ascii_lowercase();
    let cancelled = engine.change(move |inside| {
        let node = &mut inside.endpoint.node;
        let found: Vec<Hash> = node
            .invites()
            .iter()
            .map(|(l, _)| *l)
            .filter(|l| wanted.len() >= 4 && id_of(l).starts_with(&wanted))
            .collect();
        match found.as_slice() {
            [only] => node.cancel_invite(inside.now, only).map_err(|e| refused(&e)),
            [] => Err(Problem::new(Exit::Usage, format!("there is no invite {wanted} here"))
                .fix("See which there are:  shadowmesh invite list")),
            _ => Err(Problem::new(
                Exit::Usage,
                format!("several invites begin with {wanted}; give more of it"),
            )),
        }
    });
    let (cancelled, trouble) = cancelled.await.map_err(gone)?;
    cancelled?;
    stored(trouble)?;
    Ok(Json(serde_json::json!({ "schema": "shadowmesh/invite-cancel/1", "cancelled": id })))
}

pub async fn revoke(
    State(daemon): Shared,
    Path(name): Path<String>,
    Json(asked): Json<Revoke>,
) -> Answer<serde_json::Value> {
    let reason = match asked.reason.as_deref() {
        None => Reason::UNSPECIFIED,
        Some("left") => Reason::LEFT,
        Some("lost") => Reason::LOST,
        Some("compromised") => Reason::COMPROMISED,
        Some("replaced") => Reason::REPLACED,
        Some(other) => {
            let what = format!("--reason is {other}; left, lost, compromised or replaced is allowed");
            return Err(Problem::new(Exit::Usage, what).into());
        }
    };
    let (network, engine) = daemon.engine(&name).await?;
    let peer = asked.peer.clone();
    let revoked = engine.change(move |inside| {
        let node = network::find_peer(inside, &peer).ok_or(AdminError::Unknown)?;
        let name = inside.endpoint.node.roster().member(&node).map(|m| m.name().to_owned());
        if node == inside.endpoint.node.id() {
            return Ok(None);
        }
        let own = &mut inside.endpoint.node;
        own.revoke(inside.now, &node, reason)?;
        let now = own.unix(inside.now);
        let open =
            own.invites().iter().filter(|(_, r)| r.terms.reusable && !r.cancelled && now < r.terms.expires);
        let open: Vec<String> = open.map(|(locator, _)| id_of(locator)).collect();
        Ok(Some((node, name, open)))
    });
    let (revoked, trouble) = revoked.await.map_err(gone)?;
    let revoked = revoked.map_err(|e| match e {
        AdminError::Unknown => {
            Problem::new(Exit::Usage, format!("\"{network}\" has no member \"{}\"", asked.peer))
                .fix("See who there is:  shadowmesh peers")
        }
        e => refused(&e),
    })?;
    let (node, called, open) = revoked.ok_or_else(|| {
        Problem::new(Exit::Usage, format!("\"{}\" is this machine, and nobody revokes itself", asked.peer))
            .fix("To leave the network:  shadowmesh leave")
    })?;
    stored(trouble)?;
    Ok(Json(serde_json::json!({
        "schema": "shadowmesh/revoke/1", "network": network.to_string(), "revoked": node.to_string(), "name": called,
        "reusable_invites": open,
    })))
}

pub async fn up(State(daemon): Shared, Path(name): Path<String>) -> Answer<serde_json::Value> {
    let known = set_up(&daemon, &name, true).await?;
    let runs = daemon.networks.lock().await.get(&known).is_some_and(|n| n.engine.is_some());
    if !runs {
        daemon.open(&known).await?;
    }
    let status = status_of(&daemon, &name).await?;
    Ok(Json(serde_json::json!({ "schema": "shadowmesh/up/1", "network": status })))
}

pub async fn down(State(daemon): Shared, Path(name): Path<String>) -> Answer<serde_json::Value> {
    let known = set_up(&daemon, &name, false).await?;
    daemon.close(&known, "it is down").await;
    Ok(Json(serde_json::json!({ "schema": "shadowmesh/down/1", "network": known.to_string() })))
}

/// Remembers whether a network is to be up.
async fn set_up(daemon: &super::Daemon, name: &str, up: bool) -> Result<Name, Problem> {
    let mut networks = daemon.networks.lock().await;
    let network =
        name.parse::<Name>().ok().and_then(|n| networks.get_mut(&n)).ok_or_else(|| no_network(name))?;
    if network.meta.up != up {
        network.meta.up = up;
        network.files.save_meta(&network.meta).map_err(|e| crate::state::problem(&e))?;
    }
    Ok(network.name.clone())
}

pub async fn leave(State(daemon): Shared, Path(name): Path<String>) -> Answer<serde_json::Value> {
    let _one_at_a_time = daemon.making.lock().await;
    let known = {
        let networks = daemon.networks.lock().await;
        let found = name.parse::<Name>().ok().and_then(|n| networks.get(&n).map(|network| (n, network)));
        let (known, network) = found.ok_or_else(|| no_network(&name))?;
        if network.why_revoked().is_some() {
            daemon.state.set_incarnation(&network.genesis.id(), network.meta.incarnation + 1)?;
        }
        known
    };
    daemon.close(&known, "this machine has left it").await;
    daemon.state.remove_network(&known)?;
    daemon.networks.lock().await.remove(&known);
    Ok(Json(serde_json::json!({ "schema": "shadowmesh/leave/1", "left": known.to_string() })))
}

pub async fn backup(State(daemon): Shared) -> Answer<serde_json::Value> {
    let seed = daemon.state.seed()?.ok_or_else(|| {
        Problem::failed("there is no identity yet").fix("It is made with the first network.")
    })?;
    Ok(Json(serde_json::json!({ "schema": "shadowmesh/identity-backup/1", "words": *seed.words() })))
}

#[derive(serde::Deserialize)]
pub struct Words {
    words: String,
}

pub async fn restore(State(daemon): Shared, Json(asked): Json<Words>) -> Answer<serde_json::Value> {
    let _one_at_a_time = daemon.making.lock().await;
    let seed = Seed::from_words(&asked.words).map_err(|e| Problem::new(Exit::Usage, e.to_string()))?;
    daemon.state.store_seed(&seed)?;
    Ok(Json(serde_json::json!({ "schema": "shadowmesh/identity-restore/1", "restored": true })))
}
