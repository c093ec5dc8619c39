//! The signed envelope around everything a roster holds.
//!
//! | bytes | field |
//! |---|---|
//! | 1 | kind |
//! | 32 | network id (zero for a relay's leaf) |
//! | 32 | signer, a NodeId |
//! | 32 | subject, a NodeId |
//! | 8 | sequence number |
//! | 8 | issued, unix seconds |
//! | 2 | length of the body, bounded per kind |
//! | n | body |
//! | 4691 | hybrid signature over all before it, under the kind's own label |
//!
//! **Sequence numbers** count through the network as a Lamport clock: who issues takes one more than the highest it
//! knows ([`crate::Roster::next_seq`]). So "after sequence n" means the same to all.

mod access;
mod bridge;
mod certificate;
mod leaf;
mod tombstone;

use std::{fmt, sync::Arc};

use shadowmesh_crypto::{Error as CryptoError, Hash, Label, Zeroizing, kdf, sign};

pub use access::Access;
pub use bridge::{ANY_MAC, Bridge};
pub use certificate::{Certificate, MAX_LIFETIME as MAX_CERTIFICATE_LIFETIME, Roles};
pub use leaf::{Leaf, Location, MAX_LIFETIME as MAX_LEAF_LIFETIME, MAX_LOCATIONS};
pub use tombstone::{Reason, Tombstone};

use crate::{
    NetworkId, NodeId, ParseError,
    codec::{Put, Reader},
};

const HEADER_LEN: usize = 1 + 3 * 32 + 2 * 8 + 2;

/// The longest fact, in bytes.
pub const MAX_FACT_LEN: usize = HEADER_LEN + Kind::Certificate.max_body() + sign::SIGNATURE_LEN;

/// What a fact says, with its number on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A member's name, roles and addresses, signed by the root or an admin.
    Certificate = 1,
    /// A member's KEM key of this week and where it is found, signed by itself.
    Leaf = 2,
    /// The end of a member, signed by the root or an admin.
    Tombstone = 3,
    /// A relay, and the secret that lets the network use it, signed by the root or an admin.
    Access = 4,
    /// A relay's KEM key of this week, signed by itself. It belongs to no network and enters no roster.
    RelayLeaf = 5,
}

impl Kind {
    /// The longest body, in bytes.
    pub const fn max_body(self) -> usize {
        match self {
            Kind::Certificate => 4608,
            Kind::Leaf | Kind::RelayLeaf => 2304,
            Kind::Tombstone => 16,
            Kind::Access => 384,
        }
    }

    /// The label it is signed under.
    pub const fn label(self) -> Label {
        match self {
            Kind::Certificate => Label::SigCertificate,
            Kind::Leaf => Label::SigLeaf,
            Kind::Tombstone => Label::SigTombstone,
            Kind::Access => Label::SigAccess,
            Kind::RelayLeaf => Label::SigRelayLeaf,
        }
    }

    fn from_number(number: u8) -> Result<Self, ParseError> {
        match number {
            1 => Ok(Kind::Certificate),
            2 => Ok(Kind::Leaf),
            3 => Ok(Kind::Tombstone),
            4 => Ok(Kind::Access),
            5 => Ok(Kind::RelayLeaf),
            _ => Err(ParseError::Invalid("the fact is of a kind this version does not know")),
        }
    }
}

/// The body of a fact.
#[derive(Debug, PartialEq, Eq)]
pub enum Body {
    /// See [`Certificate`].
    Certificate(Certificate),
    /// See [`Leaf`].
    Leaf(Leaf),
    /// See [`Tombstone`].
    Tombstone(Tombstone),
    /// See [`Access`].
    Access(Access),
    /// See [`Leaf`]; it has no locations.
    RelayLeaf(Leaf),
}

impl Body {
    /// The kind of fact this is the body of.
    pub fn kind(&self) -> Kind {
        match self {
            Body::Certificate(_) => Kind::Certificate,
            Body::Leaf(_) => Kind::Leaf,
            Body::Tombstone(_) => Kind::Tombstone,
            Body::Access(_) => Kind::Access,
            Body::RelayLeaf(_) => Kind::RelayLeaf,
        }
    }

    fn parse(kind: Kind, bytes: &[u8]) -> Result<Self, ParseError> {
        let mut reader = Reader::new(bytes);
        let body = match kind {
            Kind::Certificate => Body::Certificate(Certificate::read(&mut reader)?),
            Kind::Leaf => Body::Leaf(Leaf::read(&mut reader)?),
            Kind::Tombstone => Body::Tombstone(Tombstone::read(&mut reader)?),
            Kind::Access => Body::Access(Access::read(&mut reader)?),
            Kind::RelayLeaf => Body::RelayLeaf(Leaf::read(&mut reader)?),
        };
        reader.finish()?;
        Ok(body)
    }

