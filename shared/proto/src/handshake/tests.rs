//! Openings against the responder, message by message: each credential kind, loss, repeats, forgeries.

use super::*;
use crate::{Rng, Time};
use shadowmesh_crypto::aead::Suite;
use shadowmesh_crypto::kem;
use shadowmesh_wire::handshake::{CredentialKind, Established, LANES, MAX_PARTS, RelayGrant, ReplyHeader};
use shadowmesh_wire::{DropReason, PacketType};
use std::sync::Arc;
use std::time::Duration;

const NET: [u8; 32] = [7; 32];
const R: [u8; 32] = [9; 32];
const SUITES: [Suite; 2] = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305];

struct Side {
    responder: Responder,
    contact: Contact,
    leaf: (kdf::Hash, Arc<kem::SecretKey>),
    rng: Rng,
    bundle: Vec<u8>,
    know: bool,
}

fn source() -> Source {
    Source::Udp("192.0.2.1:4000".parse().unwrap())
}

fn established() -> Established {
    Established {
        sid_r: [1; 8],
        generation: 5,
        lanes: [3; LANES],
        observed: source().observed(),
        mtu: 1400,
        wall: 99,
        relay: RelayGrant::default(),
    }
}

impl Side {
    fn new() -> Self {
        let mut rng = Rng::from_seed([1; 32]);
        Side {
            responder: Responder::new(SUITES.to_vec(), 100.0, Bounds::default(), Time(0), &mut rng),
            contact: Contact::node(&NET, &R),
            leaf: ([8; 32], Arc::new(kem::SecretKey::generate().unwrap())),
            rng,
            bundle: (0..20_000u32).map(|i| i as u8).collect(),
            know: true,
        }
    }

    fn leaf(&self) -> ResponderLeaf {
        ResponderLeaf { node: R, hash: self.leaf.0, key: self.leaf.1.public().clone() }
    }

    /// One packet in; what goes back, and the session's keys when it answered.
    fn feed(
        &mut self,
        now: Time,
        from: Source,
        packet: &[u8],
        peer: &Credential,
    ) -> Result<(Vec<Vec<u8>>, Option<SessionKeys>), DropReason> {
        let local = Local {
            contact: &self.contact,
            node: R,
            leaves: std::slice::from_ref(&self.leaf),
            bundle: &self.bundle,
            kinds: &[CredentialKind::Member, CredentialKind::Pseudonym, CredentialKind::Anonymous],
        };
        let incoming = self.responder.handle(now, from, packet, &[local], &mut self.rng)?;
        let opened = match incoming {
            Incoming::Pending => return Ok((vec![], None)),
            Incoming::Reply(r) => return Ok((r, None)),
            Incoming::Opened(o) if self.know || o.kind == CredentialKind::Anonymous => o,
            Incoming::Opened(o) => return Ok((vec![self.responder.ask(now, o)?], None)),
            Incoming::Certificates(a) => {
                match peer {
                    Credential::Member { chain, .. } => assert_eq!(a.bytes, chain.to_vec()),
                    Credential::Pseudonym { key, .. } => {
                        assert_eq!(a.bytes, key.public().as_bytes().to_vec())
                    }
                    Credential::Anonymous => panic!("asked an anonymous one"),
                }
                self.responder.resume(a.source, a.sid).unwrap()
            }
        };
        let key = peer.static_key().map(|k| k.public().clone());
        let identity = peer.identity();
        let identity: Vec<&[u8]> = identity.iter().map(Vec::as_slice).collect();
        let (out, keys) = self.responder.finish(now, opened, key.as_ref(), &identity, &established())?;
        Ok((out, Some(keys)))
    }
}

fn member() -> Credential {
    Credential::Member {
        certificate: [1; 32],
        leaf: [2; 32],
        key: Arc::new(kem::SecretKey::generate().unwrap()),
        chain: vec![5; 15_000].into(),
    }
}

fn credentials() -> [Credential; 3] {
    let access = Arc::new(Secret::new([4; 32]));
    let key = Arc::new(kem::SecretKey::generate().unwrap());
    [member(), Credential::Pseudonym { key, tag: [3; 16], access }, Credential::Anonymous]
}

