//! What a peer that never heard of a member needs to believe in it: the admin's certificate unless the root admitted
//! the member itself, the member's certificate, its leaf; one behind the other, in this order.

use shadowmesh_crypto::sign;

use crate::{
    Genesis, NodeId, ParseError, Roster,
    fact::{Fact, FactError, Kind, MAX_FACT_LEN, Roles, Verified},
};

/// The longest chain, in bytes.
pub const MAX_CHAIN_LEN: usize = 3 * MAX_FACT_LEN;

/// A chain whose every signature was checked, up to the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The certificate of the admin who admitted the member; `None` when the root did.
    pub issuer: Option<Verified>,
    /// The member's certificate.
    pub certificate: Verified,
    /// The member's leaf.
    pub leaf: Option<Verified>,
}

impl Chain {
    /// The member.
    pub fn subject(&self) -> NodeId {
        self.certificate.subject()
    }

    /// The facts, to merge them into a roster, which may know of a revocation.
    pub fn into_facts(self) -> Vec<Verified> {
        [self.issuer, Some(self.certificate), self.leaf].into_iter().flatten().collect()
    }
}

/// Why a chain is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// A fact is malformed or does not verify.
    #[error(transparent)]
    Fact(#[from] FactError),
    /// The facts are not the ones a chain has, or do not belong together.
    #[error("the certificates are not a chain: {0}")]
    Broken(&'static str),
    /// A certificate or leaf had ended before now. (One that has not begun is taken: [`crate::Leaf::is_over`].)
    #[error("{0} ended at {1} (unix seconds)")]
    Ended(&'static str, u64),
}

impl From<ParseError> for ChainError {
    fn from(error: ParseError) -> Self {
        ChainError::Fact(error.into())
    }
}

impl Roster {
    /// A member's chain, its current leaf (at `now`, unix seconds) included if there is one. `None` when no
    /// certificate counts for it.
    pub fn chain(&self, id: &NodeId, now: u64) -> Option<Vec<Fact>> {
        let member = self.member(id)?;
        let mut chain = Vec::with_capacity(3);
        if member.fact.signer() != self.genesis().root_id() {
            chain.push(self.member(&member.fact.signer())?.fact.clone());
        }
        chain.push(member.fact.clone());
        chain.extend(member.leaf_fact(now).cloned());
        Some(chain)
    }
}

/// Checks a chain: first everything that costs little, then the signatures, each certificate before what it
/// vouches for. At most three verifications; a job for another thread.
///
/// What it cannot know are revocations: merge the facts, and ask [`Roster::is_valid`].
///
/// # Errors
///
/// [`ChainError`].
pub fn verify_chain(genesis: &Genesis, bytes: &[u8], now: u64) -> Result<Chain, ChainError> {
    if bytes.len() > MAX_CHAIN_LEN {
        return Err(ParseError::TooLong("the chain").into());
    }
    let mut certificates = Vec::new();
    let mut leaf = None;
    let mut rest = bytes;
    while !rest.is_empty() {
        let (fact, behind) = Fact::parse_prefix(rest)?;
        if fact.network() != genesis.id() {
            return Err(ChainError::Broken("one is of another network"));
        }
        match fact.kind() {
            Kind::Certificate if certificates.len() < 2 && leaf.is_none() => certificates.push(fact),
            Kind::Leaf if leaf.is_none() => leaf = Some(fact),
            _ => return Err(ChainError::Broken("there is one too many")),
        }
        rest = behind;
    }
    let fact = certificates.pop().ok_or(ChainError::Broken("there is none"))?;
    let issuer = certificates.pop();

    let body = fact.certificate().ok_or(ChainError::Broken("there is none"))?;
    let issuer_body = issuer.as_ref().and_then(Fact::certificate);
    let root = genesis.root_id();
    match (&issuer, issuer_body) {
        (Some(issuer), Some(admin)) => {
            if issuer.signer() != root || !admin.roles.contains(Roles::ADMIN) {
                return Err(ChainError::Broken("the issuer is no admin named by the root"));
            }
            if fact.signer() != issuer.subject() || body.roles.contains(Roles::ADMIN) {
                return Err(ChainError::Broken("the issuer may not have signed this certificate"));
            }
            if fact.issued() >= admin.not_after {
                return Err(ChainError::Ended("the issuer's certificate", admin.not_after));
            }
        }
        _ if fact.signer() != root => return Err(ChainError::Broken("the issuer's is missing")),
        _ => {}
    }
    if fact.subject() == root {
        return Err(ChainError::Broken("one is about the root key"));
    }
    if now >= body.not_after {
        return Err(ChainError::Ended("the certificate", body.not_after));
    }
    if let Some(leaf) = &leaf {
        if leaf.subject() != fact.subject() {
            return Err(ChainError::Broken("the leaf is another node's"));
        }
        if let Some(leaf) = leaf.leaf().filter(|l| l.is_over(now)) {
            return Err(ChainError::Ended("the leaf", leaf.not_after));
        }
    }

    let key = body.key.clone();
    let issuer_key = issuer_body.map_or(&genesis.root, |admin| &admin.key);
    let certificate_key = issuer_key.clone();
    let issuer = issuer.map(|issuer| issuer.verify(&genesis.root)).transpose()?;
    let certificate = fact.verify(&certificate_key)?;
    let leaf = leaf.map(|leaf| leaf.verify(&key)).transpose()?;
    Ok(Chain { issuer, certificate, leaf })
}

/// Checks what a relay shows of itself: that the key is the one its NodeId stands for, and signed a leaf that is
/// not over.
///
/// # Errors
///
/// [`ChainError`].
pub fn verify_relay_leaf(relay: &NodeId, key: &[u8], leaf: &[u8], now: u64) -> Result<Verified, ChainError> {
    let key =
        sign::PublicKey::from_bytes(key).map_err(|_| ParseError::Invalid("the relay's key is malformed"))?;
    if NodeId::of(&key) != *relay {
        return Err(ChainError::Broken("the relay's key is not the one its address names"));
    }
    let fact = Fact::parse(leaf)?;
    if fact.kind() != Kind::RelayLeaf || fact.subject() != *relay {
        return Err(ChainError::Broken("the leaf is not the relay's"));
    }
    let fact = fact.verify(&key)?;
    // Last: that it ended is told to people, so it has to be true.
    match fact.fact().leaf().filter(|l| l.is_over(now)) {
        Some(leaf) => Err(ChainError::Ended("the relay's leaf", leaf.not_after)),
        None => Ok(fact),
    }
}
