//! The relay against the real client's side: opening, registration, forwarding, moving, restarts.

mod common;

use common::*;
use shadowmesh_crypto::aead::Suite;
use shadowmesh_crypto::kem;
use shadowmesh_proto::RelayLink;
use shadowmesh_proto::handshake::Credential;
use shadowmesh_relay_core::{Config, FourTuple};
use shadowmesh_wire::DropReason;
use shadowmesh_wire::control::{Control, Status};
use shadowmesh_wire::relay::{RELAY_HEADER, RelayHeader, Reset};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn anonymous_and_pseudonym_open_and_stay() {
    let mut t = Table::new(Config::default());
    let (_, peers) = t.network(1, 2);
    let a = t.anonymous();
    t.run(300 * SECOND);
    for p in peers.iter().chain([&a]) {
        assert!(t.peers[*p].link.is_up() && t.peers[*p].ups == 1, "client {p}: {} ups", t.peers[*p].ups);
        assert!(t.peers[*p].link.rtt().is_some());
        assert_eq!(t.peers[*p].bad_headers, 0);
    }
    assert_eq!(t.relay.clients(), (2, 1));
    assert_eq!(t.relay.pending(), 0);
    // Ten minutes are an anonymous client's end; the others stay.
    t.peers[a].deaf = true;
    t.run(400 * SECOND);
    assert_eq!(t.relay.clients(), (2, 0));
    // Who is not heard for 90 s is gone.
    t.peers[peers[0]].deaf = true;
    t.run(100 * SECOND);
    assert_eq!(t.relay.clients(), (1, 0));
}

/// An anonymous session ends after ten minutes even when it is kept alive.
#[test]
fn anonymous_sessions_end() {
    let mut t = Table::new(Config::default());
    let a = t.anonymous();
    t.run(590 * SECOND);
    assert_eq!((t.peers[a].ups, t.peers[a].resets), (1, 0));
    let slot = t.peers[a].grant.unwrap().slot;
    t.run(60 * SECOND);
    assert!(t.peers[a].resets == 1 && t.peers[a].grant.unwrap().slot != slot);
}

/// A token registers one network; its owner secret rotates without one; nobody else touches its tag. [P-REGISTER]
#[test]
fn registration() {
    let mut t = Table::new(Config::default());
    let (mut home, other) = (Network::new(1), Network::new(2));
    let token = *t.relay.mint().expose();
    let a = t.anonymous();
    t.run(2 * SECOND);
    assert_eq!(t.say_register(a, &home, [0; 16]), Some(Status::Unknown));
    assert_eq!(t.say_register(a, &home, [5; 16]), Some(Status::Refused));
    let before = t.saves;
    assert_eq!(t.say_register(a, &home, token), Some(Status::Ok));
    assert_eq!(t.saves, before + 1, "stored before it is answered");
    // The same again: the same answer, and nothing more.
    assert_eq!(t.say_register(a, &home, token), Some(Status::Ok));
    assert_eq!((t.saves, t.relay.networks()), (before + 1, 1));
    assert_eq!(t.say_register(a, &other, token), Some(Status::Used));
    // A second network's owner gets another tag, whatever it says.
    let second = *t.relay.mint().expose();
    assert_eq!(t.say_register(a, &other, second), Some(Status::Ok));
    let p = t.pseudonym(&home);
    t.run(2 * SECOND);
    assert!(t.peers[p].link.is_up());
    // Rotation: a session from before has a minute, and is told when it is over.
    home.access = [77; 32];
    assert_eq!(t.say_register(a, &home, [0; 16]), Some(Status::Ok));
    let good = t.pseudonym(&home);
    t.run(5 * SECOND);
    assert!(t.peers[good].link.is_up() && t.peers[p].link.is_up() && t.peers[p].resets == 0);
    assert_eq!(t.relay.clients(), (2, 1));
    t.run(85 * SECOND);
    assert_eq!(t.peers[p].resets, 1);
    // It has the old secret alone, and comes back as one of those.
    assert_eq!(t.relay.clients(), (1, 2));
    t.peers[p].deaf = true;
    // All of it survives a restart; a used token stays used.
    t.restart();
    assert_eq!(t.relay.networks(), 2);
    assert_eq!(t.register_with(&Network::new(3), second), Some(Status::Used));
    assert_eq!(t.register_with(&home, [0; 16]), Some(Status::Ok));
    // A pseudonym may not register.
    t.run(5 * SECOND);
    assert_eq!(t.say_register(good, &home, [0; 16]), Some(Status::Refused));
}

