//! Fuzz targets, each a plain function over bytes: what a stranger, a peer or a file can hand us. The ordinary test run
//! replays seeds, their mutations and whatever was once found (`corpus/<target>/`); `make fuzz` runs each under libFuzzer.

use shadowmesh_crypto::aead::{Key, Suite};
use shadowmesh_crypto::secret::Secret;
use shadowmesh_identity as id;
use shadowmesh_proto::batch::{Delivered, RxBatch};
use shadowmesh_proto::handshake::{Contact, Credential, Initiator, InitiatorConfig};
use shadowmesh_proto::lane::{RxLane, TxLane};
use shadowmesh_proto::superframe::{self, Headers, VnetHeader};
use shadowmesh_proto::{Endpoint, Guard, Install, MeshPrefixes, OneThread, Opener, Rng, Time, frame};
use shadowmesh_sim::cast::{CAST, EPOCH, relay_address, relay_config, relay_identity};
use shadowmesh_sim::guest;
use shadowmesh_sim::world::{Setup, Weather, World, address};
use shadowmesh_wire as wire;
use std::cell::RefCell;
use std::time::Duration;

/// A target, by name.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("packets", packets),
    ("control", control),
    ("facts", facts),
    ("urls", urls),
    ("frames", frames),
    ("initiator", initiator),
    ("node", node),
    ("device", device),
    ("superframes", superframes),
    ("relay", relay),
];

/// Every parser of the wire; what parses is emitted to the same bytes.
pub fn packets(b: &[u8]) {
    let _ = wire::classify(b);
    if let Ok(p) = wire::handshake::Hello::parse(b) {
        assert_eq!(p.emit(), b);
    }
    if let Ok(p) = wire::handshake::Challenge::parse(b) {
        assert_eq!(p.emit(), b);
    }
    if let Ok((h, rest)) = wire::handshake::CookieHeader::parse(b) {
        let mut v = vec![];
        h.emit(&mut v);
        v.extend_from_slice(rest);
        assert_eq!(v, b);
    }
    if let Ok(p) = wire::handshake::LeafRequest::parse(b) {
        assert_eq!(p.emit(), b);
    }
    if let Ok((h, rest)) = wire::handshake::ReplyHeader::parse(b) {
        assert_eq!([&h.emit()[..], rest].concat(), b);
    }
    if let Ok(p) = wire::handshake::NeedCert::parse(b) {
        assert_eq!(p.emit(), b);
    }
    if let Ok(p) = wire::handshake::Response::parse(b) {
        assert_eq!(p.emit(), b);
    }
    if let Ok(p) = wire::handshake::Established::parse(b) {
        assert_eq!(p.emit(), b);
    }
    if let Ok((h, rest)) = wire::relay::RelayHeader::parse(b) {
        assert_eq!([&h.emit()[..], rest].concat(), b);
    }
    if let Ok(p) = wire::relay::Reset::parse(b) {
        assert_eq!(p.emit(), b);
    }
    let _ = wire::data::DataHeader::parse(b);
    let _ = wire::data::FragmentHeader::parse(b);
    let _ = wire::data::Report::parse(b);
    let _ = wire::data::Ping::parse(b);
    if let Ok(p) = wire::data::Probe::parse(b) {
        assert_eq!(p.emit(b.len()), b);
    }
    if let Ok((h, rest)) = wire::data::ChunkHeader::parse(b) {
        assert_eq!([&h.emit()[..], rest].concat(), b);
    }
}

/// Control messages: what parses is emitted to the same bytes, and fits a datagram.
pub fn control(b: &[u8]) {
    if let Ok(c) = wire::control::Control::parse(b) {
        let mut v = vec![];
        c.emit(&mut v);
        assert_eq!(v, b);
        assert_eq!(wire::control::Control::parse(&v).as_ref(), Ok(&c));
    }
}

