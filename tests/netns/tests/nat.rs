//! The lab's NATs do what their names say, asked from two outside addresses with two ports each (RFC 5780's way); and what
//! can be done to them.
#![allow(clippy::unwrap_used, reason = "a test; clippy exempts only functions marked as such")]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use shadowmesh_netns_tests::{
    Direction, Flow, GATEWAY, Host, Internet, Machine, NatKind, RELAY, VPS4, VPS6, wait_until,
};

/// A datagram that has not come by then will not.
const SHORT: Duration = Duration::from_millis(250);
const EI: &str = "endpoint-independent";
const AD: &str = "address-dependent";
const APD: &str = "address-and-port-dependent";

fn bound(host: &Host, address: &str, port: u16) -> UdpSocket {
    let at = SocketAddr::new(address.parse().unwrap(), port);
    let socket = host.enter(|| UdpSocket::bind(at)).unwrap();
    socket.set_read_timeout(Some(SHORT)).unwrap();
    socket
}

/// Outside sockets: both ports of the first address, then of the second.
fn outside(internet: &Internet, kind: NatKind) -> Vec<UdpSocket> {
    let addresses = if kind == NatKind::V6Only { VPS6 } else { VPS4 };
    addresses.into_iter().flat_map(|a| [3478, 3479].map(|p| bound(&internet.vps, a, p))).collect()
}

fn arrives(socket: &UdpSocket) -> Option<SocketAddr> {
    socket.recv_from(&mut [0; 64]).ok().map(|(_, from)| from)
}

/// The address that an outside socket sees.
fn seen(inside: &UdpSocket, at: &UdpSocket) -> Option<SocketAddr> {
    inside.send_to(b"x", at.local_addr().unwrap()).ok()?;
    arrives(at)
}

fn mapping(inside: &UdpSocket, at: &[UdpSocket]) -> Option<&'static str> {
    let all: Vec<_> = at.iter().map(|o| seen(inside, o)).collect::<Option<_>>()?;
    let same = |range: &[SocketAddr]| range.iter().collect::<BTreeSet<_>>().len() == 1;
    Some(match () {
        () if same(&all) => EI,
        () if same(&all[..2]) && same(&all[2..]) => AD,
        () => APD,
    })
}

fn filtering(inside: &UdpSocket, at: &[UdpSocket]) -> Option<&'static str> {
    let public = seen(inside, &at[0])?;
    let comes = |from: &UdpSocket| {
        let _refused = from.send_to(b"y", public);
        arrives(inside) == from.local_addr().ok()
    };
    assert!(comes(&at[0]), "no answer to {public}");
    // The strangers first: who was let in once may come again.
    let found = if comes(&at[3]) || comes(&at[2]) {
        EI
    } else if comes(&at[1]) {
        AD
    } else {
        APD
    };
    Some(found)
}

/// A socket of the machine.
fn inside(internet: &Internet, machine: &Machine, port: u16) -> UdpSocket {
    bound(&machine.host, internet.address(machine), port)
}

#[test]
fn each_kind_does_what_its_name_says() {
    let mut internet = Internet::new("kinds of NAT");
    for kind in NatKind::ALL {
        let machine = internet.machine(kind.name(), kind);
        let at = outside(&internet, kind);
        let found = (
            mapping(&inside(&internet, &machine, 5001), &at),
            filtering(&inside(&internet, &machine, 5002), &at),
        );
        println!("{kind:19} mapping {:?}, filtering {:?}", found.0, found.1);
        assert_eq!(found, (kind.mapping(), kind.filtering()), "{kind}");
        if kind == NatKind::UdpBlocked {
            continue;
        }
        let inside = inside(&internet, &machine, 5003);
        let public: IpAddr = internet.public(&machine).parse().unwrap();
        let seen = seen(&inside, &at[1]).unwrap();
        assert_eq!(seen.ip(), public, "{kind}");
        assert_eq!(seen.port() == 5003, kind != NatKind::Symmetric, "{kind}: port {}", seen.port());
        // A stranger, before anything was sent from there.
        let fresh = bound(&machine.host, internet.address(&machine), 5004);
        at[0].send_to(b"z", SocketAddr::new(public, 5004)).unwrap();
        assert_eq!(arrives(&fresh).is_some(), kind.filtering() == Some(EI), "{kind}: a stranger");
    }
}

#[test]
fn names_and_back() {
    for kind in NatKind::ALL {
        assert_eq!(kind.name().parse(), Ok(kind));
    }
    assert!("nat".parse::<NatKind>().unwrap_err().contains("port-restricted"));
}

