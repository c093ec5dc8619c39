//! Ports that routers open: a stranger outside reaches a machine at home, by the port that its daemon had the router map.
#![allow(clippy::unwrap_used, reason = "a test; clippy exempts only functions marked as such")]

use nix::sys::signal::Signal;
use shadowmesh_netns_tests::{
    Host, Lab, Machine, Process, Ways, make_relay, mapped_ports, rss, spawn_miniupnpd, spawn_relay,
    udp_arrived, wait_for_relay, wait_until,
};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

const SECONDS: Duration = Duration::from_secs(1);
/// The router outside. Not an address for documentation: miniupnpd takes them for private ones.
const OUTSIDE: &str = "11.22.33.2";

//   home (192.168.1.2) --- router (11.22.33.2) --- net --- relay (11.22.34.2)
//                                                   \----- stranger (11.22.35.2)
struct Town {
    home: Machine,
    router: Host,
    stranger: Host,
    miniupnpd: Option<Process>,
    ways: Ways,
    _relay: Process,
    lab: Lab,
}

impl Town {
    /// A machine with a network, behind a router that is asked by PCP and NAT-PMP, by UPnP, or not at all.
    fn new(test: &str, ways: Ways, configuration: &str) -> Town {
        let mut lab = Lab::new(test);
        let (home, router, net) = (lab.host("home"), lab.router("router"), lab.router("net"));
        let (vps, stranger) = (lab.host("vps"), lab.host("stranger"));
        lab.wire(&home, &["192.168.1.2/24"], &router, &["192.168.1.1/24"]);
        lab.wire(&router, &["11.22.33.2/24"], &net, &["11.22.33.1/24"]);
        lab.wire(&vps, &["11.22.34.2/24"], &net, &["11.22.34.1/24"]);
        lab.wire(&stranger, &["11.22.35.2/24"], &net, &["11.22.35.1/24"]);
        for (host, via) in
            [(&home, "192.168.1.1"), (&router, "11.22.33.1"), (&vps, "11.22.34.1"), (&stranger, "11.22.35.1")]
        {
            host.default_route(via);
        }
        let state = lab.directory().join("relay").display().to_string();
        let url = make_relay(&vps, &state, "11.22.34.2").remove(0);
        let relay = spawn_relay(&vps, &state, &[]);
        wait_for_relay(&vps);
        let home = Machine { directory: lab.directory().join("home"), host: home, environment: vec![] };
        std::fs::create_dir_all(&home.directory).unwrap();
        std::fs::write(home.directory.join("config.yaml"), configuration).unwrap();
        let mut town = Town { home, router, stranger, miniupnpd: None, ways, _relay: relay, lab };
        town.start_miniupnpd();
        town.home.must(&["network", "create", "town", "--relay", &url]);
        town
    }

    fn start_miniupnpd(&mut self) {
        let started = spawn_miniupnpd(&self.lab, &self.router, ["eth1", "eth0"], "192.168.1.0/24", self.ways);
        self.miniupnpd = Some(started);
    }

    /// What `status` says of it.
    fn mapping(&self) -> Option<String> {
        self.home.json(&["status"])["networks"][0]["port_mapping"].as_str().map(str::to_owned)
    }

    /// Waits for a mapping by this protocol; gives where it is, outside.
    fn mapped_by(&self, by: &str) -> SocketAddr {
        let said = wait_until("a port mapping", 15 * SECONDS, || self.mapping());
        let (named, external) = said.split_once(' ').unwrap();
        assert_eq!(named, by, "{said}");
        let external: SocketAddr = external.parse().unwrap();
        assert_eq!(external.ip().to_string(), OUTSIDE);
        let shown = mapped_ports(&self.router);
        assert!(shown.contains("192.168.1.2") && shown.contains(&external.port().to_string()), "{shown}");
        external
    }

