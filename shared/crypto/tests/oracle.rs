//! Each construction against the oracle, in both directions, and what must be refused.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod common;

use shadowmesh_crypto::{Error, Label, Secret, aead, kdf, kem, sign};

#[test]
fn derivation_and_hash_agree() {
    for (salt, ikm, context) in [
        (&b""[..], &[][..], &b""[..]),
        (b"salt", &[&b"one"[..], b"", b"three"], b"context"),
        (&[7; 200], &[&[8; 500][..]], &[9; 300]),
    ] {
        let mut expected = [0; 150];
        common::derive("handshake/k1", salt, ikm, context, &mut expected);
        assert_eq!(kdf::derive::<150>(Label::K1, salt, ikm, context).expose(), &expected);
        assert_eq!(kdf::derive::<32>(Label::K1, salt, ikm, context).expose()[..], expected[..32]);
        assert_eq!(kdf::hash(Label::FactId, ikm), common::hash("id/fact", ikm));
    }
}

#[test]
fn kem_ours_to_oracle_and_back() {
    for n in 0..8 {
        let oracle = common::Kem::from_seeds([n; 64], [n ^ 0x55; 32]);
        let public = kem::PublicKey::parse(&oracle.public).unwrap();
        let (ct, ss) = kem::encapsulate(&public).unwrap();
        assert_eq!(ss.expose(), &oracle.decapsulate(&ct));

        let ours = kem::SecretKey::generate().unwrap();
        let (ct, ss) = common::encapsulate(&ours.public().0, [n; 32], [n + 1; 32]);
        assert_eq!(ours.decapsulate(&ct).unwrap().expose(), &ss);
        let stored = kem::SecretKey::from_bytes(&ours.to_bytes().unwrap()).unwrap();
        assert_eq!(stored.public(), ours.public());
        assert_eq!(stored.decapsulate(&ct).unwrap().expose(), &ss);
        assert_eq!(stored.to_bytes().unwrap(), ours.to_bytes().unwrap());
    }
}

#[test]
fn kem_altered_ciphertexts_give_another_secret() {
    let key = kem::SecretKey::generate().unwrap();
    let (ct, ss) = kem::encapsulate(key.public()).unwrap();
    for byte in (0..kem::CIPHERTEXT_LEN).step_by(37).chain([1567, 1568, 1598]) {
        let mut bad = ct;
        bad[byte] ^= 0x10;
        assert_ne!(key.decapsulate(&bad).unwrap(), ss, "byte {byte}");
    }
    // X25519 ignores the top bit of a point (RFC 7748, section 5): the combiner does not.
    let mut bad = ct;
    bad[1599] ^= 0x80;
    assert_ne!(key.decapsulate(&bad).unwrap(), ss);
}

#[test]
fn kem_refuses_bad_keys() {
    let key = kem::SecretKey::generate().unwrap();
    let public = key.public().as_bytes();
    assert!(kem::PublicKey::parse(public).is_ok());
    assert_eq!(kem::PublicKey::parse(&public[1..]), Err(Error::BadKey));
    assert_eq!(kem::PublicKey::parse(&[&public[..], &[0]].concat()), Err(Error::BadKey));
    for at in [0, 3, 1533] {
        let mut bad = *public;
        bad[at] = 0x01;
        bad[at + 1] = bad[at + 1] & 0xF0 | 0x0D; // 0xD01 = 3329, the modulus
        assert_eq!(kem::PublicKey::parse(&bad), Err(Error::BadKey));
        assert_eq!(kem::encapsulate(&kem::PublicKey(bad)).err(), Some(Error::BadKey));
        bad[at] = 0; // 3328 is the largest coefficient
        assert!(kem::PublicKey::parse(&bad).is_ok());
    }
    let stored = key.to_bytes().unwrap();
    assert_eq!(stored.len(), kem::SECRET_KEY_LEN);
    assert!(kem::SecretKey::from_bytes(&stored[1..]).is_err());
    for at in (0..stored.len()).step_by(509).chain([3100, 3168, 3199, 4768, 4799]) {
        let mut bad = stored.to_vec();
        bad[at] ^= 1;
        // The last 32 bytes of an ML-KEM key only choose what a bad ciphertext gives; and X25519 clamps three bits.
        let harmless = (3136..3168).contains(&at) || at == 3168;
        assert_eq!(kem::SecretKey::from_bytes(&bad).is_ok(), harmless, "byte {at}");
    }
}

/// The points of order 1, 2, 4 and 8 on the curve and its twist, by u-coordinate, canonical and not.
const LOW_ORDER: [&str; 7] = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
];

#[test]
fn kem_refuses_points_of_low_order() {
    let key = kem::SecretKey::generate().unwrap();
    let (ct, _) = kem::encapsulate(key.public()).unwrap();
    for point in LOW_ORDER {
        let point = data_encoding::HEXLOWER.decode(point.as_bytes()).unwrap();
        let mut bad = ct;
        bad[1568..].copy_from_slice(&point);
        assert_eq!(key.decapsulate(&bad).err(), Some(Error::ZeroSharedSecret));
        let mut bad = *key.public().as_bytes();
        bad[1568..].copy_from_slice(&point);
        let bad = kem::PublicKey::parse(&bad).unwrap();
        assert_eq!(kem::encapsulate(&bad).err(), Some(Error::ZeroSharedSecret));
    }
}

