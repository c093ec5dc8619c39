//! Transcript hashes and the key schedule. One key, one use; every key's salt is the transcript so far.

use shadowmesh_crypto::aead::{Key, Suite};
use shadowmesh_crypto::kdf::{self, Hash, Label};
use shadowmesh_crypto::secret::Secret;
use shadowmesh_wire::handshake::{CredentialKind, HELLO_CORE};

/// Hash of a HELLO: in the cookie and in h1. (The padding is zeros of a fixed length.)
pub(crate) fn hello_hash(core: &[u8; HELLO_CORE]) -> Hash {
    kdf::hash(Label::HandshakeHello, &[core])
}

/// What h0 and h1 cover. [P-TRANSCRIPT]
pub(crate) struct H1<'a> {
    pub version: u8,
    pub suite: Suite,
    pub kind: CredentialKind,
    pub profile: &'a [u8; 32],
    pub hello: &'a Hash,
    pub nonce_r: &'a [u8],
    pub responder: &'a [u8; 32],
    pub leaf: &'a Hash,
    pub ephemeral: &'a [u8],
    pub ct1: &'a [u8],
}

impl H1<'_> {
    pub fn hash(&self) -> Hash {
        let suite = [self.suite as u8];
        let h0 = kdf::hash(Label::HandshakeH0, &[&[self.version], &suite, &[self.kind as u8], self.profile]);
        kdf::hash(
            Label::HandshakeH1,
            &[
                &h0,
                self.hello,
                self.nonce_r,
                &[self.version],
                &suite,
                self.responder,
                self.leaf,
                self.ephemeral,
                self.ct1,
            ],
        )
    }
}

/// k1 and what comes of it. Its AEAD is always ChaCha20-Poly1305.
pub(crate) struct Stage1 {
    pub h1: Hash,
    pub(super) k1: Secret<32>,
}

impl Stage1 {
    /// `extra`: the invite's sealing key, or the old session's exporter.
    pub fn new(h1: Hash, ss1: &Secret<32>, extra: Option<&Secret<32>>) -> Self {
        let k1 = match extra {
            Some(extra) => kdf::derive(Label::K1, &h1, &[ss1.expose(), extra.expose()], &[]),
            None => kdf::derive(Label::K1, &h1, &[ss1.expose()], &[]),
        };
        Stage1 { h1, k1 }
    }

    fn key(&self, label: Label) -> Key {
        Key::new(Suite::ChaCha20Poly1305, &kdf::derive(label, &self.h1, &[self.k1.expose()], &[]))
    }

    /// Seals RESPONSE's credential.
    pub fn response_key(&self) -> Key {
        self.key(Label::K1Response)
    }

    /// Seals NEED_CERT.
    pub fn need_cert_key(&self) -> Key {
        self.key(Label::K1NeedCert)
    }

    /// Seals CERT.
    pub fn cert_key(&self) -> Key {
        self.key(Label::K1Cert)
    }

    /// The session's root: `identity` is what the initiator's credential stands for (both hashes of a member, a
    /// pseudonym's key, nothing), `exporter` the old session's in a rekey.
    #[allow(clippy::too_many_arguments)]
    pub fn stage2(
        &self,
        sealed_credential: &[u8],
        identity: &[&[u8]],
        ct2: &[u8],
        ct3: &[u8],
        ss2: &Secret<32>,
        ss3: Option<&Secret<32>>,
        exporter: Option<&Secret<32>>,
    ) -> Stage2 {
        let identity = kdf::hash(Label::HandshakeIdentity, identity);
        let h2 = kdf::hash(Label::HandshakeH2, &[&self.h1, sealed_credential, &identity, ct2, ct3]);
        let mut ikm: Vec<&[u8]> = vec![self.k1.expose(), ss2.expose()];
        ikm.push(ss3.map_or(&[], |s| s.expose()));
        ikm.push(exporter.map_or(&[], |s| s.expose()));
        let k2 = kdf::derive(Label::K2, &h2, &ikm, &[]);
        Stage2 { h2, k2 }
    }
}

/// k2 and what comes of it.
pub(crate) struct Stage2 {
    pub h2: Hash,
    pub(super) k2: Secret<32>,
}

impl Stage2 {
    fn derive(&self, label: Label) -> Secret<32> {
        kdf::derive(label, &self.h2, &[self.k2.expose()], &[])
    }

    /// Seals ESTABLISHED's confirmation.
    pub fn confirm_key(&self) -> Key {
        Key::new(Suite::ChaCha20Poly1305, &self.derive(Label::K2Confirm))
    }

    /// What the session runs on.
    pub fn session(self, suite: Suite, role: Role) -> SessionKeys {
        let (i, r) = (self.derive(Label::K2Initiator), self.derive(Label::K2Responder));
        let (send, receive) = match role {
            Role::Initiator => (i, r),
            Role::Responder => (r, i),
        };
        SessionKeys {
            suite,
            h2: self.h2,
            send,
            receive,
            exporter: self.derive(Label::K2Exporter),
            relay_up: self.derive(Label::RelayUp),
            relay_down: self.derive(Label::RelayDown),
        }
    }
}

/// Which end of a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Sent HELLO, or RESPONSE in a rekey.
    Initiator,
    /// Answered.
    Responder,
}

/// The keys of a session, from k2. Lane keys come from the two directions'.
#[derive(Debug)]
pub struct SessionKeys {
    /// Of the lanes.
    pub suite: Suite,
    /// The final transcript: what a claim signs.
    pub h2: Hash,
    send: Secret<32>,
    receive: Secret<32>,
    /// Mixed into the next rekey.
    pub exporter: Secret<32>,
    /// At a relay: MAC key from the client.
    pub relay_up: Secret<32>,
    /// At a relay: MAC key to the client.
    pub relay_down: Secret<32>,
}

impl SessionKeys {
    /// Key of a lane that this side sends on.
    pub fn send_lane(&self, lane: u8) -> Key {
        Key::new(self.suite, &kdf::derive(Label::Lane, &[], &[self.send.expose()], &[lane]))
    }

    /// Key of a lane that this side receives on.
    pub fn receive_lane(&self, lane: u8) -> Key {
        Key::new(self.suite, &kdf::derive(Label::Lane, &[], &[self.receive.expose()], &[lane]))
    }
}
