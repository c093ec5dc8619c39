//! The shipped binary on loopback: made, run, used by clients over real UDP, killed, run again.

#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shadowmesh_identity::RelayUrl;
use shadowmesh_proto::handshake::Credential;
use shadowmesh_stun::{Change, parse_response, request};
use shadowmesh_test_clients::{Client, Clients, LOOPBACK, pseudonym};
use shadowmesh_wire::control::{Control, Status};
use std::net::SocketAddr;

const OWNER: [u8; 32] = [3; 32];
const ACCESS: [u8; 32] = [4; 32];

fn registered(c: &Client) -> Option<Status> {
    c.controls.iter().find_map(|c| match c {
        Control::RegisterReply(s) => Some(*s),
        _ => None,
    })
}

#[test]
fn register_exchange_restart() {
    let dir = Dir::new();
    let made = dir.say(&["--json", "init", "--public", "127.0.0.1:4433", "--listen", "udp://127.0.0.1:0"]);
    let made: serde_json::Value = serde_json::from_str(&made).unwrap();
    let url: RelayUrl = made["urls"][0].as_str().unwrap().parse().unwrap();
    let mut relay = Process::start(&dir, "127.0.0.1:0");
    let mut clients = Clients::new(&url, &[relay.udp]);

    let token = *url.token.as_ref().unwrap().expose();
    let creator = clients.add(Credential::Anonymous, LOOPBACK);
    clients.until("the creator's session", |c| c[creator].link.is_up());
    let register = Control::Register { token, owner: OWNER, access: ACCESS };
    clients.say(creator, &register);
    clients.until("the registration", |c| registered(&c[creator]).is_some());
    assert_eq!(registered(&clients.all[creator]), Some(Status::Ok));

    let (a, b) = (
        clients.add(pseudonym(&OWNER, &ACCESS), LOOPBACK),
        clients.add(pseudonym(&OWNER, &ACCESS), LOOPBACK),
    );
    clients.until("two clients", |c| c[a].link.rtt().is_some() && c[b].link.rtt().is_some());
    let handle = |c: &Clients, i: usize| c.all[i].grant.unwrap().handle;
    let (of_a, of_b) = (handle(&clients, a), handle(&clients, b));
    for n in 0..1000u32 {
        clients.send(a, of_b, &[n as u8; 1200]);
        clients.send(b, of_a, b"back");
        clients.until("a packet each way", |c| {
            c[a].got.len() == n as usize + 1 && c[b].got.len() == n as usize + 1
        });
    }
    assert!(clients.all[b].got.iter().all(|(from, p)| *from == of_a && p.len() == 1200));

    // What it counts, and how it is.
    assert_eq!(relay.metric("datagrams_forwarded_total"), 2000.0);
    assert_eq!(relay.metric("networks"), 1.0);
    assert_eq!(relay.metric("state_saved"), 1.0);
    for path in ["/live", "/ready", "/health"] {
        assert_eq!(relay.get(path).0, 200, "{path}");
    }
    assert!(relay.get("/health").1.contains("\"clients\":2"));
    assert_eq!(relay.get("/other").0, 404);

    // kill -9: clients learn by RESET at their next packet, and have the same handles at the new one.
    let address = relay.udp.to_string();
    relay.child.kill().unwrap();
    relay.child.wait().unwrap();
    let mut relay = Process::start(&dir, &address);
    clients.send(a, of_b, b"x");
    clients.send(b, of_a, b"x");
    clients.until("both again", |c| c[a].ups == 2 && c[b].ups == 2 && c[b].link.is_up());
    assert_eq!((clients.all[a].resets, clients.all[b].resets), (1, 1));
    assert_eq!((handle(&clients, a), handle(&clients, b)), (of_a, of_b));
    clients.until("the first packets", |c| c[a].link.rtt().is_some() && c[b].link.rtt().is_some());
    clients.send(a, of_b, b"again");
    clients.until("a packet after the restart", |c| c[b].got.last().is_some_and(|g| g.1 == b"again"));

    // The token is used, whatever was killed when; a fresh one is taken by the running relay.
    let late = clients.add(Credential::Anonymous, LOOPBACK);
    clients.until("another creator", |c| c[late].link.is_up());
    clients.say(late, &Control::Register { token, owner: [9; 32], access: ACCESS });
    clients.until("an answer", |c| registered(&c[late]).is_some());
    assert_eq!(registered(&clients.all[late]), Some(Status::Used));
    let fresh: RelayUrl = dir.say(&["token", "new"]).parse().unwrap();
    let token = *fresh.token.unwrap().expose();
    clients.all[late].controls.clear();
    clients.say(late, &Control::Register { token, owner: [9; 32], access: ACCESS });
    clients.until("an answer", |c| registered(&c[late]).is_some());
    assert_eq!(registered(&clients.all[late]), Some(Status::Ok));

    // The directory is the running relay's.
    let second = dir.call(&["run", "--allow-root", "--listen", "udp://127.0.0.1:0"]);
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("in use by another ShadowMesh process"));

    let pid = Pid::from_raw(relay.child.id() as i32);
    kill(pid, Signal::SIGHUP).unwrap();
    assert_eq!(relay.get("/live").0, 200);
    kill(pid, Signal::SIGTERM).unwrap();
    assert_eq!(relay.child.wait().unwrap().code(), Some(0));
}

