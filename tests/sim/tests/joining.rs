//! Joining by an invite whose maker is awake, through the relay: in, once, and only into the network that the URL names.

use shadowmesh_crypto::aead::Suite;
use shadowmesh_crypto::secret::Secret;
use shadowmesh_crypto::sign::SigningKey;
use shadowmesh_identity::book::Terms;
use shadowmesh_identity::{DAY, Invite, Roles, Seed};
use shadowmesh_proto::join::{JoinConfig, JoinError, Joined, Joiner};
use shadowmesh_sim::cast::{EPOCH, relay_address};
use shadowmesh_sim::world::{Setup, Weather, World};
use std::sync::Arc;
use std::time::Duration;

fn world(seed: u64, weather: Weather) -> World {
    let setup = Setup::plain(3, true);
    let mut w = World::new(seed, setup, Weather::CALM);
    // The rest of the cast is away; who is there finds each other all the same.
    w.run(Duration::from_secs(5));
    w.weather = weather;
    w
}

fn terms(expires: u64) -> Terms {
    Terms {
        name: None,
        roles: Roles::MEMBER,
        tags: vec![],
        bridge: Default::default(),
        expires,
        reusable: false,
    }
}

fn invite(w: &mut World, expires: u64) -> Invite {
    let now = w.now;
    let invite = w.nodes[0].endpoint.node.create_invite(now, terms(expires)).expect("an invite");
    w.nodes[0].endpoint.settle(now);
    w.drain(0);
    w.run(Duration::from_millis(500));
    // As the other machine reads it.
    invite.to_url().parse().expect("its URL")
}

fn identity(n: u8, invite: &Invite) -> Arc<SigningKey> {
    let seed = Seed::new(Secret::new([100 + n; 32]));
    Arc::new(seed.identity_key(&invite.network, 0).expect("identity"))
}

fn begin(w: &mut World, n: u8, invite: Invite) -> (usize, Arc<SigningKey>) {
    begin_at(w, n, invite, EPOCH)
}

/// The joiner's clock stands at `unix`.
fn begin_at(w: &mut World, n: u8, invite: Invite, unix: u64) -> (usize, Arc<SigningKey>) {
    let identity = identity(n, &invite);
    let relays = invite.relays.iter().map(|m| (m.relay, relay_address())).collect();
    let config = JoinConfig {
        invite,
        relays,
        identity: identity.clone(),
        name: "pi".parse().expect("name"),
        suites: vec![Suite::ChaCha20Poly1305],
    };
    let seed = w.rng.bytes();
    let joiner = Joiner::new(config, w.now, unix, seed);
    (w.join(joiner), identity)
}

fn finish(w: &mut World, j: usize, most: Duration) -> Result<Joined, JoinError> {
    let end = w.now + most;
    loop {
        if let Some(outcome) = w.joiners[j].1.outcome() {
            return outcome;
        }
        assert!(w.now < end, "joining never ended: {:?}; {}", w.joiners[j].1.progress(), w.drops());
        w.run(Duration::from_millis(5));
    }
}

fn copy(invite: &Invite) -> Invite {
    invite.to_url().parse().expect("its URL")
}

/// In within 13 round trips to the inviter, or 200 ms if the relay is near, where nothing is lost; and everyone reaches the
/// new member. [P-SINGLE-USE] [P-ROOT]
#[test]
fn joins_and_is_reached_by_all() {
    joins_within(Duration::from_millis(200), Duration::from_millis(1));
    joins_within(Duration::from_millis(13 * 4 * 50), Duration::from_millis(50));
}

fn joins_within(most: Duration, delay: Duration) {
    let mut w = world(1, Weather { delay, ..Weather::CALM });
    let i = invite(&mut w, EPOCH + DAY);
    let (j, identity) = begin(&mut w, 1, i);
    let began = w.now;
    let joined = finish(&mut w, j, Duration::from_secs(10)).expect("joined");
    assert!(w.now.since(began) < most, "it took {:?}", w.now.since(began));
    let n = w.enter_joined(identity, joined.facts);
    w.run(Duration::from_secs(2));
    let numbers: Vec<u64> = (0..3).flat_map(|o| [w.send(n, o, 100), w.send(o, n, 100)]).collect();
    w.run(Duration::from_secs(2));
    for number in numbers {
        assert!(w.judge.arrived(number), "{number}: {} {:?}", w.drops(), w.events);
    }
}

