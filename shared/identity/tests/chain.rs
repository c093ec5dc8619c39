//! Chains: what a stranger believes, and what it does not.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod common;

use std::sync::LazyLock;

use common::*;
use proptest::prelude::*;
use shadowmesh_identity::{
    Certificate, DAY, Fact, NetworkId, Roles, Roster, Verified,
    chain::{ChainError, verify_chain, verify_relay_leaf},
    fact::{Body, Leaf},
};

static FACTS: LazyLock<[Verified; 3]> =
    LazyLock::new(|| [admin(2, 1), member(&key(2), 5, 2), leaf(5, 1, NOW)]);

fn bytes(facts: &[&Verified]) -> Vec<u8> {
    facts.iter().flat_map(|fact| fact.bytes().to_vec()).collect()
}

fn check(facts: &[&Verified]) -> Result<usize, ChainError> {
    verify_chain(&GENESIS, &bytes(facts), NOW).map(|chain| chain.into_facts().len())
}

#[test]
fn a_stranger_believes_a_whole_chain() {
    let mut ours = Roster::new(GENESIS.clone());
    FACTS.iter().cloned().for_each(|fact| drop(ours.merge(fact)));
    let sent: Vec<u8> = ours.chain(&node(5), NOW).unwrap().iter().flat_map(|f| f.bytes().to_vec()).collect();
    let chain = verify_chain(&GENESIS, &sent, NOW).unwrap();
    assert_eq!(chain.subject(), node(5));
    let mut theirs = Roster::new(GENESIS.clone());
    chain.into_facts().into_iter().for_each(|fact| drop(theirs.merge(fact)));
    assert_eq!(theirs.is_valid(&node(5), NOW), Ok(()));
    assert_eq!(theirs.digest(), ours.digest());
    assert_eq!(ours.chain(&node(5), NOW + 8 * DAY).unwrap().len(), 2, "no leaf is current then");
    assert_eq!(ours.chain(&node(2), NOW).unwrap().len(), 1);
    assert!(ours.chain(&node(9), NOW).is_none());
}

#[test]
fn the_roots_members_need_no_issuer() {
    let direct = member(&ROOT, 5, 1);
    assert_eq!(check(&[&direct, &FACTS[2]]), Ok(2));
    assert_eq!(check(&[&direct]), Ok(1));
    assert!(matches!(check(&[&FACTS[0], &direct]), Err(ChainError::Broken(_))), "one that is not the issuer");
}

#[test]
fn chains_that_do_not_hold_are_refused() {
    let [admin_2, by_admin, leaf_5] = &*FACTS;
    let broken = |facts: &[&Verified]| matches!(check(facts), Err(ChainError::Broken(_)));
    let ended = |facts: &[&Verified]| matches!(check(facts), Err(ChainError::Ended(..)));
    assert_eq!(check(&[admin_2, by_admin, leaf_5]), Ok(3));
    assert!(broken(&[]) && broken(&[leaf_5]) && broken(&[by_admin, leaf_5]));
    assert!(broken(&[by_admin, admin_2, leaf_5]) && broken(&[admin_2, leaf_5, by_admin]));
    assert!(broken(&[admin_2, by_admin, leaf_5, leaf_5]) && broken(&[admin_2, admin_2, by_admin]));
    assert!(broken(&[admin_2, by_admin, &leaf(6, 1, NOW)]), "another's leaf");
    assert!(broken(&[&admin(3, 1), by_admin]), "another admin");
    assert!(broken(&[&member(&ROOT, 2, 1), by_admin]), "a member is no issuer");
    let second_hand = certify(&key(3), 1, certificate(&key(2), "a", Roles::ADMIN));
    assert!(broken(&[&second_hand, by_admin]), "an admin not named by the root");
    assert!(broken(&[admin_2, &certify(&key(2), 1, certificate(&key(5), "a", Roles::ADMIN))]));
    assert!(broken(&[&tombstone(&ROOT, 5, 1, None)]));

    assert_eq!(check(&[admin_2, by_admin, &leaf(5, 1, NOW + 1)]), Ok(3), "a clock that is behind");
    assert!(ended(&[admin_2, by_admin, &leaf(5, 1, NOW - 7 * DAY)]));
    let old = |n, roles| Certificate { not_after: NOW - 100, ..certificate(&key(n), "old", roles) };
    assert!(ended(&[&certify(&ROOT, 1, old(5, Roles::MEMBER))]));
    assert!(ended(&[&certify(&ROOT, 1, old(2, Roles::ADMIN)), by_admin]), "signed after its term");
}

#[test]
fn each_signature_of_a_chain_counts() {
    let good = bytes(&[&FACTS[0], &FACTS[1], &FACTS[2]]);
    let mut end = 0;
    for fact in &*FACTS {
        end += fact.bytes().len();
        for back in [1, 4600, 4691] {
            let mut bad = good.clone();
            bad[end - back] ^= 1;
            assert!(matches!(verify_chain(&GENESIS, &bad, NOW), Err(ChainError::Fact(_))), "{end} {back}");
        }
    }
    assert!(verify_chain(&GENESIS, &vec![1; 100_000], NOW).is_err());
}

#[test]
fn a_relay_proves_what_its_url_says() {
    let relay = key(40);
    let leaf = Leaf { locations: vec![], ..leaf_body(NOW) };
    let fact = Fact::sign(&relay, NetworkId::NONE, id(&relay), 1, NOW, &Body::RelayLeaf(leaf)).unwrap();
    let show = |node, key: &[u8], now| verify_relay_leaf(&node, key, fact.bytes(), now);
    let public = relay.public().as_bytes();
    assert_eq!(show(id(&relay), public, NOW), Ok(fact.clone()));
    assert!(show(node(41), public, NOW).is_err());
    assert!(show(node(41), key(41).public().as_bytes(), NOW).is_err());
    assert!(show(id(&relay), &public[1..], NOW).is_err());
    assert!(show(id(&relay), public, NOW + 7 * DAY).is_err());
    let other = key(5);
    assert!(verify_relay_leaf(&id(&other), other.public().as_bytes(), FACTS[2].bytes(), NOW).is_err());
    let mut roster = Roster::new(GENESIS.clone());
    assert!(!roster.merge(fact).is_stored(), "it enters no roster");
}

proptest! {
    #[test]
    fn any_bytes_are_a_chain_or_an_error(bytes: Vec<u8>, cut: prop::sample::Index, at: prop::sample::Index) {
        let _ = verify_chain(&GENESIS, &bytes, NOW);
        let mut all = self::bytes(&[&FACTS[0], &FACTS[1], &FACTS[2]]);
        let at = at.index(all.len());
        all[at] ^= 0x41;
        prop_assert!(verify_chain(&GENESIS, &all, NOW).is_err());
        let cut = cut.index(all.len());
        let _ = verify_chain(&GENESIS, &[&all[..cut], &bytes].concat(), NOW);
    }
}
