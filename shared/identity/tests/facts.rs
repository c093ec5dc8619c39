//! Facts: every field comes back, every altered bit is refused, no bytes make a parser panic.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod common;

use std::sync::LazyLock;

use common::*;
use proptest::prelude::*;
use shadowmesh_crypto::{Secret, sign};
use shadowmesh_identity::{
    Access, Bridge, Certificate, DAY, Fact, FactError, HostPort, Leaf, Location, Name, NetworkId, NodeId,
    ParseError, Roles, Tombstone, Verified,
    address::Prefix,
    fact::{Body, MAX_CERTIFICATE_LIFETIME, MAX_FACT_LEN, MAX_LEAF_LIFETIME, Reason},
};

static MEMBER: LazyLock<Verified> = LazyLock::new(|| {
    let certificate = Certificate {
        tags: vec!["ops".parse().unwrap(), "berlin".parse().unwrap()],
        ipv4: Some([10, 77, 1, 2].into()),
        bridge: Bridge {
            macs: vec![[2, 0, 0, 0, 0, 1]],
            vlans: vec![10, 4094],
            prefixes: vec![Prefix::new("192.0.2.0".parse().unwrap(), 24).unwrap()],
        },
        ..certificate(&key(2), "laptop", Roles::MEMBER.with(Roles::EXIT))
    };
    certify(&ROOT, 5, certificate)
});

#[test]
fn a_certificate_has_the_size_it_was_planned_with() {
    let len = member(&ROOT, 2, 1).bytes().len();
    assert!((7400..7600).contains(&len), "{len}");
    assert!(leaf(2, 1, NOW).bytes().len() < 6700);
}

#[test]
fn only_the_signers_key_verifies() {
    let fact = Fact::parse(MEMBER.bytes()).unwrap();
    assert_eq!(fact.verify(ROOT.public()).unwrap(), *MEMBER);
    assert_eq!(fact.verify(key(3).public()), Err(FactError::WrongSigner));
}

/// Flips each bit in turn and returns those for which the fact was still believed.
fn believed(bits: impl Iterator<Item = usize>) -> Vec<usize> {
    bits.filter(|bit| {
        let mut bad = MEMBER.bytes().to_vec();
        bad[bit / 8] ^= 1 << (bit % 8);
        Fact::parse(&bad).is_ok_and(|fact| fact.verify(ROOT.public()).is_ok())
    })
    .collect()
}

#[test]
fn every_altered_bit_is_refused_in_what_is_signed() {
    let signed = MEMBER.bytes().len() - sign::SIGNATURE_LEN;
    assert_eq!(believed(0..signed * 8), []);
}

#[test]
fn every_altered_bit_is_refused_in_the_signature() {
    let (signed, all) = (MEMBER.bytes().len() - sign::SIGNATURE_LEN, MEMBER.bytes().len());
    assert_eq!(believed(signed * 8..all * 8), []);
}

#[test]
fn what_is_cut_or_longer_is_refused() {
    let bytes = MEMBER.bytes();
    for len in 0..bytes.len() {
        assert!(Fact::parse(&bytes[..len]).is_err());
    }
    assert_eq!(Fact::parse(&[bytes, &[0]].concat()).unwrap_err(), ParseError::Trailing);
    let two = [bytes, bytes].concat();
    let (first, rest) = Fact::parse_prefix(&two).unwrap();
    assert_eq!((&first, rest), (MEMBER.fact(), bytes));
}

#[test]
fn a_signature_means_one_kind_only() {
    // A leaf's body under a relay leaf's kind: same bytes, another label.
    let signer = key(2);
    let leaf = Leaf { locations: vec![], ..leaf_body(NOW) };
    let relay = Fact::sign(&signer, NetworkId::NONE, id(&signer), 1, NOW, &Body::RelayLeaf(leaf)).unwrap();
    let mut bad = relay.bytes().to_vec();
    bad[0] = 2;
    assert!(Fact::parse(&bad).is_err());
    bad[1..33].copy_from_slice(&GENESIS.id().0);
    assert_eq!(Fact::parse(&bad).unwrap().verify(signer.public()), Err(FactError::BadSignature));
}

