//! The hybrid signature: Ed25519 (RFC 8032) and ML-DSA-87 (FIPS 204, empty context), both of which must verify.
//!
//! What both sign is `label ‖ 0 ‖ H(public key) ‖ message`: the label keeps apart what signatures are for, and the
//! hash of both public keys ([`Label::SigKeys`]) keeps one half from being carried over to a key with another
//! second half.

use aws_lc_rs::signature::{
    ED25519, Ed25519KeyPair, KeyPair, ML_DSA_87, ML_DSA_87_SIGNING, PqdsaKeyPair, UnparsedPublicKey,
};

use crate::{
    Error,
    kdf::{self, Label},
    secret::Secret,
};

/// The length of a public key: 32 (Ed25519) + 2,592 (ML-DSA-87) bytes.
pub const PUBLIC_KEY_LEN: usize = ED_PUBLIC_LEN + 2592;
/// The length of a signature: 64 (Ed25519) + 4,627 (ML-DSA-87) bytes.
pub const SIGNATURE_LEN: usize = ED_SIGNATURE_LEN + PQ_SIGNATURE_LEN;

const ED_PUBLIC_LEN: usize = 32;
const ED_SIGNATURE_LEN: usize = 64;
const PQ_SIGNATURE_LEN: usize = 4627;

/// A hybrid signing key. It is remembered as its 32-byte seed, never in this form.
pub struct SigningKey {
    ed: Ed25519KeyPair,
    pq: PqdsaKeyPair,
    public: PublicKey,
}

impl SigningKey {
    /// Expands a seed. Each half gets a seed of its own, by HKDF under its own label.
    ///
    /// # Errors
    ///
    /// [`Error::Backend`].
    pub fn from_seed(seed: &Secret<32>) -> Result<Self, Error> {
        let ed_seed = kdf::derive::<32>(Label::SeedEd25519, &[], &[seed.expose()], &[]);
        let pq_seed = kdf::derive::<32>(Label::SeedMlDsa, &[], &[seed.expose()], &[]);
        let ed = Ed25519KeyPair::from_seed_unchecked(ed_seed.expose()).map_err(|_| Error::Backend)?;
        let pq = PqdsaKeyPair::from_seed(&ML_DSA_87_SIGNING, pq_seed.expose()).map_err(|_| Error::Backend)?;
        let mut public = Vec::with_capacity(PUBLIC_KEY_LEN);
        public.extend_from_slice(ed.public_key().as_ref());
        public.extend_from_slice(pq.public_key().as_ref());
        let public = PublicKey::from_bytes(&public).map_err(|_| Error::Backend)?;
        Ok(SigningKey { ed, pq, public })
    }

    /// The public key.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Signs `msg` for the purpose that `label` names. The ML-DSA half is randomised, so two signatures of one
    /// message differ.
    ///
    /// # Errors
    ///
    /// [`Error::Backend`].
    pub fn sign(&self, label: Label, msg: &[u8]) -> Result<Signature, Error> {
        let signed = self.public.signed_bytes(label, msg);
        let mut out = Box::new([0; SIGNATURE_LEN]);
        let (ed, pq) = out.split_at_mut(ED_SIGNATURE_LEN);
        let ed_signature = self.ed.try_sign(&signed).map_err(|_| Error::Backend)?;
        if ed_signature.as_ref().len() != ED_SIGNATURE_LEN {
            return Err(Error::Backend);
        }
        ed.copy_from_slice(ed_signature.as_ref());
        match self.pq.sign(&signed, pq) {
            Ok(PQ_SIGNATURE_LEN) => Ok(Signature(out)),
            _ => Err(Error::Backend),
        }
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sign::SigningKey(.., {:?})", self.public)
    }
}

/// A hybrid public key: Ed25519 (32 bytes), then ML-DSA-87 (2,592 bytes).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PublicKey(Box<[u8; PUBLIC_KEY_LEN]>);

impl PublicKey {
    /// The key's bytes.
    pub fn as_bytes(&self) -> &[u8; PUBLIC_KEY_LEN] {
        &self.0
    }

    /// Takes a key from the wire. Whether its first half is a point is seen when it verifies.
    ///
    /// # Errors
    ///
    /// [`Error::BadKey`] when the length is not 2,624.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let bytes: &[u8; PUBLIC_KEY_LEN] = bytes.try_into().map_err(|_| Error::BadKey)?;
        Ok(PublicKey(Box::new(*bytes)))
    }

    /// Checks that the holder of this key signed `msg` for the purpose that `label` names: Ed25519 first, which is
    /// the cheaper one, then ML-DSA.
    ///
    /// # Errors
    ///
    /// [`Error::BadSignature`].
    pub fn verify(&self, label: Label, msg: &[u8], signature: &Signature) -> Result<(), Error> {
        let signed = self.signed_bytes(label, msg);
        let (ed_key, pq_key) = self.0.split_at(ED_PUBLIC_LEN);
        let (ed, pq) = signature.0.split_at(ED_SIGNATURE_LEN);
        UnparsedPublicKey::new(&ED25519, ed_key).verify(&signed, ed).map_err(|_| Error::BadSignature)?;
        UnparsedPublicKey::new(&ML_DSA_87, pq_key).verify(&signed, pq).map_err(|_| Error::BadSignature)
    }

    fn signed_bytes(&self, label: Label, msg: &[u8]) -> Vec<u8> {
        let head = label.terminated();
        let mut out = Vec::with_capacity(head.len() + 32 + msg.len());
        out.extend_from_slice(head);
        out.extend_from_slice(&kdf::hash(Label::SigKeys, &[&self.0[..]]));
        out.extend_from_slice(msg);
        out
    }
}

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sign::PublicKey({:02x}{:02x}{:02x}{:02x}..)", self.0[0], self.0[1], self.0[2], self.0[3])
    }
}

/// A hybrid signature: Ed25519 (64 bytes), then ML-DSA-87 (4,627 bytes).
#[derive(Clone, PartialEq, Eq)]
pub struct Signature(Box<[u8; SIGNATURE_LEN]>);

impl Signature {
    /// The signature's bytes.
    pub fn as_bytes(&self) -> &[u8; SIGNATURE_LEN] {
        &self.0
    }

    /// Takes a signature from the wire.
    ///
    /// # Errors
    ///
    /// [`Error::BadSignature`] when the length is not 4,691.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let bytes: &[u8; SIGNATURE_LEN] = bytes.try_into().map_err(|_| Error::BadSignature)?;
        Ok(Signature(Box::new(*bytes)))
    }
}

impl std::fmt::Debug for Signature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signature({:02x}{:02x}..)", self.0[0], self.0[1])
    }
}