    fn encode(&self) -> Zeroizing<Vec<u8>> {
        // Room for the longest body, so that no half-written copy of a secret is left behind by growing.
        let mut out = Zeroizing::new(Vec::with_capacity(self.kind().max_body()));
        match self {
            Body::Certificate(body) => body.write(&mut out),
            Body::Leaf(body) | Body::RelayLeaf(body) => body.write(&mut out),
            Body::Tombstone(body) => body.write(&mut out),
            Body::Access(body) => body.write(&mut out),
        }
        out
    }
}

/// Why a fact is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FactError {
    /// The bytes are not a fact.
    #[error("the fact is malformed: {0}")]
    Malformed(#[from] ParseError),
    /// The key offered is not the key that the fact names as its signer.
    #[error("the key is not the signer's")]
    WrongSigner,
    /// The signature does not verify.
    #[error("the signature does not verify")]
    BadSignature,
    /// Signing failed.
    #[error("signing failed: {0}")]
    Crypto(CryptoError),
}

/// A fact whose structure is sound, and of whose signature nothing is known yet. Cheap to clone.
#[derive(Clone)]
pub struct Fact(Arc<Inner>);

struct Inner {
    /// All of it, signature included. Wiped, as an access secret may be inside.
    bytes: Zeroizing<Vec<u8>>,
    id: Hash,
    network: NetworkId,
    signer: NodeId,
    subject: NodeId,
    seq: u64,
    issued: u64,
    body: Body,
}

