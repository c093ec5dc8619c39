//! The relay is blind: its memory, its state and all that passes it hold no name, address or payload of the mesh.
#![allow(clippy::unwrap_used, reason = "a test; clippy exempts only functions marked as such")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use memchr::memmem::find_iter;
use nix::sys::signal::Signal;
use shadowmesh_netns_tests::{Evening, Measured};

const SECONDS: fn(u64) -> Duration = Duration::from_secs;
/// Names that nothing else has.
const NAMES: [&str; 3] = ["zebrafish-laptop", "okapi-pi", "axolotl-nas"];
const NETWORK: &str = "quokka";
/// What is sent, many times over.
const BY_TCP: &str = "the-heron-eats-at-dawn-5d0c";
const BY_UDP: &str = "seven-otters-in-a-boat-91ba";
const BY_PING: [u8; 16] = *b"\xc0\xff\x1e\x5e\xed\x7a\x11\xb0\xa7\x5c\x0d\xe5\x0f\xf1\xce\x77";

/// Something to be looked for.
struct Needle {
    what: String,
    kind: Kind,
}

enum Kind {
    Bytes(Vec<u8>),
    /// An IPv4 address within a header of IPv4 or ARP: four bytes alone may stand anywhere by chance.
    Ipv4(Ipv4Addr),
}

impl Needle {
    fn bytes(what: &str, bytes: &[u8]) -> Needle {
        Needle { what: what.into(), kind: Kind::Bytes(bytes.to_vec()) }
    }

    fn count(&self, hay: &[u8]) -> usize {
        match &self.kind {
            Kind::Bytes(bytes) => find_iter(hay, bytes).count(),
            Kind::Ipv4(address) => find_iter(hay, &address.octets())
                .filter(|at| {
                    let before = |n: usize, bytes: &[u8]| {
                        at.checked_sub(n).is_some_and(|from| hay[from..].starts_with(bytes))
                    };
                    // As source or destination of a packet; as sender or target of an ARP message.
                    before(14, &[8, 0, 0x45])
                        || before(18, &[8, 0, 0x45])
                        || before(16, &[8, 6, 0, 1, 8, 0])
                        || before(26, &[8, 6, 0, 1, 8, 0])
                })
                .count(),
        }
    }
}

fn needles(e: &Evening, interface: &str) -> Vec<Needle> {
    let mut needles = vec![
        Needle::bytes("the network's name", NETWORK.as_bytes()),
        Needle::bytes("a payload sent by TCP", BY_TCP.as_bytes()),
        Needle::bytes("a payload sent by UDP", BY_UDP.as_bytes()),
        Needle::bytes("a payload sent by ping", &BY_PING),
    ];
    for machine in &e.machines {
        let name = machine.host.name();
        let mac = machine.mac(interface);
        let raw: Vec<u8> = mac.split(':').map(|b| u8::from_str_radix(b, 16).unwrap()).collect();
        let (ipv4, ipv6) = (machine.address(), machine.address6());
        let (raw4, raw6): (Ipv4Addr, Ipv6Addr) = (ipv4.parse().unwrap(), ipv6.parse().unwrap());
        needles.push(Needle::bytes(&format!("the name {name}"), name.as_bytes()));
        needles.push(Needle::bytes(&format!("{name}'s MAC"), &raw));
        needles.push(Needle::bytes(&format!("{name}'s MAC as text"), mac.as_bytes()));
        needles.push(Needle::bytes(&format!("{name}'s IPv6"), &raw6.octets()));
        needles.push(Needle::bytes(&format!("{name}'s IPv6 as text"), ipv6.as_bytes()));
        needles.push(Needle::bytes(&format!("{name}'s IPv4 as text"), ipv4.as_bytes()));
        needles.push(Needle { what: format!("{name}'s IPv4 in a header"), kind: Kind::Ipv4(raw4) });
    }
    needles
}

/// Traffic of all kinds from the first machine to the second, with payloads that are known.
fn talk(e: &Evening) {
    let (here, there) = (&e.machines[0].host, &e.machines[1].host);
    let address: Ipv4Addr = e.machines[1].address().parse().unwrap();
    let listener = there.enter(|| TcpListener::bind("0.0.0.0:7000").unwrap());
    let mut stream = here.enter(|| TcpStream::connect((address, 7000)).unwrap());
    let (mut accepted, _) = listener.accept().unwrap();
    let text = BY_TCP.repeat(2000);
    std::thread::scope(|scope| {
        scope.spawn(|| stream.write_all(text.as_bytes()).unwrap());
        let mut buffer = vec![0; text.len()];
        accepted.read_exact(&mut buffer).unwrap();
        assert_eq!(buffer, text.as_bytes());
    });
    let receiver = there.enter(|| UdpSocket::bind("0.0.0.0:7001").unwrap());
    receiver.set_read_timeout(Some(SECONDS(2))).unwrap();
    let sender = here.enter(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    for _ in 0..100 {
        sender.send_to(BY_UDP.repeat(10).as_bytes(), (address, 7001)).unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(receiver.recv(&mut [0; 1000]).unwrap() > 0);
    let pattern: String = BY_PING.iter().map(|b| format!("{b:02x}")).collect();
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        for target in [e.machines[to].address(), e.machines[to].address6()] {
            // The first ping finds the neighbour.
            e.machines[from].host.must_reach(&target, 10);
            let said = e.machines[from].host.run(
                "ping",
                &["-n", "-c", "20", "-i", "0.02", "-W", "2", "-s", "400", "-p", &pattern, &target],
            );
            assert!(said.contains(" 0% packet loss"), "{said}");
        }
    }
}

/// Everything that a process has in memory.
fn core(e: &Evening, pid: u32) -> Vec<u8> {
    let path = e.lab.directory().join(format!("core.{pid}"));
    let host = &e.machines[0].host;
    let said = host.run(
        "gdb",
        &[
            "-nx",
            "-batch",
            "-p",
            &pid.to_string(),
            "-ex",
            "set use-coredump-filter off",
            "-ex",
            "set dump-excluded-mappings on",
            "-ex",
            &format!("generate-core-file {}", path.display()),
        ],
    );
    let core = std::fs::read(&path).unwrap_or_else(|e| panic!("{e}: {said}"));
    std::fs::remove_file(&path).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let resident = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).unwrap();
    let kilobytes: usize = resident.trim().trim_end_matches(" kB").parse().unwrap();
    println!("a core of {} bytes, {kilobytes} kB of them its own", core.len());
    assert!(core.len() >= kilobytes * 1024, "{} bytes of {kilobytes} kB: {said}", core.len());
    core
}

