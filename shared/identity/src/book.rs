//! The inviter's book: which invites were made, and who used them. Pure state; the store keeps its bytes, sealed, as
//! they hold the invites' secrets.
//!
//! An invite is marked used in the same transaction that stores the certificate, before the certificate is sent. The
//! same node asking again gets the same answer, so a crash on either side loses nothing.

use std::collections::BTreeMap;

use shadowmesh_crypto::{Hash, Secret, Zeroizing};

use crate::{
    DAY, Name, NetworkId, NodeId, ParseError,
    codec::{Put, Reader},
    fact::{Bridge, Roles},
    invite::{Invite, InviteSecret, Meeting},
};

/// The most invites kept.
pub const MAX_INVITES: usize = 1024;
/// The most uses of one reusable invite.
pub const MAX_USES: usize = 1024;
/// For how long an invite is remembered after its end, in seconds, so that a late joiner hears why.
pub const REMEMBERED: u64 = 30 * DAY;

const VERSION: u8 = 1;
const MAX_TAGS: usize = 16;

/// What an invite is to grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The name thought of for the joiner.
    pub name: Option<Name>,
    /// The roles it gets.
    pub roles: Roles,
    /// The tags it gets.
    pub tags: Vec<Name>,
    /// What it may bridge.
    pub bridge: Bridge,
    /// The end of the invite, in unix seconds.
    pub expires: u64,
    /// Whether more than one node may use it.
    pub reusable: bool,
}

/// One use of an invite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// Who came.
    pub node: NodeId,
    /// Under what name.
    pub name: Name,
    /// When, in unix seconds.
    pub at: u64,
}

/// An invite, as its maker keeps it.
#[derive(Debug, PartialEq, Eq)]
pub struct Record {
    /// The secret in the URL; the keys of [`InviteSecret`] come from it.
    pub secret: Secret<32>,
    /// Goes into the certificates it leads to.
    pub serial: [u8; 16],
    /// What it grants.
    pub terms: Terms,
    /// Whether it was taken back.
    pub cancelled: bool,
    /// Who used it.
    pub uses: Vec<Use>,
}

/// What a claim under an invite leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redeem {
    /// The node is new: make its certificate, and store it together with the book.
    First,
    /// The node was here before: send what it was sent then.
    Again,
}

/// Why an invite admits nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InviteError {
    /// It was never made here, or ended long ago.
    #[error("this invite is unknown here")]
    Unknown,
    /// Its time is over.
    #[error("this invite has expired")]
    Expired,
    /// Somebody used it.
    #[error("this invite was used by `{by_name}` at {at} (unix seconds)")]
    Used {
        /// The name of who used it.
        by_name: Name,
        /// When, in unix seconds.
        at: u64,
    },
    /// It was taken back.
    #[error("this invite was cancelled")]
    Cancelled,
    /// The book is full, or a reusable invite has been used as often as is counted.
    #[error("there are too many invites, or uses of this one")]
    TooMany,
}

/// The invites of one inviter in one network, by locator.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct InviteBook(BTreeMap<Hash, Record>);

impl InviteBook {
    /// An empty book.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes an invite: draws its secret and serial, and enters it.
    ///
    /// # Errors
    ///
    /// [`InviteError::TooMany`] when the book is full.
    pub fn create(
        &mut self,
        network: NetworkId,
        network_name: Name,
        relays: Vec<Meeting>,
        least_version: u64,
        terms: Terms,
    ) -> Result<Invite, InviteError> {
        if self.0.len() >= MAX_INVITES || terms.tags.len() > MAX_TAGS {
            return Err(InviteError::TooMany);
        }
        let secret = Secret::random();
        let serial = *Secret::<16>::random().expose();
        let invite = Invite {
            network,
            network_name,
            name: terms.name.clone(),
            roles: terms.roles,
            expires: terms.expires,
            least_version,
            relays,
            secret: secret.duplicate(),
        };
        let record = Record { secret, serial, terms, cancelled: false, uses: Vec::new() };
        self.0.insert(invite.locator(), record);
        Ok(invite)
    }

