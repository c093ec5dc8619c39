//! The TLS side of TCP: the certificate, self-signed, the host's own or a public authority's (`acme.rs`), and the relay's
//! signature over it, by which clients know it.

use crate::config::TlsFiles;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use shadowmesh_control::{Exit, Problem};
use shadowmesh_crypto::sign::SigningKey;
use shadowmesh_identity::stream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// What an authority says in ALPN when it calls (RFC 8737 section 6.2).
pub const ACME_ALPN: &[u8] = b"acme-tls/1";

/// A certificate with what stands above it, and its key.
pub struct Certificate {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl Certificate {
    /// In PEM: the certificate, those above it; and the key.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, pem::Error> {
        let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>()?;
        Ok(Certificate { chain, key: PrivateKeyDer::from_pem_slice(key)? })
    }

    /// The host's, in DER.
    pub fn own(&self) -> Option<&CertificateDer<'static>> {
        self.chain.first()
    }
}

/// Why a certificate cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error("there is no certificate")]
    None,
    #[error("{0}")]
    Tls(#[from] rustls::Error),
    #[error("it cannot be signed")]
    Signature,
}

/// What connections are made with.
pub struct Tls {
    pub config: Arc<ServerConfig>,
    /// The relay's word for the certificate.
    pub proof: Vec<u8>,
    certified: Arc<CertifiedKey>,
}

/// What is shown at the moment: an authority's certificate takes the place of one that was made, a new one that of one before.
pub struct Showing {
    identity: SigningKey,
    provider: Arc<CryptoProvider>,
    now: Mutex<Arc<Tls>>,
}

/// Shows one certificate, and another one to an authority that calls.
#[derive(Debug)]
struct Shown {
    certified: Arc<CertifiedKey>,
    challenge: Option<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let calls = hello.alpn().is_some_and(|mut all| all.next() == Some(ACME_ALPN) && all.next().is_none());
        if calls { self.challenge.clone() } else { Some(self.certified.clone()) }
    }
}

impl Showing {
    /// TLS 1.3 with hybrid key exchange first; whoever else comes by (a browser) may be older, and finds no page.
    pub fn new(certificate: Certificate, identity: SigningKey) -> Result<Self, Problem> {
        let failed = |e: Unusable| Problem::failed(format!("TLS could not be set up: {e}"));
        let mut provider = default_provider();
        provider.kx_groups = vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1];
        let provider = Arc::new(provider);
        let tls = generation(&identity, &provider, certificate).map_err(failed)?;
        Ok(Showing { identity, provider, now: Mutex::new(Arc::new(tls)) })
    }

    /// What the next connection is made with.
    pub fn now(&self) -> Arc<Tls> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on this one.
    pub fn show(&self, certificate: Certificate) -> Result<(), Unusable> {
        let tls = generation(&self.identity, &self.provider, certificate)?;
        self.set(tls);
        Ok(())
    }

    /// And that one to an authority.
    pub fn challenge(&self, certificate: Certificate) -> Result<(), Unusable> {
        let key = self.provider.key_provider.load_private_key(certificate.key)?;
        // Not compared with its key: the certificate has an extension that only authorities understand.
        self.answer(Some(Arc::new(CertifiedKey::new(certificate.chain, key))))
    }

    /// No authority is expected any more.
    pub fn forget_challenge(&self) {
        // The same was made before.
        let _made = self.answer(None);
    }

    fn answer(&self, challenge: Option<Arc<CertifiedKey>>) -> Result<(), Unusable> {
        let now = self.now();
        let config = config(&self.provider, now.certified.clone(), challenge)?;
        self.set(Tls { config, proof: now.proof.clone(), certified: now.certified.clone() });
        Ok(())
    }

    fn set(&self, tls: Tls) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(tls);
    }
}

fn generation(
    identity: &SigningKey,
    provider: &Arc<CryptoProvider>,
    certificate: Certificate,
) -> Result<Tls, Unusable> {
    let own = certificate.own().ok_or(Unusable::None)?;
    let proof = stream::certify(identity, own).map_err(|_| Unusable::Signature)?;
    let Certificate { chain, key } = certificate;
    let certified = Arc::new(CertifiedKey::from_der(chain, key, provider)?);
    Ok(Tls { config: config(provider, certified.clone(), None)?, proof, certified })
}

fn config(
    provider: &Arc<CryptoProvider>,
    certified: Arc<CertifiedKey>,
    challenge: Option<Arc<CertifiedKey>>,
) -> Result<Arc<ServerConfig>, Unusable> {
    let mut alpn = vec![b"http/1.1".to_vec()];
    alpn.extend(challenge.is_some().then(|| ACME_ALPN.to_vec()));
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Shown { certified, challenge }));
    config.alpn_protocols = alpn;
    // Nobody comes back by them.
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
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