/// Runs an opening to its end with every packet for which `keep(n)` is false lost; gives both sides' keys.
fn run(
    side: &mut Side,
    credential: Credential,
    leaf: Option<ResponderLeaf>,
    mut keep: impl FnMut(u32) -> bool,
) -> Option<(SessionKeys, SessionKeys)> {
    let mut rng = Rng::from_seed([2; 32]);
    let config = InitiatorConfig {
        contact: Contact::node(&NET, &R),
        leaf,
        credential: credential.clone(),
        suites: SUITES.to_vec(),
    };
    let mut now = Time(1);
    let mut i = Initiator::new(config, now, &mut rng);
    let (mut n, mut theirs) = (0, None);
    loop {
        while let Some(p) = i.poll_transmit() {
            n += 1;
            if !keep(n) {
                continue;
            }
            let (replies, keys) = side.feed(now, source(), &p, &credential).unwrap_or_default();
            theirs = keys.or(theirs);
            for r in replies {
                assert!(
                    r.len() <= p.len() || p[0] == 0x43 || p[0] == 0x46,
                    "a reply larger than its request"
                );
                n += 1;
                if !keep(n) {
                    continue;
                }
                match i.handle(now, &r, &mut rng) {
                    Ok(Progress::Finished(f)) => {
                        assert_eq!(f.established, established());
                        return Some((f.keys, theirs?));
                    }
                    Ok(Progress::Bundle(b)) => {
                        assert_eq!(b, side.bundle);
                        i.set_leaf(now, side.leaf(), &mut rng).unwrap();
                    }
                    _ => {}
                }
            }
        }
        now = i.deadline();
        if !i.handle_timeout(now, &mut rng) {
            return None;
        }
    }
}

fn agree(a: &SessionKeys, b: &SessionKeys) {
    assert_eq!(a.h2, b.h2);
    assert_eq!(a.exporter, b.exporter);
    let (mut tx, mut rx) =
        (crate::lane::TxLane::new(3, a.send_lane(0)), crate::lane::RxLane::new(b.receive_lane(0)));
    let mut p = tx.seal(shadowmesh_wire::data::Kind::Frame, b"hello").unwrap();
    let (_, body) = rx.open_in_place(Time(0), &mut p).unwrap();
    assert_eq!(&p[body], b"hello");
    let mut again = tx.seal(shadowmesh_wire::data::Kind::Frame, b"hello").unwrap();
    again[15] ^= 1;
    assert_eq!(rx.open_in_place(Time(0), &mut again).unwrap_err(), DropReason::BadTag);
}

/// Every credential kind, with the leaf at hand or pulled, with the certificate known or asked for.
#[test]
fn every_kind_completes_and_agrees() {
    for credential in credentials() {
        for pull in [false, true] {
            for know in [true, false] {
                let mut side = Side::new();
                side.know = know;
                let leaf = (!pull).then(|| side.leaf());
                let (a, b) = run(&mut side, credential.clone(), leaf, |_| true).expect("no session");
                agree(&a, &b);
                assert_eq!(a.suite, Suite::Aes256Gcm);
            }
        }
    }
}

/// A third of all packets lost, many times: it still completes, with the same keys on both sides.
#[test]
fn completes_under_loss() {
    let mut done = 0;
    for seed in 0..40u8 {
        let mut side = Side::new();
        side.know = seed % 2 == 0;
        let mut dice = Rng::from_seed([seed; 32]);
        let leaf = (seed % 4 < 2).then(|| side.leaf());
        if let Some((a, b)) = run(&mut side, member(), leaf, |_| dice.below(3) != 0) {
            agree(&a, &b);
            done += 1;
        }
    }
    assert!(done >= 30, "only {done} of 40 openings completed");
}

/// A flipped bit anywhere in any packet is dropped, or changes nothing that the two sides agree on. [P-TRANSCRIPT]
#[test]
fn flipped_bits_never_split_the_two_sides() {
    let mut dice = Rng::from_seed([3; 32]);
    let mut rejected = 0;
    for _ in 0..300 {
        let mut side = Side::new();
        let credential = member();
        let mut rng = Rng::from_seed(dice.bytes());
        let config = InitiatorConfig {
            contact: Contact::node(&NET, &R),
            leaf: Some(side.leaf()),
            credential: credential.clone(),
            suites: SUITES.to_vec(),
        };
        let mut i = Initiator::new(config, Time(0), &mut rng);
        let target = dice.below(8);
        let (mut n, mut theirs, mut ours) = (0, None, None);
        let mut flip = |p: &mut Vec<u8>, n: &mut u64| {
            if *n == target {
                let bit = dice.below(p.len() as u64 * 8);
                p[bit as usize / 8] ^= 1 << (bit % 8);
            }
            *n += 1;
        };
        while let Some(mut p) = i.poll_transmit() {
            flip(&mut p, &mut n);
            let (replies, keys) = side.feed(Time(0), source(), &p, &credential).unwrap_or_default();
            theirs = keys.or(theirs);
            for mut r in replies {
                flip(&mut r, &mut n);
                if let Ok(Progress::Finished(f)) = i.handle(Time(0), &r, &mut rng) {
                    ours = Some(f.keys);
                }
            }
        }
        match (ours, theirs) {
            (Some(a), Some(b)) => agree(&a, &b),
            _ => rejected += 1,
        }
    }
    assert!(rejected > 250, "flipped bits went unnoticed: {rejected} of 300 refused");
}

