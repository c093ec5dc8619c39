//! What a member handshake costs each side in CPU time (issue line 3): both sides in one process, timed apart.
//! `handshake-cost [--report FILE]`

use shadowmesh_crypto::aead::Suite;
use shadowmesh_crypto::kem;
use shadowmesh_proto::handshake::*;
use shadowmesh_proto::{Rng, Time};
use shadowmesh_wire::handshake::{CredentialKind, Established, LANES, RelayGrant};
use std::sync::Arc;
use std::time::{Duration, Instant};

const ROUNDS: usize = 300;

#[expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]
fn clock() -> Instant {
    Instant::now()
}

/// One handshake; what each side took. Nothing waits, so elapsed time is CPU time, other work on the machine aside.
fn one(round: u64) -> (Duration, Duration) {
    let (network, me) = ([1; 32], [2; 32]);
    let mut rng = Rng::from_seed([round as u8; 32]);
    let suites = vec![Suite::Aes256Gcm, Suite::ChaCha20Poly1305];
    let leaf = ([3; 32], Arc::new(kem::SecretKey::generate().expect("key")));
    let mine = Arc::new(kem::SecretKey::generate().expect("key"));
    let contact = Contact::node(&network, &me);
    let mut responder = Responder::new(suites.clone(), 1e6, Bounds::default(), Time(0), &mut rng);
    let credential =
        Credential::Member { certificate: [4; 32], leaf: [5; 32], key: mine.clone(), chain: vec![].into() };
    let known = ResponderLeaf { node: me, hash: leaf.0, key: leaf.1.public().clone() };
    let source = Source::Relay { relay: 0, handle: round };
    let (mut i, mut r) = (Duration::ZERO, Duration::ZERO);
    let began = clock();
    let config =
        InitiatorConfig { contact: Contact::node(&network, &me), leaf: Some(known), credential, suites };
    let mut initiator = Initiator::new(config, Time(0), &mut rng);
    i += began.elapsed();
    loop {
        let began = clock();
        let packet = initiator.poll_transmit();
        i += began.elapsed();
        let Some(packet) = packet else { return (i, r) };
        let began = clock();
        let kinds = [CredentialKind::Member];
        let leaves = [leaf.clone()];
        let local = Local { contact: &contact, node: me, leaves: &leaves, bundle: &[], kinds: &kinds };
        let replies = match responder.handle(Time(1), source, &packet, &[local], &mut rng) {
            Ok(Incoming::Reply(replies)) => replies,
            Ok(Incoming::Opened(opened)) => {
                let established = Established {
                    sid_r: [1; 8],
                    generation: 1,
                    lanes: [1; LANES],
                    observed: ([0; 16], 0),
                    mtu: 1400,
                    wall: 0,
                    relay: RelayGrant::default(),
                };
                let identity: [&[u8]; 2] = [&[4; 32], &[5; 32]];
                let key = mine.public();
                let (packets, keys) =
                    responder.finish(Time(1), opened, Some(key), &identity, &established).expect("finished");
                for lane in 0..8 {
                    std::hint::black_box(keys.receive_lane(lane));
                }
                packets
            }
            _ => vec![],
        };
        r += began.elapsed();
        let began = clock();
        for reply in replies {
            if let Ok(Progress::Finished(f)) = initiator.handle(Time(2), &reply, &mut rng) {
                for lane in 0..8 {
                    std::hint::black_box(f.keys.receive_lane(lane));
                }
                i += began.elapsed();
                return (i, r);
            }
        }
        i += began.elapsed();
    }
}

fn main() {
    let report = std::env::args().skip_while(|a| a != "--report").nth(1);
    let mut sides: (Vec<Duration>, Vec<Duration>) = (0..ROUNDS as u64).map(one).unzip();
    sides.0.sort();
    sides.1.sort();
    let micros = |v: &[Duration]| v[v.len() / 2].as_secs_f64() * 1e6;
    let mut lines = vec![];
    for (side, v) in [("initiator", micros(&sides.0)), ("responder", micros(&sides.1))] {
        println!("{side}: {v:.0} µs, median of {ROUNDS}");
        lines.push(format!(
            "{{\"id\":\"3-handshake-{side}\",\"what\":\"CPU of a member handshake at the {side}, median of {ROUNDS}\",\"value\":{v:.0},\"unit\":\"µs\",\"goal\":\"< 1000\",\"holds\":{}}}",
            v < 1000.0
        ));
    }
    if let Some(file) = report
        && let Err(e) = std::fs::write(&file, format!("[{}]\n", lines.join(",\n ")))
    {
        eprintln!("error: {file} cannot be written: {e}");
        std::process::exit(1);
    }
}