/// All files under a directory, one after the other, each after its name.
fn files(directory: &Path) -> Vec<u8> {
    let mut all = vec![];
    for entry in std::fs::read_dir(directory).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        all.extend(path.file_name().unwrap().as_encoded_bytes());
        if path.is_dir() {
            all.extend(files(&path));
        } else if path.is_file() {
            all.extend(std::fs::read(&path).unwrap());
        }
    }
    all
}

#[test]
fn the_relay_knows_no_name_no_address_and_no_payload() {
    let mut measured = Measured::new("blind");
    let e = Evening::with_relay("a blind relay", &NAMES, &["--allow-core"]);
    let capture = e.lab.directory().join("relay.pcap");
    let dump = e.vps.spawn(
        "tcpdump",
        "tcpdump",
        &["-i", "eth0", "-n", "-U", "-B", "16384", "-Z", "root", "-w", capture.to_str().unwrap()],
        &[],
    );
    dump.wait_for("listening on", SECONDS(5));
    e.network(NETWORK);
    let needles = needles(&e, "sm-quokka");
    talk(&e);

    let client: Vec<u8> = e.machines[0].processes().into_iter().flat_map(|pid| core(&e, pid)).collect();
    let named = |pid: &u32| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.starts_with("shadowmesh-rel")
    };
    let relay_pid = e.vps.processes().into_iter().find(named).unwrap();
    // While frames are under way.
    let pattern: String = BY_PING.iter().map(|b| format!("{b:02x}")).collect();
    let address = e.machines[1].address();
    let arguments = ["-n", "-i", "0.005", "-s", "1000", "-p", &pattern, &address];
    let ping = e.machines[0].host.spawn("ping", "ping", &arguments, &[]);
    std::thread::sleep(SECONDS(1));
    let relay = core(&e, relay_pid);
    ping.kill();
    talk(&e);
    e.relay.signal(Signal::SIGTERM);
    e.relay.wait(SECONDS(5));
    dump.signal(Signal::SIGTERM);
    dump.wait(SECONDS(5));
    let captured = std::fs::read(&capture).unwrap();
    let state = [files(Path::new(&e.state)), e.relay.output().into_bytes()].concat();

    // The relay's core, its state and the capture are whole: what the relay does know is in them.
    let outside = Needle { what: "its address".into(), kind: Kind::Ipv4(Ipv4Addr::new(203, 0, 113, 2)) };
    assert!(outside.count(&captured) > 1000, "{} packets captured", outside.count(&captured));
    assert!(captured.len() > 2 * 2 * 2000 * BY_TCP.len(), "{} bytes captured", captured.len());
    assert!(find_iter(&relay, e.state.as_bytes()).count() > 0);
    assert!(state.len() > 1000);

    let mut hits = 0;
    let mut missed = vec![];
    for needle in &needles {
        let known = needle.count(&client);
        println!("{:45} {known:6} times in the client's memory", needle.what);
        // It keeps names, and the addresses and MACs of whom it speaks with; texts and payloads come and go.
        if known == 0 && ["name", "MAC", "IPv6"].iter().any(|k| needle.what.ends_with(k)) {
            missed.push(&needle.what);
        }
        if known == 0 && needle.what.starts_with("the name") {
            missed.push(&needle.what);
        }
        for (place, hay) in [("memory", &relay), ("state and log", &state), ("capture", &captured)] {
            let found = needle.count(hay);
            if found > 0 {
                println!("{:45} {found:6} times in the relay's {place}", needle.what);
                hits += 1;
            }
        }
    }
    println!(
        "searched: a core of {} bytes, state and log of {}, a capture of {}; the client's core of {}",
        relay.len(),
        state.len(),
        captured.len(),
        client.len()
    );
    measured.line(
        "blind-relay",
        "names, addresses and payloads of the mesh found in the relay's memory, state, log and traffic",
        f64::from(hits),
        "",
        "= 0",
        hits == 0,
    );
    measured.line(
        "blind-control",
        "names, MACs and IPv6 addresses that the same search misses in a client's memory",
        missed.len() as f64,
        "",
        "= 0",
        missed.is_empty(),
    );
    assert_eq!(hits, 0, "the relay knows what it should not");
    assert!(missed.is_empty(), "the search does not find in the client: {missed:?}");
}
