//! The oracle: ShadowMesh's constructions once more, from their description, out of RustCrypto's and dalek's parts.
//! Nothing here calls the crate under test.
#![allow(dead_code, reason = "each test program uses a part of it")]

use aes_gcm::{
    Aes256Gcm, KeyInit,
    aead::{Aead, Payload},
};
use chacha20poly1305::ChaCha20Poly1305;
use ml_kem::{Ciphertext, FromSeed, KeyExport, MlKem1024, kem::Decapsulate};
use sha2::Sha512;

pub fn hash(label: &str, parts: &[&[u8]]) -> [u8; 32] {
    let mut bytes = format!("shadowmesh/1/{label}\0").into_bytes();
    bytes.extend(framed(parts));
    *blake3::hash(&bytes).as_bytes()
}

pub fn derive(label: &str, salt: &[u8], ikm: &[&[u8]], context: &[u8], out: &mut [u8]) {
    let mut info = format!("shadowmesh/1/{label}\0").into_bytes();
    info.extend_from_slice(context);
    hkdf::Hkdf::<Sha512>::new(Some(salt), &framed(ikm)).expand(&info, out).unwrap();
}

/// A MAC of 16 bytes.
pub fn mac16(key: &[u8; 32], label: &str, parts: &[&[u8]]) -> [u8; 16] {
    let mut bytes = format!("shadowmesh/1/{label}\0").into_bytes();
    bytes.extend(framed(parts));
    blake3::keyed_hash(key, &bytes).as_bytes()[..16].try_into().unwrap()
}

/// Ciphertext and tag; suite 1 is AES-256-GCM, 2 is ChaCha20-Poly1305.
pub fn seal(suite: u8, key: &[u8; 32], counter: u64, aad: &[u8], msg: &[u8]) -> Vec<u8> {
    let nonce = [&[0; 4][..], &counter.to_be_bytes()].concat();
    let nonce: &[u8; 12] = nonce[..].try_into().unwrap();
    let payload = Payload { msg, aad };
    match suite {
        1 => Aes256Gcm::new(key.into()).encrypt(nonce.into(), payload).unwrap(),
        2 => ChaCha20Poly1305::new(key.into()).encrypt(nonce.into(), payload).unwrap(),
        other => panic!("no suite {other}"),
    }
}

fn framed(parts: &[&[u8]]) -> Vec<u8> {
    parts.iter().flat_map(|part| [&(part.len() as u64).to_le_bytes()[..], part].concat()).collect()
}

/// The combiner of the hybrid KEM.
pub fn combine(ss_pq: &[u8], ss_x: &[u8], ct: &[u8], pk: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    let parts = [
        ss_pq,
        ss_x,
        &hash("kem/ct-ml-kem", &[&ct[..1568]]),
        &hash("kem/ct-x25519", &[&ct[1568..]]),
        &hash("kem/pk-ml-kem", &[&pk[..1568]]),
        &hash("kem/pk-x25519", &[&pk[1568..]]),
    ];
    derive("kem/combine", &[], &parts, &[], &mut out);
    out
}

/// A hybrid key pair of the oracle.
pub struct Kem {
    pub pq: ml_kem::DecapsulationKey<MlKem1024>,
    pub x: x25519_dalek::StaticSecret,
    pub public: [u8; 1600],
}

impl Kem {
    pub fn from_seeds(pq: [u8; 64], x: [u8; 32]) -> Kem {
        let (pq, pq_public) = MlKem1024::from_seed(&pq.into());
        let x = x25519_dalek::StaticSecret::from(x);
        let mut public = [0; 1600];
        public[..1568].copy_from_slice(&pq_public.to_bytes());
        public[1568..].copy_from_slice(x25519_dalek::PublicKey::from(&x).as_bytes());
        Kem { pq, x, public }
    }

    pub fn decapsulate(&self, ct: &[u8; 1600]) -> [u8; 32] {
        let pq_ct = Ciphertext::<MlKem1024>::try_from(&ct[..1568]).unwrap();
        let point: [u8; 32] = ct[1568..].try_into().unwrap();
        let ss_x = self.x.diffie_hellman(&point.into());
        assert!(ss_x.was_contributory());
        combine(&self.pq.decapsulate(&pq_ct), ss_x.as_bytes(), ct, &self.public)
    }
}

/// Encapsulates with given randomness, so that the result can be written down.
pub fn encapsulate(pk: &[u8; 1600], m: [u8; 32], x: [u8; 32]) -> ([u8; 1600], [u8; 32]) {
    let encoded = ml_kem::kem::Key::<ml_kem::EncapsulationKey<MlKem1024>>::try_from(&pk[..1568]).unwrap();
    let key = ml_kem::EncapsulationKey::<MlKem1024>::new(&encoded).unwrap();
    let (ct_pq, ss_pq) = key.encapsulate_deterministic(&m.into());
    let x = x25519_dalek::StaticSecret::from(x);
    let mut ct = [0; 1600];
    ct[..1568].copy_from_slice(&ct_pq);
    ct[1568..].copy_from_slice(x25519_dalek::PublicKey::from(&x).as_bytes());
    let point: [u8; 32] = pk[1568..].try_into().unwrap();
    let ss = combine(&ss_pq, x.diffie_hellman(&point.into()).as_bytes(), &ct, pk);
    (ct, ss)
}

/// A hybrid signing key of the oracle.
pub struct Signer {
    pub ed: ed25519_dalek::SigningKey,
    pub pq: ml_dsa::SigningKey<ml_dsa::MlDsa87>,
    pub public: Vec<u8>,
}

impl Signer {
    pub fn from_seed(seed: &[u8; 32]) -> Signer {
        let (mut ed, mut pq) = ([0; 32], [0; 32]);
        derive("seed/sign/ed25519", &[], &[seed], &[], &mut ed);
        derive("seed/sign/ml-dsa", &[], &[seed], &[], &mut pq);
        let ed = ed25519_dalek::SigningKey::from_bytes(&ed);
        let pq = ml_dsa::SigningKey::<ml_dsa::MlDsa87>::from_seed(&pq.into());
        let pq_public = pq.expanded_key().verifying_key().encode();
        let public = [&ed.verifying_key().to_bytes()[..], &pq_public[..]].concat();
        Signer { ed, pq, public }
    }

    pub fn sign(&self, label: &str, msg: &[u8]) -> Vec<u8> {
        use ed25519_dalek::Signer as _;
        let signed = signed_bytes(&self.public, label, msg);
        let pq = self.pq.expanded_key().sign_deterministic(&signed, &[]).unwrap();
        [&self.ed.sign(&signed).to_bytes()[..], &pq.encode()[..]].concat()
    }

    pub fn verify(&self, label: &str, msg: &[u8], signature: &[u8]) -> bool {
        let signed = signed_bytes(&self.public, label, msg);
        let ed = ed25519_dalek::Signature::from_slice(&signature[..64]).unwrap();
        let pq = ml_dsa::EncodedSignature::<ml_dsa::MlDsa87>::try_from(&signature[64..]).unwrap();
        let Some(pq) = ml_dsa::Signature::<ml_dsa::MlDsa87>::decode(&pq) else { return false };
        self.ed.verifying_key().verify_strict(&signed, &ed).is_ok()
            && self.pq.expanded_key().verifying_key().verify_with_context(&signed, &[], &pq)
    }
}

fn signed_bytes(public: &[u8], label: &str, msg: &[u8]) -> Vec<u8> {
    [format!("shadowmesh/1/{label}\0").as_bytes(), &hash("sign/keys", &[public]), msg].concat()
}
