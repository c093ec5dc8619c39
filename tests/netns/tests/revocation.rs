//! A revoked member is cut within a second wherever the news can be, and where a partition hid them, within a second of
//! the first packet that crosses again.
//!
//! The revoked member keeps no promise here: its router lets nothing of the relay's in, so that it never hears of its
//! end and streams on, to everybody through the relay and to one member by a wire between the two.
#![allow(clippy::unwrap_used, reason = "a test; clippy exempts only functions marked as such")]

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};
use shadowmesh_host::clock::Clock;
use shadowmesh_netns_tests::{Evening, Host, Machine, Measured, wait_until};

const SECONDS: fn(u64) -> Duration = Duration::from_secs;
const MILLIS: fn(u64) -> Duration = Duration::from_millis;
/// Where streams go.
const PORT: u16 = 7001;
/// Between the packets of a stream.
const PACE: Duration = Duration::from_millis(5);
/// The relay, in IPv4 headers.
const RELAY: [u8; 4] = [203, 0, 113, 2];

/// Threads that run until this goes.
struct Threads {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Threads {
    fn new() -> Self {
        Threads { stop: Arc::default(), threads: vec![] }
    }

    fn start(&mut self, mut step: impl FnMut() + Send + 'static) {
        let stop = self.stop.clone();
        self.threads.push(std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                step();
            }
        }));
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _panicked = thread.join();
        }
    }
}

/// When the packets of a stream arrived.
#[derive(Clone, Default)]
struct Arrivals(Arc<Mutex<Vec<(Duration, u64)>>>);

impl Arrivals {
    /// At a machine, from now on.
    fn at(host: &Host, clock: Clock, threads: &mut Threads) -> Arrivals {
        let socket = host.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap());
        socket.set_read_timeout(Some(MILLIS(100))).unwrap();
        let arrivals = Arrivals::default();
        let list = arrivals.0.clone();
        threads.start(move || {
            let mut number = [0; 8];
            if socket.recv(&mut number).is_ok() {
                list.lock().unwrap().push((clock.now(), u64::from_be_bytes(number)));
            }
        });
        arrivals
    }

    fn last(&self) -> Duration {
        self.0.lock().unwrap().last().copied().unwrap_or_default().0
    }

    fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

/// Streams numbered packets to all of them; what cannot be sent is not.
fn stream(from: &Host, to: &[String], threads: &mut Threads) {
    let socket = from.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
    let to: Vec<SocketAddrV4> = to.iter().map(|a| SocketAddrV4::new(a.parse().unwrap(), PORT)).collect();
    let mut number = 0u64;
    threads.start(move || {
        for a in &to {
            let _its_interface_is_gone = socket.send_to(&number.to_be_bytes(), a);
        }
        number += 1;
        std::thread::sleep(PACE);
    });
}

/// When the first packet of the relay's came in at a machine after this call.
fn first_of_relay(host: &Host, clock: Clock, threads: &mut Threads) -> Arrivals {
    let raw: OwnedFd = host.enter(|| {
        let protocol = SockProtocol::EthIp;
        socket(AddressFamily::Packet, SockType::Datagram, SockFlag::SOCK_NONBLOCK, protocol).unwrap()
    });
    let arrivals = Arrivals::default();
    let list = arrivals.0.clone();
    threads.start(move || {
        let mut packet = [0; 128];
        match recv(raw.as_raw_fd(), &mut packet, MsgFlags::empty()) {
            Ok(n) if n > 20 && packet[9] == 17 && packet[12..16] == RELAY => {
                let mut list = list.lock().unwrap();
                if list.is_empty() {
                    list.push((clock.now(), 0));
                }
            }
            Ok(_) => {}
            Err(_) => std::thread::sleep(MILLIS(1)),
        }
    });
    arrivals
}

/// Nothing passes this router, or nothing of the relay's.
fn block(router: &Host, what: &str) {
    router.nft(&format!(
        "table inet block {{\n chain forward {{\n  type filter hook forward priority -10;\n  {what} drop\n }}\n}}\n"
    ));
}

fn unblock(router: &Host) {
    router.nft("delete table inet block\n");
}

