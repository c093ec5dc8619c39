//! Members find each other on a LAN, by multicast DNS, when no relay is reached; and somebody there who says a lot, and says
//! it in a member's name, neither fills the memory nor keeps them apart for long.
#![allow(clippy::unwrap_used, reason = "a test; clippy exempts only functions marked as such")]

use shadowmesh_host::clock::Clock;
use shadowmesh_netns_tests::{
    Host, Lab, Machine, make_home, make_relay, spawn_relay, wait_for_relay, wait_until,
};
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const SECONDS: fn(u64) -> Duration = Duration::from_secs;
const VICTIM: &str = "192.168.7.9";
/// What multicast DNS may take of memory, with room for what is mapped of the program.
const MOST_KIB: u64 = 48 << 10;

/// Two members that have met at a relay which is gone, and somebody else on their LAN.
struct Place {
    _lab: Lab,
    members: Vec<Machine>,
    stranger: Host,
}

fn place(test: &str) -> Place {
    let mut lab = Lab::new(test);
    let (vps, stranger) = (lab.host("vps"), lab.host("stranger"));
    let hosts = [lab.host("a"), lab.host("b")];
    let (a, b) = (["192.168.7.11/24"], ["192.168.7.12/24"]);
    lab.lan(
        "switch",
        &[(&vps, &["192.168.7.2/24"]), (&stranger, &["192.168.7.9/24"]), (&hosts[0], &a), (&hosts[1], &b)],
    );
    let state = lab.directory().join("relay").display().to_string();
    let urls = make_relay(&vps, &state, "192.168.7.2");
    let relay = spawn_relay(&vps, &state, &[]);
    wait_for_relay(&vps);
    let members: Vec<Machine> = hosts
        .into_iter()
        .map(|host| {
            let directory = lab.directory().join(host.name());
            std::fs::create_dir_all(&directory).unwrap();
            std::fs::write(directory.join("config.yaml"), "port_mapping: off\nlog: {level: debug}\n")
                .unwrap();
            Machine { host, directory, environment: vec![] }
        })
        .collect();
    make_home(&members, &urls[0], "home");
    members.iter().for_each(|m| drop(m.must(&["down"])));
    relay.kill();
    Place { _lab: lab, members, stranger }
}

impl Place {
    /// Starts both and gives the time until the first reaches the second.
    fn meet(&self, most: Duration) -> Duration {
        self.members.iter().for_each(|m| drop(m.say(&["up"])));
        let clock = Clock::new();
        let to = self.members[1].overlay();
        wait_until("an answer", most, || {
            let ping = self.members[0].host.try_run("ping", &["-n", "-c", "1", "-W", "1", &to]);
            ping.status.success().then_some(())
        });
        clock.now()
    }
}

fn resident_kib(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?.split_whitespace().next()?.parse().ok()
}

/// The processes that speak multicast DNS.
fn speakers(host: &Host) -> Vec<u32> {
    let is = |pid: &u32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == "shadowmesh-lan")
    };
    host.processes().into_iter().filter(is).collect()
}

#[test]
fn without_a_relay() {
    let place = place("nearby");
    let took = place.meet(SECONDS(15));
    let [a, b] = &place.members[..] else { panic!("two members") };
    let path = a.path_to(b).unwrap();
    println!("reached after {took:?}, by {path:?}");
    assert_eq!(path.path, "direct");
    assert!(path.via.starts_with("192.168.7.12:"), "{path:?}");
    let resident: Vec<_> = speakers(&a.host).into_iter().filter_map(resident_kib).collect();
    println!("multicast DNS takes {resident:?} KiB");
    assert_eq!(resident.len(), 1);
    // Nobody speaks it for a network that is down.
    a.must(&["down"]);
    wait_until("silence", SECONDS(3), || speakers(&a.host).is_empty().then_some(()));
}