#[test]
fn two_ports_answer_stun() {
    let dir = Dir::new();
    dir.say(&["init", "--public", "127.0.0.1:4433", "--listen", "udp://127.0.0.1:0"]);
    let relay = Process::start(&dir, "127.0.0.1:0");
    let second = relay.stun.unwrap();
    assert!(second.ip() == relay.udp.ip() && second.port() != relay.udp.port());
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
    let mut buffer = [0; 600];
    for (asked, port, from) in [
        (relay.udp, false, relay.udp),
        (relay.udp, true, second),
        (second, false, second),
        (second, true, relay.udp),
    ] {
        let request = request([5; 12], Change { ip: false, port });
        socket.send_to(&request, asked).unwrap();
        let (length, by) = socket.recv_from(&mut buffer).unwrap();
        let said = parse_response(&buffer[..length]).unwrap();
        assert_eq!((by, said.mapped), (from, socket.local_addr().unwrap()));
        let other = if asked == relay.udp { second } else { relay.udp };
        assert_eq!(said.other.unwrap(), SocketAddr::new("0.0.0.0".parse().unwrap(), other.port()));
    }
    assert_eq!(relay.metric("stun_answers_total"), 4.0);
    drop(relay);

    // The one after the first is taken: another.
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let _next = std::net::UdpSocket::bind((taken.ip(), taken.port() + 1));
    let relay = Process::start(&dir, &taken.to_string());
    assert!(relay.stun.is_some_and(|s| s.port() != taken.port() + 1));
    drop(relay);
    let relay = Process::start_as(&dir, "127.0.0.1:0", &["--allow-root", "--stun-port", "off"]);
    assert_eq!(relay.stun, None);
}

#[test]
fn what_it_prints_and_how_it_ends() {
    let dir = Dir::new();
    let none = dir.call(&["url"]);
    assert_eq!(none.status.code(), Some(1));
    let text = String::from_utf8(none.stderr).unwrap();
    assert!(text.starts_with("error: there is no relay in ") && text.contains("\n  Make one:  "), "{text}");

    let public = ["init", "--public", "relay.example.net", "--listen", "udp://127.0.0.1:0", "--tokens", "2"];
    let said = dir.say(&public);
    assert!(said.contains("✓ identity made"), "{said}");
    let urls: Vec<&str> = said.lines().filter_map(|l| l.strip_prefix("  smr://")).collect();
    assert_eq!(urls.len(), 2);
    assert!(urls[0] != urls[1] && urls[0].starts_with("relay.example.net:443/"));
    assert_eq!(dir.call(&public).status.code(), Some(1));

    let url: RelayUrl = dir.say(&["url"]).parse().unwrap();
    assert!(url.token.is_none());
    let json: serde_json::Value =
        serde_json::from_str(&dir.say(&["--json", "token", "new", "--count", "3"])).unwrap();
    assert_eq!(json["schema"], "shadowmesh/relay-token/1");
    assert_eq!(json["urls"].as_array().unwrap().len(), 3);

    for wrong in
        [&["init"][..], &["run", "--listen", "tcp://x"], &["token"], &["run", "--user", "x", "--allow-root"]]
    {
        assert_eq!(dir.call(wrong).status.code(), Some(2), "{wrong:?}");
    }
    std::fs::write(dir.0.join("relay.yaml"), "open: false\nlimits:\n  client: 5\n").unwrap();
    for command in [&["run", "--allow-root"][..], &["config", "check"], &["config", "show"]] {
        let o = dir.call(command);
        assert_eq!(o.status.code(), Some(7));
        let text = String::from_utf8(o.stderr).unwrap();
        assert!(
            text.contains("relay.yaml, line 3: `client` is not a key here; allowed are networks, clients"),
            "{text}"
        );
    }
    std::fs::write(dir.0.join("relay.yaml"), "limits:\n  clients: 5\n").unwrap();
    let shown = dir.say(&["config", "show"]);
    assert!(shown.contains("  clients: 5\n") && shown.contains("open: false  # default"), "{shown}");
}

