//! The roster: order never matters, rank binds downwards, and nothing grows without bound.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod common;

use std::{collections::BTreeSet, net::Ipv4Addr, sync::LazyLock};

use common::*;
use proptest::prelude::*;
use shadowmesh_identity::{
    Certificate, DAY, Fact, Genesis, Invalid, Merge, NodeId, Refusal, Roles, Roster, Verified,
    fact::Body,
    roster::{LEAVES, MAX_PENDING, MAX_RELAYS, MAX_WAITING, Merged, VERSIONS},
};

fn roster(facts: &[Verified]) -> Roster {
    let mut roster = Roster::new(GENESIS.clone());
    for fact in facts {
        roster.merge(fact.clone());
    }
    roster
}

fn merge(roster: &mut Roster, fact: &Verified) -> Merge {
    roster.merge(fact.clone()).outcome
}

fn valid(roster: &Roster, n: u8) -> Result<(), Invalid> {
    roster.is_valid(&node(n), NOW)
}

#[test]
fn a_member_is_seen_whole() {
    let address = Ipv4Addr::new(10, 77, 3, 4);
    let ipv4 = Some(address);
    let certificate = Certificate { ipv4, ..certificate(&key(5), "laptop", Roles::MEMBER) };
    let roster = roster(&[admin(2, 1), certify(&key(2), 2, certificate), leaf(5, 1, NOW - DAY)]);
    let member = roster.member(&node(5)).unwrap();
    assert_eq!((member.name(), member.ipv4, member.roles()), ("laptop", ipv4, Roles::MEMBER));
    assert_eq!((member.mac, member.ipv6), (node(5).mac(), node(5).ipv6(&GENESIS.id())));
    assert!(member.leaf(NOW).is_some() && member.leaf(NOW + 7 * DAY).is_none() && member.revoked.is_none());
    assert_eq!(roster.by_name("laptop").unwrap().id, member.id);
    assert_eq!(roster.by_ipv4(address).unwrap().id, member.id);
    assert_eq!(roster.members().count(), 2);
    assert!(roster.is_admin(&node(2), NOW) && !roster.is_admin(&member.id, NOW));
    assert_eq!((roster.version(), roster.next_seq(), roster.next_leaf_seq(&member.id)), (2, 3, 2));
    assert_eq!(roster.newest_admin_fact_time(), NOW - 100);
}

#[test]
fn validity_follows_certificate_and_clock() {
    let roster = roster(&[admin(2, 1), member(&ROOT, 3, 2)]);
    let check = |n, now| roster.is_valid(&node(n), now);
    assert_eq!(check(3, NOW), Ok(()));
    assert_eq!(check(3, NOW - 2 * DAY), Err(Invalid::NotYet { from: NOW - DAY }));
    assert_eq!(check(3, NOW + 300 * DAY), Err(Invalid::Expired { since: NOW + 300 * DAY }));
    assert_eq!(check(4, NOW), Err(Invalid::Unknown));
}

#[test]
fn rank_binds_downwards() {
    let (a, b) = (key(2), key(3));
    let mut roster = roster(&[admin(2, 1), admin(3, 2), member(&a, 5, 3), member(&b, 6, 4)]);
    merge(&mut roster, &tombstone(&a, 3, 5, None));
    assert_eq!(valid(&roster, 3), Ok(()), "an admin does not end an admin");
    merge(&mut roster, &tombstone(&a, 6, 6, None));
    assert_eq!(valid(&roster, 6), Err(Invalid::Revoked), "an admin ends another admin's member");
    assert!(roster.member(&node(6)).unwrap().revoked.is_some());
    merge(&mut roster, &tombstone(&key(6), 5, 7, None));
    assert_eq!(valid(&roster, 5), Ok(()), "a member ends nobody");
    merge(&mut roster, &tombstone(&ROOT, 3, 8, None));
    assert_eq!(valid(&roster, 3), Err(Invalid::Revoked), "the root ends an admin");
    merge(&mut roster, &member(&ROOT, 6, 9));
    assert_eq!(valid(&roster, 6), Err(Invalid::Revoked), "a newer certificate does not undo a tombstone");
}

