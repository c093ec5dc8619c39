//! What programs expect of an Ethernet, over the overlay and through the relay: DHCP, neighbour discovery, duplicate
//! detection, VLANs, multicast.
#![allow(clippy::unwrap_used, reason = "a test; clippy exempts only functions marked as such")]

use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use shadowmesh_host::clock::Clock;
use shadowmesh_netns_tests::{Evening, Host, iperf3, received_mbit, wait_until};

const SECONDS: fn(u64) -> Duration = Duration::from_secs;

/// Two machines in the network `home`.
fn two(test: &str) -> Evening {
    let e = Evening::new(test, &["laptop", "pi"]);
    e.network("home");
    for machine in &e.machines {
        // The mesh's address is there at once; of the link-local one the kernel first asks whether it is taken.
        let said = machine.host.ip("-6 address show dev sm-home scope global");
        assert!(said.contains(&machine.address6()) && !said.contains("tentative"), "{said}");
        wait_until("all addresses to be usable", SECONDS(5), || {
            (!machine.host.ip("-6 address show dev sm-home").contains("tentative")).then_some(())
        });
    }
    e
}

/// Longer than the daemon looks after its device, and what Linux says once it is up is said.
#[test]
fn who_has_nothing_to_say_is_silent() {
    const QUIET: Duration = Duration::from_secs(7);
    let e = two("silence");
    let sent = || -> Vec<u64> {
        let of = |h: &Host| {
            h.run("cat", &["/sys/class/net/sm-home/statistics/tx_packets"]).trim().parse().unwrap()
        };
        e.machines.iter().map(|m| of(&m.host)).collect()
    };
    let clock = Clock::new();
    let (mut last, mut since) = (sent(), clock.now());
    wait_until("nobody to send a frame for 7 s", SECONDS(25), || {
        let now = sent();
        if now != last {
            (last, since) = (now, clock.now());
        }
        (clock.now() - since > QUIET).then_some(())
    });
}

#[test]
fn a_dhcp_client_gets_a_lease() {
    let e = two("dhcp");
    let (laptop, pi) = (&e.machines[0], &e.machines[1]);
    laptop.host.ip("address add 192.168.77.1/24 dev sm-home");
    let leases = e.lab.directory().join("leases");
    let file = format!("--dhcp-leasefile={}", leases.display());
    let server = laptop.host.spawn(
        "dnsmasq",
        "dnsmasq",
        &[
            "--keep-in-foreground",
            "--log-facility=-",
            "--conf-file=/dev/null",
            "--user=root",
            "--pid-file=",
            "--port=0",
            "--interface=sm-home",
            "--dhcp-range=192.168.77.10,192.168.77.50,1h",
            "--dhcp-authoritative",
            &file,
        ],
        &[],
    );
    server.wait_for("DHCP, IP range", SECONDS(5));
    let script = e.lab.directory().join("udhcpc");
    std::fs::write(&script, "#!/bin/sh\necho \"$1 $ip $subnet\"\n").unwrap();
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    let path = script.display().to_string();
    // Not promiscuous, as DHCP's own readers: superframes go on.
    let filter = ["-p", "-vv", "-n", "-l", "-i", "sm-home", "udp src port 67"];
    let reader = pi.host.spawn("tcpdump", "tcpdump", &filter, &[]);
    reader.wait_for("listening on", SECONDS(5));
    let said = pi.host.try_run("udhcpc", &["-n", "-q", "-f", "-i", "sm-home", "-s", &path]);
    let text = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned();
    println!("{text}{}", server.output());
    assert!(said.status.success() && text.contains("bound 192.168.77."), "{text}");
    assert!(std::fs::read_to_string(&leases).unwrap().contains(&pi.mac("sm-home")));
    // The offer and the acknowledgement, sent through a socket of dnsmasq's, whose checksums the kernel left to the device.
    reader.wait_for("DHCP-Message (53), length 1: ACK", SECONDS(5));
    let seen = reader.output();
    assert!(seen.matches("[udp sum ok]").count() >= 2 && !seen.contains("bad udp cksum"), "{seen}");
}

