//! Every packet type: what is emitted parses back to itself, and no bytes at all make a parser panic or over-read.
use proptest::prelude::*;
use shadowmesh_wire::{candidate::*, control::*, data::*, handshake::*, relay::*, *};

fn hello() -> impl Strategy<Value = Hello> {
    (1u8..3, 3u8..9, any::<u8>(), 0usize..3, 0u8..2, any::<[u8; 8]>(), any::<[u8; 32]>(), any::<[u8; 16]>())
        .prop_map(|(version_min, version_max, suites, kind, flags, sid, nonce, mac)| Hello {
            version_min,
            version_max,
            suites,
            kind: [CredentialKind::Member, CredentialKind::Pseudonym, CredentialKind::Anonymous][kind],
            flags,
            sid,
            nonce,
            mac,
        })
}

fn choice() -> impl Strategy<Value = Choice> {
    any::<(u8, u8, u8, u8, [u8; 16])>().prop_map(|(version, suite, puzzle, epoch, cookie)| Choice {
        version,
        suite,
        puzzle,
        epoch,
        cookie,
    })
}

fn status() -> impl Strategy<Value = Status> {
    use Status::*;
    prop::sample::select(vec![Ok, Unknown, Used, Expired, Refused, Busy, Pending])
}

fn lanes() -> impl Strategy<Value = [u32; LANES]> {
    prop::array::uniform8(0..=MAX_INDEX)
}

fn hashes() -> impl Strategy<Value = Vec<Hash>> {
    prop::collection::vec(any::<[u8; 32]>(), 0..=MAX_HASHES)
}

fn piece() -> impl Strategy<Value = Piece> {
    (any::<[u8; 8]>(), 1u8..=4, prop::collection::vec(any::<u8>(), 0..MAX_PIECE))
        .prop_map(|(sid, count, bytes)| Piece { sid, index: count - 1, count, bytes })
}

fn address() -> impl Strategy<Value = std::net::SocketAddr> {
    prop_oneof![
        any::<([u8; 4], u16)>().prop_map(std::net::SocketAddr::from),
        any::<([u16; 8], u16)>().prop_map(|(ip, port)| {
            // What stands for IPv4 is read as that.
            std::net::SocketAddr::new(std::net::Ipv6Addr::from(ip).to_canonical(), port)
        }),
    ]
}

fn mapping() -> impl Strategy<Value = Mapping> {
    prop::sample::select(vec![Mapping::Unknown, Mapping::Independent, Mapping::Dependent])
}

fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
    use CandidateKind::*;
    let one = (prop::sample::select(vec![Host, Mapped, Reflexive]), address());
    prop::collection::vec(one.prop_map(|(kind, address)| Candidate { kind, address }), 0..=MAX_CANDIDATES)
}

fn control() -> impl Strategy<Value = Control> {
    prop_oneof![
        (any::<[u8; 8]>(), any::<u32>(), lanes(), any::<u64>())
            .prop_map(|(sid_r, generation, lanes, wall)| Control::Confirm { sid_r, generation, lanes, wall }),
        piece().prop_map(Control::RekeyResponse),
        piece().prop_map(Control::RekeyEstablished),
        any::<([u8; 32], u64)>().prop_map(|(digest, version)| Control::RosterState { digest, version }),
        any::<u64>().prop_map(|d| Control::RosterBuckets(Box::new([d; BUCKETS]))),
        (0u8..64, hashes()).prop_map(|(bucket, ids)| Control::RosterIds { bucket, part: (0, 1), ids }),
        hashes().prop_map(Control::Have),
        any::<([u8; 32], u16)>().prop_map(|(hash, chunk)| Control::Pull { hash, chunk }),
        (any::<[u8; 32]>(), 1u16..=MAX_CHUNKS, prop::collection::vec(any::<u8>(), 0..CHUNK))
            .prop_map(|(hash, count, bytes)| Control::Chunk { hash, chunk: count - 1, count, bytes }),
        any::<[u8; 8]>().prop_map(Control::PathChallenge),
        any::<[u8; 8]>().prop_map(Control::PathResponse),
        any::<[u8; 32]>().prop_map(Control::Rendezvous),
        (status(), any::<(u64, u32)>()).prop_map(|(status, (owner, lifetime))| Control::RendezvousReply {
            status,
            owner,
            lifetime
        }),
        any::<([u8; 32], u32)>().prop_map(|(locator, lifetime)| Control::OpenLocator { locator, lifetime }),
        (any::<[u8; 32]>(), status()).prop_map(|(locator, status)| Control::LocatorReply { locator, status }),
        any::<([u8; 16], [u8; 32], [u8; 32])>().prop_map(|(token, owner, access)| Control::Register {
            token,
            owner,
            access
        }),
        status().prop_map(Control::RegisterReply),
        any::<[u8; 32]>().prop_map(Control::Claim),
        (status(), "[a-z ]{0,100}", any::<[u8; 32]>())
            .prop_map(|(status, text, bundle)| Control::JoinReply { status, text, bundle }),
        Just(Control::Bye),
        "[a-z ]{0,100}".prop_map(Control::Refused),
        (any::<(u32, u32)>(), mapping(), candidates()).prop_map(|((number, heard), mapping, list)| {
            Control::Candidates { number, heard, mapping, list }
        }),
        (any::<[u8; 8]>(), address())
            .prop_map(|(challenge, to)| Control::ValidationRequest { challenge, to }),
        (any::<[[u8; 8]; 2]>(), address())
            .prop_map(|([challenge, own], seen)| { Control::ValidationResponse { challenge, own, seen } }),
        any::<[[u8; 8]; 2]>().prop_map(|[challenge, own]| Control::ValidationComplete { challenge, own }),
        Just(Control::PathLost),
        address().prop_map(Control::Observed),
        any::<u64>().prop_map(Control::Locate),
        (any::<u64>(), address()).prop_map(|(handle, address)| Control::Located { handle, address }),
    ]
}