/// More join within a second than are served at once: each in its turn, by one invite. [P-SINGLE-USE]
#[test]
fn many_join_at_once() {
    let mut w = world(3, Weather { delay: Duration::from_millis(10), ..Weather::CALM });
    let now = w.now;
    let reusable = Terms { reusable: true, ..terms(EPOCH + DAY) };
    let i = w.nodes[0].endpoint.node.create_invite(now, reusable).expect("an invite");
    w.nodes[0].endpoint.settle(now);
    w.drain(0);
    w.run(Duration::from_millis(500));
    let joiners: Vec<usize> = (0..40).map(|n| begin(&mut w, n, copy(&i)).0).collect();
    for j in joiners {
        finish(&mut w, j, Duration::from_secs(10)).expect("joined");
    }
}

/// A hundred machines are invited, and so is one more: used invites stay at the relay for a day, in case their users ask
/// again.
#[test]
fn a_hundred_invites_are_open_at_once() {
    let mut w = world(4, Weather { delay: Duration::from_millis(10), ..Weather::CALM });
    for _ in 0..100 {
        invite(&mut w, EPOCH + DAY);
    }
    let last = invite(&mut w, EPOCH + DAY);
    let (j, _) = begin(&mut w, 1, last);
    finish(&mut w, j, Duration::from_secs(10)).expect("joined");
}

/// Lost, repeated, reordered and attacked on the way: still in.
#[test]
fn joins_in_rough_weather() {
    let rough = Weather {
        delay: Duration::from_millis(20),
        jitter: Duration::from_millis(30),
        loss: 100,
        repeat: 100,
        attack: 50,
    };
    for seed in 0..20 {
        let mut w = world(seed, rough);
        let i = invite(&mut w, EPOCH + DAY);
        let (j, _) = begin(&mut w, 1, i);
        finish(&mut w, j, Duration::from_secs(31))
            .unwrap_or_else(|e| panic!("seed {seed}: {e}; {}", w.drops()));
    }
}

/// A second machine is refused and told who was first; the first one, asking again, gets the same. [P-SINGLE-USE]
#[test]
fn an_invite_is_good_once() {
    let mut w = world(2, Weather::CALM);
    let i = invite(&mut w, EPOCH + DAY);
    let (thief, again) = (copy(&i), copy(&i));
    let (j, _) = begin(&mut w, 1, i);
    let first = finish(&mut w, j, Duration::from_secs(10)).expect("joined");
    let (j, _) = begin(&mut w, 2, thief);
    match finish(&mut w, j, Duration::from_secs(31)) {
        Err(JoinError::Used(text)) => assert!(text.contains("pi"), "{text}"),
        Err(JoinError::NoInviter) => {}
        other => panic!("{:?}", other.err()),
    }
    let (j, _) = begin(&mut w, 1, again);
    if let Ok(second) = finish(&mut w, j, Duration::from_secs(31)) {
        assert_eq!(first.facts, second.facts);
    }
}

/// One that has ended, or was taken back, admits nobody, and the joiner hears why.
#[test]
fn ended_and_cancelled_invites_are_refused() {
    let mut w = world(3, Weather::CALM);
    let i = invite(&mut w, EPOCH + 5);
    w.run(Duration::from_secs(20));
    let (j, _) = begin(&mut w, 1, i);
    let e = finish(&mut w, j, Duration::from_secs(31)).err().expect("refused");
    assert!(matches!(e, JoinError::Expired(_) | JoinError::NoInviter), "{e}");
    let i = invite(&mut w, EPOCH + DAY);
    let now = w.now;
    w.nodes[0].endpoint.node.cancel_invite(now, &i.locator()).expect("cancelled");
    w.nodes[0].endpoint.settle(now);
    w.drain(0);
    w.run(Duration::from_millis(200));
    let (j, _) = begin(&mut w, 1, i);
    let e = finish(&mut w, j, Duration::from_secs(31)).err().expect("refused");
    assert!(matches!(e, JoinError::Refused(_) | JoinError::NoInviter), "{e}");
}

/// The URL's secret with another network's name in it: what answers is not what the invite names. [P-ROOT]
#[test]
fn only_the_network_of_the_url() {
    let mut w = world(4, Weather::CALM);
    let mut i = invite(&mut w, EPOCH + DAY);
    i.network.0[0] ^= 1;
    let (j, _) = begin(&mut w, 1, i);
    assert!(finish(&mut w, j, Duration::from_secs(31)).is_err());
}