/// Who shows a former access secret speaks with those who show the current one, slowly, and with nobody else: enough to be
/// told the current one; and when its time is over, with nobody. [P-FORMER] [P-RELAY-NET]
#[test]
fn a_former_secret_lets_in_to_be_told_and_no_further() {
    let former_lifetime = 3600 * SECOND;
    let mut t = Table::new(Config { open: true, former_lifetime, ..Config::default() });
    let (mut home, peers) = t.network(1, 1);
    let current = peers[0];
    let old = Network { owner: home.owner, access: home.access };
    home.access = [77; 32];
    let a = t.anonymous();
    t.run(2 * SECOND);
    assert_eq!(t.say_register(a, &home, [0; 16]), Some(Status::Ok));
    t.peers[current].deaf = true;
    t.run(100 * SECOND);
    let (new, late, other) = (t.pseudonym(&home), t.pseudonym(&old), t.pseudonym(&old));
    t.run(2 * SECOND);
    assert!([new, late, other].iter().all(|p| t.peers[*p].link.is_up()));
    assert_eq!(t.relay.metrics().handshakes_former, 2);
    let told = |p: usize| t.peers[p].grant.is_some_and(|g| g.former);
    assert_eq!([new, late, other].map(told), [false, true, true]);
    // To the one with the current secret and back; not to each other.
    let (to_new, to_late, to_other) = (t.handle(new), t.handle(late), t.handle(other));
    t.send(late, to_new, &[7; 100]);
    t.send(new, to_late, &[8; 100]);
    t.send(late, to_other, &[9; 100]);
    assert_eq!((t.peers[new].got.len(), t.peers[late].got.len(), t.peers[other].got.len()), (1, 1, 0));
    // Slowly. What it is sent is on the account of who sends.
    for _ in 0..300 {
        t.send(late, to_new, &[7; 1000]);
        t.send(new, to_other, &[7; 1000]);
    }
    assert!(t.peers[new].got.len() < 80);
    assert_eq!(t.peers[other].got.len(), 300);
    assert!(t.drops(DropReason::RateLimited) > 200);
    // It waits for nobody there, and the network's room is not what it takes.
    t.peers[late].link.send_control(&Control::OpenLocator { locator: [5; 32], lifetime: 60 });
    t.settle();
    assert!(
        t.peers[late].controls.contains(&Control::LocatorReply { locator: [5; 32], status: Status::Refused })
    );
    assert_eq!(t.relay.clients().0, 1);
    // With the current secret, the same pseudonym is in as ever; the relay's restart changes nothing.
    t.restart();
    t.run(20 * SECOND);
    assert!([new, late, other].iter().all(|p| t.peers[*p].link.is_up()));
    assert_eq!(t.relay.clients().0, 1);
    t.run(3600 * SECOND + 700 * SECOND);
    assert!(t.peers[new].link.is_up() && !t.peers[late].link.is_up() && !t.peers[other].link.is_up());
    assert!(t.drops(DropReason::NotMember) > 0);
}

/// Without the access secret, or with an unknown tag, no session.
#[test]
fn access_is_needed() {
    let mut t = Table::new(Config { open: true, ..Config::default() });
    let network = Network::new(1);
    assert_eq!(t.register_with(&network, [0; 16]), Some(Status::Ok));
    let wrong = t.pseudonym(&Network { owner: network.owner, access: [0; 32] });
    let unknown = t.pseudonym(&Network::new(5));
    t.run(30 * SECOND);
    assert!(!t.peers[wrong].link.is_up() && !t.peers[unknown].link.is_up());
    assert_eq!((t.relay.clients(), t.relay.pending()), ((0, 0), 0));
}