#[test]
fn a_revoked_admins_later_acts_are_void() {
    let a = key(2);
    let early = member(&a, 5, 3);
    let late = certify(&a, 8, certificate(&key(5), "evil", Roles::MEMBER));
    let facts = [admin(2, 1), early, late, member(&a, 6, 9), member(&ROOT, 7, 4), tombstone(&a, 7, 10, None)];
    let mut roster = roster(&facts);
    assert_eq!(roster.member(&node(5)).unwrap().name(), "evil");
    assert_eq!(valid(&roster, 7), Err(Invalid::Revoked));
    assert_eq!(roster.version(), 10);

    let merged = roster.merge(tombstone(&ROOT, 2, 11, Some(5)));
    let changed: BTreeSet<_> = merged.changed.into_iter().collect();
    assert_eq!(changed, [2, 5, 6, 7].map(node).into());
    assert_eq!(roster.member(&node(5)).unwrap().name(), "member-5-3", "the one before counts again");
    assert_eq!(valid(&roster, 5), Ok(()));
    assert_eq!(valid(&roster, 6), Err(Invalid::IssuerRevoked));
    assert_eq!(valid(&roster, 7), Ok(()), "a void tombstone ends nobody");
    assert_eq!(valid(&roster, 2), Err(Invalid::Revoked));
    assert!(roster.by_name("evil").is_none() && !roster.is_admin(&id(&a), NOW));
}

#[test]
fn of_two_certificates_the_higher_sequence_counts_then_the_root_then_the_smaller_signer() {
    let named =
        |by: u8, seq| certify(&key(by), seq, certificate(&key(5), &format!("by-{by}"), Roles::MEMBER));
    let mut roster = roster(&[admin(2, 1), admin(3, 2), named(2, 7), named(3, 7)]);
    let name = |roster: &Roster| roster.member(&node(5)).unwrap().name().to_owned();
    assert_eq!(name(&roster), if node(2) < node(3) { "by-2" } else { "by-3" });
    merge(&mut roster, &named(1, 7));
    assert_eq!(name(&roster), "by-1");
    merge(&mut roster, &named(3, 8));
    assert_eq!(name(&roster), "by-3");
}

#[test]
fn without_a_number_what_follows_the_tombstone_is_void() {
    let facts = [admin(2, 1), member(&key(2), 5, 3), tombstone(&ROOT, 2, 4, None), member(&key(2), 6, 5)];
    let roster = roster(&facts);
    assert_eq!((valid(&roster, 5), valid(&roster, 6)), (Ok(()), Err(Invalid::IssuerRevoked)));
}

#[test]
fn an_admin_cannot_bury_its_first_tombstone_under_void_ones() {
    let a = key(2);
    let mut facts = vec![admin(2, 1), member(&ROOT, 5, 2), tombstone(&a, 5, 3, None)];
    facts.extend((10..20).map(|seq| tombstone(&a, 5, seq, None)));
    facts.push(tombstone(&ROOT, 2, 30, Some(5)));
    assert_eq!(valid(&roster(&facts), 5), Err(Invalid::Revoked));
}

#[test]
fn acts_after_an_admins_certificate_ended_do_not_count() {
    let short = Certificate { not_after: NOW - 100, ..certificate(&key(2), "a", Roles::ADMIN) };
    let facts = [certify(&ROOT, 1, short), member(&key(2), 5, 2)];
    assert_eq!(valid(&roster(&facts), 5), Err(Invalid::IssuerRevoked));
}

