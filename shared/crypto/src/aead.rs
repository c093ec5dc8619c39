//! Authenticated encryption with a counter as nonce: AES-256-GCM (NIST SP 800-38D) and ChaCha20-Poly1305 (RFC 8439).

use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use crate::{Error, secret::Secret};

/// The length of a tag, in bytes.
pub const TAG_LEN: usize = 16;

/// A cipher suite, with its number on the wire.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
#[repr(u8)]
pub enum Suite {
    /// AES-256-GCM: the faster one where the CPU has AES instructions.
    Aes256Gcm = 1,
    /// ChaCha20-Poly1305: the faster one elsewhere, and the fixed choice before a suite is agreed.
    ChaCha20Poly1305 = 2,
}

impl Suite {
    /// All suites of this version.
    pub const ALL: [Suite; 2] = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305];

    /// The suite that is faster on this machine.
    pub fn preferred() -> Suite {
        if has_aes() { Suite::Aes256Gcm } else { Suite::ChaCha20Poly1305 }
    }

    /// The suite's bit in a mask of suites.
    pub const fn bit(self) -> u8 {
        1 << (self as u8 - 1)
    }
}

impl TryFrom<u8> for Suite {
    type Error = Error;

    fn try_from(number: u8) -> Result<Self, Error> {
        match number {
            1 => Ok(Suite::Aes256Gcm),
            2 => Ok(Suite::ChaCha20Poly1305),
            other => Err(Error::UnknownSuite(other)),
        }
    }
}

/// Whether this CPU has instructions for AES and for GCM's carry-less multiplication.
pub fn has_aes() -> bool {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    let has = std::is_x86_feature_detected!("aes") && std::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    let has =
        std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
    let has = false;
    has
}

/// An expanded key. `Send` and `Sync`, cheap to call; the library wipes it when it is dropped.
///
/// The nonce is four zero bytes and the counter (u64, big-endian). **A counter must seal at most once under a key**;
/// who holds the counter sees to that.
pub struct Key {
    suite: Suite,
    inner: LessSafeKey,
}

impl Key {
    /// Expands a 32-byte key for the suite.
    pub fn new(suite: Suite, key: &Secret<32>) -> Self {
        let algorithm = match suite {
            Suite::Aes256Gcm => &AES_256_GCM,
            Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        };
        let unbound =
            UnboundKey::new(algorithm, key.expose()).expect("both suites take every key of 32 bytes");
        Key { suite, inner: LessSafeKey::new(unbound) }
    }

    /// The suite the key was made for.
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// Encrypts `buf` in place and returns its tag, which the caller puts after it.
    ///
    /// It cannot fail for buffers below 64 GiB; should the library refuse all the same, `buf` is wiped, so that no
    /// plaintext leaves, and the tag opens nothing.
    #[inline]
    #[must_use = "without its tag a ciphertext cannot be opened"]
    pub fn seal(&self, counter: u64, aad: &[u8], buf: &mut [u8]) -> [u8; TAG_LEN] {
        let sealed = self.inner.seal_in_place_separate_tag(nonce(counter), Aad::from(aad), buf);
        let tag = sealed.ok().and_then(|tag| <[u8; TAG_LEN]>::try_from(tag.as_ref()).ok());
        debug_assert!(tag.is_some(), "sealing {} bytes failed", buf.len());
        tag.unwrap_or_else(|| {
            buf.fill(0);
            [0; TAG_LEN]
        })
    }

    /// [`Key::seal`] from elsewhere: `sealed` is where ciphertext and tag go, so it is 16 bytes longer than `plain`.
    ///
    /// It cannot fail where it is; else nothing is sealed, and `sealed` is wiped.
    #[inline]
    pub fn seal_from(&self, counter: u64, aad: &[u8], plain: &[u8], sealed: &mut [u8]) {
        let done = match sealed.split_at_mut_checked(plain.len()) {
            Some((text, tag)) => {
                self.inner.seal_out_of_place_scatter(nonce(counter), Aad::from(aad), plain, text, &[], tag)
            }
            None => Err(aws_lc_rs::error::Unspecified),
        };
        debug_assert!(done.is_ok(), "sealing {} bytes into {} failed", plain.len(), sealed.len());
        if done.is_err() {
            sealed.fill(0);
        }
    }

