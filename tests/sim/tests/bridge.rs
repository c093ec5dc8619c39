//! Members that bridge: hosts behind them are learned, aged and held to what the certificate allows. In the cast member 3 may
//! bridge any host, 4 any host and VLAN 9, 5 one named host in VLAN 7 with addresses of one prefix.

use shadowmesh_proto::frame::check_source;
use shadowmesh_proto::{Guard, MeshPrefixes};
use shadowmesh_sim::cast::CAST;
use shadowmesh_sim::world::{Setup, Weather, World};
use shadowmesh_wire::DropReason;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

const HOST: [u8; 6] = [0x02, 0, 0, 0, 0, 0x77];
/// The host that member 5's certificate names.
const NAMED: [u8; 6] = [0x02, 0, 0x5e, 0x10, 0, 1];

fn world(nodes: usize) -> World {
    let mut w = World::new(5, Setup { bridge: true, ..Setup::plain(nodes, false) }, Weather::CALM);
    for (a, b) in (0..nodes).flat_map(|a| (0..nodes).map(move |b| (a, b))).filter(|(a, b)| a != b) {
        w.send(a, b, 60);
    }
    w.run(Duration::from_secs(2));
    w
}

fn mac(n: usize) -> [u8; 6] {
    CAST.members[n].id.mac()
}

/// A frame that is no numbered one: it may come out anywhere.
fn plain(src: [u8; 6], dst: [u8; 6]) -> Vec<u8> {
    let mut f = [&dst[..], &src[..], &[0x88, 0xb6]].concat();
    f.resize(60, 0);
    f
}

/// Where a frame comes out that node `from` has from its device.
fn places(w: &mut World, from: usize, frame: &[u8]) -> Vec<usize> {
    w.taken.clear();
    w.inject(from, frame);
    w.run(Duration::from_millis(200));
    let mut at: Vec<usize> = w.taken.iter().map(|(n, _)| *n).collect();
    at.sort_unstable();
    at
}

fn dropped(w: &World, n: usize, reason: DropReason) -> u64 {
    w.nodes[n].endpoint.drops().get(reason)
}

/// Who has a host is learned from its frames, follows it when it moves, and is forgotten when it has been silent for
/// 300 s; meanwhile frames for it go to those who may have it, and to nobody else. [P-LEARN]
#[test]
fn hosts_are_learned_followed_and_forgotten() {
    let mut w = world(6);
    assert_eq!(places(&mut w, 0, &plain(mac(0), HOST)), [3, 4], "nobody has it: all who may have it");
    assert_eq!(places(&mut w, 3, &plain(HOST, mac(0))), [0]);
    assert_eq!(places(&mut w, 0, &plain(mac(0), HOST)), [3]);
    assert_eq!(places(&mut w, 1, &plain(mac(1), HOST)), [3, 4], "this one has not heard it");
    assert_eq!(places(&mut w, 4, &plain(HOST, mac(0))), [0]);
    assert_eq!(places(&mut w, 0, &plain(mac(0), HOST)), [4], "it has moved");
    // It goes on being heard, and stays.
    for _ in 0..7 {
        w.run(Duration::from_secs(60));
        assert_eq!(places(&mut w, 4, &plain(HOST, mac(0))), [0]);
    }
    assert_eq!(places(&mut w, 0, &plain(mac(0), HOST)), [4]);
    w.run(Duration::from_secs(320));
    assert_eq!(places(&mut w, 0, &plain(mac(0), HOST)), [3, 4], "forgotten");
    // Whom a certificate names need not be learned.
    assert_eq!(places(&mut w, 0, &plain(mac(0), NAMED)), [5]);
}

/// A session with whoever may have the host is made when it is needed: the first frame waits for it.
#[test]
fn the_first_frame_to_a_host_arrives() {
    let mut w = World::new(6, Setup { bridge: true, ..Setup::plain(5, false) }, Weather::CALM);
    w.inject(0, &plain(mac(0), HOST));
    w.run(Duration::from_secs(2));
    let mut at: Vec<usize> = w.taken.iter().map(|(n, _)| *n).collect();
    at.sort_unstable();
    assert_eq!(at, [3, 4]);
}

/// Without a member that may bridge, or one that does, there is nowhere to send it.
#[test]
fn nobody_bridges() {
    let mut w = world(3);
    assert!(places(&mut w, 0, &plain(mac(0), HOST)).is_empty());
    assert_eq!(dropped(&w, 0, DropReason::UnknownDestination), 1);
    // A certificate alone does not make a bridge of a device.
    let mut w = World::new(7, Setup::plain(4, false), Weather::CALM);
    w.send(0, 3, 60);
    w.run(Duration::from_secs(1));
    assert!(places(&mut w, 3, &plain(HOST, mac(0))).is_empty());
    assert_eq!(dropped(&w, 3, DropReason::SourceMac), 1);
    assert!(places(&mut w, 0, &plain(mac(0), HOST)).is_empty());
    assert_eq!(dropped(&w, 3, DropReason::UnknownDestination), 1);
}

