//! The switch: what is answered from the roster, what must reach everyone, and what a member may not say.

use shadowmesh_sim::cast::CAST;
use shadowmesh_sim::world::{Setup, Weather, World};
use shadowmesh_wire::DropReason;
use smoltcp::wire::*;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

const ALL: [u8; 6] = [0xff; 6];

fn world() -> World {
    let setup = Setup::plain(3, false);
    let mut w = World::new(1, setup, Weather::CALM);
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        w.send(a, b, 60);
    }
    w.run(Duration::from_secs(1));
    w.taken.clear();
    w
}

fn mac(n: usize) -> [u8; 6] {
    CAST.members[n].id.mac()
}

fn ip4(n: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 83, 1, n as u8 + 1)
}

fn ip6(n: usize) -> Ipv6Addr {
    CAST.members[n].id.ipv6(&CAST.genesis.id())
}

fn ethernet(src: [u8; 6], dst: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut f = vec![];
    f.extend_from_slice(&dst);
    f.extend_from_slice(&src);
    f.extend_from_slice(&ethertype.to_be_bytes());
    f.extend_from_slice(payload);
    f.resize(f.len().max(60), 0);
    f
}

fn arp(op: ArpOperation, src: [u8; 6], dst: [u8; 6], sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let repr = ArpRepr::EthernetIpv4 {
        operation: op,
        source_hardware_addr: EthernetAddress(src),
        source_protocol_addr: sender,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: target,
    };
    let mut b = vec![0; repr.buffer_len()];
    repr.emit(&mut ArpPacket::new_unchecked(&mut b[..]));
    ethernet(src, dst, 0x0806, &b)
}

fn solicit(src: [u8; 6], sender: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let o = target.octets();
    let to =
        Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(o[13]), u16::from_be_bytes([o[14], o[15]]));
    let icmp = Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit {
        target_addr: target,
        lladdr: (!sender.is_unspecified()).then(|| RawHardwareAddress::from(EthernetAddress(src))),
    });
    let ip = Ipv6Repr {
        src_addr: sender,
        dst_addr: to,
        next_header: IpProtocol::Icmpv6,
        payload_len: icmp.buffer_len(),
        hop_limit: 255,
    };
    let mut b = vec![0; ip.buffer_len() + icmp.buffer_len()];
    let mut packet = Ipv6Packet::new_unchecked(&mut b[..]);
    ip.emit(&mut packet);
    icmp.emit(&sender, &to, &mut Icmpv6Packet::new_unchecked(packet.payload_mut()), &Default::default());
    ethernet(src, [0x33, 0x33, 0xff, o[13], o[14], o[15]], 0x86dd, &b)
}

/// What came out at a node, other than numbered frames.
fn out(w: &World, n: usize) -> Vec<Vec<u8>> {
    w.taken.iter().filter(|(at, _)| *at == n).map(|(_, f)| f.clone()).collect()
}

/// Who has a live member's address is told at once, and nobody else is asked. [P-ARP]
#[test]
fn arp_and_nd_for_members_are_answered_here() {
    let mut w = world();
    w.inject(0, &arp(ArpOperation::Request, mac(0), ALL, ip4(0), ip4(1)));
    w.inject(0, &solicit(mac(0), ip6(0), ip6(2)));
    let answers = out(&w, 0);
    assert_eq!(answers.len(), 2);
    let arp = ArpRepr::parse(&ArpPacket::new_checked(&answers[0][14..]).unwrap()).unwrap();
    assert!(
        matches!(arp, ArpRepr::EthernetIpv4 { operation: ArpOperation::Reply, source_hardware_addr, source_protocol_addr, .. }
        if source_hardware_addr.0 == mac(1) && source_protocol_addr == ip4(1))
    );
    let ip = Ipv6Packet::new_checked(&answers[1][14..]).unwrap();
    assert_eq!((ip.src_addr(), ip.dst_addr()), (ip6(2), ip6(0)));
    let icmp = Icmpv6Packet::new_checked(ip.payload()).unwrap();
    assert_eq!((icmp.msg_type(), icmp.target_addr()), (Icmpv6Message::NeighborAdvert, ip6(2)));
    let repr = Icmpv6Repr::parse(&ip6(2), &ip6(0), &icmp, &smoltcp::phy::ChecksumCapabilities::default());
    assert!(repr.is_ok(), "the answer's checksum");
    w.run(Duration::from_secs(1));
    assert!(out(&w, 1).is_empty() && out(&w, 2).is_empty());
}