/// The way between two machines that needs no relay: known addresses, a port each.
fn know(machine: &Machine, port: u16, peer: &Machine, at: &str) {
    let text = format!(
        "listen: [\"udp://0.0.0.0:{port}\"]\nnetworks:\n  home:\n    peers: {{{}: {{endpoints: [\"udp://{at}\"]}}}}\n",
        peer.host.name()
    );
    std::fs::write(machine.directory.join("config.yaml"), text).unwrap();
}

/// Down and up again, so that known addresses are those of the members of now.
fn restart(machine: &Machine) {
    machine.must(&["down"]);
    machine.must(&["up"]);
}

fn path(machine: &Machine, peer: &str) -> String {
    let status = machine.json(&["peers"]);
    let peers = status["peers"].as_array().cloned().unwrap_or_default();
    let found = peers.iter().find(|p| p["name"] == peer && !p["secured"].is_null());
    found.map(|p| p["path"].as_str().unwrap_or_default().to_owned()).unwrap_or_default()
}

/// What one revocation came to, seconds.
struct Cut {
    /// From the start of `revoke` to the last packet at a member that the news could reach, the slowest.
    reachable: f64,
    /// From the first packet that came in again to the last one of the stream.
    partitioned: f64,
}

/// Revokes `gone` while it streams; `two` is cut off from all but it, for so long.
fn revoke(e: &Evening, partition: Duration) -> Cut {
    let [admin, one, two, gone] = &e.machines[..] else { panic!("four machines") };
    let clock = Clock::new();
    let mut threads = Threads::new();
    let all = [admin, one, two];
    let arrivals = all.map(|m| Arrivals::at(&m.host, clock, &mut threads));
    let addresses: Vec<String> = all.iter().map(|m| m.address()).collect();
    stream(&gone.host, &addresses, &mut threads);
    for (m, a) in all.iter().zip(&arrivals) {
        let before = a.count();
        wait_until(&format!("a stream to {}", m.host.name()), SECONDS(20), || {
            (a.count() > before + 200).then_some(())
        });
    }
    wait_until("the direct way", SECONDS(10), || (path(two, "gone") == "direct").then_some(()));
    wait_until("sessions of all", SECONDS(10), || {
        (path(two, "admin") == "relay" && path(two, "one") == "relay").then_some(())
    });

    block(&e.routers[2], "");
    std::thread::sleep(SECONDS(2));
    // What follows is sooner than the revoked one's link can notice that nothing comes any more.
    block(&e.routers[3], "ip saddr 203.0.113.2");
    let asked = clock.now();
    admin.must(&["revoke", "gone", "--yes"]);
    std::thread::sleep(partition);
    let hidden = arrivals[2].last();
    assert!(
        clock.now().saturating_sub(hidden) < MILLIS(300),
        "the stream to `two` ended by itself: no partition hid the news"
    );
    let last = arrivals[..2].iter().map(Arrivals::last).max().unwrap_or_default();
    let reachable = last.as_secs_f64() - asked.as_secs_f64();

    let crossed = first_of_relay(&two.host, clock, &mut threads);
    unblock(&e.routers[2]);
    let healed = clock.now();
    wait_until("a packet of the relay", SECONDS(20), || (crossed.count() > 0).then_some(()));
    wait_until("the end of the stream", SECONDS(30), || {
        (clock.now().saturating_sub(arrivals[2].last()) > SECONDS(2)).then_some(())
    });
    // The thread that looks for the first packet may be a little late itself.
    let partitioned = (arrivals[2].last().as_secs_f64() - crossed.last().as_secs_f64()).max(0.0);
    println!(
        "partition of {partition:?}: cut {reachable:.3} s after `revoke` was begun; {partitioned:.3} s after the first packet, \
         which came {:.3} s after the network was whole",
        crossed.last().saturating_sub(healed).as_secs_f64()
    );
    for a in &arrivals {
        assert!(clock.now().saturating_sub(a.last()) > SECONDS(1), "a revoked member is still heard");
    }
    unblock(&e.routers[3]);
    Cut { reachable, partitioned }
}