/// Started by root it becomes another user, to whom the state then belongs; or it refuses.
#[test]
fn root_is_left() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not run: only root can become another user");
        return;
    }
    let dir = Dir::new();
    dir.say(&["init", "--public", "127.0.0.1:4433", "--listen", "udp://127.0.0.1:0"]);
    let missing = dir.call(&["run", "--user", "nobody-has-this-name", "--listen", "udp://127.0.0.1:0"]);
    assert_eq!(missing.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("scripts/install"));

    let relay = Process::start_as(&dir, "127.0.0.1:0", &["--user", "nobody"]);
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", relay.child.id())).unwrap();
    let line = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).unwrap().trim().to_owned();
    let uids = line("Uid:");
    assert!(uids.split_whitespace().all(|u| u == nobody.uid.to_string()), "{uids}");
    for set in ["CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(line(set), "0000000000000000", "{set}");
    }
    let url: RelayUrl = dir.say(&["url"]).parse().unwrap();
    let mut clients = Clients::new(&url, &[relay.udp]);
    let a = clients.add(Credential::Anonymous, LOOPBACK);
    clients.until("a session", |c| c[a].link.rtt().is_some());
}

/// A registration is on disk before it is answered; while the disk does not take it, it is not said to be done, and
/// all else goes on. [P-REGISTER]
#[test]
fn nothing_is_answered_that_is_not_stored() {
    let dir = Dir::new();
    let made = dir.say(&["--json", "init", "--public", "127.0.0.1:4433", "--listen", "udp://127.0.0.1:0"]);
    let made: serde_json::Value = serde_json::from_str(&made).unwrap();
    let url: RelayUrl = made["urls"][0].as_str().unwrap().parse().unwrap();
    let relay = Process::start(&dir, "127.0.0.1:0");
    let mut clients = Clients::new(&url, &[relay.udp]);
    let creator = clients.add(Credential::Anonymous, LOOPBACK);
    clients.until("a session", |c| c[creator].link.rtt().is_some());
    // A directory stands where the temporary file would.
    let obstacle = dir.0.join("relay/.state.new.tmp");
    std::fs::create_dir(&obstacle).unwrap();
    let token = *url.token.as_ref().unwrap().expose();
    let register = Control::Register { token, owner: OWNER, access: ACCESS };
    clients.say(creator, &register);
    let end = clients.clock.now() + std::time::Duration::from_millis(700);
    let clock = clients.clock;
    clients.until("a while", |_| clock.now() > end);
    assert_eq!(registered(&clients.all[creator]), None);
    clients.say(creator, &register);
    clients.until("an answer", |c| registered(&c[creator]).is_some());
    assert_eq!(registered(&clients.all[creator]), Some(Status::Pending));
    assert_eq!((relay.get("/ready").0, relay.get("/health").0, relay.get("/live").0), (503, 503, 200));
    assert_eq!(relay.metric("state_saved"), 0.0);
    std::fs::remove_dir(&obstacle).unwrap();
    clients.until("the state to be saved", |_| {
        std::thread::sleep(std::time::Duration::from_millis(50));
        relay.get("/ready").0 == 200
    });
    clients.all[creator].controls.clear();
    clients.say(creator, &register);
    clients.until("the registration", |c| registered(&c[creator]).is_some());
    assert_eq!(registered(&clients.all[creator]), Some(Status::Ok));
}