    /// Marks an invite used by a node, if it may be, at `now` (unix seconds).
    ///
    /// # Errors
    ///
    /// [`InviteError`], a sentence to send to the joiner.
    pub fn redeem(
        &mut self,
        locator: &Hash,
        node: NodeId,
        name: &Name,
        now: u64,
    ) -> Result<Redeem, InviteError> {
        let record = self.0.get_mut(locator).ok_or(InviteError::Unknown)?;
        if record.cancelled {
            return Err(InviteError::Cancelled);
        }
        if record.uses.iter().any(|used| used.node == node) {
            return Ok(Redeem::Again);
        }
        if let (Some(used), false) = (record.uses.first(), record.terms.reusable) {
            return Err(InviteError::Used { by_name: used.name.clone(), at: used.at });
        }
        if now >= record.terms.expires {
            return Err(InviteError::Expired);
        }
        if record.uses.len() >= MAX_USES {
            return Err(InviteError::TooMany);
        }
        record.uses.push(Use { node, name: name.clone(), at: now });
        Ok(Redeem::First)
    }

    /// Takes an invite back. Who used it before stays a member.
    ///
    /// # Errors
    ///
    /// [`InviteError::Unknown`].
    pub fn cancel(&mut self, locator: &Hash) -> Result<(), InviteError> {
        self.0.get_mut(locator).map(|record| record.cancelled = true).ok_or(InviteError::Unknown)
    }

    /// An invite's record.
    pub fn get(&self, locator: &Hash) -> Option<&Record> {
        self.0.get(locator)
    }

    /// All invites, with their locators.
    pub fn iter(&self) -> impl Iterator<Item = (&Hash, &Record)> {
        self.0.iter()
    }

    /// The locators to register at the relays at `now`: of invites that somebody could still use, or that their
    /// user may ask about again.
    pub fn open(&self, now: u64) -> impl Iterator<Item = Hash> {
        self.0
            .iter()
            .filter(move |(_, record)| !record.cancelled && now < record.terms.expires)
            .map(|(locator, _)| *locator)
    }

    /// Forgets what ended more than [`REMEMBERED`] ago, and says whether that was anything.
    pub fn prune(&mut self, now: u64) -> bool {
        let before = self.0.len();
        self.0.retain(|_, record| now < record.terms.expires.saturating_add(REMEMBERED));
        self.0.len() != before
    }

    /// The book for the store.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let size = self.0.values().map(|r| 2048 + r.uses.len() * 128).sum::<usize>() + 8;
        let mut out = Zeroizing::new(Vec::with_capacity(size));
        out.put_u8(VERSION);
        out.put_u16(self.0.len() as u16);
        for record in self.0.values() {
            out.put(record.secret.expose());
            out.put(&record.serial);
            match &record.terms.name {
                Some(name) => name.write(&mut out),
                None => out.put_text(""),
            }
            out.put_u16(record.terms.roles.0);
            out.put_list(&record.terms.tags, |out, tag| tag.write(out));
            record.terms.bridge.write(&mut out);
            out.put_u64(record.terms.expires);
            out.put_flag(record.terms.reusable);
            out.put_flag(record.cancelled);
            out.put_u16(record.uses.len() as u16);
            for used in &record.uses {
                out.put(&used.node.0);
                used.name.write(&mut out);
                out.put_u64(used.at);
            }
        }
        out
    }

    /// Takes the book from the store.
    ///
    /// # Errors
    ///
    /// [`ParseError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut reader = Reader::new(bytes);
        if reader.u8()? != VERSION {
            return Err(ParseError::Invalid("the book of invites was written by a newer version"));
        }
        let mut book = BTreeMap::new();
        for _ in 0..bounded(reader.u16()?, MAX_INVITES, "the book of invites")? {
            let record = Record::read(&mut reader)?;
            if book.insert(record.secret.locator(), record).is_some() {
                return Err(ParseError::Invalid("an invite is in the book twice"));
            }
        }
        reader.finish()?;
        Ok(InviteBook(book))
    }
}

impl Record {
    fn read(reader: &mut Reader<'_>) -> Result<Self, ParseError> {
        let secret = Secret::new(reader.array()?);
        let serial = reader.array()?;
        let name = match reader.text()? {
            "" => None,
            text => Some(text.parse()?),
        };
        let roles = Roles(reader.u16()?);
        let tags = reader.list(MAX_TAGS, "an invite's list of tags", Name::read)?;
        let bridge = Bridge::read(reader)?;
        let terms = Terms { name, roles, tags, bridge, expires: reader.u64()?, reusable: reader.flag()? };
        let cancelled = reader.flag()?;
        let uses = (0..bounded(reader.u16()?, MAX_USES, "an invite's list of uses")?)
            .map(|_| Ok(Use { node: NodeId(reader.array()?), name: Name::read(reader)?, at: reader.u64()? }))
            .collect::<Result<_, ParseError>>()?;
        Ok(Record { secret, serial, terms, cancelled, uses })
    }
}

