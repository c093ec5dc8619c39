//! Rekey: RESPONSE and ESTABLISHED inside the session they replace, no cookie, the old exporter mixed into k1 and k2. The
//! new session is good if the leaves or the old session are (tests/formal/rekey.pv).

use super::initiator::{Credential, ResponderLeaf, open_established};
use super::responder::seal_established;
use super::transcript::{H1, SessionKeys, Stage1};
use shadowmesh_crypto::aead::Suite;
use shadowmesh_crypto::kdf::{self, Hash, Label};
use shadowmesh_crypto::kem;
use shadowmesh_crypto::secret::Secret;
use shadowmesh_wire::handshake::{CREDENTIAL, CredentialKind, Established, KEM, Sid, TAG};
use shadowmesh_wire::{DropReason, Reader, VERSION, Writer};

/// What both sides know of the session that is replaced.
pub struct Parent<'a> {
    /// Network id.
    pub profile: &'a [u8; 32],
    /// NodeIds: who starts this rekey, and who answers.
    pub initiator: &'a [u8; 32],
    /// The same.
    pub responder: &'a [u8; 32],
    /// Suite of the session; a rekey keeps it.
    pub suite: Suite,
    /// The session's exporter.
    pub exporter: &'a Secret<32>,
}

impl Parent<'_> {
    fn h1(&self, sid: &Sid, leaf: &Hash, ephemeral: &[u8], ct1: &[u8]) -> Hash {
        let names = kdf::hash(Label::K2Rekey, &[sid, self.initiator, self.responder]);
        H1 {
            version: VERSION,
            suite: self.suite,
            kind: CredentialKind::Member,
            profile: self.profile,
            hello: &names,
            nonce_r: &[],
            responder: self.responder,
            leaf,
            ephemeral,
            ct1,
        }
        .hash()
    }
}

/// The side that started it, waiting for the answer.
pub struct Rekey {
    /// Its id.
    pub sid: Sid,
    stage1: Stage1,
    ephemeral: kem::SecretKey,
    sealed: [u8; CREDENTIAL + TAG],
    credential: Credential,
}

impl Rekey {
    /// Starts one; gives the message, to be sent in pieces and repeated.
    ///
    /// # Errors
    /// The KEM refuses the leaf's key.
    pub fn start(
        parent: &Parent<'_>,
        sid: Sid,
        leaf: &ResponderLeaf,
        credential: Credential,
    ) -> Result<(Self, Vec<u8>), DropReason> {
        let bad = |_| DropReason::BadHandshake;
        let ephemeral = kem::SecretKey::generate().map_err(bad)?;
        let (ct1, ss1) = kem::encapsulate(&leaf.key).map_err(bad)?;
        let h1 = parent.h1(&sid, &leaf.hash, ephemeral.public().as_bytes(), &ct1);
        let stage1 = Stage1::new(h1, &ss1, Some(parent.exporter));
        let sealed = stage1.response_key().seal_vec(0, &h1, &credential.bytes(&h1));
        let sealed: [u8; CREDENTIAL + TAG] = sealed.try_into().map_err(|_| DropReason::BadHandshake)?;
        let mut body = Vec::with_capacity(32 + 2 * KEM + CREDENTIAL + TAG);
        Writer(&mut body).bytes(&leaf.hash).bytes(ephemeral.public().as_bytes()).bytes(&ct1).bytes(&sealed);
        Ok((Rekey { sid, stage1, ephemeral, sealed, credential }, body))
    }

    /// Takes the answer.
    ///
    /// # Errors
    /// It does not open under this rekey.
    pub fn finish(&self, parent: &Parent<'_>, body: &[u8]) -> Result<(SessionKeys, Established), DropReason> {
        open_established(
            &self.stage1,
            parent.suite,
            &self.ephemeral,
            &self.credential,
            &self.sealed,
            body,
            Some(parent.exporter),
        )
    }
}

/// A rekey's message, opened by the side that answers.
pub struct RekeyOpened {
    pub(super) stage1: Stage1,
    pub(super) sealed: [u8; CREDENTIAL + TAG],
    ephemeral: Box<[u8; KEM]>,
    /// Hash of the certificate that the initiator shows, its newest or not.
    pub certificate: Hash,
    /// Hash of the leaf that it shows.
    pub leaf: Hash,
}

impl RekeyOpened {
    /// Opens the message. `leaf` gives the secret key of our leaf with a hash.
    ///
    /// # Errors
    /// It is not for a leaf of ours, or does not open.
    pub fn open(
        parent: &Parent<'_>,
        sid: &Sid,
        body: &[u8],
        leaf: impl FnOnce(&Hash) -> Option<std::sync::Arc<kem::SecretKey>>,
    ) -> Result<Self, DropReason> {
        let mut r = Reader::new(body);
        let leaf_hash = r.array()?;
        let ephemeral = Box::new(r.array::<KEM>()?);
        let ct1 = r.array::<KEM>()?;
        let sealed = r.array()?;
        r.finish()?;
        let key = leaf(&leaf_hash).ok_or(DropReason::BadHandshake)?;
        let h1 = parent.h1(sid, &leaf_hash, &ephemeral[..], &ct1);
        let ss1 = key.decapsulate(&ct1).map_err(|_| DropReason::BadHandshake)?;
        let stage1 = Stage1::new(h1, &ss1, Some(parent.exporter));
        let plain = stage1.response_key().open_vec(0, &h1, &sealed).map_err(|_| DropReason::BadTag)?;
        let mut r = Reader::new(&plain);
        let (certificate, leaf) = (r.array()?, r.array()?);
        Ok(RekeyOpened { stage1, sealed, ephemeral, certificate, leaf })
    }

    /// Answers; `key` is the peer's leaf key.
    ///
    /// # Errors
    /// The KEM refuses a key.
    pub fn finish(
        &self,
        parent: &Parent<'_>,
        key: &kem::PublicKey,
        established: &Established,
    ) -> Result<(Vec<u8>, SessionKeys), DropReason> {
        seal_established(
            &self.stage1,
            parent.suite,
            &self.ephemeral,
            &self.sealed,
            Some(key),
            &[&self.certificate, &self.leaf],
            established,
            Some(parent.exporter),
        )
    }
}