/// The machine that was revoked comes back as another member, by a new invite.
fn come_back(e: &Evening) {
    let [admin, _, two, gone] = &e.machines[..] else { panic!("four machines") };
    gone.must(&["leave", "--yes"]);
    let url = admin.must(&["invite", "gone"]).trim().to_owned();
    gone.must(&["join", &url, "--name", "gone"]);
    two.host.must_reach(&gone.address(), 20);
    restart(two);
    restart(gone);
}

#[test]
fn a_revoked_member_is_cut_within_a_second() {
    let mut e = Evening::new("revocation", &["admin", "one", "two", "gone"]);
    let (two, gone) = (e.machines[2].host.clone(), e.machines[3].host.clone());
    e.lab.wire(&two, &["172.30.0.1/24"], &gone, &["172.30.0.2/24"]);
    e.network("home");
    know(&e.machines[2], 41990, &e.machines[3], "172.30.0.2:41991");
    know(&e.machines[3], 41991, &e.machines[2], "172.30.0.1:41990");
    restart(&e.machines[2]);
    restart(&e.machines[3]);

    let mut measured = Measured::new("revocation");
    let mut worst = 0.0f64;
    let mut all_hold = true;
    // Sessions outlive the short one; in the long one they end, and all has to be made anew.
    for (id, seconds) in [("8-partition", 5), ("8-partition-long", 45)] {
        if seconds > 5 {
            come_back(&e);
        }
        let cut = revoke(&e, SECONDS(seconds));
        worst = worst.max(cut.reachable);
        let what = format!(
            "from the first packet that crosses after {seconds} s of partition to a revoked member's last frame"
        );
        let holds = cut.partitioned < 1.0;
        all_hold &= holds;
        measured.line(id, &what, cut.partitioned, "s", "< 1", holds);
    }
    let what = "from the start of `revoke` to a revoked member's last frame at any member in reach";
    measured.line("8-reachable", what, worst, "s", "< 1", worst < 1.0);
    drop(measured);
    assert!(worst < 1.0 && all_hold);
}

/// All commands that need to be a member say the same, in three parts.
fn says_so(machine: &Machine, network: &str) {
    for command in [&["up"][..], &["peers"], &["invite"], &["ping", "admin", "-c", "1"]] {
        let (code, text) = machine.say(command);
        let first = text.lines().next().unwrap_or_default().to_owned();
        let said = format!("error: this machine was revoked in \"{network}\" by admin on ");
        assert!(code == 6 && first.starts_with(&said), "{command:?}: {code} {text}");
        assert!(first.contains("(change ") && first.contains(", lost); it is no member any more."), "{text}");
        assert!(text.contains("shadowmesh leave --network home") && text.contains("new invite"), "{text}");
    }
}