/// An ARP probe, a gratuitous ARP, duplicate address detection, and whom the roster does not know: to everyone. [P-ARP]
#[test]
fn what_somebody_could_object_to_reaches_everyone() {
    let none4 = Ipv4Addr::UNSPECIFIED;
    let frames = [
        arp(ArpOperation::Request, mac(0), ALL, none4, ip4(1)),
        arp(ArpOperation::Request, mac(0), ALL, ip4(0), ip4(0)),
        arp(ArpOperation::Request, mac(0), ALL, ip4(0), Ipv4Addr::new(192, 168, 77, 1)),
        solicit(mac(0), Ipv6Addr::UNSPECIFIED, ip6(1)),
        solicit(mac(0), ip6(0), "fd99::1".parse().unwrap()),
    ];
    for f in frames {
        let mut w = world();
        w.inject(0, &f);
        assert!(out(&w, 0).is_empty(), "it was answered here");
        w.run(Duration::from_secs(1));
        assert_eq!((out(&w, 1), out(&w, 2)), (vec![f.clone()], vec![f]));
    }
}

/// Another's MAC, another's mesh address, in IPv4, IPv6, ARP and neighbour discovery: dropped and counted, at the sender and
/// at a receiver whose peer does not keep to it. [P-GUARD]
#[test]
fn the_source_guard() {
    use shadowmesh_proto::frame::check_source;
    use shadowmesh_proto::{Guard, MeshPrefixes};
    let mut prefix6 = [0; 8];
    prefix6.copy_from_slice(&ip6(0).octets()[..8]);
    let mesh = MeshPrefixes { subnet4: CAST.genesis.subnet4, prefix6 };
    let guard = Guard { mac: mac(1), ipv4: Some(ip4(1)), ipv6: ip6(1), bridge: None };
    let v4 = |src: Ipv4Addr| {
        let mut b = vec![0x45; 40];
        b[12..16].copy_from_slice(&src.octets());
        ethernet(mac(1), mac(0), 0x0800, &b)
    };
    let v6 = |src: Ipv6Addr| {
        let mut b = vec![0x60; 60];
        b[6] = 17;
        b[8..24].copy_from_slice(&src.octets());
        ethernet(mac(1), mac(0), 0x86dd, &b)
    };
    let tagged = |mut f: Vec<u8>| {
        f.splice(12..12, [0x81, 0, 0, 7]);
        f
    };
    let good = [
        v4(ip4(1)),
        v4(Ipv4Addr::UNSPECIFIED),
        v4(Ipv4Addr::new(192, 168, 1, 9)),
        v6(ip6(1)),
        v6("fe80::1".parse().unwrap()),
        arp(ArpOperation::Reply, mac(1), mac(0), ip4(1), ip4(0)),
        arp(ArpOperation::Request, mac(1), ALL, Ipv4Addr::UNSPECIFIED, ip4(2)),
        solicit(mac(1), Ipv6Addr::UNSPECIFIED, ip6(2)),
        ethernet(mac(1), mac(0), 0x88b5, b"anything"),
    ];
    for f in good {
        assert!(check_source(&f, &guard, &mesh).is_ok(), "{f:02x?}");
        assert!(check_source(&tagged(f), &guard, &mesh).is_ok());
    }
    let address = DropReason::SourceAddress;
    let bad = [
        (v4(ip4(2)), address),
        (v6(ip6(2)), address),
        (arp(ArpOperation::Reply, mac(1), mac(0), ip4(2), ip4(0)), address),
        (arp(ArpOperation::Request, mac(1), ALL, ip4(2), ip4(2)), address),
        (solicit(mac(1), ip6(2), ip6(0)), address),
        (ethernet(mac(1), mac(0), 0x0806, &[0; 20]), address),
        (ethernet(mac(2), mac(0), 0x88b5, b"x"), DropReason::SourceMac),
        (ethernet(mac(1), [1, 0x80, 0xc2, 0, 0, 0], 0x0027, b"x"), DropReason::LinkLocal),
    ];
    for (f, why) in bad {
        assert_eq!(check_source(&f, &guard, &mesh).unwrap_err(), why, "{f:02x?}");
    }
    let mut w = world();
    w.inject(0, &ethernet(mac(2), mac(1), 0x88b5, b"not mine"));
    w.inject(0, &ethernet(mac(0), [1, 0x80, 0xc2, 0, 0, 0], 0x0027, b"bpdu"));
    w.run(Duration::from_secs(1));
    assert!(out(&w, 1).is_empty());
    let drops = w.nodes[0].endpoint.drops();
    assert_eq!((drops.get(DropReason::SourceMac), drops.get(DropReason::LinkLocal)), (1, 1));
}

/// Group frames reach everyone, tagged ones untouched; past the budget they are counted, and unicast goes on.
#[test]
fn floods_have_a_budget() {
    let mut w = world();
    let mut f = ethernet(mac(0), [1, 0, 0x5e, 1, 2, 3], 0x88b5, &[5; 1000]);
    f.splice(12..12, [0x81, 0, 0, 7]);
    w.inject(0, &f);
    w.run(Duration::from_millis(100));
    assert_eq!((out(&w, 1), out(&w, 2)), (vec![f.clone()], vec![f.clone()]));
    for _ in 0..2000 {
        w.inject(0, &f);
    }
    let n = w.send(0, 1, 100);
    w.run(Duration::from_secs(1));
    assert!(w.nodes[0].endpoint.drops().get(DropReason::FloodBudget) > 1000);
    assert!(w.judge.arrived(n));
}
