//! Bounded jobs for another thread: signatures to check, at most a few milliseconds each. Pure: a job takes all that it
//! needs with it.

use crate::handshake::ResponderLeaf;
use shadowmesh_crypto::{Hash, sign};
use shadowmesh_identity::chain::{Chain, ChainError, verify_chain, verify_relay_leaf};
use shadowmesh_identity::{Claim, Fact, FactError, Genesis, NetworkId, NodeId, Roles, Roster, Verified};
use shadowmesh_wire::Reader;

/// A job. Run it anywhere, then hand its result back to whom it came from.
pub struct Work {
    id: u64,
    job: Job,
}

pub(crate) enum Job {
    /// A fact and its signer's key.
    Fact(Box<Fact>, Box<sign::PublicKey>),
    /// A member's chain.
    Chain { genesis: Box<Genesis>, bytes: Vec<u8>, now: u64 },
    /// What LEAF_REQUEST pulled from a relay.
    RelayLeaf { relay: NodeId, bundle: Vec<u8>, now: u64 },
    /// A joiner's claim in the session with this transcript.
    Claim { bytes: Vec<u8>, network: NetworkId, h2: Hash },
    /// What LEAF_REQUEST pulled from an inviter.
    Inviter { network: NetworkId, bundle: Vec<u8>, now: u64 },
    /// What a joiner gets.
    JoinBundle { genesis: Box<Genesis>, bundle: Vec<u8>, me: NodeId, least_version: u64, now: u64 },
}

/// The result of a [`Work`].
pub struct WorkDone {
    pub(crate) id: u64,
    pub(crate) outcome: Outcome,
}

pub(crate) enum Outcome {
    Fact(Result<Verified, FactError>),
    Chain(Box<Result<Chain, ChainError>>),
    /// `Err(Some(t))`: it is the relay's, and ended at `t` (unix seconds).
    RelayLeaf(Result<Box<ResponderLeaf>, Option<u64>>),
    Claim(Option<Box<Claim>>),
    Inviter(Option<Box<(Genesis, Chain, ResponderLeaf)>>),
    /// Facts to keep, or why not.
    JoinBundle(Result<Vec<Vec<u8>>, &'static str>),
}

impl Work {
    pub(crate) fn new(id: u64, job: Job) -> Self {
        Work { id, job }
    }

    /// Does it.
    pub fn run(self) -> WorkDone {
        let outcome = match self.job {
            Job::Fact(fact, key) => Outcome::Fact(fact.verify(&key)),
            Job::Chain { genesis, bytes, now } => {
                Outcome::Chain(Box::new(verify_chain(&genesis, &bytes, now)))
            }
            Job::RelayLeaf { relay, bundle, now } => {
                Outcome::RelayLeaf(relay_leaf(&relay, &bundle, now).map(Box::new))
            }
            Job::Claim { bytes, network, h2 } => {
                let claim = Claim::parse(&bytes).ok().filter(|c| c.network == network);
                Outcome::Claim(claim.filter(|c| c.verify(&h2).is_ok()).map(Box::new))
            }
            Job::Inviter { network, bundle, now } => {
                Outcome::Inviter(inviter(&network, &bundle, now).map(Box::new))
            }
            Job::JoinBundle { genesis, bundle, me, least_version, now } => {
                Outcome::JoinBundle(join_bundle(*genesis, &bundle, &me, least_version, now))
            }
        };
        WorkDone { id: self.id, outcome }
    }
}

/// A relay's bundle: its identity key, then its leaf.
fn relay_leaf(relay: &NodeId, bundle: &[u8], now: u64) -> Result<ResponderLeaf, Option<u64>> {
    let (key, leaf) = bundle.split_at_checked(sign::PUBLIC_KEY_LEN).ok_or(None)?;
    let verified = verify_relay_leaf(relay, key, leaf, now).map_err(|e| match e {
        ChainError::Ended(_, at) => Some(at),
        _ => None,
    })?;
    let fact = verified.fact();
    let leaf = fact.leaf().ok_or(None)?;
    Ok(ResponderLeaf { node: relay.0, hash: fact.id(), key: (*leaf.key).clone() })
}

/// An inviter's bundle: genesis behind its length, then its chain. The network is the one that the invite names, or
/// nothing. [P-ROOT]
fn inviter(network: &NetworkId, bundle: &[u8], now: u64) -> Option<(Genesis, Chain, ResponderLeaf)> {
    let mut r = Reader::new(bundle);
    let genesis = Genesis::parse(r.blob(usize::from(u16::MAX)).ok()?).ok()?;
    if genesis.id() != *network {
        return None;
    }
    let chain = verify_chain(&genesis, r.rest(), now).ok()?;
    if !chain.certificate.certificate()?.roles.contains(Roles::ADMIN) {
        return None;
    }
    let leaf = chain.leaf.as_ref()?;
    let leaf = ResponderLeaf { node: chain.subject().0, hash: leaf.id(), key: (*leaf.leaf()?.key).clone() };
    Some((genesis, chain, leaf))
}

/// A joiner's bundle: facts, each behind a four-byte length. All of them are verified; the own certificate is among
/// them, and the roster is not older than the invite.
fn join_bundle(
    genesis: Genesis,
    bundle: &[u8],
    me: &NodeId,
    least_version: u64,
    now: u64,
) -> Result<Vec<Vec<u8>>, &'static str> {
    let mut r = Reader::new(bundle);
    let mut facts = vec![];
    while r.remaining() > 0 {
        let n = r.u32().map_err(|_| "it is malformed")?;
        facts.push(r.bytes(n as usize).map_err(|_| "it is malformed")?.to_vec());
    }
    let (roster, _) = Roster::restore(genesis, facts);
    if roster.is_valid(me, now.max(roster.newest_admin_fact_time())).is_err() {
        return Err("it holds no certificate for this machine");
    }
    if roster.version() < least_version {
        return Err("its roster is older than the invite");
    }
    Ok(roster.held().map(|f| f.bytes().to_vec()).collect())
}
