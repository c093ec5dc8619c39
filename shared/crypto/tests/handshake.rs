//! Handshakes with every value between, written down from docs/PROTOCOL.md by the oracle: `tests/vectors/handshake.json`.
//! Here the file is made anew from its seeds and must be the same; `shadowmesh-proto` opens it with the shipped code.
//!
//! After a change of the protocol: `WRITE_VECTORS=1 cargo test -p shadowmesh-crypto --test handshake`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on should stop")]

mod common;

use common::{Kem, derive, encapsulate, hash, mac16, seal};
use data_encoding::HEXLOWER;
use serde_json::{Map, Value, json};

const AES: u8 = 1;
const CHACHA: u8 = 2;
const TAG: usize = 16;

fn key(label: &str, salt: &[u8], ikm: &[&[u8]], context: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    derive(label, salt, ikm, context, &mut out);
    out
}

/// Values by name, as hexadecimal text.
#[derive(Default)]
struct Told(Map<String, Value>);

impl Told {
    fn put(&mut self, name: &str, bytes: &[u8]) {
        self.0.insert(name.into(), HEXLOWER.encode(bytes).into());
    }

    fn list(&mut self, name: &str, all: &[Vec<u8>]) {
        self.0.insert(name.into(), all.iter().map(|b| HEXLOWER.encode(b)).collect());
    }

    /// A key pair, as the store holds it: ML-KEM's expanded key, X25519's secret, the public key.
    fn pair(&mut self, name: &str, n: u8) -> Kem {
        #![expect(deprecated, reason = "the form in which the store keeps it")]
        use ml_kem::ExpandedKeyEncoding as _;
        let kem = Kem::from_seeds([n; 64], [n ^ 0x55; 32]);
        let expanded = kem.pq.to_expanded_bytes();
        self.put(name, &[&expanded[..], &[n ^ 0x55; 32], &kem.public].concat());
        kem
    }
}

/// Who shows what.
#[derive(Clone, Copy, PartialEq)]
enum Shown {
    Member,
    Pseudonym,
    Anonymous,
    /// Anonymous, with an invite's keys.
    Invited,
}

/// What the rest of a handshake is made of, opening or rekey.
struct Opened {
    suite: u8,
    h1: [u8; 32],
    k1: [u8; 32],
    sealed: Vec<u8>,
    identity: Vec<Vec<u8>>,
    ephemeral: Kem,
    static_key: Option<Kem>,
    exporter: Option<[u8; 32]>,
}

/// From k1 on: ct2, ct3, k2 and what comes of it. Gives ESTABLISHED's body and the exporter.
fn second_half(told: &mut Told, o: &Opened, generation: u32) -> (Vec<u8>, [u8; 32]) {
    let (ct2, ss2) = encapsulate(&o.ephemeral.public, [0x21; 32], [0x22; 32]);
    let third = o.static_key.as_ref().map(|k| encapsulate(&k.public, [0x31; 32], [0x32; 32]));
    let (ct3, ss3) = third.map_or((vec![], vec![]), |(ct, ss)| (ct.to_vec(), ss.to_vec()));
    let parts: Vec<&[u8]> = o.identity.iter().map(Vec::as_slice).collect();
    let identity = hash("handshake/identity", &parts);
    let h2 = hash("handshake/h2", &[&o.h1, &o.sealed, &identity, &ct2, &ct3]);
    let exporter: &[u8] = o.exporter.as_ref().map_or(&[], |e| e);
    let k2 = key("handshake/k2", &h2, &[&o.k1, &ss2, &ss3, exporter], &[]);
    let from_k2 = |label| key(label, &h2, &[&k2], &[]);
    let confirm = from_k2("handshake/k2/confirm");
    let (i, r) = (from_k2("handshake/k2/initiator"), from_k2("handshake/k2/responder"));
    let next = from_k2("handshake/k2/exporter");

    let mut plain = vec![0x51; 8];
    plain.extend(generation.to_be_bytes());
    for lane in 0..8u32 {
        plain.extend((0x0100_0000 + lane * 16).to_be_bytes());
    }
    let address: std::net::Ipv6Addr = "::ffff:192.0.2.1".parse().unwrap();
    plain.extend(address.octets());
    plain.extend(4000u16.to_be_bytes());
    plain.extend(1400u16.to_be_bytes());
    plain.extend(1_800_000_000u64.to_be_bytes());
    plain.extend([0; 4 + 8 + 16 + 1]);
    let body = [&ct2[..], &ct3, &seal(CHACHA, &confirm, 0, &h2, &plain)].concat();

    for (name, bytes) in [
        ("identity", &identity[..]),
        ("ss2", &ss2),
        ("ss3", &ss3),
        ("h2", &h2),
        ("k2", &k2),
        ("confirm_key", &confirm),
        ("established", &plain),
        ("k_initiator", &i),
        ("k_responder", &r),
        ("exporter", &next),
        ("relay_up", &from_k2("relay/up")),
        ("relay_down", &from_k2("relay/down")),
    ] {
        told.put(name, bytes);
    }
    // One packet of a lane each way: index, counter 0, a ping.
    for (name, lane, direction) in [("data_initiator", 0u8, &i), ("data_responder", 3, &r)] {
        let k = key("session/lane", &[], &[direction], &[lane]);
        let header = [&0x8123_4560u32.to_be_bytes()[..], &0u64.to_be_bytes()].concat();
        let sealed = seal(o.suite, &k, 0, &header, &[&[6u8][..], &[0x77; 16]].concat());
        told.put(name, &[header, sealed].concat());
    }
    (body, next)
}

