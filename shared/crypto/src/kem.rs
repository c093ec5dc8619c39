//! The hybrid key encapsulation: X25519 (RFC 7748) with ML-KEM-1024 (FIPS 203), used as one black box.
//!
//! The shared secret is safe as long as one of the two is. Public keys and ciphertexts are the ML-KEM part (1,568
//! bytes) followed by the X25519 part (32 bytes). The secrets, and the hashes of both ciphertexts and both public
//! keys, go into HKDF-SHA-512 under [`Label::KemCombine`].

use aws_lc_rs::{agreement, kem as backend};
use zeroize::Zeroizing;

use crate::{
    Error,
    kdf::{self, Label},
    secret::Secret,
};

/// The length of a public key: 1,568 + 32 bytes.
pub const PUBLIC_KEY_LEN: usize = 1600;
/// The length of a ciphertext: 1,568 + 32 bytes.
pub const CIPHERTEXT_LEN: usize = 1600;
/// The length of a secret key as stored: 3,168 (ML-KEM) + 32 (X25519) + 1,600 (public key) bytes.
pub const SECRET_KEY_LEN: usize = DK_LEN + X_LEN + PUBLIC_KEY_LEN;

/// ML-KEM-1024's public key and ciphertext, in bytes (FIPS 203, table 3).
const PQ_LEN: usize = 1568;
/// ML-KEM-1024's expanded decapsulation key, in bytes (FIPS 203, table 3).
const DK_LEN: usize = 3168;
/// Where the public key stands inside the decapsulation key (FIPS 203, algorithm 16): after 384 k bytes.
const DK_PUBLIC_AT: usize = 384 * 4;
const X_LEN: usize = 32;
/// The modulus of ML-KEM.
const Q: u16 = 3329;

/// A hybrid public key. The bytes are on the wire as they are here.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PublicKey(pub [u8; PUBLIC_KEY_LEN]);

impl PublicKey {
    /// Takes a public key from the wire.
    ///
    /// # Errors
    ///
    /// [`Error::BadKey`] when the length is not 1,600 or the ML-KEM part is not canonical (the modulus check of
    /// FIPS 203, section 7.2). Low-order X25519 points are refused when used, by their result.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let key = PublicKey(bytes.try_into().map_err(|_| Error::BadKey)?);
        if key.is_canonical() { Ok(key) } else { Err(Error::BadKey) }
    }

    /// The key's bytes.
    pub fn as_bytes(&self) -> &[u8; PUBLIC_KEY_LEN] {
        &self.0
    }

    /// A hash that names the key.
    pub fn id(&self) -> kdf::Hash {
        kdf::hash(Label::KemKeyId, &[&self.0])
    }

    /// Every 12-bit coefficient is below the modulus. The last 32 bytes of the ML-KEM part are a seed.
    fn is_canonical(&self) -> bool {
        let (coefficients, _) = self.0.split_at(DK_PUBLIC_AT);
        coefficients.chunks_exact(3).all(|three| match three {
            &[a, b, c] => {
                let low = u16::from(a) | (u16::from(b & 0x0F) << 8);
                let high = u16::from(b >> 4) | (u16::from(c) << 4);
                low < Q && high < Q
            }
            _ => false,
        })
    }

    fn parts(&self) -> (&[u8], &[u8]) {
        self.0.split_at(PQ_LEN)
    }
}

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let id = self.id();
        write!(f, "kem::PublicKey({:02x}{:02x}{:02x}{:02x}..)", id[0], id[1], id[2], id[3])
    }
}

/// A hybrid secret key, with its public key beside it (the backend cannot compute it from a stored key).
pub struct SecretKey {
    pq: backend::DecapsulationKey,
    x: agreement::PrivateKey,
    /// The X25519 secret again, for the store.
    x_secret: Secret<X_LEN>,
    public: Box<PublicKey>,
}

impl SecretKey {
    /// Makes a new random key pair.
    ///
    /// # Errors
    ///
    /// [`Error::Backend`].
    pub fn generate() -> Result<Self, Error> {
        let pq = backend::DecapsulationKey::generate(&backend::ML_KEM_1024).map_err(|_| Error::Backend)?;
        let pq_public = pq.encapsulation_key().and_then(|key| key.key_bytes()).map_err(|_| Error::Backend)?;
        let x_secret = Secret::random();
        let (x, x_public) = x25519(&x_secret)?;
        let public = join(pq_public.as_ref(), &x_public).ok_or(Error::Backend)?;
        Ok(SecretKey { pq, x, x_secret, public: Box::new(PublicKey(public)) })
    }

    /// The public key.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Recovers the shared secret of a ciphertext made for this key.
    ///
    /// An altered ciphertext gives another secret, not an error (FIPS 203's implicit rejection).
    ///
    /// # Errors
    ///
    /// [`Error::ZeroSharedSecret`] for a point of low order; [`Error::Backend`].
    pub fn decapsulate(&self, ct: &[u8; CIPHERTEXT_LEN]) -> Result<Secret<32>, Error> {
        let (ct_pq, ct_x) = ct.split_at(PQ_LEN);
        let ss_x = agree(&self.x, ct_x)?;
        let ss_pq = self.pq.decapsulate(ct_pq.into()).map_err(|_| Error::Backend)?;
        Ok(combine(ss_pq.as_ref(), &ss_x, ct_pq, ct_x, &self.public))
    }

