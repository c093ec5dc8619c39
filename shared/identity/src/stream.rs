//! Where a relay takes streams (TCP 443, for where UDP is blocked), and that a TLS certificate is the relay's own: the
//! relay signs it, so that it may be self-signed, or any authority's, and no name has to be believed. [P-TCP]

use crate::NodeId;
use shadowmesh_crypto::Error;
use shadowmesh_crypto::kdf::{Label, ct_eq, hash};
use shadowmesh_crypto::sign::{PUBLIC_KEY_LEN, PublicKey, SIGNATURE_LEN, Signature, SigningKey};
use std::fmt::Write;

/// Bytes of a [`certify`].
pub const PROOF: usize = PUBLIC_KEY_LEN + SIGNATURE_LEN;

/// The path of a relay's WebSockets. Who does not know the relay's NodeId finds a web server that has no page.
pub fn path(relay: &NodeId) -> String {
    let name = hash(Label::StreamPath, &[&relay.0]);
    name.iter().take(16).fold("/".to_owned(), |mut path, byte| {
        let _infallible = write!(path, "{byte:02x}");
        path
    })
}

/// The relay's word that this TLS certificate (DER) is its own: its key, and a signature.
///
/// # Errors
/// The key cannot sign.
pub fn certify(identity: &SigningKey, certificate: &[u8]) -> Result<Vec<u8>, Error> {
    let signature = identity.sign(Label::SigStream, certificate)?;
    Ok([&identity.public().as_bytes()[..], &signature.as_bytes()[..]].concat())
}

/// Is this certificate that of the relay with this NodeId?
pub fn is_certified(relay: &NodeId, certificate: &[u8], proof: &[u8]) -> bool {
    let Some((key, signature)) = proof.split_at_checked(PUBLIC_KEY_LEN) else { return false };
    let (Ok(key), Ok(signature)) = (PublicKey::from_bytes(key), Signature::from_bytes(signature)) else {
        return false;
    };
    ct_eq(&NodeId::of(&key).0, &relay.0) && key.verify(Label::SigStream, certificate, &signature).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Seed;

    /// [P-TCP]
    #[test]
    fn a_certificate_is_its_relays_alone() {
        let [mine, other] = [(); 2].map(|()| Seed::random().relay_identity().unwrap());
        let [me, them] = [&mine, &other].map(|k| NodeId::of(k.public()));
        let proof = certify(&mine, b"certificate").unwrap();
        assert_eq!(proof.len(), PROOF);
        assert!(is_certified(&me, b"certificate", &proof));
        assert!(!is_certified(&me, b"another", &proof));
        assert!(!is_certified(&them, b"certificate", &proof));
        assert!(!is_certified(&me, b"certificate", &certify(&other, b"certificate").unwrap()));
        assert!(!is_certified(&me, b"certificate", &proof[..PROOF - 1]));
        assert!(!is_certified(&me, b"certificate", &[]));
        let mut bent = proof;
        *bent.last_mut().unwrap() ^= 1;
        assert!(!is_certified(&me, b"certificate", &bent));
        assert_ne!(path(&me), path(&them));
        assert_eq!(path(&me).len(), 33);
    }
}