/// An opening whose CHALLENGE has come: its RESPONSE is ready to be sent.
fn challenged() -> (Side, Credential, Initiator) {
    challenged_with(member())
}

fn challenged_with(credential: Credential) -> (Side, Credential, Initiator) {
    let mut side = Side::new();
    let mut rng = Rng::from_seed([2; 32]);
    let config = InitiatorConfig {
        contact: Contact::node(&NET, &R),
        leaf: Some(side.leaf()),
        credential: credential.clone(),
        suites: SUITES.to_vec(),
    };
    let mut i = Initiator::new(config, Time(0), &mut rng);
    let hello = i.poll_transmit().unwrap();
    let (challenge, _) = side.feed(Time(0), source(), &hello, &credential).unwrap();
    i.handle(Time(0), &challenge[0], &mut rng).ok();
    (side, credential, i)
}

/// A repeated RESPONSE gets the same bytes, and no second session. [P-AMPLIFY]
#[test]
fn repeats_get_the_same_bytes() {
    let (mut side, credential, mut i) = challenged();
    let response: Vec<_> = std::iter::from_fn(|| i.poll_transmit()).collect();
    let mut first = vec![];
    for round in 0..3 {
        let mut out = vec![];
        for p in &response {
            let (r, keys) = side.feed(Time(0), source(), p, &credential).unwrap();
            assert!(round == 0 || keys.is_none(), "a repeat made a session");
            out.extend(r);
        }
        assert_eq!(out.len(), 3);
        if round == 0 { first = out } else { assert_eq!(out, first) }
    }
}

/// A responder that restarts when half of its ESTABLISHED has come knows nothing of the RESPONSE: it is asked anew, long
/// before the opening would end.
#[test]
fn half_an_answer_of_a_responder_that_is_gone() {
    let (mut side, credential, mut i) = challenged();
    let mut rng = Rng::from_seed([3; 32]);
    let mut answer = vec![];
    for p in std::iter::from_fn(|| i.poll_transmit()).collect::<Vec<_>>() {
        answer.extend(side.feed(Time(0), source(), &p, &credential).unwrap().0);
    }
    assert!(matches!(i.handle(Time(0), &answer[0], &mut rng), Ok(Progress::Pending)));
    // The same static key; another cookie key.
    side.responder = Responder::new(SUITES.to_vec(), 100.0, Bounds::default(), Time(0), &mut rng);
    let (mut now, mut finished) = (Time(0), false);
    while !finished && now < Time(4_000_000_000) {
        for p in std::iter::from_fn(|| i.poll_transmit()).collect::<Vec<_>>() {
            for reply in side.feed(now, source(), &p, &credential).map(|r| r.0).unwrap_or_default() {
                finished |= matches!(i.handle(now, &reply, &mut rng), Ok(Progress::Finished(_)));
            }
        }
        now = i.deadline().max(now);
        i.handle_timeout(now, &mut rng);
    }
    assert!(finished, "still asking the process that is gone after {now:?}");
}

/// A RESPONSE with a good cookie that does not open costs a decapsulation, and counts as one: the puzzle is asked for by
/// load, and that of garbage is the same.
#[test]
fn what_does_not_open_is_load() {
    let (mut side, credential, mut i) = challenged();
    let mut response: Vec<_> = std::iter::from_fn(|| i.poll_transmit()).collect();
    *response.last_mut().unwrap().last_mut().unwrap() ^= 1;
    let results: Vec<_> = response.iter().map(|p| side.feed(Time(0), source(), p, &credential)).collect();
    assert_eq!(results.last().unwrap().as_ref().unwrap_err(), &DropReason::BadTag);
    assert_eq!((side.responder.decapsulations, side.responder.held()), (1, (0, 0, 0)));
}

/// A pseudonym that has to show its key can make the responder hold that, and no more. [P-ORDER]
#[test]
fn a_pseudonym_sends_its_key_and_no_more() {
    let [_, pseudonym, _] = credentials();
    let (mut side, credential, mut i) = challenged_with(pseudonym);
    side.know = false;
    for p in std::iter::from_fn(|| i.poll_transmit()) {
        side.feed(Time(0), source(), &p, &credential).unwrap();
    }
    assert_eq!(side.responder.held(), (0, 1, 0));
    for (count, expect) in
        [(MAX_PARTS as u8, DropReason::BadHandshake), (3, DropReason::BadHandshake), (2, DropReason::BadTag)]
    {
        let header = ReplyHeader { packet: PacketType::Cert, index: 0, count, sid: *i.sid() };
        let packet = [&header.emit()[..], &[0; 1000]].concat();
        assert_eq!(side.feed(Time(0), source(), &packet, &credential).unwrap_err(), expect);
    }
}