impl Fact {
    /// Takes one fact, no more and no less. Cheap: no signature is looked at.
    ///
    /// # Errors
    ///
    /// [`ParseError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let (fact, rest) = Self::parse_prefix(bytes)?;
        if rest.is_empty() { Ok(fact) } else { Err(ParseError::Trailing) }
    }

    /// Takes the first of several facts that stand one behind the other, and returns the rest.
    ///
    /// # Errors
    ///
    /// [`ParseError`].
    pub fn parse_prefix(bytes: &[u8]) -> Result<(Self, &[u8]), ParseError> {
        let mut reader = Reader::new(bytes);
        let kind = Kind::from_number(reader.u8()?)?;
        let network = NetworkId(reader.array()?);
        let signer = NodeId(reader.array()?);
        let subject = NodeId(reader.array()?);
        let (seq, issued) = (reader.u64()?, reader.u64()?);
        let len = usize::from(reader.u16()?);
        if len > kind.max_body() {
            return Err(ParseError::TooLong("the fact's body"));
        }
        let body = Body::parse(kind, reader.take(len)?)?;
        reader.take(sign::SIGNATURE_LEN)?;
        let rest = reader.rest();
        let bytes = bytes.get(..bytes.len() - rest.len()).unwrap_or_default();

        match &body {
            Body::Certificate(certificate) => {
                if NodeId::of(&certificate.key) != subject {
                    return Err(ParseError::Invalid("a certificate's subject is not the id of its key"));
                }
                if signer == subject {
                    return Err(ParseError::Invalid("nobody certifies itself"));
                }
            }
            Body::Tombstone(_) if signer == subject => {
                return Err(ParseError::Invalid("nobody signs its own tombstone"));
            }
            Body::Leaf(_) | Body::RelayLeaf(_) if signer != subject => {
                return Err(ParseError::Invalid("a leaf is signed by its own node"));
            }
            Body::RelayLeaf(leaf) if !leaf.locations.is_empty() => {
                return Err(ParseError::Invalid("a relay's leaf has no locations"));
            }
            _ => {}
        }
        if (kind == Kind::RelayLeaf) != (network == NetworkId::NONE) {
            return Err(ParseError::Invalid("a fact of a network names none, or a relay's leaf names one"));
        }
        let id = kdf::hash(Label::FactId, &[bytes]);
        let bytes = Zeroizing::new(bytes.to_vec());
        let inner = Inner { bytes, id, network, signer, subject, seq, issued, body };
        Ok((Fact(Arc::new(inner)), rest))
    }

    /// Makes and signs a fact.
    ///
    /// `subject` must be what the body demands: the id of a certificate's key, the signer's own id for a leaf.
    ///
    /// # Errors
    ///
    /// [`FactError::Malformed`] when the result would not parse again, with the reason; [`FactError::Crypto`].
    pub fn sign(
        key: &sign::SigningKey,
        network: NetworkId,
        subject: NodeId,
        seq: u64,
        issued: u64,
        body: &Body,
    ) -> Result<Verified, FactError> {
        let kind = body.kind();
        let body = body.encode();
        let len = u16::try_from(body.len()).map_err(|_| ParseError::TooLong("the fact's body"))?;
        let mut out = Zeroizing::new(Vec::with_capacity(HEADER_LEN + usize::from(len) + sign::SIGNATURE_LEN));
        out.put_u8(kind as u8);
        out.put(&network.0);
        out.put(&NodeId::of(key.public()).0);
        out.put(&subject.0);
        out.put_u64(seq);
        out.put_u64(issued);
        out.put_u16(len);
        out.put(&body);
        let signature = key.sign(kind.label(), &out).map_err(FactError::Crypto)?;
        out.put(signature.as_bytes());
        Ok(Verified(Fact::parse(&out)?))
    }

    /// Checks the signature, Ed25519 before ML-DSA. About 150 µs: a job for another thread.
    ///
    /// It says who signed, not whether that signer may say this: the roster decides that.
    ///
    /// # Errors
    ///
    /// [`FactError::WrongSigner`] when `key` is not the signer's; [`FactError::BadSignature`].
    pub fn verify(&self, key: &sign::PublicKey) -> Result<Verified, FactError> {
        if NodeId::of(key) != self.signer() {
            return Err(FactError::WrongSigner);
        }
        let (signed, signature) =
            self.0.bytes.split_last_chunk::<{ sign::SIGNATURE_LEN }>().ok_or(FactError::BadSignature)?;
        let signature = sign::Signature::from_bytes(signature).map_err(|_| FactError::BadSignature)?;
        key.verify(self.kind().label(), signed, &signature).map_err(|_| FactError::BadSignature)?;
        Ok(Verified(self.clone()))
    }

    /// The whole encoding, as it travels and is stored. It may hold an access secret.
    pub fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// The fact's id: the hash of all its bytes. Two signatures of one statement have two ids.
    pub fn id(&self) -> Hash {
        self.0.id
    }

    /// What it says.
    pub fn kind(&self) -> Kind {
        self.0.body.kind()
    }

    /// The network it is about.
    pub fn network(&self) -> NetworkId {
        self.0.network
    }

    /// Who signed it, as it claims.
    pub fn signer(&self) -> NodeId {
        self.0.signer
    }

    /// Whom it is about.
    pub fn subject(&self) -> NodeId {
        self.0.subject
    }

    /// Its sequence number.
    pub fn seq(&self) -> u64 {
        self.0.seq
    }

    /// When it was signed, in unix seconds, as the signer says.
    pub fn issued(&self) -> u64 {
        self.0.issued
    }

    /// What it says, in full.
    pub fn body(&self) -> &Body {
        &self.0.body
    }

    /// The certificate, if it is one.
    pub fn certificate(&self) -> Option<&Certificate> {
        if let Body::Certificate(body) = self.body() { Some(body) } else { None }
    }

    /// The leaf, if it is one, a relay's included.
    pub fn leaf(&self) -> Option<&Leaf> {
        if let Body::Leaf(body) | Body::RelayLeaf(body) = self.body() { Some(body) } else { None }
    }

    /// The tombstone, if it is one.
    pub fn tombstone(&self) -> Option<&Tombstone> {
        if let Body::Tombstone(body) = self.body() { Some(body) } else { None }
    }

    /// The access secret, if it is one.
    pub fn access(&self) -> Option<&Access> {
        if let Body::Access(body) = self.body() { Some(body) } else { None }
    }
}

impl PartialEq for Fact {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for Fact {}

impl fmt::Debug for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fact")
            .field("kind", &self.kind())
            .field("signer", &self.signer())
            .field("subject", &self.subject())
            .field("seq", &self.seq())
            .finish_non_exhaustive()
    }
}

/// A fact whose signature has been checked. Only [`Fact::verify`] and [`Fact::sign`] make one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified(Fact);

impl Verified {
    /// The fact.
    pub fn fact(&self) -> &Fact {
        &self.0
    }

    /// The fact, by value.
    pub fn into_fact(self) -> Fact {
        self.0
    }
}

impl std::ops::Deref for Verified {
    type Target = Fact;

    fn deref(&self) -> &Fact {
        &self.0
    }
}
