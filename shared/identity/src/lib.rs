//! Who may be here: identities from the master seed, networks, signed facts and their merge, invites.
//!
//! * [`seed`]: 32 bytes, 24 words, from which root keys and identities come back;
//! * [`id`]: NodeId and NetworkId, and how they are written; [`name`]: names and addresses people type;
//! * [`genesis`] and [`address`]: what a network is, and the addresses that follow from a NodeId;
//! * [`fact`]: the signed envelope, and what it can say: certificates, leaves, tombstones, access secrets;
//! * [`roster`]: the facts of one network, merged to the same state in whatever order they come;
//! * [`chain`]: what a peer that never heard of a member needs to believe in it;
//! * [`lan`]: names by which members find each other on a LAN, which say nothing to others;
//! * [`invite`], [`claim`], [`book`]: how a node gets in; [`relay_url`]: how a relay is named, [`stream`]: what it
//!   shows where it is reached by TCP.
//!
//! No I/O and no clock: time comes in as unix seconds. Encodings are laid out by hand, big-endian and bounded; every
//! value has one encoding, and no parser panics on any input.
#![warn(missing_docs)]

pub mod address;
pub mod book;
pub mod chain;
pub mod claim;
mod codec;
pub mod fact;
pub mod genesis;
pub mod id;
pub mod invite;
pub mod lan;
pub mod name;
pub mod relay_url;
pub mod roster;
pub mod seed;
pub mod stream;

pub use claim::Claim;
pub use codec::ParseError;
pub use fact::{
    Access, Bridge, Certificate, Fact, FactError, Kind, Leaf, Location, Roles, Tombstone, Verified,
};
pub use genesis::Genesis;
pub use id::{NetworkId, NodeId};
pub use invite::Invite;
pub use name::{HostPort, Name};
pub use relay_url::RelayUrl;
pub use roster::{Invalid, Member, Merge, Refusal, Roster};
pub use seed::Seed;

/// One day, in seconds.
pub const DAY: u64 = 86_400;