#[test]
fn it_is_left_out_where_it_is_not_wanted() {
    let place = place("unwanted");
    for m in &place.members {
        std::fs::write(m.directory.join("config.yaml"), "lan_discovery: false\n").unwrap();
    }
    place.members.iter().for_each(|m| drop(m.say(&["up"])));
    let [a, b] = &place.members[..] else { panic!("two members") };
    std::thread::sleep(SECONDS(4));
    assert!(!a.host.try_run("ping", &["-n", "-c", "2", "-W", "1", &b.overlay()]).status.success());
    assert!(speakers(&a.host).is_empty());
}

/// An answer that nobody has asked for: an instance, where it is, and its address (RFC 6763 section 4).
fn announcement(name: &str, address: Ipv4Addr) -> Vec<u8> {
    fn put(out: &mut Vec<u8>, labels: &[&str]) {
        for label in labels {
            out.push(label.len() as u8);
            out.extend(label.as_bytes());
        }
        out.push(0);
    }
    let service = ["_shadowmesh", "_udp", "local"];
    let instance = [&[name][..], &service].concat();
    let host = [name, "local"];
    let mut out = vec![0, 0, 0x84, 0, 0, 0, 0, 4, 0, 0, 0, 0];
    let record = |out: &mut Vec<u8>, owner: &[&str], kind: u16, data: &[u8]| {
        put(out, owner);
        out.extend(kind.to_be_bytes());
        out.extend([0, 1, 0, 0, 0, 120]);
        out.extend((data.len() as u16).to_be_bytes());
        out.extend(data);
    };
    let mut data = vec![];
    put(&mut data, &instance);
    record(&mut out, &service, 12, &data);
    let mut data = vec![0, 0, 0, 0, 0, 7];
    put(&mut data, &host);
    record(&mut out, &instance, 33, &data);
    record(&mut out, &instance, 16, &[0]);
    record(&mut out, &host, 1, &address.octets());
    out
}

#[test]
fn among_noise_and_lies() {
    let place = place("noise");
    place.members.iter().for_each(|m| drop(m.say(&["up"])));
    let [a, b] = &place.members[..] else { panic!("two members") };
    wait_until("who speaks", SECONDS(5), || (!speakers(&a.host).is_empty()).then_some(()));
    let daemon = a.processes();
    let socket = place.stranger.enter(|| UdpSocket::bind(("192.168.7.9", 5353)).unwrap());
    let victim: Ipv4Addr = VICTIM.parse().unwrap();
    let mut most = 0;
    for n in 0..60_000u32 {
        let name = format!("{:026}", n);
        let _dropped = socket.send_to(&announcement(&name, victim), "224.0.0.251:5353");
        if n % 500 == 0 {
            most = speakers(&a.host).into_iter().filter_map(resident_kib).chain([most]).max().unwrap();
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    println!("beside the noise: {most} KiB at most, {} afterwards", speakers(&a.host).len());
    assert!((1..MOST_KIB).contains(&most), "{most} KiB");
    assert_eq!(a.processes(), daemon, "the daemon goes on");
    assert!(resident_kib(daemon[0]).unwrap() < 64 << 10);
    // Somebody says where `b` is, by the name that it has heard, and is not there: `b` finds the other.
    let network = a.json(&["status"])["networks"][0]["id"].as_str().unwrap().parse().unwrap();
    let node = b.json(&["status"])["networks"][0]["node"].as_str().unwrap().parse().unwrap();
    place.members.iter().for_each(|m| drop(m.must(&["down"])));
    let name = shadowmesh_identity::lan::name(&network, &node, Clock::new().unix());
    let (lie, met) = (announcement(&name, victim), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let clock = Clock::new();
            while !met.load(Ordering::Relaxed) && clock.now() < SECONDS(30) {
                let _dropped = socket.send_to(&lie, "224.0.0.251:5353");
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let took = place.meet(SECONDS(20));
        met.store(true, Ordering::Relaxed);
        println!("reached after {took:?}, among lies");
    });
    assert!(a.path_to(b).unwrap().via.starts_with("192.168.7.12:"));
}