#[test]
fn what_can_never_count_is_refused() {
    let mut roster = roster(&[admin(2, 1)]);
    let promoted = certify(&key(2), 5, certificate(&key(6), "x", Roles::ADMIN));
    assert_eq!(merge(&mut roster, &promoted), Merge::Refused(Refusal::AdminByAdmin));
    let root_itself = certify(&key(2), 5, certificate(&ROOT, "x", Roles::MEMBER));
    assert_eq!(merge(&mut roster, &root_itself), Merge::Refused(Refusal::AboutRoot));
    let other = Genesis { created: 0, ..GENESIS.clone() };
    let body = Body::Certificate(certificate(&key(6), "x", Roles::MEMBER));
    let foreign = Fact::sign(&ROOT, other.id(), node(6), 1, NOW, &body).unwrap();
    assert_eq!(merge(&mut roster, &foreign), Merge::Refused(Refusal::OtherNetwork));
    assert_eq!(roster.facts().count(), 1);
}

#[test]
fn outcomes_say_what_happened() {
    let a = key(2);
    let mut roster = roster(&[]);
    let member_of_a = |seq| member(&a, 5, seq);
    let third = member_of_a(3);
    assert_eq!(merge(&mut roster, &third), Merge::Pending);
    assert_eq!((roster.held().count(), roster.get(&third.id())), (0, None));
    assert_eq!(merge(&mut roster, &admin(2, 1)), Merge::Added);
    assert_eq!(roster.get(&third.id()), Some(third.fact()));
    assert_eq!(merge(&mut roster, &third), Merge::Known);
    assert_eq!(merge(&mut roster, &member_of_a(2)), Merge::Kept);
    assert_eq!(merge(&mut roster, &member_of_a(5)), Merge::Replaced);
    assert_eq!(merge(&mut roster, &member_of_a(6)), Merge::Replaced);
    assert_eq!(VERSIONS, 4);
    assert_eq!(merge(&mut roster, &member_of_a(1)), Merge::Stale);
    assert_eq!(roster.member(&node(5)).unwrap().name(), "member-5-6");
    assert_eq!(merge(&mut roster, &admin(2, 7)), Merge::Replaced);
    assert_eq!(merge(&mut roster, &admin(2, 6)), Merge::Stale);
}

#[test]
fn two_leaves_are_kept() {
    assert_eq!(LEAVES, 2);
    let mut roster = roster(&[member(&ROOT, 5, 1), leaf(5, 1, NOW - 6 * DAY)]);
    let merged = roster.merge(leaf(5, 2, NOW + DAY - 100));
    assert_eq!((merged.outcome, &merged.changed[..]), (Merge::Replaced, &[node(5)][..]));
    let current = |roster: &Roster, now| roster.member(&node(5)).unwrap().leaf_fact(now).map(|f| f.seq());
    assert_eq!(current(&roster, NOW), Some(1));
    assert_eq!(current(&roster, NOW + DAY - 50), Some(2));
    assert_eq!(merge(&mut roster, &leaf(5, 3, NOW)), Merge::Replaced);
    assert_eq!(merge(&mut roster, &leaf(5, 1, NOW - DAY)), Merge::Stale);
    assert_eq!(current(&roster, NOW), Some(3));
    assert_eq!(merge(&mut roster, &leaf(6, 3, NOW)), Merge::Pending, "a leaf without certificate");
}

#[test]
fn one_ipv4_address_belongs_to_the_smaller_id() {
    let address = Ipv4Addr::new(10, 77, 3, 4);
    let ipv4 = Some(address);
    let claim =
        |n, seq| certify(&ROOT, seq, Certificate { ipv4, ..certificate(&key(n), "twin", Roles::MEMBER) });
    let mut roster = roster(&[claim(5, 1), claim(6, 2)]);
    let (small, large) = if node(5) < node(6) { (5, 6) } else { (6, 5) };
    assert_eq!(roster.member(&node(small)).unwrap().ipv4, ipv4);
    assert_eq!(roster.member(&node(large)).unwrap().ipv4, None);
    assert_eq!(roster.by_ipv4(address).unwrap().id, node(small));
    assert_eq!(roster.by_name("twin").unwrap().id, node(small));
    merge(&mut roster, &tombstone(&ROOT, small, 3, None));
    assert_eq!(roster.member(&node(large)).unwrap().ipv4, ipv4, "the revoked one frees it");
    assert_eq!(roster.member(&node(small)).unwrap().ipv4, None);
    assert_eq!(roster.by_name("twin").unwrap().id, node(large));

    let free = roster.free_ipv4(&node(9)).unwrap();
    let taken =
        certify(&ROOT, 4, Certificate { ipv4: Some(free), ..certificate(&key(8), "x", Roles::MEMBER) });
    merge(&mut roster, &taken);
    assert_ne!(roster.free_ipv4(&node(9)), Some(free));
}