/// The cookie is bound to the address: from elsewhere, nothing is done. [P-COOKIE]
#[test]
fn cookie_is_bound_to_the_source() {
    let (mut side, credential, mut i) = challenged();
    let elsewhere = Source::Udp("192.0.2.2:4000".parse().unwrap());
    let relayed = Source::Relay { relay: 0, handle: 5 };
    for p in std::iter::from_fn(|| i.poll_transmit()) {
        for from in [elsewhere, relayed] {
            assert_eq!(side.feed(Time(0), from, &p, &credential).unwrap_err(), DropReason::BadCookie);
        }
        let late = Time(0) + Duration::from_secs(300);
        assert_eq!(side.feed(late, source(), &p, &credential).unwrap_err(), DropReason::BadCookie);
    }
    assert_eq!(side.responder.held(), (0, 0, 0));
}

/// What strangers can make a responder hold is bounded, and an outsider who does not know the NodeId gets no reply. [P-ORDER]
#[test]
fn strangers_are_bounded() {
    let mut side = Side::new();
    let mut rng = Rng::from_seed([2; 32]);
    let stranger = Contact::node(&NET, &[1; 32]);
    let config = InitiatorConfig {
        contact: stranger,
        leaf: None,
        credential: Credential::Anonymous,
        suites: SUITES.to_vec(),
    };
    let mut i = Initiator::new(config, Time(0), &mut rng);
    let hello = i.poll_transmit().unwrap();
    let refused = side.feed(Time(0), source(), &hello, &Credential::Anonymous);
    assert_eq!(refused.unwrap_err(), DropReason::BadMac);
    // First fragments only, from many good sources: reassembly stays within its bound.
    for n in 0..2000u32 {
        let from = Source::Relay { relay: 1, handle: u64::from(n) };
        let config = InitiatorConfig {
            contact: Contact::node(&NET, &R),
            leaf: Some(side.leaf()),
            credential: Credential::Anonymous,
            suites: SUITES.to_vec(),
        };
        let mut i = Initiator::new(config, Time(0), &mut rng);
        let Ok((c, _)) = side.feed(Time(0), from, &i.poll_transmit().unwrap(), &Credential::Anonymous) else {
            continue;
        };
        i.handle(Time(0), &c[0], &mut rng).ok();
        let _ = side.feed(Time(0), from, &i.poll_transmit().unwrap(), &Credential::Anonymous);
    }
    assert!(side.responder.held().0 <= 256);
}

/// The suite is R's choice among what was offered; one that was not offered is refused, both ways. [P-NEGOTIATE]
#[test]
fn suites_are_negotiated() {
    let mut side = Side::new();
    let mut rng = Rng::from_seed([2; 32]);
    for (offered, expect) in [
        (vec![Suite::ChaCha20Poly1305], Ok(Suite::ChaCha20Poly1305)),
        (vec![Suite::ChaCha20Poly1305, Suite::Aes256Gcm], Ok(Suite::Aes256Gcm)),
        (vec![], Err(DropReason::BadSuite)),
    ] {
        let credential = member();
        let config = InitiatorConfig {
            contact: Contact::node(&NET, &R),
            leaf: Some(side.leaf()),
            credential: credential.clone(),
            suites: offered,
        };
        let mut i = Initiator::new(config, Time(0), &mut rng);
        let mut got = None;
        while let Some(p) = i.poll_transmit() {
            match side.feed(Time(0), source(), &p, &credential) {
                Ok((replies, _)) => {
                    for r in replies {
                        if let Ok(Progress::Finished(f)) = i.handle(Time(0), &r, &mut rng) {
                            got = Some(Ok(f.keys.suite));
                        }
                    }
                }
                Err(e) => got = Some(Err(e)),
            }
        }
        assert_eq!(got, Some(expect));
    }
}

/// Under load R asks for a puzzle; it is solved, and an unsolved one is refused.
#[test]
fn puzzle_is_asked_and_checked() {
    let mut side = Side::new();
    side.responder.puzzle = 8;
    let leaf = side.leaf();
    let (a, b) = run(&mut side, member(), Some(leaf), |_| true).expect("no session");
    agree(&a, &b);
    side.responder.puzzle = 40;
    let leaf = side.leaf();
    assert!(run(&mut side, member(), Some(leaf), |_| true).is_none(), "a puzzle past the cost was worked on");
}