/// No host has a member's MAC, or one that another's certificate names; nobody bridges more than it may. At the sender, and
/// at a receiver whose peer does not keep to it. [P-GUARD]
#[test]
fn hosts_are_held_to_the_certificate() {
    let mut w = world(6);
    for (from, frame) in [
        (1, plain(HOST, mac(0))),   // may not bridge
        (3, plain(mac(1), mac(0))), // a member's
        (3, plain(NAMED, mac(0))),  // named for another
        (5, plain(HOST, mac(0))),   // named another
        (3, plain([0; 6], mac(0))), // nobody's
    ] {
        let before = dropped(&w, from, DropReason::SourceMac);
        assert!(places(&mut w, from, &frame).is_empty(), "{from} {frame:02x?}");
        assert_eq!(dropped(&w, from, DropReason::SourceMac), before + 1, "{from} {frame:02x?}");
    }
    assert_eq!(places(&mut w, 5, &plain(NAMED, mac(0))), [0]);
    // The receiver's guard is the same function, over the sender's part of the snapshot.
    let snapshot = w.nodes[0].endpoint.node.snapshot();
    let peer = |n: usize| &snapshot.peers[&w.nodes[0].endpoint.node.peer_id(&CAST.members[n].id).unwrap()];
    let check = |n: usize, src| snapshot.check_source(&plain(src, mac(0)), Some(peer(n))).map(|o| o.src);
    assert_eq!(check(3, HOST), Ok(HOST));
    assert_eq!(check(5, NAMED), Ok(NAMED));
    for (n, src) in [(1, HOST), (3, mac(1)), (3, mac(0)), (3, NAMED), (5, HOST), (3, [0; 6])] {
        assert_eq!(check(n, src), Err(DropReason::SourceMac), "{n} {src:02x?}");
    }
}

/// VLANs and addresses of hosts; and a machine whose bridge has another MAC than its device. [P-GUARD]
#[test]
fn vlans_and_addresses_of_hosts() {
    let of = |n: usize| {
        let certificate = CAST.members[n].certificate.fact().certificate().unwrap();
        let (bridge, ipv6) = (certificate.bridge.clone(), CAST.members[n].id.ipv6(&CAST.genesis.id()));
        Guard { mac: mac(n), ipv4: certificate.ipv4, ipv6, bridge: Some(Arc::new(bridge)) }
    };
    let mut prefix6 = [0; 8];
    prefix6.copy_from_slice(&CAST.members[0].id.ipv6(&CAST.genesis.id()).octets()[..8]);
    let mesh = MeshPrefixes { subnet4: CAST.genesis.subnet4, prefix6 };
    let tagged = |id: u16, src| {
        let mut f = plain(src, mac(0));
        f.splice(12..12, [0x81, 0, (id >> 8) as u8 | 0xe0, id as u8]);
        f
    };
    let from = |src: [u8; 6], ip: &str| {
        let mut f = plain(src, mac(0));
        f.resize(80, 0);
        match ip.parse().unwrap() {
            IpAddr::V4(a) => {
                f[12..14].copy_from_slice(&[0x08, 0x00]);
                f[26..30].copy_from_slice(&a.octets());
            }
            IpAddr::V6(a) => {
                f[12..14].copy_from_slice(&[0x86, 0xdd]);
                f[22..38].copy_from_slice(&a.octets());
            }
        }
        f
    };
    let verdict = |n: usize, f: &[u8]| check_source(f, &of(n), &mesh).map(|_| ());
    assert_eq!(verdict(5, &tagged(7, NAMED)), Ok(()));
    assert_eq!(verdict(5, &tagged(0, NAMED)), Ok(()), "a priority tag");
    assert_eq!(verdict(5, &tagged(8, NAMED)), Err(DropReason::SourceVlan));
    assert_eq!(verdict(3, &tagged(9, HOST)), Err(DropReason::SourceVlan));
    assert_eq!(verdict(4, &tagged(9, HOST)), Ok(()));
    assert_eq!(verdict(5, &tagged(8, mac(5))), Ok(()), "its own tags are its own affair");
    for ip in ["192.168.7.20", "0.0.0.0", "169.254.3.4", "fe80::7", "::"] {
        assert_eq!(verdict(5, &from(NAMED, ip)), Ok(()), "{ip}");
    }
    for ip in ["192.168.8.20", "8.8.8.8", "2001:db8::1"] {
        assert_eq!(verdict(5, &from(NAMED, ip)), Err(DropReason::SourceAddress), "{ip}");
        assert_eq!(verdict(3, &from(HOST, ip)), Ok(()), "{ip}");
    }
    // The network's own addresses stay their members', whoever bridges; by whatever MAC the bridge speaks with.
    let (own, other) = (Ipv4Addr::new(10, 83, 1, 4), Ipv4Addr::new(10, 83, 1, 2));
    assert_eq!(verdict(3, &from(HOST, &own.to_string())), Ok(()));
    assert_eq!(verdict(3, &from(HOST, &other.to_string())), Err(DropReason::SourceAddress));
    let other6 = CAST.members[1].id.ipv6(&CAST.genesis.id());
    assert_eq!(verdict(3, &from(HOST, &other6.to_string())), Err(DropReason::SourceAddress));
}