#[test]
fn relays_have_one_secret_each() {
    let a = key(2);
    let facts = [admin(2, 1), access(&ROOT, 40, 2, 1), access(&a, 40, 3, 2), access(&a, 41, 4, 1)];
    let mut roster = roster(&facts);
    let generations = |r: &Roster| r.relays().iter().map(|(id, a)| (id.0[0], a.ended)).collect::<Vec<_>>();
    assert_eq!(generations(&roster), [(40, 2), (41, 1)]);
    assert_eq!(roster.relay_address(&NodeId([40; 32])).unwrap().port(), 4242);
    merge(&mut roster, &tombstone(&ROOT, 2, 9, Some(3)));
    assert_eq!(generations(&roster), [(40, 2)]);
    merge(&mut roster, &access(&ROOT, 40, 10, 3));
    assert_eq!(generations(&roster), [(40, 3)]);
}

#[test]
fn facts_wait_for_their_signers_key() {
    let facts = [admin(2, 1), member(&key(2), 5, 2), leaf(5, 1, NOW)];
    let mut there = Roster::new(GENESIS.clone());
    // They arrive the wrong way round, as bytes.
    for fact in facts.iter().rev() {
        let fact = Fact::parse(fact.bytes()).unwrap();
        match there.signer_key(&fact) {
            None => assert!(there.wait(fact)),
            Some(key) => assert_eq!(merge(&mut there, &fact.verify(&key).unwrap()), Merge::Added),
        }
        loop {
            let ready = there.ready();
            if ready.is_empty() {
                break;
            }
            for fact in ready {
                let key = there.signer_key(&fact).unwrap();
                there.merge(fact.verify(&key).unwrap());
            }
        }
    }
    assert_eq!(there.digest(), roster(&facts).digest());
}

#[test]
fn waiting_and_pending_are_bounded() {
    let a = key(2);
    let pool: Vec<Verified> = (0..MAX_PENDING as u64 + 20)
        .map(|n| {
            let relay = NodeId(*shadowmesh_crypto::Secret::<32>::random().expose());
            sign(
                &a,
                relay,
                n,
                Body::Tombstone(shadowmesh_identity::Tombstone {
                    reason: shadowmesh_identity::fact::Reason::LEFT,
                    void_after: None,
                }),
            )
        })
        .collect();
    let mut roster = roster(&[]);
    let mut stored = BTreeSet::new();
    for fact in &pool {
        let waited = roster.wait(fact.fact().clone());
        assert_eq!(waited, roster.knows(&fact.id()));
        let merged = roster.merge(fact.clone());
        keep_books(&mut stored, fact, &merged);
    }
    assert_eq!(roster.facts().count(), MAX_PENDING);
    assert_eq!(stored, roster.facts().map(Fact::id).collect());
    assert_eq!(roster.held().count(), 0);
    roster.merge(admin(2, 1));
    assert_eq!(roster.held().count(), MAX_PENDING + 1);
    assert!(roster.ready().len() <= MAX_WAITING && roster.ready().is_empty());
}

