//! NodeId and NetworkId: 32-byte hashes, written as groups of lowercase base32.

use std::{fmt, net::Ipv6Addr, str::FromStr};

use data_encoding::BASE32_NOPAD;
use shadowmesh_crypto::{Label, kdf, sign};

use crate::{ParseError, address};

/// The id of a node, or of a root key: BLAKE3-256 of its signing public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub [u8; 32]);

/// The id of a network: BLAKE3-256 of its genesis, root key included.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkId(pub [u8; 32]);

impl NodeId {
    /// The id that belongs to a signing public key.
    pub fn of(key: &sign::PublicKey) -> Self {
        NodeId(kdf::hash(Label::NodeId, &[key.as_bytes()]))
    }

    /// The first 16 letters (80 bits), for people: `n7hq-2k4d-x5pa-q3zu`.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(19);
        text
    }

    /// The node's overlay MAC address: locally administered, unicast.
    pub fn mac(&self) -> [u8; 6] {
        address::mac(self)
    }

    /// The node's overlay IPv6 address in a network.
    pub fn ipv6(&self, network: &NetworkId) -> Ipv6Addr {
        address::ipv6(network, self)
    }
}

impl NetworkId {
    /// The network id of facts that belong to no network: a relay's own leaf.
    pub const NONE: NetworkId = NetworkId([0; 32]);
}

macro_rules! written {
    ($type:ident, $what:literal) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let text = BASE32_NOPAD.encode(&self.0).to_ascii_lowercase();
                for (i, letter) in text.chars().enumerate() {
                    if i > 0 && i % 4 == 0 {
                        f.write_str("-")?;
                    }
                    write!(f, "{letter}")?;
                }
                Ok(())
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let text = BASE32_NOPAD.encode(&self.0).to_ascii_lowercase();
                write!(f, "{}({}..)", stringify!($type), text.get(..8).unwrap_or_default())
            }
        }

        impl FromStr for $type {
            type Err = ParseError;

            /// Takes the full form, in upper or lower case, with or without hyphens.
            fn from_str(text: &str) -> Result<Self, ParseError> {
                if text.len() > 80 {
                    return Err(ParseError::TooLong($what));
                }
                let letters = text.replace('-', "").to_ascii_uppercase();
                let bytes = BASE32_NOPAD
                    .decode(letters.as_bytes())
                    .map_err(|_| ParseError::Invalid(concat!($what, " is 52 letters a-z and digits 2-7")))?;
                let bytes = bytes
                    .try_into()
                    .map_err(|_| ParseError::Invalid(concat!($what, " is 52 letters a-z and digits 2-7")))?;
                Ok($type(bytes))
            }
        }
    };
}

written!(NodeId, "a node id");
written!(NetworkId, "a network id");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_short_form_begins_the_long_one() {
        let id = NodeId([0x5A; 32]);
        assert_eq!(id.short().len(), 19);
        assert!(id.to_string().starts_with(&id.short()));
        assert_eq!(id.to_string().len(), 64);
    }

    proptest! {
        #[test]
        fn ids_round_trip(bytes: [u8; 32]) {
            let id = NodeId(bytes);
            prop_assert_eq!(id.to_string().parse::<NodeId>(), Ok(id));
            prop_assert_eq!(id.to_string().replace('-', "").to_uppercase().parse::<NodeId>(), Ok(id));
            prop_assert!(id.short().parse::<NodeId>().is_err());
        }

        #[test]
        fn any_text_is_an_id_or_an_error(text in ".*") {
            let _ = text.parse::<NodeId>();
            let _ = text.parse::<NetworkId>();
        }
    }
}
