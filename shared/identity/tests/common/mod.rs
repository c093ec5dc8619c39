//! A small network to test with: a root, admins and members, whose keys come from fixed seeds.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::{net::Ipv4Addr, sync::LazyLock};

use shadowmesh_crypto::{Secret, kem, sign::SigningKey};
use shadowmesh_identity::{
    Access, Certificate, DAY, Genesis, Leaf, Location, NodeId, Roles, Tombstone, Verified,
    fact::{Body, Fact, Reason},
};

/// When the tests take place.
pub const NOW: u64 = 1_790_000_000;

pub fn key(n: u8) -> SigningKey {
    SigningKey::from_seed(&Secret::new([n; 32])).unwrap()
}

pub fn id(key: &SigningKey) -> NodeId {
    NodeId::of(key.public())
}

/// The NodeId of `key(n)`, without making the key each time.
pub fn node(n: u8) -> NodeId {
    static NODES: LazyLock<Vec<NodeId>> = LazyLock::new(|| (0..64).map(|n| id(&key(n))).collect());
    NODES[usize::from(n)]
}

pub static ROOT: LazyLock<SigningKey> = LazyLock::new(|| key(1));

pub static GENESIS: LazyLock<Genesis> = LazyLock::new(|| Genesis {
    name: "home".parse().unwrap(),
    root: ROOT.public().clone(),
    created: NOW - DAY,
    nonce: [7; 16],
    subnet4: (Ipv4Addr::new(10, 77, 0, 0), 16),
});

static KEM: LazyLock<kem::PublicKey> = LazyLock::new(|| kem::SecretKey::generate().unwrap().public().clone());

pub fn certificate(of: &SigningKey, name: &str, roles: Roles) -> Certificate {
    Certificate {
        key: of.public().clone(),
        name: name.parse().unwrap(),
        roles,
        tags: vec![],
        ipv4: None,
        not_before: NOW - DAY,
        not_after: NOW + 300 * DAY,
        serial: [9; 16],
        bridge: Default::default(),
    }
}

pub fn sign(by: &SigningKey, subject: NodeId, seq: u64, body: Body) -> Verified {
    Fact::sign(by, GENESIS.id(), subject, seq, NOW - 100, &body).unwrap()
}

pub fn certify(by: &SigningKey, seq: u64, certificate: Certificate) -> Verified {
    sign(by, NodeId::of(&certificate.key), seq, Body::Certificate(certificate))
}

pub fn admin(n: u8, seq: u64) -> Verified {
    let roles = Roles::ADMIN.with(Roles::MEMBER);
    certify(&ROOT, seq, certificate(&key(n), &format!("admin-{n}"), roles))
}

pub fn member(by: &SigningKey, n: u8, seq: u64) -> Verified {
    certify(by, seq, certificate(&key(n), &format!("member-{n}-{seq}"), Roles::MEMBER))
}

pub fn tombstone(by: &SigningKey, n: u8, seq: u64, void_after: Option<u64>) -> Verified {
    sign(by, node(n), seq, Body::Tombstone(Tombstone { reason: Reason::LOST, void_after }))
}

pub fn leaf_body(from: u64) -> Leaf {
    let location = |n| Location {
        relay: NodeId([n; 32]),
        address: "relay.example:4242".parse().unwrap(),
        handle: 0x0102_0304_0506_0708,
    };
    Leaf {
        key: Box::new(KEM.clone()),
        not_before: from,
        not_after: from + 7 * DAY,
        suites: 3,
        locations: vec![location(1), location(2)],
    }
}

pub fn leaf(n: u8, seq: u64, from: u64) -> Verified {
    let key = key(n);
    sign(&key, id(&key), seq, Body::Leaf(leaf_body(from)))
}

pub fn access(by: &SigningKey, relay: u8, seq: u64, ended: u32) -> Verified {
    let access = Access {
        address: "relay.example:4242".parse().unwrap(),
        tag: [3; 32],
        secret: Secret::new([ended as u8; 32]),
        ended,
    };
    sign(by, NodeId([relay; 32]), seq, Body::Access(access))
}