fn opening(name: &str, suite: u8, shown: Shown) -> (Value, [u8; 32]) {
    let mut told = Told::default();
    let (profile, responder, leaf_hash) = ([0x07; 32], [0x09; 32], [0x08; 32]);
    let profile = if shown == Shown::Pseudonym { responder } else { profile };
    told.put("profile", &profile);
    told.put("responder", &responder);
    told.put("leaf_hash", &leaf_hash);
    let leaf = told.pair("leaf_secret", 0x41);
    let ephemeral = told.pair("ephemeral_secret", 0x42);
    let invite = shown == Shown::Invited;
    let contact = |label: &str, n: u8| if invite { [n; 32] } else { hash(label, &[&profile, &responder]) };
    let hello_mac = contact("hello/mac", 0x61);
    let challenge_seal = contact("hello/challenge-seal", 0x62);
    told.put("hello_mac_key", &hello_mac);
    told.put("challenge_seal_key", &challenge_seal);
    let mix = invite.then_some([0x63; 32]);
    told.put("mix", mix.as_ref().map_or(&[], |m| m));

    let kind = match shown {
        Shown::Member => 1u8,
        Shown::Pseudonym => 2,
        Shown::Anonymous | Shown::Invited => 3,
    };
    let (sid, nonce_i, nonce_r, cookie) = ([0x11; 8], [0x12; 32], [0x13; 16], [0x14; 16]);
    let mut hello = [&[0x41, 1, 1, 0b11, kind, 0, 0, 0][..], &sid, &nonce_i].concat();
    let mac = mac16(&hello_mac, "hello/mac", &[&hello]);
    hello.extend(mac);
    let hello_hash = hash("handshake/hello", &[&hello]);
    told.put("hello", &hello);
    told.put("hello_hash", &hello_hash);

    let challenge_key = key("hello/challenge-seal", &nonce_i, &[&challenge_seal], &nonce_r);
    let choice = [&[1, suite, 0, 5][..], &cookie].concat();
    let mut challenge = [&[0x42, 0, 0, 0, 0, 0, 0, 0][..], &sid, &nonce_r].concat();
    let sealed = seal(CHACHA, &challenge_key, 0, &challenge, &choice);
    challenge.extend(sealed);
    told.put("challenge_key", &challenge_key);
    told.put("challenge", &challenge);

    let (ct1, ss1) = encapsulate(&leaf.public, [0x15; 32], [0x16; 32]);
    let h0 = hash("handshake/h0", &[&[1], &[suite], &[kind], &profile]);
    let h1 = hash(
        "handshake/h1",
        &[&h0, &hello_hash, &nonce_r, &[1], &[suite], &responder, &leaf_hash, &ephemeral.public, &ct1],
    );
    let k1 = match &mix {
        Some(mix) => key("handshake/k1", &h1, &[&ss1, mix], &[]),
        None => key("handshake/k1", &h1, &[&ss1], &[]),
    };
    let response_key = key("handshake/k1/response", &h1, &[&k1], &[]);
    let (credential, identity, static_key) = match shown {
        Shown::Member => {
            let pair = told.pair("static_secret", 0x43);
            ([[0x71; 32], [0x72; 32]].concat(), vec![vec![0x71; 32], vec![0x72; 32]], Some(pair))
        }
        Shown::Pseudonym => {
            let pair = told.pair("static_secret", 0x44);
            let (id, access) = (hash("id/kem-key", &[&pair.public]), [0x73; 32]);
            told.put("access", &access);
            let mac = mac16(&access, "relay/access-mac", &[&h1, &id]);
            ([&id[..], &[0x74; 16], &mac].concat(), vec![pair.public.to_vec()], Some(pair))
        }
        Shown::Anonymous | Shown::Invited => (vec![0; 64], vec![], None),
    };
    let sealed = seal(CHACHA, &response_key, 0, &h1, &credential);
    let body = [&hello[..], &leaf_hash, &ephemeral.public, &ct1, &sealed].concat();
    let count = body.len().div_ceil(1200 - 72);
    let response: Vec<Vec<u8>> = body
        .chunks(1200 - 72)
        .enumerate()
        .map(|(i, piece)| {
            let header = [0x43, (i << 4 | count) as u8, 1, suite, 5, 0, 0, 0];
            [&header[..], &sid, &hello_hash, &cookie, &[0; 8], piece].concat()
        })
        .collect();
    for (name, bytes) in [
        ("ss1", &ss1[..]),
        ("h0", &h0),
        ("h1", &h1),
        ("k1", &k1),
        ("response_key", &response_key),
        ("need_cert_key", &key("handshake/k1/need-cert", &h1, &[&k1], &[])),
        ("cert_key", &key("handshake/k1/cert", &h1, &[&k1], &[])),
        ("credential", &credential),
    ] {
        told.put(name, bytes);
    }
    told.list("response", &response);
    let opened = Opened { suite, h1, k1, sealed, identity, ephemeral, static_key, exporter: None };
    let (body, exporter) = second_half(&mut told, &opened, 3);
    let count = body.len().div_ceil(1200 - 12) as u8;
    let established: Vec<Vec<u8>> = body
        .chunks(1200 - 12)
        .enumerate()
        .map(|(i, piece)| [&[0x44, i as u8, count, 0][..], &sid, piece].concat())
        .collect();
    told.list("established_datagrams", &established);
    (json!({"name": name, "suite": suite, "values": told.0}), exporter)
}

