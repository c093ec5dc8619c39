//! The commands that change something.

use super::print::usage;
use super::{At, NewInvite, start};
use crate::config;
use qrcode::render::unicode::Dense1x2;
use shadowmesh_control::{
    CreateInvite, CreateNetwork, Exit, Invite, Join, Line, NetworkStatus, Problem, Revoke, Status,
};
use std::io::{IsTerminal, Read, Write, stdin, stdout};

/// A request that answers in steps; the steps are printed as they come.
async fn steps(at: &At<'_>, command: &str, path: &str, body: &impl serde::Serialize) -> Result<(), Problem> {
    let each = |line| match line {
        Line::Step(step) => at.printer.checked(&step),
        Line::Warning(text) if !at.printer.json => at.printer.warning(&text),
        Line::Waiting(what) => at.printer.waiting(&what),
        Line::Warning(_) | Line::Reply(_) | Line::Done(_) | Line::Problem(_) => {}
    };
    let mut done = at.client.stream(path, body, each).await?;
    at.printer.clear_waiting();
    if done["restart"] == true {
        done = restart(at, &done).await?;
    }
    if at.printer.json {
        if let Some(object) = done.as_object_mut() {
            object.insert("schema".into(), format!("shadowmesh/{command}/1").into());
        }
        at.printer.object(&done);
    }
    Ok(())
}

/// The network is stored, and only a daemon that starts as root can open its device.
async fn restart(at: &At<'_>, done: &serde_json::Value) -> Result<serde_json::Value, Problem> {
    let text = |key: &str| done[key].as_str().unwrap_or_default().to_owned();
    let (name, why) = (text("name"), text("why"));
    if !nix::unistd::geteuid().is_root() {
        return Err(Problem::new(Exit::NotPermitted, format!("\"{name}\" is here now, but not up: {why}"))
            .fix("Start the daemon anew, as root:  sudo shadowmesh down, then:  sudo shadowmesh up"));
    }
    stop(at).await?;
    start::ensure(at).await?;
    let done: serde_json::Value = at.client.post(&format!("/v1/networks/{name}/up"), &()).await?;
    if let Ok(n) = serde_json::from_value::<NetworkStatus>(done["network"].clone()) {
        at.printer.step("up", &format!("{}  {}", n.interface, n.ipv4.as_deref().unwrap_or(&n.ipv6)));
    }
    Ok(done)
}

pub async fn create(at: &At<'_>, asked: CreateNetwork) -> Result<(), Problem> {
    start::ensure(at).await?;
    let local = asked.relays.is_empty();
    steps(at, "network-create", "/v1/networks", &asked).await?;
    if !at.printer.json {
        at.printer.line("");
        if local {
            at.printer.line("It has no relay, so nobody can be invited to it yet.");
        } else {
            at.printer.line("Invite another machine:  shadowmesh invite NAME --qr");
        }
    }
    Ok(())
}

pub async fn join(at: &At<'_>, asked: Join) -> Result<(), Problem> {
    // What is no invite starts no daemon.
    let _invite: shadowmesh_identity::Invite = asked.url.parse().map_err(|e| {
        usage(format!("this is no invite: {e}")).fix("It is one long word; put it in quotes.")
    })?;
    start::ensure(at).await?;
    steps(at, "join", "/v1/join", &asked).await
}

/// Asks on a terminal; scripts say `--yes`.
fn confirm(question: &str, yes: bool) -> Result<(), Problem> {
    if yes {
        return Ok(());
    }
    if !stdin().is_terminal() {
        return Err(
            usage("this cannot be taken back, and there is no terminal to ask at").fix("Say so:  --yes")
        );
    }
    print!("{question} [y/N] ");
    let _closed = stdout().flush();
    let mut answer = String::new();
    let _ended = stdin().read_line(&mut answer);
    if matches!(answer.trim(), "y" | "Y" | "yes") { Ok(()) } else { Err(Problem::failed("nothing was done")) }
}