    /// Opens `buf` (ciphertext, then tag) in place and returns the plaintext, 16 bytes shorter.
    ///
    /// # Errors
    ///
    /// [`Error::BadCiphertext`] when it is shorter than a tag or was not sealed under this key, counter and
    /// associated data. What `buf` holds then must not be used.
    #[inline]
    pub fn open<'a>(&self, counter: u64, aad: &[u8], buf: &'a mut [u8]) -> Result<&'a mut [u8], Error> {
        self.inner.open_in_place(nonce(counter), Aad::from(aad), buf).map_err(|_| Error::BadCiphertext)
    }

    /// [`Key::seal`] into a new vector, the tag at its end. For single control messages.
    #[must_use]
    pub fn seal_vec(&self, counter: u64, aad: &[u8], plaintext: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(plaintext.len() + TAG_LEN);
        out.extend_from_slice(plaintext);
        let tag = self.seal(counter, aad, &mut out);
        out.extend_from_slice(&tag);
        out
    }

    /// [`Key::open`] into a new vector. For single control messages.
    ///
    /// # Errors
    ///
    /// As [`Key::open`].
    pub fn open_vec(&self, counter: u64, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Error> {
        let mut buf = sealed.to_vec();
        let len = self.open(counter, aad, &mut buf)?.len();
        buf.truncate(len);
        Ok(buf)
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("suite", &self.suite).finish_non_exhaustive()
    }
}

#[inline]
fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    let (_, low) = bytes.split_at_mut(4);
    low.copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_altered_bit_is_refused() {
        for suite in Suite::ALL {
            let key = Key::new(suite, &Secret::new([3; 32]));
            let sealed = key.seal_vec(5, b"head", b"body");
            assert_eq!(key.open_vec(5, b"head", &sealed).unwrap(), b"body");
            for bit in 0..sealed.len() * 8 {
                let mut bad = sealed.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(key.open_vec(5, b"head", &bad), Err(Error::BadCiphertext));
            }
            assert_eq!(key.open_vec(6, b"head", &sealed), Err(Error::BadCiphertext));
            assert_eq!(key.open_vec(5, b"heaD", &sealed), Err(Error::BadCiphertext));
            for len in 0..sealed.len() {
                assert_eq!(key.open_vec(5, b"head", &sealed[..len]), Err(Error::BadCiphertext));
            }
        }
    }

    #[test]
    fn sealed_from_elsewhere_it_is_the_same() {
        for suite in Suite::ALL {
            let key = Key::new(suite, &Secret::new([3; 32]));
            for len in [0, 1, 15, 16, 17, 1400, 9000] {
                let plain: Vec<u8> = (0..len).map(|i| i as u8).collect();
                let mut sealed = vec![7; len + TAG_LEN];
                key.seal_from(5, b"head", &plain, &mut sealed);
                assert_eq!(sealed, key.seal_vec(5, b"head", &plain));
            }
        }
    }

    #[test]
    fn the_empty_message_has_a_tag() {
        for suite in Suite::ALL {
            let key = Key::new(suite, &Secret::new([3; 32]));
            let sealed = key.seal_vec(u64::MAX, b"", b"");
            assert_eq!(sealed.len(), TAG_LEN);
            assert_eq!(key.open_vec(u64::MAX, b"", &sealed).unwrap(), b"");
        }
    }

    #[test]
    fn suites_have_stable_numbers() {
        for suite in Suite::ALL {
            assert_eq!(Suite::try_from(suite as u8), Ok(suite));
        }
        assert_eq!(Suite::try_from(0), Err(Error::UnknownSuite(0)));
        assert_eq!(Suite::try_from(3), Err(Error::UnknownSuite(3)));
        assert_eq!((Suite::Aes256Gcm.bit(), Suite::ChaCha20Poly1305.bit()), (1, 2));
    }

    #[test]
    fn a_key_crosses_threads_and_prints_nothing() {
        fn shared<T: Send + Sync>() {}
        shared::<Key>();
        let key = Key::new(Suite::Aes256Gcm, &Secret::new([0xAB; 32]));
        assert_eq!(format!("{key:?}"), "Key { suite: Aes256Gcm, .. }");
    }
}