/// Both messages of a rekey, as they are before they go in pieces.
fn rekey(suite: u8, exporter: [u8; 32]) -> Value {
    let mut told = Told::default();
    let (network, initiator, responder) = ([0x07; 32], [0x0a; 32], [0x09; 32]);
    let (leaf_hash, sid) = ([0x08; 32], [0x17; 8]);
    let leaf = told.pair("leaf_secret", 0x41);
    let ephemeral = told.pair("ephemeral_secret", 0x45);
    let static_key = told.pair("static_secret", 0x43);
    let (ct1, ss1) = encapsulate(&leaf.public, [0x18; 32], [0x19; 32]);
    let names = hash("handshake/k2/rekey", &[&sid, &initiator, &responder]);
    let h0 = hash("handshake/h0", &[&[1], &[suite], &[1], &network]);
    let h1 = hash(
        "handshake/h1",
        &[&h0, &names, &[], &[1], &[suite], &responder, &leaf_hash, &ephemeral.public, &ct1],
    );
    let k1 = key("handshake/k1", &h1, &[&ss1, &exporter], &[]);
    let credential = [[0x71; 32], [0x72; 32]].concat();
    let response_key = key("handshake/k1/response", &h1, &[&k1], &[]);
    let sealed = seal(CHACHA, &response_key, 0, &h1, &credential);
    let body = [&leaf_hash[..], &ephemeral.public, &ct1, &sealed].concat();
    assert_eq!(sealed.len(), 64 + TAG);
    for (name, bytes) in [
        ("profile", &network[..]),
        ("initiator", &initiator),
        ("responder", &responder),
        ("leaf_hash", &leaf_hash),
        ("sid", &sid),
        ("old_exporter", &exporter),
        ("h1", &h1),
        ("k1", &k1),
        ("credential", &credential),
        ("rekey_response", &body),
    ] {
        told.put(name, bytes);
    }
    let identity = vec![vec![0x71; 32], vec![0x72; 32]];
    let static_key = Some(static_key);
    let exporter = Some(exporter);
    let opened = Opened { suite, h1, k1, sealed, identity, ephemeral, static_key, exporter };
    let (body, _) = second_half(&mut told, &opened, 3);
    told.put("rekey_established", &body);
    json!({"name": "rekey", "suite": suite, "values": told.0})
}

#[test]
fn the_file_is_what_the_description_gives() {
    let (member, exporter) = opening("member", AES, Shown::Member);
    let cases = json!([
        member,
        opening("pseudonym", CHACHA, Shown::Pseudonym).0,
        opening("anonymous", CHACHA, Shown::Anonymous).0,
        opening("invited", AES, Shown::Invited).0,
        rekey(AES, exporter),
    ]);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/handshake.json");
    if std::env::var_os("WRITE_VECTORS").is_some() {
        std::fs::write(path, serde_json::to_string_pretty(&cases).unwrap() + "\n").unwrap();
    }
    let file: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    for (made, read) in cases.as_array().unwrap().iter().zip(file.as_array().unwrap()) {
        for (name, value) in made["values"].as_object().unwrap() {
            assert_eq!(value, &read["values"][name], "{}: {name}", made["name"]);
        }
    }
    assert_eq!(cases, file);
}
