//! The TLS side of TCP: the certificate, self-signed or the host's own, and the relay's signature over it, by which
//! clients know it.

use crate::config::TlsFiles;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use shadowmesh_control::{Exit, Problem};
use shadowmesh_crypto::sign::SigningKey;
use shadowmesh_identity::stream;
use std::path::Path;
use std::sync::Arc;

/// A certificate with what stands above it, and its key.
pub struct Certificate {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// What connections are made with.
pub struct Tls {
    pub config: Arc<ServerConfig>,
    /// The relay's word for the certificate.
    pub proof: Vec<u8>,
}

/// The host's own certificate. Read while the process is root yet: others may not read its key.
pub fn read(files: &TlsFiles) -> Result<Certificate, Problem> {
    let wrong = |path: &Path, e: &dyn std::fmt::Display| {
        Problem::new(Exit::Config, format!("{} is no certificate with its key: {e}", path.display()))
            .fix("It is in PEM: the certificate first, then those above it; the key in a file of its own.")
    };
    let path = &files.certificate;
    let chain = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| wrong(path, &e))?;
    if chain.is_empty() {
        return Err(wrong(path, &"nothing is in it"));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|e| wrong(&files.key, &e))?;
    Ok(Certificate { chain, key })
}

/// A certificate for this name, new at each start: nobody but the relay's own signature vouches for it.
pub fn self_signed(name: &str) -> Result<Certificate, Problem> {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]);
    let made = made.map_err(|e| Problem::failed(format!("a TLS certificate could not be made: {e}")))?;
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into();
    Ok(Certificate { chain: vec![made.cert.der().clone()], key })
}

/// TLS 1.3 with hybrid key exchange first; whoever else comes by (a browser) may be older, and finds no page.
pub fn make(certificate: Certificate, identity: &SigningKey) -> Result<Tls, Problem> {
    let failed = |e: &dyn std::fmt::Display| Problem::failed(format!("TLS could not be set up: {e}"));
    let Certificate { chain, key } = certificate;
    let own = chain.first().ok_or_else(|| failed(&"there is no certificate"))?;
    let proof = stream::certify(identity, own).map_err(|e| failed(&e))?;
    let mut provider = default_provider();
    provider.kx_groups = vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1];
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| failed(&e))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|e| failed(&e))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Nobody comes back by them.
    config.send_tls13_tickets = 0;
    Ok(Tls { config: Arc::new(config), proof })
}