/// Facts, chains, claims, the book of invites: from a peer, or a damaged file.
pub fn facts(b: &[u8]) {
    if let Ok(f) = id::Fact::parse(b) {
        assert_eq!(f.bytes(), b);
    }
    let _ = id::Genesis::parse(b);
    let _ = id::Claim::parse(b);
    let _ = id::book::InviteBook::decode(b);
    let _ = id::chain::verify_chain(&CAST.genesis, b, EPOCH);
    let _ = shadowmesh_relay_core::Durable::parse(b);
}

/// What a person pastes.
pub fn urls(b: &[u8]) {
    let Ok(s) = std::str::from_utf8(b) else { return };
    let _ = s.parse::<id::Invite>();
    let _ = s.parse::<id::RelayUrl>();
    let _ = s.parse::<id::Name>();
    let _ = s.parse::<id::HostPort>();
    let _ = s.parse::<id::NodeId>();
    let _ = id::Seed::from_words(s);
}

/// Ethernet frames at the source guard, and answers made from them.
pub fn frames(b: &[u8]) {
    let guard = Guard {
        mac: CAST.members[1].id.mac(),
        ipv4: Some([10, 83, 1, 2].into()),
        ipv6: CAST.members[1].id.ipv6(&CAST.genesis.id()),
        bridge: None,
    };
    let mesh = MeshPrefixes { subnet4: CAST.genesis.subnet4, prefix6: [0xfd; 8] };
    let _ = frame::check_source(b, &guard, &mesh);
    // And the same from a member that bridges.
    let grant = id::Bridge::from_words(["any", "vlan:7", "192.168.7.0/24"]).expect("a grant");
    let bridging = Guard { bridge: Some(std::sync::Arc::new(grant)), ..guard.clone() };
    if let Ok(o) = frame::check_source(b, &bridging, &mesh) {
        assert!(o.src != [0; 6] && (o.src == guard.mac || matches!(o.vlan, 0 | 7)));
    }
    if let Ok(o) = frame::Outline::read(b)
        && let Some(r) = frame::resolution(b, &o)
        && let Some(answer) = frame::answer(b, &o, &r, guard.mac)
    {
        assert!(answer.len() >= 60 && frame::Outline::read(&answer).is_ok());
    }
}

/// Whatever answers an opening.
pub fn initiator(b: &[u8]) {
    let mut rng = Rng::from_seed([1; 32]);
    let config = InitiatorConfig {
        contact: Contact::node(&[1; 32], &[2; 32]),
        leaf: None,
        credential: Credential::Anonymous,
        suites: vec![Suite::ChaCha20Poly1305],
    };
    let mut i = Initiator::new(config, Time(0), &mut rng);
    let _ = i.handle(Time(1), b, &mut rng);
    let _ = i.handle_timeout(Time(2_000_000_000), &mut rng);
}

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
    static RELAY: RefCell<Option<shadowmesh_relay_core::Relay>> = const { RefCell::new(None) };
}

/// Four members with sessions between them, of whom the last bridges any host; made once a thread, made anew when its
/// time gets long.
fn with_world(f: impl FnOnce(&mut World)) {
    WORLD.with_borrow_mut(|slot| {
        if slot.as_ref().is_some_and(|w| w.now > Time(3_600_000_000_000)) {
            *slot = None;
        }
        let w = slot.get_or_insert_with(|| {
            let setup = Setup { bridge: true, ..Setup::plain(4, false) };
            let mut w = World::new(1, setup, Weather::CALM);
            for (a, b) in [(0, 1), (0, 2), (0, 3), (1, 3)] {
                w.send(a, b, 100);
            }
            w.run(Duration::from_secs(1));
            w
        });
        f(w);
    });
}

fn settle(e: &mut Endpoint<OneThread>, now: Time) {
    while e.poll_transmit().is_some() {}
    while e.poll_frame().is_some() {}
    while e.poll_event().is_some() {}
    while let Some(work) = e.poll_work() {
        e.handle_work(now, work.run());
    }
}

