//! Hashing, keyed hashing and key derivation, each under a [`Label`] and over an injective encoding.
//!
//! Ids and transcripts are BLAKE3-256; keys come from HKDF-SHA-512 (RFC 5869). Two different lists of parts never
//! encode to the same bytes: the label ends with a zero byte, and each part is preceded by its length.

use aws_lc_rs::hkdf;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

use crate::secret::Secret;

pub use crate::label::Label;

/// A BLAKE3-256 hash.
pub type Hash = [u8; 32];

/// BLAKE3-256 over `label ‖ 0`, then each part preceded by its length in bytes (u64, little-endian).
pub fn hash(label: Label, parts: &[&[u8]]) -> Hash {
    *feed(blake3::Hasher::new(), label, parts).finalize().as_bytes()
}

/// A 16-byte MAC: BLAKE3 keyed mode over the same encoding as [`hash`], the first half of its output.
pub fn mac16(key: &Secret<32>, label: Label, parts: &[&[u8]]) -> [u8; 16] {
    let mut hasher = feed(blake3::Hasher::new_keyed(key.expose()), label, parts);
    let out = *hasher.finalize().as_bytes();
    hasher.zeroize();
    let (first, _) = out.split_first_chunk().unwrap_or((&[0; 16], &[]));
    *first
}

/// An 8-byte MAC over raw bytes, for the header of datagrams that go by relay: BLAKE3 keyed mode, one compression
/// for up to 64 bytes.
///
/// No label goes in, so the key must be used for nothing else.
#[inline]
pub fn mac8(key: &Secret<32>, bytes: &[u8]) -> [u8; 8] {
    let out = blake3::keyed_hash(key.expose(), bytes);
    let (first, _) = out.as_bytes().split_first_chunk().unwrap_or((&[0; 8], &[]));
    *first
}

/// Compares in a time that depends on the lengths alone. Different lengths are unequal.
pub fn ct_eq(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

/// Derives `N` bytes by HKDF-SHA-512 (RFC 5869).
///
/// Extract: the salt as given (empty means 64 zero bytes, as the RFC says); the input keying material is each part
/// of `ikm` preceded by its length (u64, little-endian). Expand: info is `label ‖ 0 ‖ context`. `N` is at most
/// 16,320 (255 blocks of 64), checked when compiled.
pub fn derive<const N: usize>(label: Label, salt: &[u8], ikm: &[&[u8]], context: &[u8]) -> Secret<N> {
    const { assert!(N > 0 && N <= 255 * 64, "HKDF-SHA-512 gives 1 to 16,320 bytes") };
    let mut material = Zeroizing::new(Vec::with_capacity(ikm.iter().map(|part| 8 + part.len()).sum()));
    for part in ikm {
        material.extend_from_slice(&(part.len() as u64).to_le_bytes());
        material.extend_from_slice(part);
    }
    let prk = hkdf::Salt::new(hkdf::HKDF_SHA512, salt).extract(&material);
    Secret::fill_with(|out: &mut [u8; N]| {
        prk.expand(&[label.terminated(), context], OutputLen(N)).and_then(|okm| okm.fill(out))
    })
    .expect("HKDF refuses only lengths, and ours was checked when compiled")
}

/// The length HKDF is asked for, in bytes.
struct OutputLen(usize);

impl hkdf::KeyType for OutputLen {
    fn len(&self) -> usize {
        self.0
    }
}

fn feed(mut hasher: blake3::Hasher, label: Label, parts: &[&[u8]]) -> blake3::Hasher {
    hasher.update(label.terminated());
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_encoding_is_injective() {
        let all = [
            hash(Label::NodeId, &[]),
            hash(Label::NodeId, &[b""]),
            hash(Label::NodeId, &[b"", b""]),
            hash(Label::NodeId, &[b"ab"]),
            hash(Label::NodeId, &[b"a", b"b"]),
            hash(Label::NodeId, &[b"", b"ab"]),
            hash(Label::NetworkId, &[b"ab"]),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(all.iter().skip(i + 1).all(|b| a != b));
        }
    }

    #[test]
    fn hash_is_the_documented_bytes() {
        let mut bytes = b"shadowmesh/1/id/node\0".to_vec();
        bytes.extend_from_slice(&[3, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend_from_slice(b"abc");
        assert_eq!(hash(Label::NodeId, &[b"abc"]), *blake3::hash(&bytes).as_bytes());
        let key = Secret::new([9; 32]);
        let keyed = blake3::keyed_hash(&[9; 32], &bytes);
        assert_eq!(mac16(&key, Label::NodeId, &[b"abc"])[..], keyed.as_bytes()[..16]);
        assert_eq!(mac8(&key, &bytes)[..], keyed.as_bytes()[..8]);
    }

    #[test]
    fn derivation_depends_on_every_input() {
        let base = || derive::<32>(Label::K1, b"salt", &[b"ikm"], b"ctx");
        assert_eq!(base(), base());
        assert_ne!(base(), derive(Label::K2, b"salt", &[b"ikm"], b"ctx"));
        assert_ne!(base(), derive(Label::K1, b"salu", &[b"ikm"], b"ctx"));
        assert_ne!(base(), derive(Label::K1, b"salt", &[b"ik", b"m"], b"ctx"));
        assert_ne!(base(), derive(Label::K1, b"salt", &[b"ikm"], b"cty"));
    }

    #[test]
    fn comparison_looks_at_everything() {
        assert!(ct_eq(b"", b"") && ct_eq(b"abc", b"abc"));
        assert!(!ct_eq(b"abc", b"abd") && !ct_eq(b"abc", b"ab") && !ct_eq(b"", b"a"));
    }
}