#[test]
fn forwarding_within_a_network_and_never_between() {
    let mut t = Table::new(Config::default());
    let (_, home) = t.network(1, 3);
    let (_, work) = t.network(2, 1);
    let (a, b, c) = (home[0], home[1], work[0]);
    let payload: Vec<u8> = (0..1400u32).map(|i| i as u8).collect();
    let (to_b, to_c, of_a) = (t.handle(b), t.handle(c), t.handle(a));
    for _ in 0..100 {
        t.send(a, to_b, &payload);
        // One in, one out, of the same size.
        assert_eq!(t.sent.len(), 1);
        assert_eq!(t.sent[0].1.len(), payload.len() + RELAY_HEADER);
    }
    assert_eq!(t.peers[b].got.len(), 100);
    assert!(t.peers[b].got.iter().all(|(from, p)| *from == of_a && *p == payload));
    assert_eq!(t.peers[b].bad_headers, 0);
    t.send(a, to_c, &payload);
    t.send(a, 12345, &payload);
    t.send(a, of_a, &payload);
    t.send(b, of_a, b"back");
    assert!(t.peers[c].got.is_empty());
    assert_eq!(t.peers[a].got, [(to_b, b"back".to_vec())]);
    assert_eq!(t.drops(DropReason::NotAllowed), 2);
    assert_eq!(t.drops(DropReason::UnknownHandle), 1);
    assert_eq!(t.relay.metrics().forwarded, 101);
}

/// A header is taken once; one bit of it changed, never. [P-RELAY-MAC]
#[test]
fn replays_and_forgeries_are_dropped() {
    let mut t = Table::new(Config::default());
    let (_, p) = t.network(1, 2);
    let (from, to) = (t.peers[p[0]].address, t.handle(p[1]));
    let packet = t.packet(p[0], to, b"hello");
    for bit in 0..RELAY_HEADER * 8 {
        let mut bad = packet.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        t.inject(from, &bad);
    }
    assert!(t.peers[p[1]].got.is_empty());
    let replayed = t.drops(DropReason::Replayed);
    for _ in 0..3 {
        t.inject(from, &packet);
    }
    assert_eq!(t.peers[p[1]].got.len(), 1);
    assert_eq!(t.drops(DropReason::Replayed) - replayed, 2);
    // Out of order, within the window.
    let many: Vec<_> = (0..500).map(|_| t.packet(p[0], to, b"x")).collect();
    for m in many.iter().rev() {
        t.inject(from, m);
    }
    assert_eq!(t.peers[p[1]].got.len(), 501);
}

/// A spoofed source neither burns a counter nor takes a handle over. [P-RELAY-MAC]
#[test]
fn a_spoofed_source_does_nothing() {
    let mut t = Table::new(Config { client_rate: Some(100_000), ..Config::default() });
    let (_, p) = t.network(1, 2);
    let (to, slot) = (t.handle(p[1]), t.peers[p[0]].grant.unwrap().slot);
    let (victim, elsewhere) = (t.peers[p[0]].address, "203.0.113.9:9".parse().unwrap());
    for counter in 0..5000u64 {
        let mut h = RelayHeader { thread: 1, slot, handle: to, counter, mac: [0; 8] };
        h.mac = counter.to_be_bytes();
        let mut datagram = h.emit().to_vec();
        datagram.resize(1400, 0);
        t.inject(if counter % 2 == 0 { victim } else { elsewhere }, &datagram);
        assert!(t.sent.is_empty());
    }
    assert_eq!(t.drops(DropReason::BadMac), 5000);
    // Quota and window are whole, and what is for the victim goes to the victim.
    t.send(p[0], to, &[0; 1000]);
    assert_eq!(t.peers[p[1]].got.len(), 1);
    let back = t.handle(p[0]);
    t.send(p[1], back, b"back");
    assert_eq!(t.sent[0].0.remote, victim);
}

