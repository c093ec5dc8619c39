//! A network's first words: its name, root key and IPv4 subnet. The hash of them is the network's id.

use std::net::Ipv4Addr;

use shadowmesh_crypto::{Label, kdf, sign};

use crate::{
    Name, NetworkId, NodeId, ParseError,
    codec::{Put, Reader},
};

/// What a network is, for as long as it exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Genesis {
    /// What its members call it.
    pub name: Name,
    /// The root key: it makes admins.
    pub root: sign::PublicKey,
    /// When it was made, in unix seconds.
    pub created: u64,
    /// Random, so that two networks of one root and one name differ.
    pub nonce: [u8; 16],
    /// The overlay's IPv4 subnet: address and prefix length, 8 to 30, host bits zero.
    pub subnet4: (Ipv4Addr, u8),
}

/// The layout's version, the first byte.
const VERSION: u8 = 1;

impl Genesis {
    /// The longest encoding, in bytes.
    pub const MAX_LEN: usize = 1 + 64 + sign::PUBLIC_KEY_LEN + 8 + 16 + 5;

    /// Version (u8), name (u8 length, text), root key, created (u64), nonce, subnet (4 bytes, u8 prefix length).
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::MAX_LEN);
        out.put_u8(VERSION);
        self.name.write(&mut out);
        out.put(self.root.as_bytes());
        out.put_u64(self.created);
        out.put(&self.nonce);
        out.put(&self.subnet4.0.octets());
        out.put_u8(self.subnet4.1);
        out
    }

    /// Takes a genesis from the wire or the store.
    ///
    /// # Errors
    ///
    /// [`ParseError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut reader = Reader::new(bytes);
        if reader.u8()? != VERSION {
            return Err(ParseError::Invalid("the network was made by a newer version"));
        }
        let name = Name::read(&mut reader)?;
        let root = sign::PublicKey::from_bytes(reader.take(sign::PUBLIC_KEY_LEN)?)
            .map_err(|_| ParseError::Invalid("the root key is malformed"))?;
        let created = reader.u64()?;
        let nonce = reader.array()?;
        let subnet4 = (Ipv4Addr::from(reader.array::<4>()?), reader.u8()?);
        reader.finish()?;
        let (address, len) = subnet4;
        if !(8..=30).contains(&len) || address.to_bits() & (u32::MAX >> len) != 0 {
            return Err(ParseError::Invalid("the IPv4 subnet is not a network of prefix length 8 to 30"));
        }
        Ok(Genesis { name, root, created, nonce, subnet4 })
    }

    /// The network's id. It commits to the root key.
    pub fn id(&self) -> NetworkId {
        NetworkId(kdf::hash(Label::NetworkId, &[&self.encode()]))
    }

    /// The root key's id, as it stands in the facts it signs.
    pub fn root_id(&self) -> NodeId {
        NodeId::of(&self.root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn genesis() -> Genesis {
        Genesis {
            name: "home".parse().unwrap(),
            root: sign::PublicKey::from_bytes(&[7; sign::PUBLIC_KEY_LEN]).unwrap(),
            created: 1_790_000_000,
            nonce: [3; 16],
            subnet4: (Ipv4Addr::new(10, 77, 0, 0), 16),
        }
    }

    #[test]
    fn round_trip_and_commitment() {
        let one = genesis();
        assert_eq!(Genesis::parse(&one.encode()), Ok(one.clone()));
        let bytes = one.encode();
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(Genesis::parse(&bad).map_or(true, |g| g.id() != one.id()), "byte {at}");
            assert!(Genesis::parse(&bytes[..at]).is_err());
        }
        assert_eq!(Genesis::parse(&[&bytes[..], &[0]].concat()), Err(ParseError::Trailing));
    }

    #[test]
    fn subnets_are_checked() {
        for (address, len) in
            [([10, 77, 1, 0], 16), ([10, 0, 0, 0], 7), ([10, 0, 0, 0], 31), ([10, 0, 0, 0], 255)]
        {
            let bad = Genesis { subnet4: (address.into(), len), ..genesis() };
            assert!(Genesis::parse(&bad.encode()).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_genesis_or_an_error(bytes: Vec<u8>, cut in 0..2720usize) {
            let _ = Genesis::parse(&bytes);
            let good = genesis().encode();
            let _ = Genesis::parse(&[&good[..cut.min(good.len())], &bytes].concat());
        }
    }
}
