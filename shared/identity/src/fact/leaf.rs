//! A leaf: the KEM key that sessions are made with, for a week at most, and where its node is found.

use shadowmesh_crypto::{aead::Suite, kem};

use super::certificate::check_lifetime;
use crate::{
    DAY, HostPort, NodeId, ParseError,
    codec::{Put, Reader},
};

/// The longest life of a leaf, in seconds: seven days. A stolen leaf key is worth nothing after that.
pub const MAX_LIFETIME: u64 = 7 * DAY;
/// The most locations in a leaf.
pub const MAX_LOCATIONS: usize = 2;

/// Where a node is found: a relay, and the node's handle there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The relay.
    pub relay: NodeId,
    /// Where it listens.
    pub address: HostPort,
    /// The node's handle at it.
    pub handle: u64,
}

/// A node's KEM key, signed by its identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The HybridKEM key.
    pub key: Box<kem::PublicKey>,
    /// Valid from this second on (unix time).
    pub not_before: u64,
    /// Valid before this second (unix time), at most [`MAX_LIFETIME`] after `not_before`.
    pub not_after: u64,
    /// The cipher suites it takes: [`Suite::bit`]s, at least one that this version knows.
    pub suites: u8,
    /// Where it is found, the better one first; at most [`MAX_LOCATIONS`].
    pub locations: Vec<Location>,
}

impl Leaf {
    /// Whether the node takes a suite.
    pub fn takes(&self, suite: Suite) -> bool {
        self.suites & suite.bit() != 0
    }

    /// Whether it is valid at `now` (unix seconds).
    pub fn is_current(&self, now: u64) -> bool {
        (self.not_before..self.not_after).contains(&now)
    }

    /// Whether it ended at `now` (unix seconds) or before. Others' leaves are refused by this alone: who signed one decided
    /// when it begins, and a machine whose clock is behind must not be kept out by that.
    pub fn is_over(&self, now: u64) -> bool {
        now >= self.not_after
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, ParseError> {
        let key = kem::PublicKey::parse(reader.take(kem::PUBLIC_KEY_LEN)?)
            .map_err(|_| ParseError::Invalid("a leaf's key is not canonical"))?;
        let (not_before, not_after) = (reader.u64()?, reader.u64()?);
        check_lifetime(not_before, not_after, MAX_LIFETIME)?;
        let suites = reader.u8()?;
        if Suite::ALL.iter().all(|suite| suites & suite.bit() == 0) {
            return Err(ParseError::Invalid("a leaf takes no cipher suite that this version knows"));
        }
        let locations = reader.list(MAX_LOCATIONS, "a leaf's list of locations", |r| {
            Ok(Location { relay: NodeId(r.array()?), address: HostPort::read(r)?, handle: r.u64()? })
        })?;
        Ok(Leaf { key: Box::new(key), not_before, not_after, suites, locations })
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.put(self.key.as_bytes());
        out.put_u64(self.not_before);
        out.put_u64(self.not_after);
        out.put_u8(self.suites);
        out.put_list(&self.locations, |out, location| {
            out.put(&location.relay.0);
            location.address.write(out);
            out.put_u64(location.handle);
        });
    }
}