/// A client that moved is forwarded at once; it is sent to at its new address after it has answered from there.
/// [P-RELAY-MAC]
#[test]
fn rebinding_only_after_a_challenge() {
    let mut t = Table::new(Config::default());
    let (_, p) = t.network(1, 2);
    let (a, b) = (p[0], p[1]);
    let (to, back) = (t.handle(b), t.handle(a));
    let (old, new) = (t.peers[a].address, "203.0.113.77:77".parse().unwrap());
    // Somebody on the path sends its packet on from elsewhere: forwarded, challenged, never answered.
    let packet = t.packet(a, to, &[1; 60]);
    t.inject(new, &packet);
    assert_eq!(t.peers[b].got.len(), 1);
    assert!(t.sent.iter().any(|(to, d)| to.remote == new && d.len() <= packet.len()), "no challenge");
    t.run(20 * SECOND);
    t.send(b, back, b"x");
    assert!(t.sent.iter().any(|(to, _)| to.remote == old) && t.relay.metrics().rebinds == 0);
    // It really moves: the next packet and the answer come from there.
    t.peers[a].address = new;
    t.send(a, to, &[2; 60]);
    assert_eq!(t.relay.metrics().rebinds, 1);
    t.send(b, back, b"y");
    assert!(t.sent.iter().all(|(to, _)| to.remote == new));
    assert_eq!(t.peers[a].got.last().unwrap().1, b"y");
    assert_eq!(t.peers[a].ups, 1);
    // And it is told where it is: again with each keepalive, since that may have been lost.
    assert!(t.peers[a].controls.contains(&Control::Observed(new)));
    t.peers[a].controls.clear();
    t.run(60 * SECOND);
    assert!(t.peers[a].controls.contains(&Control::Observed(new)));
    assert!(t.peers[b].controls.iter().all(|c| !matches!(c, Control::Observed(_))));
}

/// Of a relay's addresses each client is sent to by the one that it comes by, whatever strangers send in its name to another;
/// and by another after it has answered there. [P-RELAY-MAC]
#[test]
fn each_is_answered_by_the_address_that_it_came_by() {
    let mut t = Table::new(Config::default());
    let (one, two) = (Some([192, 0, 2, 1].into()), Some([192, 0, 2, 2].into()));
    let network = Network::new(1);
    t.register(&network);
    let (a, b) = (t.pseudonym(&network), t.pseudonym(&network));
    (t.peers[a].by, t.peers[b].by) = (one, two);
    t.run(2 * SECOND);
    assert!(t.peers[a].link.is_up() && t.peers[b].link.is_up());
    let (to, back) = (t.handle(b), t.handle(a));
    // In its name, at the other address: noise, a forged header, a handshake (which is answered there, where it was asked).
    let there = FourTuple { local: two, ..t.peers[a].path() };
    let mut forged = t.packet(a, to, &[1; 60]);
    forged[RELAY_HEADER - 1] ^= 1;
    t.inject(there, &[0; 200]);
    t.inject(there, &forged);
    assert!(t.sent.is_empty());
    let credential = Credential::Anonymous;
    let id = t.id().0;
    let mut stranger = RelayLink::new(id, Some(relay_address()), credential, Suite::ALL.to_vec(), t.now);
    let now = t.now;
    stranger.handle_timeout(now, &mut t.rng);
    t.inject(there, &stranger.poll_transmit().unwrap().1);
    assert!(!t.sent.is_empty() && t.sent.iter().all(|(path, _)| *path == there));
    t.send(b, back, b"x");
    assert_eq!(t.sent[0].0, t.peers[a].path());
    assert_eq!(t.peers[a].got.last().unwrap().1, b"x");
    // It comes by the other itself.
    t.peers[a].by = two;
    t.send(a, to, &[2; 60]);
    assert_eq!((t.relay.metrics().rebinds, t.peers[b].got.len()), (1, 1));
    t.send(b, back, b"y");
    assert_eq!(t.peers[a].got.last().unwrap().1, b"y");
    assert_eq!((t.peers[a].ups, t.peers[a].resets), (1, 0));
}

/// Where a member is, is told to members of its network alone. [P-PUNCH]
#[test]
fn locating() {
    let mut t = Table::new(Config::default());
    let (_, home) = t.network(1, 2);
    let (_, work) = t.network(2, 1);
    let (b, nobody) = (t.handle(home[1]), SocketAddr::from(([0; 4], 0)));
    let here = t.peers[home[1]].address;
    for (who, handle, address) in [(home[0], b, here), (work[0], b, nobody), (home[0], 12345, nobody)] {
        t.peers[who].link.send_control(&Control::Locate(handle));
        t.settle();
        let answer = Control::Located { handle, address };
        assert_eq!(t.peers[who].controls.last(), Some(&answer));
    }
}