#[test]
fn structure_is_enforced_when_signing_too() {
    let (owner, network) = (key(2), GENESIS.id());
    let refused = |by: &sign::SigningKey, network, subject, body: Body| {
        matches!(Fact::sign(by, network, subject, 1, NOW, &body), Err(FactError::Malformed(_)))
    };
    let cert = |edit: &dyn Fn(&mut Certificate)| {
        let mut certificate = certificate(&owner, "a", Roles::MEMBER);
        edit(&mut certificate);
        Body::Certificate(certificate)
    };
    let leaf = |edit: &dyn Fn(&mut Leaf)| {
        let mut leaf = leaf_body(NOW);
        edit(&mut leaf);
        Body::Leaf(leaf)
    };
    let me = id(&owner);
    assert!(!refused(&ROOT, network, me, cert(&|_| {})));
    assert!(!refused(&ROOT, network, me, cert(&|c| c.not_after = c.not_before + MAX_CERTIFICATE_LIFETIME)));
    assert!(refused(
        &ROOT,
        network,
        me,
        cert(&|c| c.not_after = c.not_before + MAX_CERTIFICATE_LIFETIME + 1)
    ));
    assert!(refused(&ROOT, network, me, cert(&|c| c.not_after = c.not_before)));
    assert!(refused(&ROOT, network, me, cert(&|c| c.bridge.vlans = vec![0])));
    assert!(refused(&ROOT, network, me, cert(&|c| c.bridge.vlans = vec![1; 33])));
    assert!(refused(&ROOT, network, me, cert(&|c| c.bridge.macs = vec![[0; 6]; 33])));
    assert!(refused(&ROOT, network, me, cert(&|c| c.tags = vec!["x".parse().unwrap(); 17])));
    assert!(refused(&ROOT, network, me, cert(&|c| c.tags = vec!["x".parse().unwrap(); 400])));
    assert!(refused(&ROOT, network, node(3), cert(&|_| {})), "another's key");
    assert!(refused(&owner, network, me, cert(&|_| {})), "self-certified");
    assert!(refused(&ROOT, NetworkId::NONE, me, cert(&|_| {})));

    assert!(!refused(&owner, network, me, leaf(&|_| {})));
    assert!(refused(&ROOT, network, me, leaf(&|_| {})), "another's leaf");
    assert!(refused(&owner, network, me, leaf(&|l| l.not_after = l.not_before + MAX_LEAF_LIFETIME + 1)));
    assert!(refused(&owner, network, me, leaf(&|l| l.suites = 0)));
    assert!(refused(&owner, network, me, leaf(&|l| l.suites = 0x80)));
    assert!(refused(&owner, network, me, leaf(&|l| l.key.0[..2].fill(0xFF))));
    assert!(refused(&owner, network, me, leaf(&|l| l.locations.push(l.locations[0].clone()))));
    assert!(
        refused(&owner, NetworkId::NONE, me, Body::RelayLeaf(leaf_body(NOW))),
        "a relay has no locations"
    );

    let ended = || Body::Tombstone(Tombstone { reason: Reason::LEFT, void_after: None });
    assert!(refused(&owner, network, me, ended()) && !refused(&ROOT, network, me, ended()));
}

#[test]
fn the_largest_of_each_kind_fits() {
    let longest = |n: usize| -> Name { "n".repeat(n).parse().unwrap() };
    let host = HostPort::new(&"h".repeat(255), 65535).unwrap();
    let node = key(2);
    let all = Certificate {
        name: longest(63),
        tags: vec![longest(63); 16],
        ipv4: Some([1, 2, 3, 4].into()),
        bridge: Bridge {
            macs: vec![[1; 6]; 32],
            vlans: vec![4094; 32],
            prefixes: vec![Prefix::new("2001:db8::".parse().unwrap(), 32).unwrap(); 16],
        },
        ..certificate(&node, "x", Roles(u16::MAX))
    };
    assert!(certify(&ROOT, u64::MAX, all).bytes().len() <= MAX_FACT_LEN);
    let location = Location { relay: NodeId([1; 32]), address: host.clone(), handle: u64::MAX };
    let leaf = Leaf { locations: vec![location; 2], ..leaf_body(NOW) };
    sign_ok(&node, id(&node), Body::Leaf(leaf));
    let access = Access { address: host, tag: [1; 32], secret: Secret::random(), ended: u32::MAX };
    sign_ok(&ROOT, NodeId([4; 32]), Body::Access(access));
    sign_ok(
        &ROOT,
        NodeId([4; 32]),
        Body::Tombstone(Tombstone { reason: Reason(255), void_after: Some(u64::MAX) }),
    );
}

fn sign_ok(by: &sign::SigningKey, subject: NodeId, body: Body) {
    let fact = common::sign(by, subject, 1, body);
    assert_eq!(Fact::parse(fact.bytes()).unwrap().verify(by.public()).unwrap(), fact);
}

#[test]
fn access_secrets_are_not_printed() {
    let fact = access(&ROOT, 4, 1, 0x1AB); // its secret is bytes of 0xAB
    let printed = format!("{fact:?} {:?} {:?}", fact.body(), fact.access());
    assert!(printed.contains("Secret(..)") && !printed.contains("171"), "{printed}");
}