/// A datagram at a node with live sessions; each kind of first byte is tried with the same rest. Nothing is delivered,
/// and no reply to a stranger is larger than what it answers.
pub fn node(b: &[u8]) {
    with_world(|w| {
        w.now = w.now + Duration::from_micros(100);
        let now = w.now;
        let e = &mut w.nodes[0].endpoint;
        settle(e, now);
        for from in [address(1), "203.0.113.66:666".parse().expect("address")] {
            e.data.rx.batch().push(from, b);
            e.open(now, |frame| panic!("a stranger's datagram became a frame: {:02x?}", frame.to_vec()));
            let replied: usize = std::iter::from_fn(|| e.poll_transmit()).map(|(_, p)| p.len()).sum();
            assert!(replied <= b.len(), "{replied} bytes for {}", b.len());
            settle(e, now);
        }
        let (reassembly, asked, answered) = e.node.held_for_strangers();
        assert!(reassembly <= 256 && asked <= 128 && answered <= 1024);
    });
}

/// A frame from the local device, of one that bridges and one that does not; and what is sealed of it, opened by another.
pub fn device(b: &[u8]) {
    with_world(|w| {
        w.now = w.now + Duration::from_micros(100);
        let now = w.now;
        for n in [0, 3] {
            // Whole, and with the device's own source, so that more than the guard is reached.
            let mut own = b.to_vec();
            if let Some(src) = own.get_mut(6..12) {
                src.copy_from_slice(&CAST.members[n].id.mac());
            }
            let mut sealed = vec![];
            for f in [b, &own].into_iter().filter(|f| f.len() <= 1600) {
                let e = &mut w.nodes[n].endpoint;
                e.data.tx.batch().push(f, None);
                e.seal(now, |b| sealed.extend(b.datagrams().map(|(to, bytes)| (to, bytes.to_vec()))));
                settle(e, now);
            }
            let (from, there) = (w.nodes[n].address, w.nodes[1].address);
            for (_, bytes) in sealed.into_iter().filter(|(to, _)| *to == there) {
                let e = &mut w.nodes[1].endpoint;
                e.data.rx.batch().push(from, &bytes);
                e.open(now, |frame| {
                    assert!(frame.head[6..12] != CAST.members[1].id.mac(), "its own MAC came in")
                });
                settle(e, now);
            }
        }
    });
}

/// A member that bridges, and lies in what it says of superframes: the input is its chunks, each behind two bytes of
/// length. Whatever comes of them, a device is told nothing that it would refuse or stumble over, and each frame that it
/// makes of a superframe is one that the network takes, checksums and all.
pub fn superframes(mut b: &[u8]) {
    with_world(|w| {
        let snapshot = w.nodes[0].endpoint.node.snapshot();
        let (liar, own) = (CAST.members[3].id.mac(), snapshot.own.mac);
        let Some(peer) = snapshot.macs.get(&liar).copied() else { panic!("no such peer") };
        let key = || Key::new(Suite::Aes256Gcm, &Secret::new([7; 32]));
        let (mut tx, mut opener) = (TxLane::new(9, key()), Opener::new());
        let rx = Install::Rx { index: 9, lane: 1, session: 1, peer, keys: RxLane::new(key()) };
        assert!(opener.install(rx).is_none());
        let mut batch = RxBatch::new(256 << 10);
        batch.join(true);
        while let Some(([a, c], rest)) = b.split_first_chunk::<2>() {
            let (chunk, rest) =
                rest.split_at(rest.len().min(usize::from(u16::from_le_bytes([*a, *c]) & 0x7ff)));
            b = rest;
            let mut chunk = chunk.to_vec();
            // From itself to us, so that more than the guard is reached.
            if let Some(macs) = chunk.get_mut(6..18) {
                macs[..6].copy_from_slice(&own);
                macs[6..].copy_from_slice(&liar);
            }
            let sealed = tx.seal(wire::data::Kind::Chunk, &chunk).expect("a lane that is new");
            if !batch.push(address(3), &sealed) {
                break;
            }
        }
        opener.open_datagrams(Time(1), &snapshot, &mut batch);
        batch
            .frames()
            .for_each(|f| check_delivered(&f, snapshot.mtu + frame::ETHERNET + 4 * frame::MAX_TAGS));
    });
}