/// Challenges are few, however many packets come from elsewhere, and never larger than what they answer. [P-AMPLIFY]
#[test]
fn challenges_are_few() {
    let mut t = Table::new(Config::default());
    let (_, p) = t.network(1, 2);
    let to = t.handle(p[1]);
    let mut challenges = 0;
    let small = t.packet(p[0], to, b"x");
    t.inject("203.0.113.9:9".parse::<SocketAddr>().unwrap(), &small);
    assert!(t.sent.iter().all(|(to, _)| to.remote.to_string() != "203.0.113.9:9"), "more than was asked");
    for n in 0..1000u32 {
        let packet = t.packet(p[0], to, &[0; 60]);
        let from: SocketAddr = format!("203.0.113.{}:{}", n % 200 + 1, 1000 + n).parse().unwrap();
        t.inject(from, &packet);
        challenges += t.sent.iter().filter(|(to, _)| to.remote == from).count();
    }
    assert_eq!(challenges, 1);
}

/// After `kill -9` clients learn at once, come back by themselves, and keep their handles. [P-RESET]
#[test]
fn a_restart_is_told_by_reset_and_handles_stay() {
    let mut t = Table::new(Config::default());
    let (_, p) = t.network(1, 2);
    let handles: Vec<u64> = p.iter().map(|p| t.handle(*p)).collect();
    t.restart();
    for c in &p {
        // The next packet of a data thread is enough.
        t.send(*c, handles[0], b"x");
    }
    t.run(SECOND);
    for (c, h) in p.iter().zip(&handles) {
        assert_eq!((t.peers[*c].resets, t.peers[*c].ups), (1, 2));
        assert_eq!(t.handle(*c), *h);
    }
    t.send(p[0], handles[1], b"again");
    assert_eq!(t.peers[p[1]].got, [(handles[0], b"again".to_vec())]);
    assert!(t.relay.metrics().resets >= 2);
}

/// A false RESET changes nothing; a true one is never to be had for a slot that lives or will be given. [P-RESET]
#[test]
fn no_reset_for_the_living_nor_the_unborn() {
    let mut t = Table::new(Config::default());
    let (_, p) = t.network(1, 1);
    let grant = t.peers[p[0]].grant.unwrap();
    let forged = Reset { slot: grant.slot, token: [3; 16] }.emit();
    t.deliver(p[0], &forged);
    assert!(t.peers[p[0]].link.is_up() && t.peers[p[0]].resets == 0);
    let attacker: SocketAddr = "203.0.113.1:1".parse().unwrap();
    let provoke = |t: &mut Table, slot: u32| {
        let mut d = RelayHeader { thread: 0, slot, handle: 7, counter: 0, mac: [0; 8] }.emit().to_vec();
        d.push(0);
        t.inject(attacker, &d);
        t.sent.iter().find_map(|(_, d)| Reset::parse(d).ok())
    };
    assert!(provoke(&mut t, grant.slot).is_none(), "the token of a slot that lives");
    for ahead in 1..50 {
        assert!(provoke(&mut t, grant.slot + ahead).is_none(), "the token of a slot to come");
    }
    for epoch in [0u32, 2, 3, 200, 255] {
        let said = provoke(&mut t, epoch << 24 | 1);
        assert!(said.is_none() || epoch == 0, "epoch {epoch}");
    }
    // Restarts: what was shown never fits a slot given afterwards.
    let mut shown = vec![];
    for _ in 0..5 {
        t.restart();
        t.run(20 * SECOND);
        for epoch in 0..8u32 {
            for sequence in 0..4 {
                shown.extend(provoke(&mut t, epoch << 24 | sequence).map(|r| r.token));
            }
        }
        let a = t.anonymous();
        t.run(2 * SECOND);
        for c in [a, p[0]] {
            assert!(!shown.contains(&t.peers[c].grant.unwrap().reset_token));
        }
    }
    assert!(shown.len() > 10);
}

/// RESETs to one prefix are limited, and smaller than what provokes them.
#[test]
fn resets_are_limited() {
    let mut t = Table::new(Config::default());
    t.restart();
    let mut resets = 0;
    for n in 0..5000u32 {
        let from: SocketAddr = format!("203.0.113.5:{}", 1000 + n).parse().unwrap();
        let d = RelayHeader { thread: 0, slot: 0x0100_0001, handle: 7, counter: 0, mac: [0; 8] }.emit();
        t.inject(from, &d);
        resets += t.sent.len();
        assert!(t.sent.iter().all(|(_, r)| r.len() < d.len()));
    }
    assert!((1..=400).contains(&resets), "{resets} RESETs");
}

