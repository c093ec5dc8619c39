//! The cryptography of ShadowMesh: every primitive, key type and domain label that the other crates use.
//!
//! * [`secret`]: bytes that are wiped when dropped and cannot be printed, cloned or serialised by accident;
//! * [`kdf`]: hashing, keyed hashing and key derivation under one tree of domain labels;
//! * [`kem`]: the hybrid key encapsulation, X25519 with ML-KEM-1024 (FIPS 203);
//! * [`sign`]: the hybrid signature, Ed25519 (RFC 8032) with ML-DSA-87 (FIPS 204);
//! * [`aead`]: AES-256-GCM and ChaCha20-Poly1305 with a counter as nonce.
//!
//! All of it stands on one backend, AWS-LC, and on BLAKE3. The tests compare each construction with an
//! independent implementation put together from other libraries, in both directions.
#![warn(missing_docs)]

pub mod aead;
pub mod kdf;
pub mod kem;
mod label;
pub mod secret;
pub mod sign;

pub use kdf::{Hash, Label};
pub use secret::Secret;
pub use zeroize::Zeroizing;

/// What can go wrong in this crate. None of it tells an attacker more than "refused".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A public or secret key has the wrong length, is not canonically encoded, or does not fit its other half.
    #[error("the key is malformed")]
    BadKey,
    /// A signature has the wrong length or does not verify.
    #[error("the signature does not verify")]
    BadSignature,
    /// A ciphertext has the wrong length or was not made under this key, counter and associated data.
    #[error("the ciphertext was altered, or made under another key")]
    BadCiphertext,
    /// X25519 gave the all-zero result (RFC 7748, section 6.1): the other side sent a point of low order.
    #[error("the key agreement gave an all-zero secret")]
    ZeroSharedSecret,
    /// The number names no cipher suite that this version knows.
    #[error("cipher suite {0} is unknown")]
    UnknownSuite(u8),
    /// The library below refused something it never should refuse.
    #[error("the cryptographic library failed")]
    Backend,
}