#[test]
fn the_relay_has_a_name_in_each_family() {
    let mut internet = Internet::new("the relay's name");
    let four = internet.machine("four", NatKind::PortRestricted);
    let six = internet.machine("six", NatKind::V6Only);
    for (machine, first) in [(&four, VPS4[0]), (&six, VPS6[0])] {
        let said = machine.host.run("getent", &["ahosts", RELAY]);
        assert!(said.starts_with(first), "{}: {said}", machine.host.name());
        machine.host.must_reach(RELAY, 5);
    }
    assert!(six.host.addresses("eth0").iter().all(IpAddr::is_ipv6));
}

#[test]
fn only_tcp_to_443_leaves_where_udp_is_blocked() {
    let mut internet = Internet::new("UDP blocked");
    let machine = internet.machine("m", NatKind::UdpBlocked);
    // The relay itself listens on 443.
    let _other = internet.vps.enter(|| TcpListener::bind((VPS4[0], 8080)).unwrap());
    let reaches = |port| {
        let to = SocketAddr::new(VPS4[0].parse().unwrap(), port);
        machine.host.enter(|| TcpStream::connect_timeout(&to, SHORT).is_ok())
    };
    assert!(reaches(443) && !reaches(8080));
}

#[test]
fn a_router_opens_a_port_when_asked() {
    let mut internet = Internet::new("port mapping");
    let machine = internet.machine("m", NatKind::PortMapping);
    let at = &outside(&internet, NatKind::PortMapping)[0];
    let own = inside(&internet, &machine, 5001);
    let public = SocketAddr::new(internet.public(&machine).parse().unwrap(), 6001);
    let comes = || {
        at.send_to(b"x", public).unwrap();
        arrives(&own).is_some()
    };
    assert!(!comes());
    map(&machine, 5001, 6001);
    assert!(comes());
    internet.restart_nat(&machine);
    assert!(!comes());
    map(&machine, 5001, 6001);
    assert!(comes());
}

/// Asks by NAT-PMP (RFC 6886): UDP, for ten minutes.
fn map(machine: &Machine, inside: u16, outside: u16) {
    let socket = bound(&machine.host, "0.0.0.0", 0);
    let [[a, b], [c, d]] = [inside, outside].map(u16::to_be_bytes);
    let mut answer = [0; 16];
    wait_until("an answer by NAT-PMP", Duration::from_secs(5), || {
        socket.send_to(&[0, 1, 0, 0, a, b, c, d, 0, 0, 2, 88], (GATEWAY, 5351)).unwrap();
        socket.recv(&mut answer).ok().filter(|n| *n == 16)
    });
    assert_eq!((answer[..4].to_vec(), &answer[10..12]), (vec![0, 129, 0, 0], &[c, d][..]), "{answer:?}");
}

#[test]
fn a_restarted_nat_has_forgotten() {
    let mut internet = Internet::new("a restarted NAT");
    for (name, kind) in [("p", NatKind::PortRestricted), ("d", NatKind::DoubleNat), ("s", NatKind::Symmetric)]
    {
        let machine = internet.machine(name, kind);
        let at = outside(&internet, kind);
        let own = inside(&internet, &machine, 5001);
        let before = seen(&own, &at[0]).unwrap();
        internet.restart_nat(&machine);
        at[0].send_to(b"y", before).unwrap();
        assert_eq!(arrives(&own), None, "{kind}");
        let after = seen(&own, &at[0]).unwrap();
        assert_ne!(before, after, "{kind}");
        at[0].send_to(b"y", after).unwrap();
        assert!(arrives(&own).is_some(), "{kind}");
        assert_eq!(mapping(&own, &at), kind.mapping(), "{kind}");
        at.iter().for_each(|o| while arrives(o).is_some() {});
    }
}

#[test]
fn addresses_change() {
    let mut internet = Internet::new("addresses change");
    for kind in [NatKind::Open, NatKind::FullCone, NatKind::PortRestricted, NatKind::V6Only] {
        let machine = internet.machine(kind.name(), kind);
        let at = outside(&internet, kind);
        let old = internet.address(&machine).to_owned();
        internet.change_address(&machine);
        assert_ne!(internet.address(&machine), old);
        let public: IpAddr = internet.public(&machine).parse().unwrap();
        assert_eq!(seen(&inside(&internet, &machine, 5001), &at[0]).unwrap().ip(), public, "{kind}");
        let found = filtering(&inside(&internet, &machine, 5002), &at);
        assert_eq!(found, kind.filtering(), "{kind}");
        if matches!(kind, NatKind::FullCone | NatKind::PortRestricted) {
            internet.change_public_address(&machine);
            let now: IpAddr = internet.public(&machine).parse().unwrap();
            assert_ne!(now, public);
            assert_eq!(seen(&inside(&internet, &machine, 5003), &at[0]).unwrap().ip(), now, "{kind}");
        }
    }
}

