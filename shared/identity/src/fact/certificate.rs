//! A member's certificate: key, name, roles, addresses, and what it may speak for.

use std::net::Ipv4Addr;

use shadowmesh_crypto::sign;

use super::Bridge;
use crate::{
    DAY, Name, ParseError,
    codec::{Put, Reader},
};

/// The longest life of a certificate, in seconds: a year and a day.
pub const MAX_LIFETIME: u64 = 366 * DAY;

const MAX_TAGS: usize = 16;

/// What a member may do. Bits that this version does not know are kept and mean nothing to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Roles(pub u16);

impl Roles {
    /// Signs members, never admins. Only the root gives it.
    pub const ADMIN: Roles = Roles(1);
    /// Takes part in full.
    pub const MEMBER: Roles = Roles(2);
    /// Takes part where policy lets guests.
    pub const GUEST: Roles = Roles(4);
    /// Relays for the network.
    pub const RELAY: Roles = Roles(8);
    /// Lets traffic out to the internet.
    pub const EXIT: Roles = Roles(16);

    /// Whether all of `other` is given.
    pub const fn contains(self, other: Roles) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both together.
    #[must_use]
    pub const fn with(self, other: Roles) -> Roles {
        Roles(self.0 | other.0)
    }

    /// The first without the second.
    #[must_use]
    pub const fn without(self, other: Roles) -> Roles {
        Roles(self.0 & !other.0)
    }

    /// The names of the roles given, for people.
    pub fn names(self) -> Vec<&'static str> {
        [
            (Roles::ADMIN, "admin"),
            (Roles::MEMBER, "member"),
            (Roles::GUEST, "guest"),
            (Roles::RELAY, "relay"),
            (Roles::EXIT, "exit"),
        ]
        .into_iter()
        .filter_map(|(role, name)| self.contains(role).then_some(name))
        .collect()
    }
}

/// Who a member is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Its signing key; the subject is its hash.
    pub key: sign::PublicKey,
    /// Its name.
    pub name: Name,
    /// What it may do.
    pub roles: Roles,
    /// Free words for policies, at most 16.
    pub tags: Vec<Name>,
    /// Its IPv4 address in the overlay.
    pub ipv4: Option<Ipv4Addr>,
    /// Valid from this second on (unix time).
    pub not_before: u64,
    /// Valid before this second (unix time), at most [`MAX_LIFETIME`] after `not_before`.
    pub not_after: u64,
    /// Names the admission it comes from: two members with one serial are proof of misuse of an invite.
    pub serial: [u8; 16],
    /// What it may speak for besides itself.
    pub bridge: Bridge,
}

impl Certificate {
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, ParseError> {
        let key = sign::PublicKey::from_bytes(reader.take(sign::PUBLIC_KEY_LEN)?)
            .map_err(|_| ParseError::Invalid("a certificate's key is malformed"))?;
        let name = Name::read(reader)?;
        let roles = Roles(reader.u16()?);
        let tags = reader.list(MAX_TAGS, "a certificate's list of tags", Name::read)?;
        let ipv4 = if reader.flag()? { Some(Ipv4Addr::from(reader.array::<4>()?)) } else { None };
        let (not_before, not_after) = (reader.u64()?, reader.u64()?);
        check_lifetime(not_before, not_after, MAX_LIFETIME)?;
        let serial = reader.array()?;
        let bridge = Bridge::read(reader)?;
        Ok(Certificate { key, name, roles, tags, ipv4, not_before, not_after, serial, bridge })
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.put(self.key.as_bytes());
        self.name.write(out);
        out.put_u16(self.roles.0);
        out.put_list(&self.tags, |out, tag| tag.write(out));
        out.put_flag(self.ipv4.is_some());
        if let Some(ipv4) = self.ipv4 {
            out.put(&ipv4.octets());
        }
        out.put_u64(self.not_before);
        out.put_u64(self.not_after);
        out.put(&self.serial);
        self.bridge.write(out);
    }
}

/// `not_before < not_after`, and no more than `max` seconds between them.
pub(super) fn check_lifetime(not_before: u64, not_after: u64, max: u64) -> Result<(), ParseError> {
    match not_after.checked_sub(not_before) {
        Some(life) if life > 0 && life <= max => Ok(()),
        Some(0) | None => Err(ParseError::Invalid("it ends before it begins")),
        Some(_) => Err(ParseError::Invalid("it is valid for longer than allowed")),
    }
}