#[test]
fn who_is_revoked_hears_it() {
    let e = Evening::new("who is revoked hears it", &["admin", "one", "two"]);
    e.network("home");
    let [admin, one, two] = &e.machines[..] else { panic!("three machines") };

    // One that is awake: within a second or so, from those who cut it.
    let clock = Clock::new();
    admin.must(&["revoke", "one", "--reason", "lost", "--yes"]);
    wait_until("its device gone", SECONDS(5), || (!one.host.ip("-o link").contains("sm-home")).then_some(()));
    println!("it heard, and stopped, after {:?}", clock.now());
    says_so(one, "home");
    let status = one.json(&["status"]);
    let network = &status["networks"][0];
    assert_eq!((&network["up"], &network["ended"]["exit"]), (&false.into(), &"refused".into()), "{status}");
    assert!(one.must(&["status"]).contains("revoked in \"home\" by admin"));
    assert!(one.must(&["logs"]).contains("was revoked in"));
    // It stays so, whoever is asked next.
    one.must(&["down"]);
    let (code, text) = one.say(&["up"]);
    assert!(code == 6 && text.contains("was revoked in"), "{text}");
    assert_eq!(one.json(&["status"])["networks"][0]["up"], false);
    let url = admin.must(&["invite", "one"]).trim().to_owned();
    let (code, text) = one.say(&["join", &url]);
    assert!(code == 6 && text.contains("was revoked in"), "{text}");
    let before = one.json(&["status"])["networks"][0]["node"].clone();
    one.must(&["leave", "--yes"]);
    one.must(&["join", &url]);
    assert_ne!(one.json(&["status"])["networks"][0]["node"], before);
    admin.host.must_reach(&one.address(), 10);

    // One that slept: when it is back.
    two.must(&["down"]);
    admin.must(&["revoke", "two", "--reason", "lost", "--yes"]);
    let _it_may_hear_that_at_once = two.say(&["up"]);
    let clock = Clock::new();
    wait_until("its device gone", SECONDS(20), || {
        (!two.host.ip("-o link").contains("sm-home")).then_some(())
    });
    println!("it slept, and heard after {:?}", clock.now());
    says_so(two, "home");
    two.must(&["leave", "--yes"]);

    // One that left without hearing, and comes with the invite that it had: told, and nothing is written.
    admin.must(&["invite", "--reusable"]);
    let old = admin.must(&["invite", "two"]).trim().to_owned();
    two.must(&["join", &old, "--name", "two"]);
    block(&e.routers[2], "");
    // An invite that lets it in again is named.
    let text = admin.must(&["revoke", "two", "--yes"]);
    let list = admin.json(&["invite", "list"]);
    let open = list["invites"].as_array().unwrap().iter().find(|i| i["reusable"] == true).unwrap();
    let id = open["id"].as_str().unwrap();
    assert!(text.contains(&format!("shadowmesh invite cancel {id}")), "{text}");
    two.must(&["leave", "--yes"]);
    unblock(&e.routers[2]);
    let incarnations = || std::fs::read(two.directory.join("state/incarnations")).unwrap();
    let before = incarnations();
    let (code, text) = two.say(&["join", &old]);
    assert!(
        code == 6 && text.contains("revoked by admin (change ") && text.contains("was used by"),
        "{text}"
    );
    assert!(text.contains("Ask an admin for a new invite:  shadowmesh invite"), "{text}");
    assert_eq!(incarnations(), before);
    assert_eq!(two.json(&["network", "list"])["networks"].as_array().unwrap().len(), 0);
    let url = admin.must(&["invite", "two"]).trim().to_owned();
    two.must(&["join", &url]);
    admin.host.must_reach(&two.address(), 10);
}

/// Counts of the relay's `/metrics`.
fn metric(e: &Evening, name: &str) -> u64 {
    let text = e.vps.run("curl", &["-s", "http://127.0.0.1:9090/metrics"]);
    let line = text.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("no {name}: {text}"));
    line.rsplit(' ').next().and_then(|v| v.parse().ok()).unwrap_or_else(|| panic!("{line}"))
}

/// Packets lost in a row at most, and when that was; how many were lost in all. A busy machine delays, and loses none.
fn lost(arrivals: &Arrivals) -> (u64, Duration, u64) {
    let list = arrivals.0.lock().unwrap();
    let runs = list.windows(2).map(|w| (w[1].1.saturating_sub(w[0].1 + 1), w[0].0));
    let (most, at) = runs.max().unwrap_or_default();
    let all = list.last().map_or(0, |l| l.1) - list.first().map_or(0, |f| f.1) + 1 - list.len() as u64;
    (most, at, all)
}

