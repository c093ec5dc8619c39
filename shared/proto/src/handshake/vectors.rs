//! The shipped code against `tests/vectors/handshake.json`, which another implementation has written
//! (`shared/crypto/tests/handshake.rs`): every packet is opened with the secrets of both sides, every value compared.

use super::initiator::{Credential, open_established};
use super::transcript::{H1, Role, SessionKeys, Stage1, hello_hash};
use super::{Contact, Parent, RekeyOpened};
use crate::Time;
use crate::lane::RxLane;
use shadowmesh_crypto::aead::{Key, Suite};
use shadowmesh_crypto::kdf::{self, Label};
use shadowmesh_crypto::kem;
use shadowmesh_crypto::secret::Secret;
use shadowmesh_wire::data::Kind;
use shadowmesh_wire::handshake::*;
use std::sync::Arc;

struct Case {
    name: String,
    suite: Suite,
    values: serde_json::Value,
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

impl Case {
    fn bytes(&self, name: &str) -> Vec<u8> {
        let text = self.values[name].as_str();
        unhex(text.unwrap_or_else(|| panic!("{}: no {name}", self.name)))
    }

    fn array<const N: usize>(&self, name: &str) -> [u8; N] {
        self.bytes(name).try_into().unwrap()
    }

    fn secret(&self, name: &str) -> Secret<32> {
        Secret::new(self.array(name))
    }

    fn pair(&self, name: &str) -> Arc<kem::SecretKey> {
        Arc::new(kem::SecretKey::from_bytes(&self.bytes(name)).unwrap())
    }

    fn list(&self, name: &str) -> Vec<Vec<u8>> {
        self.values[name].as_array().unwrap().iter().map(|t| unhex(t.as_str().unwrap())).collect()
    }

    fn is(&self, name: &str, value: &[u8]) {
        assert!(self.bytes(name) == value, "{}: {name} differs", self.name);
    }

    /// A key of the schedule that seals this; `AEAD`s do not show theirs.
    fn derived(&self, name: &str, label: Label, salt: &[u8], from: &Secret<32>) {
        self.is(name, kdf::derive::<32>(label, salt, &[from.expose()], &[]).expose());
    }

    fn credential(&self) -> Credential {
        match self.name.as_str() {
            "member" | "rekey" => Credential::Member {
                certificate: [0x71; 32],
                leaf: [0x72; 32],
                key: self.pair("static_secret"),
                chain: Arc::new([]),
            },
            "pseudonym" => Credential::Pseudonym {
                key: self.pair("static_secret"),
                tag: [0x74; 16],
                access: Arc::new(self.secret("access")),
            },
            _ => Credential::Anonymous,
        }
    }

    fn first_half(&self, h1: &[u8; 32], stage1: &Stage1, sealed: &[u8], credential: &Credential) {
        self.is("h1", h1);
        self.is("k1", stage1.k1.expose());
        let plain = stage1.response_key().open_vec(0, h1, sealed).unwrap();
        self.is("credential", &plain);
        assert_eq!(credential.bytes(h1).to_vec(), plain, "{}: what is shown", self.name);
    }

    /// ESTABLISHED's body, as the initiator opens it.
    fn second_half(
        &self,
        stage1: &Stage1,
        sealed: &[u8],
        credential: &Credential,
        body: &[u8],
        old: Option<&Secret<32>>,
    ) {
        let ephemeral = self.pair("ephemeral_secret");
        let (ct2, rest) = body.split_first_chunk::<KEM>().unwrap();
        let ss2 = ephemeral.decapsulate(ct2).unwrap();
        self.is("ss2", ss2.expose());
        let (ct3, ss3) = match credential.static_key() {
            Some(key) => {
                let (ct3, _) = rest.split_first_chunk::<KEM>().unwrap();
                (ct3.to_vec(), Some(key.decapsulate(ct3).unwrap()))
            }
            None => (vec![], None),
        };
        self.is("ss3", ss3.as_ref().map_or(&[], |s| s.expose()));
        let identity = credential.identity();
        let identity: Vec<&[u8]> = identity.iter().map(Vec::as_slice).collect();
        let stage2 = stage1.stage2(sealed, &identity, ct2, &ct3, &ss2, ss3.as_ref(), old);
        self.is("h2", &stage2.h2);
        self.is("k2", stage2.k2.expose());
        for (name, label) in [
            ("confirm_key", Label::K2Confirm),
            ("k_initiator", Label::K2Initiator),
            ("k_responder", Label::K2Responder),
            ("exporter", Label::K2Exporter),
            ("relay_up", Label::RelayUp),
            ("relay_down", Label::RelayDown),
        ] {
            self.derived(name, label, &stage2.h2, &stage2.k2);
        }
        let opened = open_established(stage1, self.suite, &ephemeral, credential, sealed, body, old);
        let (keys, established) = opened.unwrap();
        self.is("established", &established.emit());
        assert_eq!((established.generation, established.mtu, established.observed.1), (3, 1400, 4000));
        self.is("exporter", keys.exporter.expose());
        self.is("relay_up", keys.relay_up.expose());
        self.is("relay_down", keys.relay_down.expose());
        self.lanes(&keys, Role::Initiator);
        self.lanes(&stage2.session(self.suite, Role::Responder), Role::Responder);
    }