#[test]
fn a_signers_facts_are_bounded_and_which_stay_does_not_depend_on_order() {
    let facts: Vec<_> = (0..MAX_RELAYS as u8 + 10).map(|n| access(&ROOT, n, n.into(), 1)).collect();
    let forwards = roster(&facts);
    let backwards = roster(&facts.iter().rev().cloned().collect::<Vec<_>>());
    assert_eq!(forwards.relays().len(), MAX_RELAYS);
    assert_eq!(forwards.digest(), backwards.digest());
    let mut stored = BTreeSet::new();
    let mut one_by_one = roster(&[]);
    let mut refused = 0;
    for fact in &facts {
        let merged = one_by_one.merge(fact.clone());
        refused += usize::from(merged.outcome == Merge::Refused(Refusal::TooMany));
        keep_books(&mut stored, fact, &merged);
    }
    assert_eq!(stored, one_by_one.facts().map(Fact::id).collect());
    assert!(refused <= 10);
}

/// What a store does with the answers.
fn keep_books(stored: &mut BTreeSet<[u8; 32]>, fact: &Verified, merged: &Merged) {
    if merged.is_stored() {
        assert!(stored.insert(fact.id()));
    }
    for id in &merged.dropped {
        assert!(stored.remove(id), "dropped what was never stored: {:?}", merged.outcome);
    }
}

/// Facts that contradict, replace, void and promote each other in every way.
static POOL: LazyLock<Vec<Verified>> = LazyLock::new(|| {
    let (a, b, m) = (key(2), key(3), key(5));
    let ip = |last| Some(Ipv4Addr::new(10, 77, 0, last));
    let plain = |n: u8, seq| certify(&ROOT, seq, certificate(&key(n), &format!("plain-{n}"), Roles::MEMBER));
    let with_ip = |by, n: u8, seq, last| {
        certify(by, seq, Certificate { ipv4: ip(last), ..certificate(&key(n), "same", Roles::MEMBER) })
    };
    let mut pool = vec![
        admin(2, 1),
        admin(2, 20),
        admin(3, 2),
        plain(3, 21),
        admin(5, 22),
        tombstone(&ROOT, 2, 30, Some(10)),
        tombstone(&ROOT, 2, 31, Some(6)),
        tombstone(&ROOT, 3, 32, None),
        tombstone(&ROOT, 6, 33, None),
        tombstone(&a, 3, 7, None),
        tombstone(&b, 2, 7, None),
        tombstone(&a, 5, 8, None),
        tombstone(&a, 5, 40, None),
        tombstone(&b, 6, 9, None),
        tombstone(&m, 6, 9, None),
        member(&ROOT, 5, 3),
        member(&ROOT, 6, 12),
        with_ip(&a, 6, 11, 4),
        with_ip(&b, 7, 11, 4),
        with_ip(&b, 7, 13, 5),
        with_ip(&ROOT, 8, 11, 4),
        member(&m, 8, 14),
        member(&b, 5, 4),
        access(&ROOT, 40, 5, 1),
        access(&a, 40, 6, 2),
        access(&a, 40, 15, 3),
        access(&b, 40, 6, 4),
    ];
    pool.extend((3..12).map(|seq| member(&a, 5, seq)));
    // Two different statements under one sequence number.
    pool.extend([member(&a, 6, 5), certify(&a, 5, certificate(&key(6), "other", Roles::GUEST))]);
    pool.extend([2, 3, 5, 6, 7].into_iter().flat_map(|n| (1..5).map(move |seq| leaf(n, seq, NOW))));
    pool
});

/// All that can be seen of a roster.
fn seen(roster: &Roster) -> String {
    let members: Vec<_> = roster.members().map(|m| format!("{m:?}")).collect();
    let valid: Vec<_> = (1..10).map(|n| valid(roster, n)).collect();
    let names: Vec<_> =
        ["same", "other", "admin-2"].iter().map(|n| roster.by_name(n).map(|m| m.id)).collect();
    let held: Vec<_> = roster.held().map(Fact::id).collect();
    let stored: Vec<_> = roster.facts().map(Fact::id).collect();
    format!(
        "{members:?}\n{valid:?}\n{names:?}\n{:?}\n{} {} {:?} {:?}\n{held:?}\n{stored:?}",
        roster.relays(),
        roster.version(),
        roster.newest_admin_fact_time(),
        roster.digest(),
        roster.bucket_digests(),
    )
}