fn check_delivered(f: &Delivered<'_>, largest: usize) {
    let Some(v) = f.vnet else { return assert!(f.parts().next().is_none() && f.head.len() <= largest) };
    let whole = f.to_vec();
    let (start, payload) = (usize::from(v.csum_start), usize::from(v.hdr_len));
    assert!(v.flags == superframe::NEEDS_CSUM && payload <= f.head.len(), "{v:?}");
    assert!(start >= 34 && start + usize::from(v.csum_offset) + 2 <= payload, "{v:?}");
    let o = frame::Outline::read(&whole).expect("a frame");
    let h = Headers::read(&whole, &o).expect("TCP or UDP");
    assert!(h.payload == payload && whole.len() - o.payload <= 65_535);
    if v.gso_size == 0 {
        assert!(v.gso_type == 0 && whole.len() <= largest, "{v:?}");
        return;
    }
    let segments = (whole.len() - payload).div_ceil(v.gso_size.into());
    assert!((2..=superframe::MAX_SEGMENTS).contains(&segments), "{segments} segments");
    let kind = v.gso_type & !superframe::GSO_ECN;
    assert_eq!(
        kind,
        match (h.is_tcp(), o.ethertype) {
            (true, 0x0800) => superframe::GSO_TCP4,
            (true, _) => superframe::GSO_TCP6,
            (false, _) => superframe::GSO_UDP,
        }
    );
    let plain = f.plain();
    assert_eq!(plain.len(), segments);
    for f in plain {
        assert!(f.len() <= largest, "a segment of {} bytes", f.len());
        let h = Headers::read(&f, &o).expect("TCP or UDP still");
        // What is summed and its sum are zero together (RFC 1071).
        let mut again = f.clone();
        let VnetHeader { csum_start, csum_offset, .. } = h.meta(&f, 0);
        let field = usize::from(csum_start + csum_offset);
        let pseudo = pseudo_header(&f, &o, usize::from(csum_start));
        again[field..field + 2].copy_from_slice(&pseudo.to_be_bytes());
        assert!(superframe::complete(&mut again, &h.meta(&f, 0)));
        assert_eq!(again[field..field + 2], f[field..field + 2]);
    }
}

/// The sum of the pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1) of what begins at `l4`.
fn pseudo_header(f: &[u8], o: &frame::Outline, l4: usize) -> u16 {
    let ip = o.payload;
    let (addresses, protocol) = match o.ethertype {
        0x0800 => (ip + 12..ip + 20, f[ip + 9]),
        _ => (ip + 8..ip + 40, f[ip + 6]),
    };
    guest::checksum(&f[addresses], u32::from(protocol) + (f.len() - l4) as u32)
}

/// A datagram at a relay, from a stranger.
pub fn relay(b: &[u8]) {
    RELAY.with_borrow_mut(|slot| {
        let relay = slot.get_or_insert_with(|| {
            let mut rng = Rng::from_seed([5; 32]);
            let durable = shadowmesh_relay_core::Durable::new(&mut rng);
            shadowmesh_relay_core::Relay::new(relay_config(), relay_identity(), durable, Time(0), EPOCH, rng)
                .expect("a relay")
        });
        while relay.poll_event().is_some() {}
        relay.handle_datagram(Time(1_000), relay_address(), b);
        let replied: usize = std::iter::from_fn(|| relay.poll_transmit()).map(|(_, p)| p.len()).sum();
        assert!(replied <= b.len(), "{replied} bytes for {}", b.len());
        let (reassembly, asked, answered) = relay.held();
        assert!(reassembly <= 256 && asked <= 128 && answered <= 8192);
    });
}