#[test]
fn the_relay_changes_its_secret_and_who_stays_goes_on() {
    let names = ["admin", "one", "two", "gone"];
    let e = Evening::with_relay("rotation", &names, &["--http", "127.0.0.1:9090"]);
    e.network("home");
    let [admin, one, two, gone] = &e.machines[..] else { panic!("four machines") };
    one.host.must_reach(&two.address(), 20);
    one.host.must_reach(&gone.address(), 20);
    // Both sleep: one to be revoked meanwhile, the other not.
    two.must(&["down"]);
    gone.must(&["down"]);

    let clock = Clock::new();
    let mut threads = Threads::new();
    let there = Arrivals::at(&one.host, clock, &mut threads);
    let back = Arrivals::at(&admin.host, clock, &mut threads);
    stream(&admin.host, &[one.address()], &mut threads);
    stream(&one.host, &[admin.address()], &mut threads);
    std::thread::sleep(SECONDS(1));
    admin.must(&["revoke", "gone", "--reason", "lost", "--yes"]);
    let began = clock.now();
    wait_until("a new access secret at the relay", SECONDS(10), || {
        (metric(&e, "shadowmesh_relay_rotations_total") == 1).then_some(())
    });
    let rotated = clock.now() - began;
    wait_until("links by it", SECONDS(10), || {
        (metric(&e, "shadowmesh_relay_handshakes_total{kind=\"pseudonym\"}") >= 6).then_some(())
    });
    // Until the sessions from before have ended.
    std::thread::sleep(SECONDS(70));
    let runs = [lost(&there), lost(&back)];
    let (most, at, _) = runs.into_iter().max().unwrap();
    let all: u64 = runs.iter().map(|r| r.2).sum();
    println!(
        "rotated after {rotated:?}; {all} of {} packets lost, {most} in a row {:?} after `revoke`",
        there.count() + back.count(),
        at.saturating_sub(began)
    );
    drop(threads);
    assert_eq!(metric(&e, "shadowmesh_relay_clients{kind=\"pseudonym\"}"), 2);
    assert_eq!(metric(&e, "shadowmesh_relay_handshakes_total{kind=\"former\"}"), 0);
    assert!(admin.log().contains("the relay has taken a new access secret"), "{}", admin.log());

    // Who slept is let in to be told, and is back as ever.
    two.must(&["up"]);
    let clock = Clock::new();
    one.host.must_reach(&two.address(), 20);
    println!("who slept is reached after {:?}", clock.now());
    let former = metric(&e, "shadowmesh_relay_handshakes_total{kind=\"former\"}");
    assert!(former >= 1, "it came in by the former secret");
    wait_until("a link by the new secret", SECONDS(10), || {
        (metric(&e, "shadowmesh_relay_clients{kind=\"pseudonym\"}") == 3).then_some(())
    });

    // Who was revoked is told that, by the same narrow way, and has no other.
    let _it_may_hear_that_at_once = gone.say(&["up"]);
    wait_until("its device gone", SECONDS(20), || {
        (!gone.host.ip("-o link").contains("sm-home")).then_some(())
    });
    assert!(metric(&e, "shadowmesh_relay_handshakes_total{kind=\"former\"}") > former);
    assert_eq!(metric(&e, "shadowmesh_relay_clients{kind=\"pseudonym\"}"), 3);

    let mut measured = Measured::new("rotation");
    let what = "longest gap in two streams of 200 packets a second while access secrets change";
    let gap = most as f64 * PACE.as_secs_f64();
    measured.line("8-rotation-gap", what, gap, "s", "< 1", gap < 1.0);
    let what = "from the end of `revoke` to the relay's new access secret";
    measured.line("8-rotation", what, rotated.as_secs_f64(), "s", "<= 5", rotated <= SECONDS(5));
    drop(measured);
    assert!(gap < 1.0 && rotated <= SECONDS(5));
}

/// Killed before the relay was asked, the admin's daemon sees to the new secret when it is back. (The simulator kills it
/// between the relay's answer and what it tells the members.)
#[test]
fn an_admin_killed_after_a_revocation_rotates_all_the_same() {
    let names = ["admin", "one", "gone"];
    let e = Evening::with_relay("rotation and crash", &names, &["--http", "127.0.0.1:9090"]);
    e.network("home");
    let [admin, one, gone] = &e.machines[..] else { panic!("three machines") };
    one.host.must_reach(&gone.address(), 20);
    gone.must(&["down"]);
    admin.must(&["revoke", "gone", "--yes"]);
    // The relay is asked a second later, and answers within a few milliseconds.
    std::thread::sleep(MILLIS(900));
    admin.crash();
    admin.must(&["up"]);
    wait_until("a new access secret at the relay", SECONDS(10), || {
        (metric(&e, "shadowmesh_relay_rotations_total") == 1).then_some(())
    });
    one.host.must_reach(&admin.address(), 20);
    std::thread::sleep(SECONDS(3));
    one.host.must_reach(&admin.address(), 20);
    assert_eq!(metric(&e, "shadowmesh_relay_rotations_total"), 1);
}