proptest! {
    #[test]
    fn handshake_packets(h in hello(), c in choice(), sealed in any::<[u8; 20]>(), nonce in any::<[u8; 16]>(),
                         count in 1u8..=4, fill in any::<u8>(), part in 0u8..24) {
        prop_assert_eq!(Hello::parse(&h.emit()), Ok(h));
        prop_assert_eq!(h.emit().len(), SAFE_DATAGRAM);
        prop_assert_eq!(Choice::parse(&c.emit()), Ok(c));
        let mut s = [fill; 36];
        s[..20].copy_from_slice(&sealed);
        let ch = Challenge { sid: h.sid, nonce, sealed: s };
        prop_assert_eq!(ch.emit().len(), Challenge::LEN);
        prop_assert_eq!(Challenge::parse(&ch.emit()), Ok(ch));
        let header = CookieHeader { packet: PacketType::Response, index: count - 1, count, choice: c, sid: h.sid,
            hello_hash: h.nonce, solution: 7 };
        let mut v = Vec::new();
        header.emit(&mut v);
        prop_assert_eq!(v.len(), COOKIE_HEADER);
        v.push(fill);
        prop_assert_eq!(CookieHeader::parse(&v), Ok((header, &[fill][..])));
        let leaf = LeafRequest { header: CookieHeader { packet: PacketType::LeafRequest, ..header }, hello: h.core(), part };
        prop_assert_eq!(LeafRequest::parse(&leaf.emit()), Ok(leaf));
        let r = Response { hello: h.core(), leaf_hash: h.nonce, ephemeral: Box::new([fill; KEM]),
            ct1: Box::new([fill; KEM]), credential: [fill; CREDENTIAL + TAG] };
        prop_assert_eq!(r.emit().len(), RESPONSE_BODY);
        prop_assert!(RESPONSE_BODY <= 3 * (SAFE_DATAGRAM - COOKIE_HEADER));
        prop_assert_eq!(Response::parse(&r.emit()), Ok(r));
        let n = NeedCert { seq: fill, sid: h.sid, sealed };
        prop_assert_eq!(NeedCert::parse(&n.emit()), Ok(n));
        for packet in [PacketType::Established, PacketType::Cert, PacketType::LeafReply] {
            let rh = ReplyHeader { packet, index: count - 1, count, sid: h.sid };
            let bytes = rh.emit();
            prop_assert_eq!(ReplyHeader::parse(&bytes), Ok((rh, &[][..])));
        }
    }

    #[test]
    fn established(sid_r in any::<[u8; 8]>(), generation in any::<u32>(), lanes in lanes(), observed in any::<([u8; 16], u16)>(),
                   mtu in any::<u16>(), wall in any::<u64>(), relay in any::<(u32, u64, [u8; 16], bool)>()) {
        let e = Established { sid_r, generation, lanes, observed, mtu, wall,
            relay: RelayGrant { slot: relay.0, handle: relay.1, reset_token: relay.2, former: relay.3 } };
        prop_assert_eq!(e.emit().len(), Established::LEN);
        prop_assert!(2 * KEM + Established::LEN + TAG <= 3 * (SAFE_DATAGRAM - REPLY_HEADER));
        prop_assert_eq!(Established::parse(&e.emit()), Ok(e));
    }

    #[test]
    fn relay_packets(thread in 0u8..16, slot in any::<u32>(), handle in any::<u64>(), counter in any::<u64>(),
                     mac in any::<[u8; 8]>(), token in any::<[u8; 16]>()) {
        let h = RelayHeader { thread, slot, handle, counter, mac };
        let bytes = h.emit();
        prop_assert_eq!(RelayHeader::parse(&bytes), Ok((h, &[][..])));
        let reset = Reset { slot, token };
        prop_assert_eq!(reset.emit().len(), Reset::LEN);
        prop_assert_eq!(Reset::parse(&reset.emit()), Ok(reset));
    }

    #[test]
    fn data_bodies(index in 0..=MAX_INDEX, counter in any::<u64>(), id in any::<u32>(), count in 2u8..=8, n in 0usize..32) {
        let d = DataHeader { index, counter };
        let mut v = d.emit().to_vec();
        v.extend_from_slice(&[0; 17]);
        prop_assert_eq!(DataHeader::parse(&v), Ok(d));
        let f = FragmentHeader { id, index: count - 1, count };
        let mut v = f.emit().to_vec();
        v.push(9);
        prop_assert_eq!(FragmentHeader::parse(&v), Ok((f, &[9u8][..])));
        let p = Ping { id: counter, stamp: u64::from(id) };
        let mut v = Vec::new();
        p.emit(&mut v);
        prop_assert_eq!(Ping::parse(&v), Ok(p));
        let lane = LaneReport { lane: count, highest: counter, received: counter, largest: 9 };
        let r = Report { stamp: id, echo: id, held: id, lanes: vec![lane; n] };
        let mut v = Vec::new();
        r.emit(&mut v);
        prop_assert_eq!(Report::parse(&v), Ok(r));
    }

    #[test]
    fn chunks(id in any::<u32>(), size in any::<u16>(), fill in any::<u8>()) {
        let h = ChunkHeader { id, size };
        let mut v = h.emit().to_vec();
        prop_assert!(ChunkHeader::parse(&v).is_err());
        v.push(fill);
        prop_assert_eq!(ChunkHeader::parse(&v), Ok((h, &[fill][..])));
    }

    #[test]
    fn probes(number in any::<u32>(), len in 0usize..9000, at in any::<prop::sample::Index>()) {
        let p = Probe { number };
        let mut v = p.emit(len);
        prop_assert_eq!(v.len(), len.max(Probe::LEN));
        prop_assert_eq!(Probe::parse(&v), Ok(p));
        let at = at.index(v.len());
        v[at] ^= 1;
        prop_assert_ne!(Probe::parse(&v), Ok(p));
        prop_assert!(at < Probe::LEN || Probe::parse(&v).is_err());
    }

    #[test]
    fn controls(c in control()) {
        let mut v = Vec::new();
        c.emit(&mut v);
        prop_assert!(v.len() <= MAX_CONTROL, "{} bytes", v.len());
        prop_assert_eq!(Control::parse(&v), Ok(c));
    }

    #[test]
    fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..1300), first in prop::sample::select(vec![0x41u8,0x42,0x43,0x44,0x45,0x46,0x47,0x48,0x49,0x80,0xc1,1,9])) {
        let mut b = bytes;
        if let Some(x) = b.first_mut() { *x = first; }
        let _ = classify(&b);
        let _ = Hello::parse(&b);
        let _ = Challenge::parse(&b);
        let _ = CookieHeader::parse(&b);
        let _ = LeafRequest::parse(&b);
        let _ = ReplyHeader::parse(&b);
        let _ = NeedCert::parse(&b);
        let _ = Response::parse(&b);
        let _ = Established::parse(&b);
        let _ = RelayHeader::parse(&b);
        let _ = Reset::parse(&b);
        let _ = DataHeader::parse(&b);
        let _ = FragmentHeader::parse(&b);
        let _ = ChunkHeader::parse(&b);
        let _ = Ping::parse(&b);
        let _ = Report::parse(&b);
        let _ = Control::parse(&b);
    }
}

/// Whoever asks whether a path is one gets no longer answer than the question. [P-AMPLIFY]
#[test]
fn a_validation_is_answered_in_kind() {
    let seen = std::net::SocketAddr::from(([192, 0, 2, 1], 1));
    let len = |c: Control| {
        let mut out = vec![];
        c.emit(&mut out);
        out.len()
    };
    let request = len(Control::ValidationRequest { challenge: [1; 8], to: seen });
    let response = len(Control::ValidationResponse { challenge: [1; 8], own: [2; 8], seen });
    assert_eq!((request, response), (35, 35));
    assert_eq!(len(Control::Locate(1)), len(Control::Located { handle: 1, address: seen }));
    assert!(len(Control::ValidationComplete { challenge: [1; 8], own: [2; 8] }) <= response);
}