/// The same pseudonym from two machines: the later session counts, the older one is told. [P-CONFIRM]
#[test]
fn one_handle_one_session() {
    let mut t = Table::new(Config::default());
    let (network, p) = t.network(1, 1);
    let key = Arc::new(kem::SecretKey::generate().unwrap());
    let first = t.pseudonym_with(&network, key.clone());
    t.run(2 * SECOND);
    let handle = t.handle(first);
    t.peers[first].deaf = true;
    let second = t.pseudonym_with(&network, key);
    t.run(2 * SECOND);
    assert_eq!(t.handle(second), handle);
    assert_eq!(t.relay.clients(), (2, 0));
    t.send(p[0], handle, b"x");
    assert_eq!((t.peers[first].got.len(), t.peers[second].got.len()), (0, 1));
    // What the first has sent is forwarded for a moment more; then it is answered by RESET, and is nowhere counted.
    let to = t.handle(p[0]);
    let before = t.peers[p[0]].got.len();
    t.send(first, to, b"y");
    assert_eq!(t.peers[p[0]].got.len(), before + 1);
    t.run(8 * SECOND);
    t.peers[first].deaf = false;
    t.send(first, to, b"y");
    assert_eq!((t.peers[p[0]].got.len(), t.peers[first].resets), (before + 1, 1));
    assert_eq!(t.relay.clients(), (2, 0));
}

/// Nothing is done for a client before its first packet: no handle, no forwarding; and it is forgotten. [P-CONFIRM]
#[test]
fn a_client_without_a_first_packet_is_nobody() {
    let mut t = Table::new(Config::default());
    let (network, p) = t.network(1, 1);
    let silent = t.pseudonym(&network);
    // Everything passes but what is behind a relay header.
    let from = t.peers[silent].address;
    t.peers[silent].deaf = true;
    for _ in 0..40 {
        t.now = t.now + Duration::from_millis(10);
        let now = t.now;
        t.peers[silent].link.handle_timeout(now, &mut t.rng);
        while let Some((_, d)) = t.peers[silent].link.poll_transmit() {
            if d[0] != shadowmesh_wire::BY_RELAY {
                t.relay.handle_datagram(now, from, &d);
            }
        }
        while let Some((to, d)) = t.relay.poll_transmit() {
            if to.remote == from {
                t.deliver(silent, &d);
            }
        }
    }
    assert!(t.peers[silent].link.is_up() && t.relay.pending() == 1);
    let (of_silent, to) = (t.handle(silent), t.handle(p[0]));
    t.send(silent, to, b"x");
    t.send(p[0], of_silent, b"y");
    assert!(t.peers[p[0]].got.is_empty());
    assert_eq!((t.drops(DropReason::NoSession), t.drops(DropReason::UnknownHandle)), (1, 1));
    t.run(11 * SECOND);
    assert_eq!((t.relay.pending(), t.relay.clients()), (0, (1, 0)));
}