fn bounded(len: u16, max: usize, what: &'static str) -> Result<usize, ParseError> {
    let len = usize::from(len);
    if len <= max { Ok(len) } else { Err(ParseError::TooLong(what)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn with_invite(reusable: bool) -> (InviteBook, Hash) {
        let mut book = InviteBook::new();
        let meeting = Meeting { relay: NodeId([2; 32]), address: "relay.example:443".parse().unwrap() };
        let terms = Terms {
            name: Some(name("laptop")),
            roles: Roles::MEMBER,
            tags: vec![name("ops")],
            bridge: Bridge::from_words(["any", "vlan:7", "192.168.7.0/24"]).unwrap(),
            expires: 1000,
            reusable,
        };
        let invite = book.create(NetworkId([1; 32]), name("home"), vec![meeting], 3, terms).unwrap();
        assert_eq!(invite.to_url().parse(), Ok(invite.to_url().parse::<Invite>().unwrap()));
        (book, invite.locator())
    }

    #[test]
    fn one_use_and_the_same_node_again() {
        let (mut book, locator) = with_invite(false);
        let (first, second) = (NodeId([1; 32]), NodeId([2; 32]));
        assert_eq!(book.redeem(&[0; 32], first, &name("a"), 1), Err(InviteError::Unknown));
        assert_eq!(book.redeem(&locator, first, &name("a"), 1), Ok(Redeem::First));
        let mut book = InviteBook::decode(&book.encode()).unwrap();
        assert_eq!(book.redeem(&locator, first, &name("a"), 2), Ok(Redeem::Again));
        assert_eq!(book.redeem(&locator, first, &name("a"), 5000), Ok(Redeem::Again));
        let used = InviteError::Used { by_name: name("a"), at: 1 };
        assert_eq!(book.redeem(&locator, second, &name("b"), 2), Err(used.clone()));
        assert_eq!(book.redeem(&locator, second, &name("b"), 5000), Err(used));
    }

    #[test]
    fn expiry_and_cancelling() {
        let (mut book, locator) = with_invite(false);
        assert_eq!(book.open(999).collect::<Vec<_>>(), [locator]);
        assert_eq!(book.open(1000).count(), 0);
        assert_eq!(book.redeem(&locator, NodeId([1; 32]), &name("a"), 1000), Err(InviteError::Expired));
        book.cancel(&locator).unwrap();
        assert_eq!(book.redeem(&locator, NodeId([1; 32]), &name("a"), 1), Err(InviteError::Cancelled));
        assert_eq!(book.open(1).count(), 0);
        assert!(!book.prune(999 + REMEMBERED) && book.prune(1000 + REMEMBERED));
        assert_eq!(book.redeem(&locator, NodeId([1; 32]), &name("a"), 1), Err(InviteError::Unknown));
        assert_eq!(book.cancel(&locator), Err(InviteError::Unknown));
    }

    #[test]
    fn reusable_ones_count() {
        let (mut book, locator) = with_invite(true);
        for n in 0..3 {
            assert_eq!(book.redeem(&locator, NodeId([n; 32]), &name("a"), 1), Ok(Redeem::First));
            assert_eq!(book.redeem(&locator, NodeId([n; 32]), &name("a"), 1), Ok(Redeem::Again));
        }
        assert_eq!(book.get(&locator).unwrap().uses.len(), 3);
        assert_eq!(InviteBook::decode(&book.encode()), Ok(book));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_book_or_an_error(bytes: Vec<u8>, at: prop::sample::Index, value: u8) {
            let _ = InviteBook::decode(&bytes);
            let (book, _) = with_invite(false);
            let mut bad = book.encode().to_vec();
            let at = at.index(bad.len());
            bad[at] = value;
            let _ = InviteBook::decode(&bad);
            prop_assert!(InviteBook::decode(&bad[..at]).is_err());
        }
    }
}