fn name() -> impl Strategy<Value = Name> {
    "[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?".prop_map(|text| text.parse().unwrap())
}

fn prefix() -> impl Strategy<Value = Prefix> {
    prop_oneof![
        (any::<u32>(), 0..=32u8).prop_map(|(bits, len)| {
            let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
            Prefix::new(std::net::Ipv4Addr::from_bits(bits & mask).into(), len).unwrap()
        }),
        (any::<u128>(), 0..=128u8).prop_map(|(bits, len)| {
            let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
            Prefix::new(std::net::Ipv6Addr::from_bits(bits & mask).into(), len).unwrap()
        }),
    ]
}

fn body() -> impl Strategy<Value = Body> {
    let lifetime = (any::<u32>(), 1..=MAX_CERTIFICATE_LIFETIME);
    let bridge = (
        prop::collection::vec(any::<[u8; 6]>(), 0..=32),
        prop::collection::vec(1..=4094u16, 0..=32),
        prop::collection::vec(prefix(), 0..=16),
    );
    let tags = prop::collection::vec(name(), 0..=16);
    let certificate =
        (name(), any::<u16>(), tags, any::<Option<[u8; 4]>>(), lifetime, any::<[u8; 16]>(), bridge).prop_map(
            |(name, roles, tags, ipv4, (from, life), serial, (macs, vlans, prefixes))| {
                Body::Certificate(Certificate {
                    key: key(2).public().clone(),
                    name,
                    roles: Roles(roles),
                    tags,
                    ipv4: ipv4.map(Into::into),
                    not_before: from.into(),
                    not_after: u64::from(from) + life,
                    serial,
                    bridge: Bridge { macs, vlans, prefixes },
                })
            },
        );
    let address = || ("[a-z0-9][a-z0-9.]{0,60}", 1u16..).prop_map(|(h, p)| HostPort::new(&h, p).unwrap());
    let location = (any::<[u8; 32]>(), address(), any::<u64>())
        .prop_map(|(relay, address, handle)| Location { relay: NodeId(relay), address, handle });
    let leaf = (any::<u32>(), 1..=7 * DAY, 1..=3u8, prop::collection::vec(location, 0..=2)).prop_map(
        |(from, life, suites, locations)| {
            Body::Leaf(Leaf {
                not_before: from.into(),
                not_after: u64::from(from) + life,
                suites,
                locations,
                ..leaf_body(0)
            })
        },
    );
    let tombstone = (any::<u8>(), any::<Option<u64>>())
        .prop_map(|(reason, void_after)| Body::Tombstone(Tombstone { reason: Reason(reason), void_after }));
    let access = (address(), any::<[u8; 32]>(), any::<[u8; 32]>(), any::<u32>()).prop_map(
        |(address, tag, secret, ended)| {
            Body::Access(Access { address, tag, secret: Secret::new(secret), ended })
        },
    );
    prop_oneof![certificate, leaf, tombstone, access]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn facts_round_trip(body in body(), seq: u64, issued: u64) {
        let node = key(2);
        let by = if matches!(body, Body::Leaf(_)) { &node } else { &*ROOT };
        let made = Fact::sign(by, GENESIS.id(), id(&node), seq, issued, &body).unwrap();
        let read = Fact::parse(made.bytes()).unwrap();
        prop_assert_eq!(read.body(), &body);
        prop_assert_eq!((read.seq(), read.issued(), read.id()), (seq, issued, made.id()));
        prop_assert_eq!((read.signer(), read.subject(), read.network()), (id(by), id(&node), GENESIS.id()));
    }

    #[test]
    fn any_bytes_are_a_fact_or_an_error(bytes: Vec<u8>, kind in 0..7u8, tail in 0..8000usize) {
        let _ = Fact::parse(&bytes);
        let _ = Fact::parse(&[&[kind], &bytes[..], &vec![0; tail]].concat());
    }

    #[test]
    fn facts_with_altered_bytes_are_parsed_or_refused(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        which in 0..3usize,
    ) {
        static ALL: LazyLock<[Verified; 3]> =
            LazyLock::new(|| [MEMBER.clone(), leaf(2, 1, NOW), access(&ROOT, 4, 1, 1)]);
        let mut bytes = ALL[which].bytes().to_vec();
        for (at, value) in edits {
            // Half of them where the structure is: behind the certificate's key, and in the header.
            let at = if value % 2 == 0 { at.index(bytes.len()) } else { 115 + at.index(220) };
            bytes[at] = value;
        }
        if let Ok(fact) = Fact::parse(&bytes) {
            prop_assert_eq!(fact.bytes(), &bytes[..]);
        }
    }
}