/// With its maker's machine off, that is said.
#[test]
fn nobody_home() {
    let mut w = world(5, Weather::CALM);
    let i = invite(&mut w, EPOCH + DAY);
    for n in 0..3 {
        w.cut.insert((shadowmesh_sim::world::address(n), relay_address()));
    }
    w.kill_relay();
    w.start_relay();
    let (j, _) = begin(&mut w, 1, i);
    let e = finish(&mut w, j, Duration::from_secs(31)).err().expect("nobody");
    assert_eq!(e, JoinError::NoInviter);
}

/// Revoked while it talks: cut at once by whoever hears, and cannot come back by itself. [P-CUT] [P-PUSH]
#[test]
fn revoked_while_it_streams() {
    let mut w = world(6, Weather { delay: Duration::from_millis(10), ..Weather::CALM });
    w.send(2, 0, 100);
    w.send(2, 1, 100);
    w.run(Duration::from_secs(2));
    let before = w.send(2, 1, 100);
    w.run(Duration::from_millis(200));
    assert!(w.judge.arrived(before), "{}", w.drops());
    let (now, node) = (w.now, w.nodes[2].id);
    let reason = shadowmesh_identity::fact::Reason::LOST;
    w.nodes[0].endpoint.node.revoke(now, &node, reason).expect("revoked");
    w.nodes[0].endpoint.settle(now);
    w.drain(0);
    w.run(Duration::from_millis(1000));
    let after: Vec<u64> = (0..50)
        .flat_map(|_| {
            let n = [w.send(2, 0, 100), w.send(2, 1, 100), w.send(1, 2, 100)];
            w.run(Duration::from_millis(100));
            n
        })
        .collect();
    assert!(after.iter().all(|n| !w.judge.arrived(*n)), "a revoked member still talks");
    let other = w.send(0, 1, 100);
    w.run(Duration::from_secs(1));
    assert!(w.judge.arrived(other));
}

/// Under an identity that was revoked nobody joins, and hears who ended it; under another it may. [P-FAREWELL]
#[test]
fn a_revoked_identity_does_not_come_back() {
    let mut w = world(9, Weather::CALM);
    let i = invite(&mut w, EPOCH + DAY);
    let (j, identity) = begin(&mut w, 1, i);
    let joined = finish(&mut w, j, Duration::from_secs(10)).expect("joined");
    let n = w.enter_joined(identity, joined.facts);
    w.run(Duration::from_secs(1));
    let (now, node) = (w.now, w.nodes[n].id);
    w.nodes[0].endpoint.node.revoke(now, &node, shadowmesh_identity::fact::Reason::LOST).expect("revoked");
    w.nodes[0].endpoint.settle(now);
    w.drain(0);
    let i = invite(&mut w, EPOCH + DAY);
    let again = copy(&i);
    let (j, _) = begin(&mut w, 1, i);
    match finish(&mut w, j, Duration::from_secs(31)) {
        Err(JoinError::Revoked(text)) => assert!(text.contains("revoked by node0 (change "), "{text}"),
        other => panic!("{:?}", other.err()),
    }
    // The invite is not used up by asking.
    let (j, _) = begin(&mut w, 2, again);
    finish(&mut w, j, Duration::from_secs(31)).expect("another identity");
}

/// A machine without a clock joins, and hears how far it is behind; one whose clock is so far ahead that all looks expired
/// hears that, instead of a relay that does not answer.
#[test]
fn wrong_clocks() {
    let mut w = world(31, Weather::CALM);
    let i = invite(&mut w, EPOCH + DAY);
    let (j, identity) = begin_at(&mut w, 1, i, 86_400);
    let joined = finish(&mut w, j, Duration::from_secs(10)).expect("a slow clock joins");
    assert!(joined.skew > 365 * DAY as i64, "{}", joined.skew);
    let n = w.enter_joined(identity, joined.facts);
    w.run(Duration::from_secs(3));
    let sent = w.send(n, 0, 100);
    w.run(Duration::from_secs(3));
    assert!(w.judge.arrived(sent), "{}", w.drops());

    let i = invite(&mut w, EPOCH + DAY);
    let ours = EPOCH + 30 * DAY;
    let (j, _) = begin_at(&mut w, 2, i, ours);
    match finish(&mut w, j, Duration::from_secs(3)) {
        Err(JoinError::Clock { ours: said, ended }) => {
            assert!(said >= ours && ended > EPOCH && ended < EPOCH + 8 * DAY, "{said} {ended}");
        }
        other => panic!("{:?}", other.map(|j| j.inviter)),
    }
}