pub async fn delete(at: &At<'_>, yes: bool) -> Result<(), Problem> {
    let name = at.network().await?;
    let question = format!(
        "Delete \"{name}\" from this machine? Its members stay connected to each other; nobody can undo this here."
    );
    confirm(&question, yes)?;
    forget(at, &name, "deleted").await
}

pub async fn leave(at: &At<'_>, yes: bool) -> Result<(), Problem> {
    let name = at.network().await?;
    confirm(&format!("Leave \"{name}\"? To come back, this machine needs a new invite."), yes)?;
    forget(at, &name, "left").await
}

async fn forget(at: &At<'_>, name: &str, word: &str) -> Result<(), Problem> {
    let done: serde_json::Value = at.client.delete(&format!("/v1/networks/{name}")).await?;
    if at.printer.json {
        at.printer.object(&done);
    } else {
        at.printer.step(word, name);
    }
    Ok(())
}

pub async fn invite(at: &At<'_>, new: NewInvite) -> Result<(), Problem> {
    let expires = config::duration(&new.expires).ok_or_else(|| {
        usage(format!("--expires is {}; a duration like 30m, 24h or 7d is allowed", new.expires))
    })?;
    let asked = CreateInvite {
        name: new.name,
        role: new.role,
        tags: new.tag,
        bridge: new.bridge,
        expires: expires.as_secs(),
        reusable: new.reusable,
    };
    let invite: Invite = at.client.post(&at.path("/invites").await?, &asked).await?;
    if at.printer.json {
        at.printer.object(&invite);
        return Ok(());
    }
    let uses = if invite.reusable { "for several machines" } else { "one use" };
    if at.printer.terminal {
        at.printer.line(format!("{} (valid {}, {uses})", invite.url, new.expires));
    } else {
        // For a script, the URL alone is the line.
        at.printer.line(&invite.url);
    }
    if new.qr {
        // Terminals are dark mostly: what is light in the picture is drawn.
        let code = qrcode::QrCode::with_error_correction_level(&invite.url, qrcode::EcLevel::L)
            .map_err(|e| Problem::failed(format!("the invite does not fit a QR code: {e}")))?;
        at.printer
            .line(code.render::<Dense1x2>().dark_color(Dense1x2::Light).light_color(Dense1x2::Dark).build());
    }
    Ok(())
}

pub async fn cancel(at: &At<'_>, id: &str) -> Result<(), Problem> {
    if !id.bytes().all(|b| b.is_ascii_alphanumeric()) || id.is_empty() {
        return Err(
            usage(format!("`{id}` is no invite's id")).fix("See which there are:  shadowmesh invite list")
        );
    }
    let done: serde_json::Value = at.client.delete(&at.path(&format!("/invites/{id}")).await?).await?;
    if at.printer.json {
        at.printer.object(&done);
    } else {
        at.printer.step("cancelled", id);
    }
    Ok(())
}

pub async fn revoke(at: &At<'_>, peer: String, reason: Option<String>, yes: bool) -> Result<(), Problem> {
    let path = at.path("/revoke").await?;
    confirm(
        &format!("Revoke \"{peer}\"? It is cut off everywhere, and needs a new invite to come back."),
        yes,
    )?;
    let done: serde_json::Value = at.client.post(&path, &Revoke { peer: peer.clone(), reason }).await?;
    if at.printer.json {
        at.printer.object(&done);
    } else {
        at.printer.step("revoked", &format!("{peer}; told to every member that is reachable now"));
        for id in done["reusable_invites"].as_array().into_iter().flatten().filter_map(|i| i.as_str()) {
            at.printer.warning(&format!(
                "the invite {id} is good for several machines, and lets in whoever knows it, \"{peer}\" too. Take it back:  \
                 shadowmesh invite cancel {id}"
            ));
        }
    }
    Ok(())
}

