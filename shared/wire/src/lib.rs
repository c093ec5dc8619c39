//! Bytes to types and back: every packet of ShadowMesh, with its layout and bounds. No state, no I/O, no secrets.
//!
//! All integers are big-endian. Reserved bytes are zero when sent and refused when not.
//!
//! | first byte | packet | from, to | size | module |
//! |---|---|---|---|---|
//! | `00xxxxxx` | STUN (RFC 7983) | | | |
//! | `0x41` | HELLO | initiator, responder | 1200 B | [`handshake`] |
//! | `0x42` | CHALLENGE | responder, initiator | 68 B | [`handshake`] |
//! | `0x43` | RESPONSE, a fragment | initiator, responder | at most 1200 B, 3 of them | [`handshake`] |
//! | `0x44` | ESTABLISHED, a fragment | responder, initiator | at most 1200 B, 3 of them | [`handshake`] |
//! | `0x45` | NEED_CERT | responder, initiator | 40 B | [`handshake`] |
//! | `0x46` | CERT | initiator, responder | at most 1200 B, 24 of them | [`handshake`] |
//! | `0x47` | LEAF_REQUEST | initiator, responder | 1200 B | [`handshake`] |
//! | `0x48` | LEAF_REPLY | responder, initiator | at most 1200 B, 24 of them | [`handshake`] |
//! | `0x49` | RESET | relay, client | 24 B | [`relay`] |
//! | `10xxxxxx` | data, by lane index | peer, peer | at most 64 KiB | [`data`] |
//! | `0xc1` | by relay: a header before any of the above | client, relay, client | 32 B more | [`relay`] |
//!
//! Inside a data packet, after opening: a kind byte ([`data::Kind`]) and a body; control bodies are in [`control`].
#![warn(missing_docs)]

pub mod candidate;
pub mod control;
mod cursor;
pub mod data;
mod drop;
pub mod handshake;
pub mod relay;
pub mod stream;

pub use cursor::{Reader, Writer};
pub use drop::DropReason;

/// Largest datagram that crosses every path before its MTU is known: IPv6's 1280 less IPv6, UDP and relay headers
/// (RFC 8200 section 5). Every handshake packet keeps to it. Bytes.
pub const SAFE_DATAGRAM: usize = 1200;

/// Version of the protocol that this crate lays out; the lowest and highest spoken.
pub const VERSION: u8 = 1;

/// Bytes that are not what their type says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Fewer bytes than the layout needs.
    #[error("truncated")]
    Truncated,
    /// More bytes than the layout allows.
    #[error("too long")]
    TooLong,
    /// A field holds what it may not: an unknown type, a reserved bit, a count out of bounds.
    #[error("malformed")]
    Malformed,
}

/// What the first byte of a datagram says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// STUN message (RFC 8489, RFC 7983).
    Stun,
    /// Typed packet: handshake or RESET.
    Typed(PacketType),
    /// Data packet of a lane.
    Data,
    /// Packet behind a relay header.
    ByRelay,
}

/// Types of the typed packets (first byte).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum PacketType {
    Hello = 0x41,
    Challenge = 0x42,
    Response = 0x43,
    Established = 0x44,
    NeedCert = 0x45,
    Cert = 0x46,
    LeafRequest = 0x47,
    LeafReply = 0x48,
    Reset = 0x49,
}

impl PacketType {
    /// The type whose first byte is `b`.
    pub fn from_byte(b: u8) -> Option<Self> {
        use PacketType::*;
        [Hello, Challenge, Response, Established, NeedCert, Cert, LeafRequest, LeafReply, Reset]
            .into_iter()
            .find(|t| *t as u8 == b)
    }
}

/// First byte of a packet by relay.
pub const BY_RELAY: u8 = 0xc1;

/// Sorts a datagram by its first byte. Nothing more is looked at.
///
/// # Errors
/// `Truncated` when empty, `Malformed` when no packet begins so.
pub fn classify(datagram: &[u8]) -> Result<Class, WireError> {
    let first = *datagram.first().ok_or(WireError::Truncated)?;
    match first >> 6 {
        0b00 => Ok(Class::Stun),
        0b01 => PacketType::from_byte(first).map(Class::Typed).ok_or(WireError::Malformed),
        0b10 => Ok(Class::Data),
        _ if first == BY_RELAY => Ok(Class::ByRelay),
        _ => Err(WireError::Malformed),
    }
}