// [P-MERGE]
proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_order_ends_in_the_same_state(
        order in Just((0..POOL.len()).collect::<Vec<_>>()).prop_shuffle(),
        other in Just((0..POOL.len()).collect::<Vec<_>>()).prop_shuffle(),
        chosen in prop::collection::vec(any::<bool>(), POOL.len()),
        again in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
    ) {
        let mut first = roster(&[]);
        let mut stored = BTreeSet::new();
        for i in order.iter().filter(|i| chosen[**i]) {
            let merged = first.merge(POOL[*i].clone());
            keep_books(&mut stored, &POOL[*i], &merged);
        }
        prop_assert_eq!(&stored, &first.facts().map(Fact::id).collect());

        let mut second = roster(&[]);
        let others: Vec<_> = other.iter().filter(|i| chosen[**i]).collect();
        for i in &others {
            second.merge(POOL[**i].clone());
        }
        for i in again.iter().filter(|_| !others.is_empty()) {
            second.merge(POOL[**i.get(&others)].clone());
        }
        prop_assert_eq!(seen(&first), seen(&second));

        // Computed anew from what is stored, it is the same: no trace of the way there.
        let mut anew = roster(&[]);
        for id in &stored {
            anew.merge(POOL.iter().find(|fact| fact.id() == *id).unwrap().clone());
        }
        prop_assert_eq!(seen(&first), seen(&anew));
    }

    #[test]
    fn changes_are_all_reported(order in Just((0..POOL.len()).collect::<Vec<_>>()).prop_shuffle()) {
        let mut roster = roster(&[]);
        let look = |roster: &Roster| (1..10u8).map(|n| {
            let m = roster.member(&node(n));
            let m = m.map(|m| (m.fact.id(), m.revoked.map(Fact::id), m.leaves().map(Fact::id).next()));
            (node(n), (valid(roster, n), m))
        }).collect::<Vec<_>>();
        let mut before = look(&roster);
        for i in order.iter().take(25) {
            let changed = roster.merge(POOL[*i].clone()).changed;
            let after = look(&roster);
            for (before, after) in before.iter().zip(&after).filter(|(b, a)| b != a) {
                prop_assert!(changed.contains(&before.0), "{:?}: {:?} to {:?}", POOL[*i], before, after);
            }
            before = after;
        }
    }
}

#[test]
fn two_rosters_find_what_they_lack_bucket_by_bucket() {
    let (here, mut there) = (roster(&POOL[..]), roster(&POOL[..20]));
    let mut moved = 0;
    for _ in 0..3 {
        let (ours, theirs) = (here.bucket_digests(), there.bucket_digests());
        for bucket in (0..64).filter(|b| ours[*b as usize] != theirs[*b as usize]) {
            for id in here.ids_in_bucket(bucket) {
                assert_eq!(here.get(&id).unwrap().subject().0[0] >> 2, bucket);
                if !there.knows(&id) {
                    let fact = here.get(&id).unwrap().clone();
                    let key = here.signer_key(&fact).unwrap();
                    there.merge(fact.verify(&key).unwrap());
                    moved += 1;
                }
            }
        }
    }
    assert!(moved > 10);
    assert_eq!(here.digest(), there.digest());
}

#[test]
fn a_roster_comes_back_from_its_store() {
    let before = roster(&POOL[..]);
    let mut stored: Vec<Vec<u8>> = before.facts().map(|fact| fact.bytes().to_vec()).collect();
    stored.reverse();
    let (after, refused) = Roster::restore(GENESIS.clone(), stored.clone());
    assert_eq!((seen(&after), refused), (seen(&before), 0));
    // One that no other rests on: a certificate would take those that its holder has signed with it.
    let leaf = stored.iter().position(|f| Fact::parse(f).is_ok_and(|f| f.leaf().is_some()));
    stored[leaf.expect("a leaf")][200] ^= 1;
    stored.push(vec![1, 2, 3]);
    assert_eq!(Roster::restore(GENESIS.clone(), stored).1, 2);
}
