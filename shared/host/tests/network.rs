//! TAP and netlink, each test in a network namespace of its own thread, which goes with it.
#![allow(clippy::unwrap_used, reason = "a test; clippy exempts only functions marked as such")]

use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use shadowmesh_host::clock::Clock;
use shadowmesh_host::netlink::{DefaultRoute, Gateway, Netlink, NetlinkError, Scope, disable_ipv6_autoconf};
use shadowmesh_host::tap::{self, Tap, TapError, TapOptions, VNET_HEADER};
use shadowmesh_host::udp::Udp;
use shadowmesh_host::wake::{Interest, Poller};

const OPTIONS: TapOptions =
    TapOptions { mtu: 1500, mac: [0x02, 0x53, 0x4d, 1, 2, 3], vnet: false, queues: 1, txqueuelen: 64 };

fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce(Netlink) -> F + Send) {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root: sudo -E cargo test -p shadowmesh-host");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { test(Netlink::new().unwrap()).await });
        });
    });
}

/// Waits until a device whose last queue was dropped is gone: a child process that another test is about to
/// start holds every descriptor between `fork` and `exec`.
async fn gone(netlink: &Netlink, name: &str) {
    let clock = Clock::new();
    while netlink.link_exists(name).await.unwrap() {
        assert!(clock.now() < Duration::from_secs(2), "{name} is still there");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Reads frames until one satisfies, at most two seconds.
fn frame_where(tap: &Tap, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let clock = Clock::new();
    let mut buf = vec![0; 70_000];
    while clock.now() < Duration::from_secs(2) {
        match tap.recv(&mut [0; VNET_HEADER], &mut buf) {
            Ok(n) if wanted(&buf[..n]) => return buf[..n].to_vec(),
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                let timeout = Some(Duration::from_millis(100));
                Poller::new().unwrap().wait(&[(tap.as_fd(), Interest::Read)], timeout).unwrap();
            }
            Err(e) => panic!("{e}"),
        }
    }
    panic!("no such frame in two seconds");
}

/// What the kernel asks for when it looks for a neighbour.
fn arp_request(frame: &[u8], target: [u8; 4]) -> bool {
    frame.len() >= 42 && frame[12..14] == [8, 6] && frame[20..22] == [0, 1] && frame[38..42] == target
}

#[test]
fn a_device_is_as_asked_for_and_carries_frames_both_ways() {
    in_namespace(|netlink| async move {
        assert!(!netlink.link_exists("sm-a").await.unwrap());
        let tap = Tap::open("sm-a", OPTIONS).unwrap();
        let state = netlink.link_state("sm-a").await.unwrap();
        assert_eq!((state.up, state.mac, state.mtu, state.txqueuelen), (false, Some(OPTIONS.mac), 1500, 64));
        assert!(tap::is_down(&tap.send(&[IoSlice::new(&[0; 60])]).unwrap_err()));
        disable_ipv6_autoconf("sm-a").unwrap();
        netlink.set_mtu("sm-a", 1400).await.unwrap();
        netlink.set_txqueuelen("sm-a", 100).await.unwrap();
        netlink.add_address("sm-a", ip("10.83.41.7"), 16).await.unwrap();
        netlink.add_address("sm-a", ip("10.83.41.7"), 16).await.unwrap();
        netlink.add_address("sm-a", ip("fd5a::41:7"), 64).await.unwrap();
        netlink.set_up("sm-a").await.unwrap();
        let state = netlink.link_state("sm-a").await.unwrap();
        assert_eq!((state.up, state.mtu, state.txqueuelen), (true, 1400, 100));
        let addresses = netlink.addresses("sm-a").await.unwrap();
        assert!(addresses.iter().any(|a| a.ip == ip("10.83.41.7") && a.prefix == 16));
        assert!(addresses.iter().any(|a| a.ip == ip("fd5a::41:7") && a.prefix == 64));
        netlink.remove_address("sm-a", ip("fd5a::41:7")).await.unwrap();
        assert!(!netlink.addresses("sm-a").await.unwrap().iter().any(|a| a.ip == ip("fd5a::41:7")));
        for (key, value) in [("accept_ra", "0"), ("autoconf", "0")] {
            let path = format!("/proc/sys/net/ipv6/conf/sm-a/{key}");
            assert_eq!(std::fs::read_to_string(path).unwrap().trim(), value);
        }
        let routes = netlink.local_routes_v4().await.unwrap();
        assert_eq!(routes.len(), 1, "{routes:?}");
        assert_eq!((routes[0].network.to_string(), routes[0].prefix), ("10.83.0.0".into(), 16));
        assert_eq!(routes[0].interface, "sm-a");

        // Out: the kernel looks for a neighbour. In: our answer makes it send the datagram there.
        let udp = Udp::bind(&["10.83.41.7:0".parse().unwrap()]).unwrap();
        udp.send_to(SocketAddr::from(([10, 83, 0, 9], 7)), b"hello").unwrap();
        let request = frame_where(&tap, |f| arp_request(f, [10, 83, 0, 9]));
        assert_eq!(request[6..12], OPTIONS.mac);
        let them = [0x02, 9, 9, 9, 9, 9];
        let mut answer = vec![0; 42];
        answer[..6].copy_from_slice(&OPTIONS.mac);
        answer[6..12].copy_from_slice(&them);
        answer[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
        answer[22..28].copy_from_slice(&them);
        answer[28..32].copy_from_slice(&[10, 83, 0, 9]);
        answer[32..38].copy_from_slice(&OPTIONS.mac);
        answer[38..42].copy_from_slice(&[10, 83, 41, 7]);
        assert_eq!(tap.send(&[IoSlice::new(&answer)]).unwrap(), 42);
        let datagram = frame_where(&tap, |f| f[..6] == them && f.ends_with(b"hello"));
        assert_eq!(datagram[12..14], [8, 0]);
        let empty = tap.recv(&mut [0; VNET_HEADER], &mut [0; 2000]).map(drop);
        assert!(empty.is_ok() || empty.unwrap_err().kind() == std::io::ErrorKind::WouldBlock);

        drop(tap);
        gone(&netlink, "sm-a").await;
    });
}

#[test]
fn names_that_cannot_be_had_are_said() {
    in_namespace(|netlink| async move {
        let first = Tap::open("sm-n", OPTIONS).unwrap();
        assert!(matches!(Tap::open("sm-n", OPTIONS), Err(TapError::NameTaken(n)) if n == "sm-n"));
        let many = TapOptions { queues: 2, ..OPTIONS };
        assert!(matches!(Tap::open("sm-n", many), Err(TapError::NameTaken(_))));
        assert!(matches!(Tap::open("lo", OPTIONS), Err(TapError::NameTaken(_))));
        let long = "sixteen-bytes-xx";
        let error = Tap::open(long, OPTIONS).unwrap_err();
        assert!(matches!(&error, TapError::NameTooLong(n) if n == long));
        assert!(error.to_string().contains("at most 15"), "{error}");
        for bad in ["", ".", "..", "a/b", "a b", "tap%d", "a:1"] {
            assert!(matches!(Tap::open(bad, OPTIONS), Err(TapError::NameInvalid(_))), "{bad}");
        }
        Tap::open("fifteen-bytes-x", OPTIONS).unwrap();
        drop(first);
        gone(&netlink, "sm-n").await;
        Tap::open("sm-n", OPTIONS).unwrap();
        let multicast = TapOptions { mac: [1, 2, 3, 4, 5, 6], ..OPTIONS };
        assert!(matches!(Tap::open("sm-m", multicast), Err(TapError::Other { .. })));
        gone(&netlink, "sm-m").await;
        assert!(matches!(netlink.set_up("sm-m").await, Err(NetlinkError::NoSuchLink(n)) if n == "sm-m"));
        assert!(matches!(netlink.addresses("sm-m").await, Err(NetlinkError::NoSuchLink(_))));
        assert!(matches!(disable_ipv6_autoconf("sm-m"), Err(NetlinkError::NoSuchLink(_))));
    });
}

#[test]
fn a_device_that_somebody_deletes_is_noticed() {
    in_namespace(|netlink| async move {
        let tap = Tap::open("sm-v", OPTIONS).unwrap();
        netlink.set_up("sm-v").await.unwrap();
        let deleted = std::process::Command::new("ip").args(["link", "delete", "sm-v"]).status();
        assert!(deleted.unwrap().success());
        let ready = Poller::new()
            .unwrap()
            .wait(&[(tap.as_fd(), Interest::Read)], Some(Duration::from_secs(2)))
            .unwrap();
        assert!(ready.readable(0), "{ready:?}");
        let error = tap.recv(&mut [0; VNET_HEADER], &mut [0; 2000]).unwrap_err();
        assert!(tap::vanished(&error), "{error}");
        let error = tap.send(&[IoSlice::new(&[0; 60])]).unwrap_err();
        assert!(tap::vanished(&error), "{error}");
        Tap::open("sm-v", OPTIONS).unwrap();
    });
}

#[test]
fn superframes_come_with_a_header_and_queues_share_a_device() {
    in_namespace(|netlink| async move {
        let options = TapOptions { vnet: true, queues: 2, ..OPTIONS };
        let tap = Tap::open("sm-q", options).unwrap();
        let second = tap.another_queue().unwrap();
        assert_eq!(second.name(), "sm-q");
        netlink.add_address("sm-q", ip("10.9.0.1"), 24).await.unwrap();
        netlink.set_up("sm-q").await.unwrap();
        // Which queue a frame comes by is the kernel's choice: one of both has it.
        let udp = Udp::bind(&["10.9.0.1:0".parse().unwrap()]).unwrap();
        udp.send_to(SocketAddr::from(([10, 9, 0, 2], 7)), b"x").unwrap();
        let clock = Clock::new();
        let mut buf = vec![0; 70_000];
        let found = loop {
            assert!(clock.now() < Duration::from_secs(2), "no ARP request on either queue");
            for queue in [&tap, &second] {
                if let Ok(n) = queue.recv(&mut [0; VNET_HEADER], &mut buf)
                    && arp_request(&buf[..n], [10, 9, 0, 2])
                {
                    buf.truncate(n);
                }
            }
            if buf.len() < 70_000 {
                break buf;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        assert_eq!(found.len(), 42);
        drop(tap);
        assert!(netlink.link_exists("sm-q").await.unwrap());
        drop(second);
        gone(&netlink, "sm-q").await;

        let single = Tap::open("sm-s", OPTIONS).unwrap();
        assert!(single.another_queue().is_err());
    });
}

/// `ip` in the namespace of this thread.
fn ip_command(arguments: &str) {
    let said = std::process::Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(said.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&said.stderr));
}

#[test]
fn all_addresses_of_interfaces_that_are_up_are_listed() {
    in_namespace(|netlink| async move {
        assert_eq!(netlink.all_addresses().await.unwrap(), []);
        for command in [
            "link add va type veth peer name vb",
            "link add idle type veth peer name other",
            "address add 192.0.2.1/24 dev va",
            "address add 192.0.2.2/24 dev va",
            "address add 192.0.2.9/32 dev va scope link",
            "address add 2001:db8::1/64 dev va nodad",
            "address add 2001:db8::2/64 dev va nodad preferred_lft 0",
            "address add 198.51.100.1/24 dev idle",
            "link set va up",
            "link set vb up",
            // Its other end is down: no carrier.
            "link set idle up",
            "link set lo up",
        ] {
            ip_command(command);
        }
        let all = netlink.all_addresses().await.unwrap();
        let find =
            |text: &str| all.iter().find(|a| a.ip == ip(text)).unwrap_or_else(|| panic!("{text}: {all:?}"));
        let first = find("192.0.2.1");
        assert_eq!((first.interface.as_str(), first.prefix, first.scope), ("va", 24, Scope::Global));
        // The second of its network: the bit that says so says "temporary" of IPv6.
        assert!(!find("192.0.2.2").temporary);
        assert_eq!(find("192.0.2.9").scope, Scope::Link);
        assert_eq!((find("127.0.0.1").interface.as_str(), find("127.0.0.1").scope), ("lo", Scope::Host));
        let six = find("2001:db8::1");
        assert!(!six.tentative && !six.duplicate && !six.deprecated && !six.temporary, "{six:?}");
        assert!(find("2001:db8::2").deprecated);
        assert!(!all.iter().any(|a| a.interface == "idle"), "{all:?}");
        // Nobody can answer yet whether it is taken.
        ip_command("address add 2001:db8::3/64 dev va");
        let all = netlink.all_addresses().await.unwrap();
        assert!(all.iter().any(|a| a.ip == ip("2001:db8::3") && a.tentative), "{all:?}");
    });
}

#[test]
fn the_gateway_is_that_of_the_default_route_with_the_lowest_metric() {
    in_namespace(|netlink| async move {
        assert_eq!(netlink.gateway().await.unwrap(), None);
        for command in [
            "link add va type veth peer name vb",
            "address add 192.0.2.2/24 dev va",
            "address add 2001:db8::2/64 dev va nodad",
            "address add 198.51.100.2/24 dev vb",
            "link set va up",
            "link set vb up",
            "route add default via 192.0.2.1 dev va metric 100",
            "route add 10.0.0.0/8 via 192.0.2.7",
            "route add default via 192.0.2.9 table 77",
            "route add unreachable default metric 1",
            "-6 route add default via 2001:db8::1 metric 7",
        ] {
            ip_command(command);
        }
        let gateway = |address: &str, interface: &str| {
            Some(Gateway { address: address.parse().unwrap(), interface: interface.into() })
        };
        assert_eq!(netlink.gateway().await.unwrap(), gateway("192.0.2.1", "va"));
        ip_command("route add default via 198.51.100.1 dev vb metric 50");
        assert_eq!(netlink.gateway().await.unwrap(), gateway("198.51.100.1", "vb"));
        let routes = netlink.default_routes().await.unwrap();
        let route = |ipv6, interface: &str, gateway: &str, metric| DefaultRoute {
            ipv6,
            interface: interface.into(),
            gateway: Some(ip(gateway)),
            metric,
        };
        let expected = [
            route(false, "vb", "198.51.100.1", 50),
            route(false, "va", "192.0.2.1", 100),
            route(true, "va", "2001:db8::1", 7),
        ];
        assert_eq!(routes, expected);
        ip_command("route add default dev va metric 10");
        assert_eq!(netlink.gateway().await.unwrap(), None, "on the link");
        ip_command("route del default dev va metric 10");
        ip_command("route del default metric 50");
        ip_command("route del default via 192.0.2.1");
        ip_command("route add default metric 5 nexthop via 198.51.100.1 dev vb nexthop via 192.0.2.1 dev va");
        assert_eq!(netlink.gateway().await.unwrap(), gateway("198.51.100.1", "vb"));
    });
}

#[test]
fn a_port_names_its_bridge() {
    in_namespace(|netlink| async move {
        ip_command("link add bridge0 type bridge");
        ip_command("link add va type veth peer name vb");
        assert_eq!(netlink.controller("va").await.unwrap(), None);
        ip_command("link set va master bridge0");
        assert_eq!(netlink.controller("va").await.unwrap(), Some("bridge0".into()));
        assert!(matches!(netlink.controller("none").await, Err(NetlinkError::NoSuchLink(_))));
    });
}

#[test]
fn a_watch_is_woken_by_links_addresses_and_routes_and_by_nothing_else() {
    in_namespace(|_| async move {
        ip_command("link add va type veth peer name vb");
        ip_command("link set va up");
        ip_command("link set vb up");
        let mut changes = Netlink::watch().unwrap();
        let settle = Duration::from_millis(200);
        let mut woken = async |while_waiting: &str| {
            // What came before is over.
            tokio::time::sleep(settle).await;
            while changes.try_recv().is_ok() {}
            ip_command(while_waiting);
            let woken = tokio::time::timeout(settle, changes.recv()).await.is_ok();
            // However many there were, they have become one.
            tokio::time::sleep(settle).await;
            (woken, std::iter::from_fn(|| changes.try_recv().ok()).count())
        };
        for command in [
            "address add 192.0.2.1/24 dev va",
            "address add 2001:db8::1/64 dev va nodad",
            "route add 10.0.0.0/8 via 192.0.2.7",
            "-6 route add 2001:db8:1::/48 via 2001:db8::7",
            "link set va mtu 1400",
            "address del 192.0.2.1/24 dev va",
        ] {
            let (woken, more) = woken(command).await;
            assert!(woken && more <= 1, "{command}: {woken} {more}");
        }
        for command in [
            "neighbour replace 2001:db8::9 lladdr 02:00:00:00:00:09 dev va",
            "neighbour del 2001:db8::9 dev va",
        ] {
            assert_eq!(woken(command).await, (false, 0), "{command}");
        }
    });
}