#[test]
fn signatures_ours_to_oracle_and_back() {
    for n in 0..4 {
        let ours = sign::SigningKey::from_seed(&Secret::new([n; 32])).unwrap();
        let oracle = common::Signer::from_seed(&[n; 32]);
        assert_eq!(ours.public().as_bytes()[..], oracle.public[..]);
        let msg = vec![n; usize::from(n) * 1000];
        let signature = ours.sign(Label::SigLeaf, &msg).unwrap();
        assert!(oracle.verify("sign/leaf", &msg, signature.as_bytes()));
        assert!(!oracle.verify("sign/access", &msg, signature.as_bytes()));
        let signature = sign::Signature::from_bytes(&oracle.sign("sign/leaf", &msg)).unwrap();
        assert_eq!(ours.public().verify(Label::SigLeaf, &msg, &signature), Ok(()));
        assert!(ours.public().verify(Label::SigAccess, &msg, &signature).is_err());
    }
}

#[test]
fn signatures_need_both_halves_label_message_and_key() {
    let key = sign::SigningKey::from_seed(&Secret::new([1; 32])).unwrap();
    let other = sign::SigningKey::from_seed(&Secret::new([2; 32])).unwrap();
    let good = key.sign(Label::SigLeaf, b"message").unwrap();
    let theirs = other.sign(Label::SigLeaf, b"message").unwrap();
    let verify = |bytes: &[u8]| {
        key.public().verify(Label::SigLeaf, b"message", &sign::Signature::from_bytes(bytes).unwrap())
    };
    assert_eq!(verify(good.as_bytes()), Ok(()));
    assert_eq!(key.public().verify(Label::SigLeaf, b"messagE", &good), Err(Error::BadSignature));
    assert_eq!(other.public().verify(Label::SigLeaf, b"message", &good), Err(Error::BadSignature));
    for (ed, pq) in [(&good, &theirs), (&theirs, &good)] {
        let mixed = [&ed.as_bytes()[..64], &pq.as_bytes()[64..]].concat();
        assert_eq!(verify(&mixed), Err(Error::BadSignature));
    }
    for byte in (0..64).chain((64..sign::SIGNATURE_LEN).step_by(101)).chain(4600..sign::SIGNATURE_LEN) {
        let mut bad = *good.as_bytes();
        bad[byte] ^= 1 << (byte % 8);
        assert_eq!(verify(&bad), Err(Error::BadSignature), "byte {byte}");
    }
    // Half a key carried over to a key with another second half: the old signature's halves verify no more.
    let grafted = [&key.public().as_bytes()[..32], &other.public().as_bytes()[32..]].concat();
    let grafted = sign::PublicKey::from_bytes(&grafted).unwrap();
    let mixed = [&good.as_bytes()[..64], &theirs.as_bytes()[64..]].concat();
    let mixed = sign::Signature::from_bytes(&mixed).unwrap();
    assert_eq!(grafted.verify(Label::SigLeaf, b"message", &mixed), Err(Error::BadSignature));

    assert_eq!(sign::Signature::from_bytes(&good.as_bytes()[1..]), Err(Error::BadSignature));
    assert_eq!(sign::PublicKey::from_bytes(&key.public().as_bytes()[1..]), Err(Error::BadKey));
}

#[test]
fn aeads_ours_to_oracle_and_back() {
    for len in [0, 1, 15, 16, 17, 64, 1400, 9000] {
        let (counter, aad, plain) = (0x0102_0304_0506_0708 + len as u64, vec![3; len / 3], vec![5; len]);
        let secret = [len as u8; 32];
        for suite in aead::Suite::ALL {
            let expected = common::seal(suite as u8, &secret, counter, &aad, &plain);
            let key = aead::Key::new(suite, &Secret::new(secret));
            assert_eq!(key.seal_vec(counter, &aad, &plain), expected);
            assert_eq!(key.open_vec(counter, &aad, &expected).unwrap(), plain);
        }
    }
}

#[test]
fn nothing_secret_is_printed() {
    let kem = kem::SecretKey::generate().unwrap();
    let printed = format!("{kem:?}");
    assert!(printed.starts_with("kem::SecretKey(.., kem::PublicKey(") && printed.len() < 60, "{printed}");
    let sign = sign::SigningKey::from_seed(&Secret::new([0xAB; 32])).unwrap();
    let printed = format!("{sign:?}");
    assert!(printed.starts_with("sign::SigningKey(.., sign::PublicKey(") && printed.len() < 60, "{printed}");
}

#[test]
fn keys_cross_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<kem::SecretKey>();
    shared::<sign::SigningKey>();
    shared::<aead::Key>();
    shared::<Secret<32>>();
}
