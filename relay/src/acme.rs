//! A certificate of a public authority for the relay's name, by ACME (RFC 8555): asked for on a thread of its own, shown as
//! soon as it is there, asked for again when a third of its time is left. The authority calls on TCP 443 (TLS-ALPN-01, RFC
//! 8737), where the relay listens already. Clients do not need it: they know the relay by its signature, whatever it shows.

use crate::config::Authority;
use crate::tls::{Certificate, Showing};
use instant_acme::{
    Account, AccountBuilder, AccountCredentials, AuthorizationStatus, ChallengeType, Identifier, NewAccount,
    NewOrder, Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde::{Deserialize, Serialize};
use shadowmesh_crypto::secret::Secret;
use shadowmesh_host::clock::Clock;
use shadowmesh_host::store::Dir;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Of the state directory, and in it.
pub const DIRECTORY: &str = "acme";
const ACCOUNT: &str = "account";
const CERTIFICATE: &str = "certificate";
/// What an authority says of an account that it has forgotten (RFC 8555 section 6.7).
const NO_ACCOUNT: &str = "urn:ietf:params:acme:error:accountDoesNotExist";
/// A whole order.
const ORDER: Duration = Duration::from_secs(300);
/// After one that failed, and twice as long each time: authorities count failures by the hour.
const AGAIN: Duration = Duration::from_secs(300);
const MAX_AGAIN: Duration = Duration::from_secs(6 * 3600);
/// Between looks at the wall clock, which may be set meanwhile.
const LOOK: Duration = Duration::from_secs(600);

/// What is stored of one authority.
#[derive(Serialize, Deserialize)]
struct Of<T> {
    directory: String,
    what: T,
}

/// A certificate as it is stored: PEM.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
struct Issued {
    chain: String,
    key: String,
}

/// From when to when, seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Validity {
    from: i64,
    until: i64,
}

impl Validity {
    /// Two thirds are over.
    fn renew_at(self) -> i64 {
        self.until - (self.until - self.from) / 3
    }
}