/// Parts of a TCP superframe as a member sends them, each behind its length.
fn chunks() -> Vec<u8> {
    let macs = [3, 0].map(|n: usize| CAST.members[n].id.mac());
    let ends = [4, 1].map(|n| std::net::Ipv4Addr::new(10, 83, 1, n));
    let (frame, vnet) = guest::superframe(macs, ends, 1, 5000);
    let o = frame::Outline::read(&frame).expect("a frame");
    let h = Headers::read(&frame, &o).expect("TCP");
    let size = usize::from(vnet.gso_size);
    let mut out = vec![];
    for at in (0..5000).step_by(size) {
        let mut chunk = wire::data::ChunkHeader { id: 1, size: vnet.gso_size }.emit().to_vec();
        h.cut(&frame, at, size, at / size, &mut chunk);
        out.extend((chunk.len() as u16).to_le_bytes());
        out.extend(chunk);
    }
    out
}

/// Inputs that get past the first checks.
pub fn seeds() -> Vec<Vec<u8>> {
    use wire::control::{Control, Piece};
    use wire::handshake::*;
    let mut out = vec![vec![], vec![0], vec![0xc1; 40], vec![0x80; 60]];
    let contact = Contact::node(&CAST.genesis.id().0, &CAST.members[0].id.0);
    let mut rng = Rng::from_seed([2; 32]);
    let config = InitiatorConfig {
        contact,
        leaf: None,
        credential: Credential::Anonymous,
        suites: vec![Suite::ChaCha20Poly1305],
    };
    // A HELLO that the node takes.
    out.extend(Initiator::new(config, Time(0), &mut rng).poll_transmit());
    let choice = Choice { version: 1, suite: 2, puzzle: 0, epoch: 0, cookie: [3; 16] };
    for packet in [wire::PacketType::Response, wire::PacketType::LeafRequest] {
        let mut v = vec![];
        CookieHeader { packet, index: 0, count: 3, choice, sid: [1; 8], hello_hash: [2; 32], solution: 0 }
            .emit(&mut v);
        v.resize(1200, 0);
        out.push(v);
    }
    for packet in [wire::PacketType::Established, wire::PacketType::Cert, wire::PacketType::LeafReply] {
        let mut v = ReplyHeader { packet, index: 0, count: 2, sid: [1; 8] }.emit().to_vec();
        v.resize(1200, 7);
        out.push(v);
    }
    out.push(NeedCert { seq: 0, sid: [1; 8], sealed: [0; 20] }.emit());
    out.push(Challenge { sid: [1; 8], nonce: [2; 16], sealed: [3; 36] }.emit());
    out.push(wire::relay::Reset { slot: 0x0100_0001, token: [1; 16] }.emit());
    for c in [
        Control::Confirm { sid_r: [1; 8], generation: 1, lanes: [5; LANES], wall: EPOCH },
        Control::RekeyResponse(Piece { sid: [1; 8], index: 0, count: 3, bytes: vec![1; 900] }),
        Control::Have(vec![[1; 32]; 3]),
        Control::RosterBuckets(Box::new([1; 64])),
        Control::Chunk { hash: [1; 32], chunk: 0, count: 2, bytes: vec![1; 1024] },
        Control::JoinReply { status: wire::control::Status::Used, text: "used".into(), bundle: [0; 32] },
    ] {
        let mut v = vec![];
        c.emit(&mut v);
        out.push(v);
    }
    out.push(CAST.members[1].certificate.fact().bytes().to_vec());
    out.push(CAST.genesis.encode());
    out.push(b"smr://relay.example.net:443/k3q7".to_vec());
    let mut arp = vec![0xff; 6];
    arp.extend_from_slice(&CAST.members[1].id.mac());
    arp.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    arp.extend_from_slice(&CAST.members[1].id.mac());
    arp.extend_from_slice(&[10, 83, 1, 2, 0, 0, 0, 0, 0, 0, 10, 83, 1, 1]);
    out.push(arp);
    out.push(chunks());
    out
}