#[test]
fn a_path_is_cut_one_way_or_both_and_mended() {
    let mut internet = Internet::new("cuts");
    let a = internet.machine("a", NatKind::PortRestricted);
    let b = internet.machine("b", NatKind::DoubleNat);
    let c = internet.on_lan_of("c", &a);
    for (one, two) in [(&a, &b), (&a, &c)] {
        let (x, y) = (inside(&internet, one, 5001), inside(&internet, two, 5001));
        let meet = |i: &Internet, m: &Machine| match internet_shares(i, one, two) {
            true => SocketAddr::new(i.address(m).parse().unwrap(), 5001),
            false => SocketAddr::new(i.public(m).parse().unwrap(), 5001),
        };
        let (to_x, to_y) = (meet(&internet, one), meet(&internet, two));
        // Both send first, which opens both NATs.
        x.send_to(b"x", to_y).unwrap();
        y.send_to(b"x", to_x).unwrap();
        while arrives(&x).is_some() || arrives(&y).is_some() {}
        let flows = || {
            x.send_to(b"x", to_y).unwrap();
            y.send_to(b"x", to_x).unwrap();
            (arrives(&y).is_some(), arrives(&x).is_some())
        };
        assert_eq!(flows(), (true, true));
        for (direction, expected) in [
            (Direction::There, (false, true)),
            (Direction::Back, (true, false)),
            (Direction::Both, (false, false)),
        ] {
            internet.cut(one, two, direction);
            assert_eq!(flows(), expected, "{direction:?}");
            one.host.must_reach(VPS4[0], 5);
            internet.mend(one, two);
            assert_eq!(flows(), (true, true));
        }
        internet.forget_flows(one, two);
        y.send_to(b"x", to_x).unwrap();
        assert_eq!(arrives(&x).is_some(), internet_shares(&internet, one, two));
    }
}

/// In one LAN: the outside shows one address for both.
fn internet_shares(internet: &Internet, a: &Machine, b: &Machine) -> bool {
    internet.public(a) == internet.public(b)
}

#[test]
fn the_relay_can_be_far_and_machines_near() {
    let mut internet = Internet::new("a far relay");
    internet.delay_relay(Duration::from_millis(40));
    let a = internet.machine("a", NatKind::Open);
    let b = internet.machine("b", NatKind::Open);
    a.host.must_reach(VPS4[0], 5);
    a.host.must_reach(internet.address(&b), 5);
    let far = a.host.ping(VPS4[0], 10).median_ms();
    let near = a.host.ping(internet.address(&b), 10).median_ms();
    assert!((80.0..90.0).contains(&far) && near < 5.0, "{far} and {near} ms");
}

#[test]
fn a_flow_tells_what_a_cut_took() {
    let mut internet = Internet::new("a flow");
    let (a, b) = (internet.machine("a", NatKind::Open), internet.machine("b", NatKind::Open));
    a.host.must_reach(internet.address(&b), 5);
    let flow = Flow::start(&a.host, &b.host, internet.address(&b), 1000.0);
    wait_until("the flow", Duration::from_secs(5), || flow.comes().then_some(()));
    std::thread::sleep(SHORT);
    let cut = flow.now();
    internet.cut(&a, &b, Direction::There);
    std::thread::sleep(SHORT);
    internet.mend(&a, &b);
    let mended = flow.now();
    std::thread::sleep(SHORT);
    let (end, flown) = (flow.now(), flow.stop());
    let (gap, lost) = (flown.gap(cut, mended), flown.counts(cut, mended).lost);
    println!("cut {:?}: gap {gap:?}, {lost} lost", mended - cut);
    assert!(gap >= SHORT && lost > 150, "{gap:?}, {lost}");
    let after = flown.counts(mended, end);
    assert!(after.sent > 150 && (after.lost, after.repeated, after.overtaken) == (0, 0, 0), "{after:?}");
    assert!(flown.first_faster(mended, Duration::from_millis(20)).is_some());
}
