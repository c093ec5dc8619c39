//! Known answers (`vectors/README.md` says from where): the hybrid constructions where a vector fits into them, and
//! the backend itself, through the calls we make, where it does not.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod common;

use aws_lc_rs::{
    agreement, hkdf,
    signature::{ED25519, KeyPair, ML_DSA_87, ML_DSA_87_SIGNING, PqdsaKeyPair, UnparsedPublicKey},
};
use serde_json::Value;
use shadowmesh_crypto::{Error, kem};

fn cases(file: &str) -> Vec<Value> {
    let path = format!("{}/tests/vectors/{file}", env!("CARGO_MANIFEST_DIR"));
    let cases: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert!(cases.len() > 2);
    cases
}

fn bytes(case: &Value, field: &str) -> Vec<u8> {
    data_encoding::HEXLOWER.decode(case[field].as_str().unwrap().as_bytes()).unwrap()
}

fn valid(case: &Value) -> bool {
    match case["result"].as_str().unwrap() {
        "valid" | "acceptable" => true,
        "invalid" => false,
        other => panic!("{other}"),
    }
}

/// A stored hybrid key around the vector's ML-KEM key, a ciphertext around its ciphertext, and the secret both give.
fn hybrid(dk: &[u8], ek: &[u8], c: &[u8], k: &[u8]) -> (Vec<u8>, [u8; 1600], [u8; 32]) {
    let (ours, theirs) =
        (x25519_dalek::StaticSecret::from([1; 32]), x25519_dalek::StaticSecret::from([2; 32]));
    let public = [ek, x25519_dalek::PublicKey::from(&ours).as_bytes()].concat();
    let ct = [c, x25519_dalek::PublicKey::from(&theirs).as_bytes()].concat();
    let ss_x = ours.diffie_hellman(&(&theirs).into());
    let ss = common::combine(k, ss_x.as_bytes(), &ct, &public);
    ([dk, &[1; 32], &public].concat(), ct.try_into().unwrap(), ss)
}

#[test]
fn ml_kem_from_seed() {
    for case in cases("mlkem_1024_seed.json") {
        assert!(valid(&case));
        let seed = bytes(&case, "seed").try_into().unwrap();
        let oracle = common::Kem::from_seeds(seed, [1; 32]);
        let ek = bytes(&case, "ek");
        assert_eq!(oracle.public[..1568], ek[..]);
        #[allow(deprecated, reason = "the expanded form is the one our backend stores")]
        let dk = ml_kem::ExpandedKeyEncoding::to_expanded_bytes(&oracle.pq);
        let (stored, ct, ss) = hybrid(&dk, &ek, &bytes(&case, "c"), &bytes(&case, "K"));
        let key = kem::SecretKey::from_bytes(&stored).unwrap();
        assert_eq!(key.decapsulate(&ct).unwrap().expose(), &ss, "case {}", case["tcId"]);
        assert_eq!(oracle.decapsulate(&ct), ss);
    }
}

#[test]
fn ml_kem_stored_keys() {
    let mut refused = 0;
    for case in cases("mlkem_1024_decaps.json") {
        let dk = bytes(&case, "dk");
        let ek = case["ek"].as_str().map_or_else(|| dk[1536..3104].to_vec(), |_| bytes(&case, "ek"));
        let k = case["K"].as_str().map_or_else(Vec::new, |_| bytes(&case, "K"));
        let (stored, ct, ss) = hybrid(&dk, &ek, &bytes(&case, "c"), &k);
        match kem::SecretKey::from_bytes(&stored) {
            Ok(key) => {
                assert!(valid(&case), "case {} was taken", case["tcId"]);
                assert_eq!(key.decapsulate(&ct).unwrap().expose(), &ss, "case {}", case["tcId"]);
            }
            Err(error) => {
                assert!(!valid(&case), "case {} was refused", case["tcId"]);
                assert_eq!(error, Error::BadKey);
                refused += 1;
            }
        }
    }
    assert_eq!(refused, 2);
}

#[test]
fn ml_kem_modulus_check() {
    for case in cases("mlkem_1024_bad_keys.json") {
        let public = [&bytes(&case, "ek")[..], &[9; 32]].concat();
        assert_eq!(kem::PublicKey::parse(&public), Err(Error::BadKey), "case {}", case["tcId"]);
        let public = kem::PublicKey(public.try_into().unwrap());
        assert_eq!(kem::encapsulate(&public).err(), Some(Error::BadKey));
    }
}

#[test]
fn ml_dsa_from_seed() {
    for case in cases("mldsa_87_keygen_sign.json") {
        let pair = PqdsaKeyPair::from_seed(&ML_DSA_87_SIGNING, &bytes(&case, "privateSeed")).unwrap();
        let public = bytes(&case, "publicKey");
        assert_eq!(pair.public_key().as_ref(), public, "case {}", case["tcId"]);
        let key = UnparsedPublicKey::new(&ML_DSA_87, &public);
        key.verify(&bytes(&case, "msg"), &bytes(&case, "sig")).unwrap();
        let mut signature = vec![0; 4627];
        assert_eq!(pair.sign(b"another", &mut signature).unwrap(), 4627);
        key.verify(b"another", &signature).unwrap();
    }
}

#[test]
fn ml_dsa_verification() {
    for case in cases("mldsa_87_verify.json") {
        let key = UnparsedPublicKey::new(&ML_DSA_87, bytes(&case, "publicKey"));
        let result = key.verify(&bytes(&case, "msg"), &bytes(&case, "sig"));
        assert_eq!(result.is_ok(), valid(&case), "case {}: {}", case["tcId"], case["comment"]);
    }
}

#[test]
fn ed25519() {
    for case in cases("ed25519.json") {
        let key = UnparsedPublicKey::new(&ED25519, bytes(&case, "publicKey"));
        let result = key.verify(&bytes(&case, "msg"), &bytes(&case, "sig"));
        assert_eq!(result.is_ok(), valid(&case), "case {}: {}", case["tcId"], case["comment"]);
    }
}

#[test]
fn x25519() {
    let mut zero = 0;
    for case in cases("x25519.json") {
        let key =
            agreement::PrivateKey::from_private_key(&agreement::X25519, &bytes(&case, "private")).unwrap();
        let peer = agreement::UnparsedPublicKey::new(&agreement::X25519, bytes(&case, "public"));
        let shared = bytes(&case, "shared");
        let result = agreement::agree(&key, peer, (), |raw| Ok(raw.to_vec()));
        if shared == [0; 32] {
            zero += 1;
            assert_eq!(result, Err(()), "case {}", case["tcId"]);
        } else {
            assert_eq!(result, Ok(shared), "case {}", case["tcId"]);
        }
    }
    assert!(zero >= 7);
}

#[test]
fn hkdf_sha512() {
    struct Len(usize);
    impl hkdf::KeyType for Len {
        fn len(&self) -> usize {
            self.0
        }
    }
    for case in cases("hkdf_sha512.json") {
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA512, &bytes(&case, "salt")).extract(&bytes(&case, "ikm"));
        let expected = bytes(&case, "okm");
        let mut out = vec![0; expected.len()];
        let info = bytes(&case, "info");
        prk.expand(&[&info], Len(expected.len())).unwrap().fill(&mut out).unwrap();
        assert_eq!(out, expected, "case {}", case["tcId"]);
    }
}