    /// How many of these datagrams of the stranger come to the daemon.
    fn arrive(&self, external: SocketAddr) -> f64 {
        let before = udp_arrived(self.home.processes()[0]);
        self.stranger.enter(|| {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
            for _ in 0..1000 {
                // Some may be lost where it is the first packet: neighbours are asked for.
                let _refused = socket.send_to(&[0; 100], external);
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        std::thread::sleep(SECONDS / 5);
        udp_arrived(self.home.processes()[0]) - before
    }

    /// What the router has mapped to a machine at home.
    fn is_mapped(&self) -> bool {
        mapped_ports(&self.router).contains("192.168.1.2")
    }
}

#[test]
fn a_port_is_opened_by_pcp_and_closed_at_the_end() {
    let town = Town::new("PCP", Ways { natpmp: true, upnp: true }, "");
    let external = town.mapped_by("PCP");
    // Besides what the relay sends.
    assert!(town.arrive(external) > 900.0);
    let elsewhere = SocketAddr::new(external.ip(), external.port() ^ 1);
    assert!(town.arrive(elsewhere) < 100.0, "other ports stay closed");
    town.home.must(&["down"]);
    assert!(!town.is_mapped(), "{}", mapped_ports(&town.router));
    assert!(town.home.log().contains("port mapping ended"), "{}", town.home.log());
}

#[test]
fn a_killed_daemon_that_comes_back_has_its_port_again() {
    let town = Town::new("killed", Ways { natpmp: true, upnp: true }, "");
    let external = town.mapped_by("PCP");
    town.home.crash();
    assert!(town.is_mapped(), "nobody has taken it away");
    town.home.must(&["up"]);
    // The mapping is by a nonce that died with the daemon: PCP gives the port to nobody else.
    let said = wait_until("a port mapping", 15 * SECONDS, || town.mapping());
    let (_, again) = said.split_once(' ').unwrap();
    assert_eq!(again, external.to_string(), "{said}");
    assert!(town.arrive(external) > 900.0);
    town.home.must(&["down"]);
    assert!(!town.is_mapped(), "{}", mapped_ports(&town.router));
}

#[test]
fn a_port_is_opened_by_upnp_where_there_is_nothing_else() {
    let town = Town::new("UPnP", Ways { natpmp: false, upnp: true }, "");
    let external = town.mapped_by("UPnP");
    assert!(town.arrive(external) > 900.0);
    // Of one network alone: the daemon goes on.
    town.home.must(&["down", "--network", "town"]);
    assert!(!town.is_mapped(), "{}", mapped_ports(&town.router));
    town.home.must(&["up", "--network", "town"]);
    assert_eq!(town.mapped_by("UPnP"), external);
    town.home.must(&["down"]);
    assert!(!town.is_mapped(), "{}", mapped_ports(&town.router));
}

#[test]
fn no_port_is_asked_for_when_that_is_switched_off() {
    for configuration in ["port_mapping: off\n", "direct: false\n"] {
        let town = Town::new("switched off", Ways { natpmp: true, upnp: true }, configuration);
        // Where it is on, that takes a fraction of a second.
        std::thread::sleep(3 * SECONDS);
        assert_eq!(town.mapping(), None, "{configuration}");
        assert!(!town.is_mapped(), "{configuration}");
        let status = town.home.json(&["status"]);
        let listen = status["networks"][0]["listen"][0].as_str().unwrap().to_owned();
        let port = listen.rsplit_once(':').unwrap().1.parse().unwrap();
        assert!(town.arrive(SocketAddr::new(OUTSIDE.parse().unwrap(), port)) < 100.0, "{configuration}");
    }
}

#[test]
fn a_port_is_opened_anew_when_the_network_changes() {
    let mut town = Town::new("changes", Ways { natpmp: true, upnp: false }, "log: {level: debug}\n");
    town.mapped_by("PCP");
    // The router forgets: it is asked again when something has changed here, not only in an hour.
    drop(town.miniupnpd.take());
    town.router.run("nft", &["flush", "ruleset"]);
    town.start_miniupnpd();
    assert!(!town.is_mapped());
    town.home.host.ip("address add 192.168.9.9/24 dev eth0");
    wait_until("the mapping again", 10 * SECONDS, || town.is_mapped().then_some(()));
    // And after the process has slept.
    drop(town.miniupnpd.take());
    town.router.run("nft", &["flush", "ruleset"]);
    town.start_miniupnpd();
    let pid = nix::unistd::Pid::from_raw(town.home.processes()[0] as i32);
    nix::sys::signal::kill(pid, Signal::SIGSTOP).unwrap();
    std::thread::sleep(27 * SECONDS);
    assert!(!town.is_mapped());
    nix::sys::signal::kill(pid, Signal::SIGCONT).unwrap();
    wait_until("the mapping after a sleep", 10 * SECONDS, || town.is_mapped().then_some(()));
    // Another address on the default route's interface is told to the node; the node is told once of a change.
    let told = |l: &&str| l.contains(" candidates ") && l.contains("changed=true");
    let changes = town.home.log().lines().filter(told).count();
    assert_eq!(changes, 2, "{}", town.home.log());
}

#[test]
fn a_router_that_opens_nothing_is_said_and_keeps_nothing_waiting() {
    let town = Town::new("nothing", Ways { natpmp: false, upnp: false }, "");
    wait_until("the reason", 15 * SECONDS, || town.home.log().contains("no port is mapped").then_some(()));
    assert_eq!(town.mapping(), None);
    let before = shadowmesh_host::clock::Clock::new();
    town.home.must(&["down"]);
    assert!(before.now() < 3 * SECONDS, "{:?}", before.now());
}

/// What a document of a router is, in the end of each kind of hostility.
fn hostile_document(mut to: TcpStream, kind: &str) {
    let deep = || ["<a>".repeat(100_000), "</a>".repeat(100_000)].concat();
    let head =
        "HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nConnection: close\r\n\r\n<?xml version=\"1.0\"?>";
    let _asked = to.read(&mut [0; 4096]);
    let mut said = to.write_all(head.as_bytes());
    match kind {
        "deep" => said = said.and_then(|()| to.write_all(deep().as_bytes())),
        "wide" => {
            let wide = format!("<a>{}</a>", "<b c=\"d\"/>".repeat(90_000));
            said = said.and_then(|()| to.write_all(wide.as_bytes()));
        }
        _ => {
            while said.is_ok() {
                said = to.write_all(&[b' '; 1 << 16]);
            }
        }
    }
    drop(said);
}

/// Answers every search of UPnP, and serves what would harm who reads it, until `stop`. Counts what was fetched.
fn hostile_router(kind: &'static str, fetched: &AtomicUsize, stop: &AtomicBool) {
    let search = UdpSocket::bind("0.0.0.0:1900").unwrap();
    search.join_multicast_v4(&Ipv4Addr::new(239, 255, 255, 250), &Ipv4Addr::new(192, 168, 1, 1)).unwrap();
    search.set_read_timeout(Some(SECONDS / 10)).unwrap();
    let web = TcpListener::bind("192.168.1.1:5000").unwrap();
    web.set_nonblocking(true).unwrap();
    let answer = "HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\
                  LOCATION: http://192.168.1.1:5000/root.xml\r\n\r\n";
    while !stop.load(Ordering::Relaxed) {
        if let Ok((_, from)) = search.recv_from(&mut [0; 2048]) {
            search.send_to(answer.as_bytes(), from).unwrap();
        }
        while let Ok((connection, _)) = web.accept() {
            connection.set_nonblocking(false).unwrap();
            connection.set_write_timeout(Some(SECONDS)).unwrap();
            fetched.fetch_add(1, Ordering::Relaxed);
            std::thread::spawn(move || hostile_document(connection, kind));
        }
    }
}

/// Documents that are deep, wide, or without end: what reads them ends, alone, and held no more than 32 MiB.
#[test]
fn a_hostile_router_harms_nobody() {
    let town = Town::new("hostile router", Ways { natpmp: false, upnp: false }, "");
    let daemon = town.home.processes()[0];
    let reasons = || -> Vec<String> {
        let of = |l: &&str| l.contains("no port is mapped") && !l.contains("is being looked at");
        town.home.log().lines().filter(of).map(str::to_owned).collect()
    };
    for kind in ["deep", "wide", "endless"] {
        town.home.must(&["down", "--network", "town"]);
        let (fetched, stop, before) = (AtomicUsize::new(0), AtomicBool::new(false), reasons().len());
        let most = std::thread::scope(|scope| {
            scope.spawn(|| town.router.enter(|| hostile_router(kind, &fetched, &stop)));
            town.home.must(&["up", "--network", "town"]);
            let mut most = 0.0f64;
            let reads = |pid: &u32| {
                let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                name.trim() == "shadowmesh-upnp"
            };
            wait_until("the reason", 30 * SECONDS, || {
                most = town.home.host.processes().into_iter().filter(reads).map(rss).fold(most, f64::max);
                (reasons().len() > before).then_some(())
            });
            stop.store(true, Ordering::Relaxed);
            most
        });
        println!(
            "{kind}: {} fetched, {most} KiB at most; {:?}",
            fetched.load(Ordering::Relaxed),
            reasons().last()
        );
        assert!(fetched.load(Ordering::Relaxed) > 0, "nobody has read it");
        assert!(most > 0.0 && most < f64::from(48 << 10), "{most} KiB");
        assert_eq!((town.mapping(), town.home.processes().first()), (None, Some(&daemon)));
    }
    assert!(rss(daemon) < f64::from(64 << 10));
}
