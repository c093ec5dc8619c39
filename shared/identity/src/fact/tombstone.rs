//! A tombstone: the end of a member. It binds downwards by rank and is never taken back; who was ended by mistake
//! joins again under another incarnation of its identity.

use crate::{
    ParseError,
    codec::{Put, Reader},
};

/// Why a member was ended: for people, no rule depends on it. Numbers not named here are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason(pub u8);

impl Reason {
    /// None was given.
    pub const UNSPECIFIED: Reason = Reason(0);
    /// The member left.
    pub const LEFT: Reason = Reason(1);
    /// The device was lost.
    pub const LOST: Reason = Reason(2);
    /// The keys are, or may be, known to somebody else.
    pub const COMPROMISED: Reason = Reason(3);
    /// Another identity took its place.
    pub const REPLACED: Reason = Reason(4);
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Reason::UNSPECIFIED => f.write_str("no reason given"),
            Reason::LEFT => f.write_str("left"),
            Reason::LOST => f.write_str("lost"),
            Reason::COMPROMISED => f.write_str("compromised"),
            Reason::REPLACED => f.write_str("replaced"),
            Reason(other) => write!(f, "reason {other}"),
        }
    }
}

/// The end of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tombstone {
    /// Why.
    pub reason: Reason,
    /// For an admin: what it signed with a higher sequence number is void. Without it, what is higher than the
    /// tombstone's own.
    pub void_after: Option<u64>,
}

impl Tombstone {
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, ParseError> {
        let reason = Reason(reader.u8()?);
        let void_after = if reader.flag()? { Some(reader.u64()?) } else { None };
        Ok(Tombstone { reason, void_after })
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.put_u8(self.reason.0);
        out.put_flag(self.void_after.is_some());
        if let Some(seq) = self.void_after {
            out.put_u64(seq);
        }
    }
}