/// An anonymous client reaches the owner of a locator it knows, for ten minutes, and nobody else. [P-RELAY-NET]
#[test]
fn rendezvous_joins_two_and_no_more() {
    let mut t = Table::new(Config::default());
    let (_, p) = t.network(1, 2);
    let (owner, bystander) = (p[0], p[1]);
    let locator = [42; 32];
    let (a, b) = (t.anonymous(), t.anonymous());
    t.run(2 * SECOND);
    let meet = |t: &mut Table, a: usize, locator| {
        t.peers[a].controls.clear();
        t.peers[a].link.send_control(&Control::Rendezvous(locator));
        t.run(Duration::from_millis(20));
        match t.peers[a].controls.pop() {
            Some(Control::RendezvousReply { status, owner, lifetime }) => (status, owner, lifetime),
            other => panic!("{other:?}"),
        }
    };
    let open = |t: &mut Table, p: usize, lifetime| {
        t.peers[p].controls.clear();
        t.peers[p].link.send_control(&Control::OpenLocator { locator, lifetime });
        t.run(Duration::from_millis(20));
        match t.peers[p].controls.pop() {
            Some(Control::LocatorReply { status, .. }) => status,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(meet(&mut t, a, locator).0, Status::Unknown);
    assert_eq!(open(&mut t, owner, 3600), Status::Ok);
    assert_eq!(open(&mut t, owner, 3600), Status::Ok);
    assert_eq!(t.relay.open_locators(), 1);
    assert_eq!(open(&mut t, bystander, 3600), Status::Busy);
    assert_eq!(open(&mut t, a, 3600), Status::Refused);
    assert_eq!(meet(&mut t, owner, locator).0, Status::Refused);
    let (of_a, of_owner, of_other) = (t.handle(a), t.handle(owner), t.handle(bystander));
    // Before the rendezvous: nothing, in no direction.
    t.send(a, of_owner, b"x");
    t.send(owner, of_a, b"x");
    assert_eq!(t.drops(DropReason::NotAllowed), 2);
    assert_eq!(meet(&mut t, a, locator), (Status::Ok, of_owner, 600));
    assert_eq!(meet(&mut t, a, [1; 32]).0, Status::Unknown);
    t.send(a, of_owner, b"hello");
    t.send(owner, of_a, b"welcome");
    assert_eq!(t.peers[owner].got, [(of_a, b"hello".to_vec())]);
    assert_eq!(t.peers[a].got, [(of_owner, b"welcome".to_vec())]);
    // Nobody else: not its network, not another anonymous one.
    let of_b = t.handle(b);
    t.send(a, of_other, b"x");
    t.send(bystander, of_a, b"x");
    t.send(a, of_b, b"x");
    t.send(b, of_a, b"x");
    assert_eq!(t.drops(DropReason::NotAllowed), 6);
    assert!(t.peers[bystander].got.is_empty() && t.peers[b].got.is_empty());
    // It survives the owner's new session, and ends with the locator's owner or after ten minutes.
    t.run(300 * SECOND);
    t.send(a, of_owner, b"still");
    assert_eq!(t.peers[owner].got.len(), 2);
    assert!(meet(&mut t, a, locator).2 <= 300);
    t.run(330 * SECOND);
    let slot_ended = t.peers[a].resets == 1;
    assert!(slot_ended, "the session outlived its rendezvous");
    assert_eq!(open(&mut t, owner, 0), Status::Ok);
    assert_eq!(t.relay.open_locators(), 0);
    assert_eq!(open(&mut t, bystander, 10), Status::Ok);
    t.run(20 * SECOND);
    assert_eq!(t.relay.open_locators(), 0);
}

/// Bytes a second of a client, of a network, of an anonymous client.
#[test]
fn quotas_hold() {
    let config = Config { client_rate: Some(1_000_000), network_rate: Some(1_500_000), ..Config::default() };
    let mut t = Table::new(config);
    let (_, p) = t.network(1, 3);
    let to = t.handle(p[2]);
    for _ in 0..1000 {
        t.now = t.now + Duration::from_millis(1);
        for c in [p[0], p[0], p[1]] {
            t.send(c, to, &[0; 968]);
        }
    }
    let bytes = t.peers[p[2]].got.len() * 1000;
    assert!((1_400_000..2_000_000).contains(&bytes), "{bytes}");
    assert!(t.drops(DropReason::RateLimited) > 500);
}

/// A leaf is renewed while clients come and go over a month; each finds the relay.
#[test]
fn leaves_are_renewed() {
    let mut t = Table::new(Config::default());
    let (network, p) = t.network(1, 1);
    t.peers[p[0]].deaf = true;
    let first = t.saves;
    for _ in 0..30 {
        t.run(86_400 * SECOND);
        let c = t.pseudonym(&network);
        t.run(3 * SECOND);
        assert!(t.peers[c].link.is_up());
        t.peers[c].deaf = true;
    }
    assert!((4..20).contains(&(t.saves - first)), "{} saves", t.saves - first);
}

/// All of a relay's clients come in one moment when it has been restarted: none is refused, the first time (each is asked
/// for its key) or again. [P-ORDER]
#[test]
fn a_thousand_come_at_once() {
    let mut t = Table::new(Config::default());
    let (_, p) = t.network(1, 1000);
    assert_eq!((t.drops(DropReason::OverLimit), t.drops(DropReason::RateLimited)), (0, 0));
    t.restart();
    let others: Vec<u64> = p.iter().map(|c| t.handle(*c)).collect();
    for (c, to) in p.iter().zip(others.iter().rev()) {
        t.send(*c, *to, b"anybody there?");
    }
    t.run(Duration::from_secs(2));
    assert_eq!((t.drops(DropReason::OverLimit), t.drops(DropReason::RateLimited)), (0, 0));
    assert_eq!(t.relay.clients().0, 1000);
}