    /// The key for the store, [`SECRET_KEY_LEN`] bytes: ML-KEM decapsulation key, X25519 secret, public key.
    ///
    /// # Errors
    ///
    /// [`Error::Backend`].
    pub fn to_bytes(&self) -> Result<Zeroizing<Vec<u8>>, Error> {
        let pq = self.pq.key_bytes().map_err(|_| Error::Backend)?;
        let mut out = Zeroizing::new(Vec::with_capacity(SECRET_KEY_LEN));
        out.extend_from_slice(pq.as_ref());
        out.extend_from_slice(self.x_secret.expose());
        out.extend_from_slice(&self.public.0);
        Ok(out)
    }

    /// Takes a key back from the store, and tries it once: a key that was damaged there would otherwise only be
    /// noticed as handshakes that fail for no visible reason.
    ///
    /// # Errors
    ///
    /// [`Error::BadKey`] when the length is wrong, the public key is not this secret key's, or what is
    /// encapsulated to the one does not come out of the other.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let (pq_bytes, rest) = bytes.split_first_chunk::<DK_LEN>().ok_or(Error::BadKey)?;
        let (x_bytes, public) = rest.split_first_chunk::<X_LEN>().ok_or(Error::BadKey)?;
        let public = PublicKey::parse(public)?;
        let x_secret = Secret::new(*x_bytes);
        let (x, x_public) = x25519(&x_secret)?;
        let inside = pq_bytes.get(DK_PUBLIC_AT..DK_PUBLIC_AT + PQ_LEN);
        if (inside, &x_public[..]) != (Some(public.parts().0), public.parts().1) {
            return Err(Error::BadKey);
        }
        let pq =
            backend::DecapsulationKey::new(&backend::ML_KEM_1024, pq_bytes).map_err(|_| Error::BadKey)?;
        let key = SecretKey { pq, x, x_secret, public: Box::new(public) };
        let (ct, sent) = encapsulate(&key.public)?;
        match key.decapsulate(&ct) {
            Ok(received) if received == sent => Ok(key),
            _ => Err(Error::BadKey),
        }
    }
}

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "kem::SecretKey(.., {:?})", self.public)
    }
}

/// Makes a fresh shared secret and the ciphertext that carries it to the holder of `pk`.
///
/// # Errors
///
/// [`Error::BadKey`] for a key that is not canonical, [`Error::ZeroSharedSecret`] for a point of low order,
/// [`Error::Backend`].
pub fn encapsulate(pk: &PublicKey) -> Result<([u8; CIPHERTEXT_LEN], Secret<32>), Error> {
    if !pk.is_canonical() {
        return Err(Error::BadKey);
    }
    let (pk_pq, pk_x) = pk.parts();
    let (x, ct_x) = x25519(&Secret::random())?;
    let ss_x = agree(&x, pk_x)?;
    let key = backend::EncapsulationKey::new(&backend::ML_KEM_1024, pk_pq).map_err(|_| Error::BadKey)?;
    let (ct_pq, ss_pq) = key.encapsulate().map_err(|_| Error::BadKey)?;
    let ct = join(ct_pq.as_ref(), &ct_x).ok_or(Error::Backend)?;
    let ss = combine(ss_pq.as_ref(), &ss_x, ct_pq.as_ref(), &ct_x, pk);
    Ok((ct, ss))
}

/// The combiner. It binds both ciphertexts and both keys, so that neither half can be swapped.
fn combine(ss_pq: &[u8], ss_x: &Secret<X_LEN>, ct_pq: &[u8], ct_x: &[u8], pk: &PublicKey) -> Secret<32> {
    let (pk_pq, pk_x) = pk.parts();
    let parts = [
        ss_pq,
        ss_x.expose(),
        &kdf::hash(Label::KemCiphertextPq, &[ct_pq]),
        &kdf::hash(Label::KemCiphertextX, &[ct_x]),
        &kdf::hash(Label::KemPublicPq, &[pk_pq]),
        &kdf::hash(Label::KemPublicX, &[pk_x]),
    ];
    kdf::derive(Label::KemCombine, &[], &parts, &[])
}

/// The private key for a secret, and its public key.
fn x25519(secret: &Secret<X_LEN>) -> Result<(agreement::PrivateKey, [u8; X_LEN]), Error> {
    let key = agreement::PrivateKey::from_private_key(&agreement::X25519, secret.expose())
        .map_err(|_| Error::Backend)?;
    let public = key.compute_public_key().map_err(|_| Error::Backend)?;
    let public = public.as_ref().try_into().map_err(|_| Error::Backend)?;
    Ok((key, public))
}

/// X25519. The backend refuses an all-zero result and nothing else of 32 bytes; we look again all the same.
fn agree(key: &agreement::PrivateKey, point: &[u8]) -> Result<Secret<X_LEN>, Error> {
    let peer = agreement::UnparsedPublicKey::new(&agreement::X25519, point);
    let secret = agreement::agree(key, peer, Error::ZeroSharedSecret, |raw| {
        Secret::<X_LEN>::fill_with(|out| {
            let raw: &[u8; X_LEN] = raw.try_into().map_err(|_| Error::Backend)?;
            out.copy_from_slice(raw);
            Ok(())
        })
    })?;
    if kdf::ct_eq(secret.expose(), &[0; X_LEN]) { Err(Error::ZeroSharedSecret) } else { Ok(secret) }
}

/// The ML-KEM part and the X25519 part, one after the other.
fn join(pq: &[u8], x: &[u8; X_LEN]) -> Option<[u8; PQ_LEN + X_LEN]> {
    let mut out = [0; PQ_LEN + X_LEN];
    out.first_chunk_mut::<PQ_LEN>()?.copy_from_slice(<&[u8; PQ_LEN]>::try_from(pq).ok()?);
    *out.last_chunk_mut()? = *x;
    Some(out)
}