pub async fn up(at: &At<'_>) -> Result<(), Problem> {
    start::ensure(at).await?;
    let status: Status = at.client.get("/v1/status").await?;
    let names: Vec<String> = match at.wanted {
        Some(_) => vec![at.network().await?],
        None => status.networks.into_iter().map(|n| n.name).collect(),
    };
    let mut networks = vec![];
    for name in &names {
        let done: serde_json::Value = at.client.post(&format!("/v1/networks/{name}/up"), &()).await?;
        let network = done.get("network").cloned().unwrap_or_default();
        if let Ok(n) = serde_json::from_value::<NetworkStatus>(network.clone()) {
            at.printer.step("up", &format!("{}  {}", n.interface, n.ipv4.as_deref().unwrap_or(&n.ipv6)));
            for problem in n.problems.iter().filter(|_| !at.printer.json) {
                at.printer.warning(problem);
            }
        }
        networks.push(network);
    }
    if at.printer.json {
        at.printer.object(&serde_json::json!({ "schema": "shadowmesh/up/1", "networks": networks }));
    } else if names.is_empty() {
        at.printer.line("There is no network here yet.");
        at.printer.line("  Make one:  sudo shadowmesh network create NAME --relay URL");
        at.printer.line("  or join:   sudo shadowmesh join URL");
    }
    Ok(())
}

pub async fn down(at: &At<'_>) -> Result<(), Problem> {
    let done: serde_json::Value = if at.wanted.is_some() {
        at.client.post(&at.path("/down").await?, &()).await?
    } else {
        stop(at).await?;
        serde_json::json!({ "schema": "shadowmesh/down/1", "stopped": true })
    };
    if at.printer.json {
        at.printer.object(&done);
    } else {
        at.printer.step("down", at.wanted.unwrap_or("all networks, and the daemon"));
    }
    Ok(())
}

/// Ends the daemon; it is gone when this returns.
async fn stop(at: &At<'_>) -> Result<(), Problem> {
    if start::has_unit(at) && at.client.is_running().await? {
        return start::systemctl("stop");
    }
    let status: Status = at.client.get("/v1/status").await?;
    let _stopping: serde_json::Value = at.client.post("/v1/shutdown", &()).await?;
    let process = format!("/proc/{}/stat", status.pid);
    // One that has ended and whose parent has not looked yet is gone, too.
    let runs = || std::fs::read_to_string(&process).is_ok_and(|s| !s.contains(") Z"));
    for _ in 0..200 {
        // In another pid namespace there is no such process, and the socket has to do.
        if !at.client.is_running().await? && !runs() {
            return Ok(());
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    Err(Problem::new(Exit::NoAnswer, "the daemon was told to end, and goes on")
        .fix("Look at why:  shadowmesh logs"))
}

pub async fn backup(at: &At<'_>) -> Result<(), Problem> {
    let done: serde_json::Value = at.client.post("/v1/identity/backup", &()).await?;
    if at.printer.json {
        at.printer.object(&done);
        return Ok(());
    }
    let words: Vec<_> = done["words"].as_str().unwrap_or_default().split(' ').collect();
    for (n, row) in words.chunks(6).enumerate() {
        let row: Vec<_> =
            row.iter().enumerate().map(|(i, w)| format!("{:>2} {w:<9}", n * 6 + i + 1)).collect();
        at.printer.line(row.join(" ").trim_end());
    }
    at.printer.line("");
    at.printer.line(
        "Write them down, on paper. Whoever has them is this machine, and the root of networks made here.",
    );
    Ok(())
}

pub async fn restore(at: &At<'_>) -> Result<(), Problem> {
    start::ensure(at).await?;
    if stdin().is_terminal() && !at.printer.json {
        at.printer.line("The 24 words, then Ctrl-D:");
    }
    let mut words = String::new();
    stdin()
        .take(10_000)
        .read_to_string(&mut words)
        .map_err(|e| Problem::failed(format!("the words could not be read: {e}")))?;
    // Numbers as `backup` prints them are left out.
    let words: Vec<_> = words.split_whitespace().filter(|w| w.parse::<u32>().is_err()).collect();
    let body = serde_json::json!({ "words": words.join(" ") });
    let done: serde_json::Value = at.client.post("/v1/identity/restore", &body).await?;
    if at.printer.json {
        at.printer.object(&done);
    } else {
        at.printer.step("identity", "restored; networks are joined anew, by invites");
    }
    Ok(())
}