#[test]
fn a_neighbour_is_discovered() {
    let e = two("neighbour discovery");
    for (here, there) in [(0, 1), (1, 0)].map(|(a, b)| (&e.machines[a], &e.machines[b])) {
        let address = there.address6();
        let said = here.host.try_run("ndisc6", &["-1", &address, "sm-home"]);
        let text = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).to_lowercase();
        assert!(said.status.success() && text.contains(&there.mac("sm-home")), "{text}");
        let said = here.host.run("ping", &["-6", "-n", "-c", "5", "-i", "0.05", "-W", "2", &address]);
        assert!(said.contains(" 0% packet loss"), "{said}");
    }
}

/// Whether an address on `sm-home` was found to be another's.
fn duplicate(host: &Host, address: &str) {
    wait_until(&format!("{address} to be found a duplicate"), SECONDS(5), || {
        let said = host.ip("-6 address show dev sm-home");
        let line = said.lines().find(|l| l.contains(&format!("inet6 {address}/")))?;
        line.contains("dadfailed").then_some(())
    });
}

#[test]
fn duplicate_addresses_are_found() {
    let e = two("duplicate addresses");
    let (laptop, pi) = (&e.machines[0], &e.machines[1]);
    // The mesh's own.
    let address = laptop.address6();
    pi.host.ip(&format!("address add {address}/128 dev sm-home"));
    duplicate(&pi.host, &address);
    // One that the mesh knows nothing of.
    laptop.host.ip("address add fd99::1/64 dev sm-home nodad");
    pi.host.ip("address add fd99::1/64 dev sm-home");
    duplicate(&pi.host, "fd99::1");
    // One that is free is taken.
    pi.host.ip("address add fd99::2/64 dev sm-home");
    wait_until("fd99::2 to be usable", SECONDS(5), || {
        let said = pi.host.ip("-6 address show dev sm-home");
        let line = said.lines().find(|l| l.contains("inet6 fd99::2/"))?;
        (!line.contains("tentative")).then_some(())
    });
    laptop.host.must_reach("fd99::2", 5);
    // IPv4: exit code 1 says that somebody answered.
    let taken = |address: &str| {
        let said = pi.host.try_run("arping", &["-D", "-I", "sm-home", "-c", "2", "-w", "3", address]);
        println!("{}", String::from_utf8_lossy(&said.stdout));
        (said.status.code(), String::from_utf8_lossy(&said.stdout).to_lowercase())
    };
    let (code, text) = taken(&laptop.address());
    assert!(code == Some(1) && text.contains(&laptop.mac("sm-home")), "{text}");
    let own = pi.address().parse::<Ipv4Addr>().unwrap().octets();
    let free = Ipv4Addr::new(own[0], own[1], own[2], own[3] ^ 0x5a);
    if free.to_string() != laptop.address() {
        assert_eq!(taken(&free.to_string()).0, Some(0));
    }
}