#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("{}", whole(.0))]
    Acme(#[from] instant_acme::Error),
    #[error("{0}")]
    Made(#[from] rcgen::Error),
    #[error("it could not be stored: {0}")]
    Stored(#[from] shadowmesh_host::store::StoreError),
    #[error("{0}")]
    Used(#[from] crate::tls::Unusable),
    #[error("the authority offers no TLS-ALPN-01 for this name")]
    NoChallenge,
    #[error("the authority did not reach this relay on TCP 443 by its name: {0}")]
    NotReached(String),
    #[error("what it has issued is no certificate for this name")]
    Wrong,
    #[error("it took more than {} s", ORDER.as_secs())]
    Slow,
}

/// An error with what is below it: an HTTP client says little by itself.
fn whole(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut below = e.source();
    while let Some(e) = below {
        let more = e.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        below = e.source();
    }
    text
}

/// Asks an authority for one relay.
pub struct Acme {
    pub authority: Authority,
    /// The relay's name.
    pub name: String,
    pub dir: Dir,
    pub showing: Arc<Showing>,
}

impl Acme {
    /// The certificate that is stored, if it is one of this authority for this name; when it is to be renewed.
    fn stored(&self, now: i64) -> Option<(Certificate, Validity)> {
        let issued: Issued = self.read(CERTIFICATE)?;
        let (certificate, validity) = self.usable(&issued)?;
        (now < validity.until).then_some((certificate, validity))
    }

    fn read<T: for<'a> Deserialize<'a>>(&self, name: &str) -> Option<T> {
        let stored = self.dir.read(name).ok()??;
        let of: Of<T> = serde_json::from_slice(&stored.bytes).ok()?;
        (of.directory == self.authority.directory).then_some(of.what)
    }

    fn write<T: Serialize>(&self, name: &str, what: T) -> Result<(), Failed> {
        let of = Of { directory: self.authority.directory.clone(), what };
        // Of strings nothing can fail to be written.
        let bytes = Zeroizing::new(serde_json::to_vec(&of).unwrap_or_default());
        Ok(self.dir.write(name, &bytes)?)
    }

    fn usable(&self, issued: &Issued) -> Option<(Certificate, Validity)> {
        let certificate = Certificate::from_pem(issued.chain.as_bytes(), issued.key.as_bytes()).ok()?;
        let (_, parsed) = X509Certificate::from_der(certificate.own()?).ok()?;
        let names = parsed.subject_alternative_name().ok()??;
        let ours =
            |n: &GeneralName| matches!(n, GeneralName::DNSName(n) if n.eq_ignore_ascii_case(&self.name));
        let validity = Validity {
            from: parsed.validity().not_before.timestamp(),
            until: parsed.validity().not_after.timestamp(),
        };
        names.value.general_names.iter().any(ours).then_some((certificate, validity))
    }

    /// Shows what is stored, and keeps it fresh on a thread of its own.
    pub fn start(self) -> io::Result<()> {
        let clock = Clock::new();
        let mut renew_at = 0;
        if let Some((certificate, validity)) = self.stored(unix(&clock)) {
            match self.showing.show(certificate) {
                Ok(()) => renew_at = validity.renew_at(),
                Err(e) => warn!("the stored certificate is not used: {e}"),
            }
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let keep = move || runtime.block_on(self.keep(clock, renew_at));
        std::thread::Builder::new().name("acme".into()).spawn(keep)?;
        Ok(())
    }

    async fn keep(self, clock: Clock, mut renew_at: i64) {
        let mut again = AGAIN;
        loop {
            let left = u64::try_from(renew_at - unix(&clock)).unwrap_or(0);
            if left > 0 {
                sleep(Duration::from_secs(left).min(LOOK)).await;
                continue;
            }
            let ordered = timeout(ORDER, self.renew()).await.unwrap_or(Err(Failed::Slow));
            self.showing.forget_challenge();
            match ordered {
                Ok(validity) => {
                    let days = (validity.until - unix(&clock)) / 86_400;
                    info!(name = self.name, days, "a certificate was issued by {}", self.authority.directory);
                    (renew_at, again) = (validity.renew_at(), AGAIN);
                }
                Err(e) => {
                    warn!(
                        "no certificate by {} for {}, tried again in {} s: {e}. Clients come all the same",
                        self.authority.directory,
                        self.name,
                        again.as_secs()
                    );
                    // Up to a quarter more, so that relays that began together do not stay together.
                    let chance = u32::from(Secret::<1>::random().expose()[0]);
                    sleep(again + again / 1024 * chance).await;
                    again = (again * 2).min(MAX_AGAIN);
                }
            }
        }
    }

    /// One certificate: an account, an order, a call of the authority's, the certificate.
    async fn renew(&self) -> Result<Validity, Failed> {
        let name = [Identifier::Dns(self.name.clone())];
        let wanted = NewOrder::new(&name);
        let mut order = match self.account().await?.new_order(&wanted).await {
            Err(instant_acme::Error::Api(p)) if p.r#type.as_deref() == Some(NO_ACCOUNT) => {
                self.dir.remove(ACCOUNT)?;
                self.account().await?.new_order(&wanted).await?
            }
            ordered => ordered?,
        };
        let mut all = order.authorizations();
        while let Some(authorization) = all.next().await {
            let mut authorization = authorization?;
            if authorization.status == AuthorizationStatus::Valid {
                continue;
            }
            let mut challenge =
                authorization.challenge(ChallengeType::TlsAlpn01).ok_or(Failed::NoChallenge)?;
            self.showing.challenge(answer(&self.name, challenge.key_authorization().digest().as_ref())?)?;
            challenge.set_ready().await?;
        }
        match order.poll_ready(&RetryPolicy::default()).await {
            Ok(OrderStatus::Ready) => {}
            Ok(_) => return Err(Failed::NotReached(why(&mut order).await)),
            Err(instant_acme::Error::Api(problem)) => return Err(Failed::NotReached(problem.to_string())),
            Err(e) => return Err(e.into()),
        }
        let key = KeyPair::generate()?;
        let request = CertificateParams::new([self.name.clone()])?.serialize_request(&key)?;
        order.finalize_csr(request.der()).await?;
        let chain = order.poll_certificate(&RetryPolicy::default()).await?;
        let issued = Issued { chain, key: key.serialize_pem() };
        let (certificate, validity) = self.usable(&issued).ok_or(Failed::Wrong)?;
        self.write(CERTIFICATE, issued)?;
        self.showing.show(certificate)?;
        Ok(validity)
    }

    /// The account of before, or a new one: it is a key, and nobody's name.
    async fn account(&self) -> Result<Account, Failed> {
        let builder = || -> Result<AccountBuilder, instant_acme::Error> {
            match &self.authority.roots {
                Some(path) => Account::builder_with_root(path),
                None => Account::builder(),
            }
        };
        if let Some(credentials) = self.read::<AccountCredentials>(ACCOUNT) {
            return Ok(builder()?.from_credentials(credentials).await?);
        }
        let new = NewAccount { contact: &[], terms_of_service_agreed: true, only_return_existing: false };
        let (account, credentials) = builder()?.create(&new, self.authority.directory.clone(), None).await?;
        self.write(ACCOUNT, credentials)?;
        Ok(account)
    }
}

/// Seconds, as certificates count them.
fn unix(clock: &Clock) -> i64 {
    i64::try_from(clock.unix()).unwrap_or(i64::MAX)
}

/// What the authority says of the call that it has made.
async fn why(order: &mut Order) -> String {
    let mut all = order.authorizations();
    while let Some(Ok(mut authorization)) = all.next().await {
        let Ok(state) = authorization.refresh().await else { continue };
        if let Some(problem) = state.challenges.iter().find_map(|c| c.error.as_ref()) {
            return problem.to_string();
        }
    }
    "it does not say why".into()
}

/// What is shown to the authority (RFC 8737 section 3).
fn answer(name: &str, digest: &[u8]) -> Result<Certificate, Failed> {
    let mut parameters = CertificateParams::new([name.to_owned()])?;
    parameters.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate()?;
    let made = parameters.self_signed(&key)?;
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    Ok(Certificate { chain: vec![made.der().clone()], key })
}