    /// A packet that the other side has sent opens on its lane.
    fn lanes(&self, keys: &SessionKeys, role: Role) {
        let (name, lane) = match role {
            Role::Initiator => ("data_responder", 3),
            Role::Responder => ("data_initiator", 0),
        };
        let mut packet = self.bytes(name);
        let mut rx = RxLane::new(keys.receive_lane(lane));
        let (kind, body) = rx.open_in_place(Time(0), &mut packet).unwrap();
        assert_eq!((kind, &packet[body]), (Kind::Ping, &[0x77; 16][..]), "{}: {name}", self.name);
    }
}

fn cases() -> Vec<Case> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/handshake.json");
    let file: Vec<serde_json::Value> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    file.into_iter()
        .map(|c| Case {
            name: c["name"].as_str().unwrap().into(),
            suite: Suite::try_from(c["suite"].as_u64().unwrap() as u8).unwrap(),
            values: c["values"].clone(),
        })
        .collect()
}

/// [P-TRANSCRIPT]
#[test]
fn openings_are_as_written_down() {
    let mut count = 0;
    for c in cases().iter().filter(|c| c.name != "rekey") {
        count += 1;
        let (profile, responder, leaf_hash) =
            (c.array("profile"), c.array("responder"), c.array("leaf_hash"));
        let contact = if c.name == "invited" {
            let key = |name| c.secret(name);
            let leaf_seal = Secret::new([0; 32]);
            Contact::invite(&profile, key("hello_mac_key"), key("challenge_seal_key"), leaf_seal, key("mix"))
        } else {
            Contact::node(&profile, &responder)
        };
        let core: [u8; HELLO_CORE] = c.array("hello");
        let hello = Hello::parse_core(&core).unwrap();
        assert_eq!(contact.hello_mac(&hello.maced()), hello.mac, "{}: HELLO's MAC", c.name);
        let hash = hello_hash(&core);
        c.is("hello_hash", &hash);

        let challenge = Challenge::parse(&c.bytes("challenge")).unwrap();
        let key = contact.challenge_key(&hello.nonce, &challenge.nonce);
        c.is("challenge_key", key.expose());
        let mut sealed = challenge.sealed;
        let header = Challenge::header(&challenge.sid, &challenge.nonce);
        let plain = Key::new(Suite::ChaCha20Poly1305, &key).open(0, &header, &mut sealed).unwrap().to_vec();
        let choice = Choice::parse(&plain).unwrap();
        assert_eq!((choice.suite, choice.epoch, choice.cookie), (c.suite as u8, 5, [0x14; 16]));

        let mut body = vec![];
        for (i, datagram) in c.list("response").iter().enumerate() {
            let (header, piece) = CookieHeader::parse(datagram).unwrap();
            assert_eq!((usize::from(header.index), header.count, header.hello_hash), (i, 3, hash));
            assert_eq!(header.choice.cookie, choice.cookie);
            body.extend_from_slice(piece);
        }
        let r = Response::parse(&body).unwrap();
        assert_eq!((r.hello, r.leaf_hash), (core, leaf_hash));
        let ss1 = c.pair("leaf_secret").decapsulate(&r.ct1).unwrap();
        c.is("ss1", ss1.expose());
        let h1 = H1 {
            version: choice.version,
            suite: c.suite,
            kind: hello.kind,
            profile: &profile,
            hello: &hash,
            nonce_r: &challenge.nonce,
            responder: &responder,
            leaf: &leaf_hash,
            ephemeral: &r.ephemeral[..],
            ct1: &r.ct1[..],
        }
        .hash();
        let stage1 = Stage1::new(h1, &ss1, contact.mix.as_ref());
        for (name, label) in [
            ("response_key", Label::K1Response),
            ("need_cert_key", Label::K1NeedCert),
            ("cert_key", Label::K1Cert),
        ] {
            c.derived(name, label, &h1, &stage1.k1);
        }
        let credential = c.credential();
        c.first_half(&h1, &stage1, &r.credential, &credential);

        let mut body = vec![];
        for datagram in c.list("established_datagrams") {
            let (header, piece) = ReplyHeader::parse(&datagram).unwrap();
            assert_eq!(header.sid, hello.sid);
            body.extend_from_slice(piece);
        }
        c.second_half(&stage1, &r.credential, &credential, &body, None);
    }
    assert_eq!(count, 4);
}

/// [P-REKEY]
#[test]
fn a_rekey_is_as_written_down() {
    let cases = cases();
    let c = cases.iter().find(|c| c.name == "rekey").unwrap();
    let (profile, initiator, responder) = (c.array("profile"), c.array("initiator"), c.array("responder"));
    let old = c.secret("old_exporter");
    let member = cases.iter().find(|c| c.name == "member").unwrap();
    member.is("exporter", old.expose());
    let parent = Parent {
        profile: &profile,
        initiator: &initiator,
        responder: &responder,
        suite: c.suite,
        exporter: &old,
    };
    let (sid, body) = (c.array("sid"), c.bytes("rekey_response"));
    let leaf_hash: [u8; 32] = c.array("leaf_hash");
    let opened =
        RekeyOpened::open(&parent, &sid, &body, |hash| (*hash == leaf_hash).then(|| c.pair("leaf_secret")));
    let opened = opened.unwrap();
    assert_eq!((opened.certificate, opened.leaf), ([0x71; 32], [0x72; 32]));
    let credential = c.credential();
    let (stage1, sealed) = (&opened.stage1, &opened.sealed);
    c.first_half(&stage1.h1.clone(), stage1, sealed, &credential);
    c.second_half(stage1, sealed, &credential, &c.bytes("rekey_established"), Some(&old));
}