/// Sends a ping of `size` bytes of payload in VLAN 7, from 192.168.7.1 to 192.168.7.2, by a raw socket.
const TAGGED_PING: &str = r#"
import socket, struct, sys
source, target = (bytes.fromhex(a.replace(":", "")) for a in sys.argv[1:3])
size = int(sys.argv[3])
def checksum(b):
    total = sum(struct.unpack("!%dH" % (len(b) // 2), b))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return struct.pack("!H", ~total & 0xffff)
icmp = b"\x08\0\0\0" + struct.pack("!HH", 7, size) + bytes(i & 0xff for i in range(size))
icmp = icmp[:2] + checksum(icmp) + icmp[4:]
ip = struct.pack("!BBHHHBB", 0x45, 0, 20 + len(icmp), 1, 0, 64, 1) + b"\0\0" + bytes([192, 168, 7, 1, 192, 168, 7, 2])
ip = ip[:10] + checksum(ip) + ip[12:]
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("sm-home", 0x8100))
s.send(target + source + struct.pack("!HHH", 0x8100, 7, 0x0800) + ip + icmp)
"#;

#[test]
fn a_vlan_crosses_with_its_tag() {
    let e = two("vlan");
    let said = e.machines[0].host.ip("-j link show dev sm-home");
    let mtu: usize = said.split_once("\"mtu\":").unwrap().1.split(',').next().unwrap().parse().unwrap();
    // Frames with a tag, whatever the kernel can do: to the machine and to everybody, small and as large as they get.
    for (here, there) in [(0, 1), (1, 0)].map(|(a, b)| (&e.machines[a], &e.machines[b])) {
        let arguments = ["-i", "sm-home", "-e", "-n", "-v", "-l", "--direction=in", "vlan", "7"];
        let dump = there.host.spawn("tcpdump", "tcpdump", &arguments, &[]);
        dump.wait_for("listening on", SECONDS(5));
        for target in [there.mac("sm-home"), "ff:ff:ff:ff:ff:ff".into()] {
            for size in [56, 1000, mtu - 28] {
                let before = dump.output().len();
                let size_text = size.to_string();
                here.host.run("python3", &["-c", TAGGED_PING, &here.mac("sm-home"), &target, &size_text]);
                let what = format!("ICMP echo request, id 7, seq {size}, length {}", size + 8);
                let text = wait_until(&format!("{what}, to {target}"), SECONDS(3), || {
                    let text = dump.output()[before..].to_owned();
                    (text.contains(&what)).then_some(text)
                });
                for part in ["802.1Q (0x8100)", "vlan 7", &target] {
                    assert!(text.contains(part), "{part}: {text}");
                }
                assert!(!text.contains("bad cksum") && !text.contains("wrong icmp cksum"), "{text}");
            }
        }
    }
    // A VLAN of the kernel, where it has them.
    let (laptop, pi) = (&e.machines[0], &e.machines[1]);
    for (machine, address) in [(laptop, "192.168.7.1/24"), (pi, "192.168.7.2/24")] {
        let arguments = ["link", "add", "link", "sm-home", "name", "sm.7", "type", "vlan", "id", "7"];
        let said = machine.host.try_run("ip", &arguments);
        if String::from_utf8_lossy(&said.stderr).contains("Unknown device type") {
            println!("this kernel has no VLAN interfaces; tagged frames were sent by hand");
            return;
        }
        assert!(said.status.success(), "{said:?}");
        machine.host.ip(&format!("address add {address} dev sm.7"));
        machine.host.ip("link set sm.7 up");
    }
    laptop.host.must_reach("192.168.7.2", 10);
    for payload in [1000, mtu - 28] {
        let size = payload.to_string();
        let arguments = ["-n", "-M", "do", "-c", "5", "-i", "0.05", "-W", "2", "-s", &size, "192.168.7.2"];
        let said = laptop.host.run("ping", &arguments);
        assert!(said.contains(" 0% packet loss"), "{said}");
    }
    // TCP, whose segments and checksums the kernel may leave to the device.
    let mbit = received_mbit(&iperf3(&laptop.host, &pi.host, "192.168.7.2", &[], SECONDS(1), || ()));
    println!("TCP in a VLAN through the relay: {mbit:.0} Mbit/s");
    assert!(mbit > 5.0, "{mbit} Mbit/s");
}

#[test]
fn a_multicast_stream_arrives() {
    const FRAMES: usize = 400;
    let e = two("multicast");
    let (laptop, pi) = (&e.machines[0], &e.machines[1]);
    let group = Ipv4Addr::new(239, 1, 2, 3);
    laptop.host.ip("route add 239.0.0.0/8 dev sm-home");
    let receiver = pi.host.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:5007").unwrap();
        socket.join_multicast_v4(&group, &pi.address().parse().unwrap()).unwrap();
        socket.set_read_timeout(Some(SECONDS(2))).unwrap();
        socket
    });
    let sender = laptop.host.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_multicast_ttl_v4(4).unwrap();
        socket
    });
    let mut seen = vec![0u32; FRAMES];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..FRAMES {
                let mut payload = [0x6d; 1000];
                payload[..8].copy_from_slice(&(number as u64).to_be_bytes());
                sender.send_to(&payload, (group, 5007)).unwrap();
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let mut buffer = [0; 2000];
        loop {
            match receiver.recv(&mut buffer) {
                Ok(length) => {
                    assert_eq!(length, 1000);
                    seen[u64::from_be_bytes(buffer[..8].try_into().unwrap()) as usize] += 1;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => panic!("{e}"),
            }
        }
    });
    let arrived = seen.iter().filter(|n| **n > 0).count();
    println!("{arrived} of {FRAMES} multicast frames arrived");
    assert!(arrived * 100 >= FRAMES * 99, "{arrived} of {FRAMES}");
    assert!(seen.iter().all(|n| *n <= 1), "frames arrived twice");
}
