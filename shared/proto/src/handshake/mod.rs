//! The handshake: HELLO, CHALLENGE, RESPONSE, ESTABLISHED, and what may come between (docs/PROTOCOL.md, "Handshake").
//!
//! [`Initiator`] is one opening; [`Responder`] answers all of them. Both take datagrams and a time and give datagrams;
//! what a credential is worth (certificates, pseudonyms) is asked of the caller. The models are in `tests/formal`.

mod cookie;
mod fragments;
mod initiator;
mod limits;
mod rekey;
mod responder;
mod transcript;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod vectors;

pub(crate) use fragments::Pieces;
pub use initiator::{Credential, Finished, Initiator, InitiatorConfig, Progress, ResponderLeaf};
pub use limits::Limits;
pub use rekey::{Parent, Rekey, RekeyOpened};
pub use responder::{Asked, Bounds, Incoming, Local, Opened, Responder, is_pseudonym};
pub use transcript::{Role, SessionKeys};

use shadowmesh_crypto::kdf::{self, Label};
use shadowmesh_crypto::secret::Secret;

/// Where a datagram came from, or goes: what cookies and limits are bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// Straight from an address.
    Udp(std::net::SocketAddr),
    /// Through a relay (the caller's number for it), from a handle there.
    Relay {
        /// The caller's number for the relay.
        relay: u32,
        /// The other side's handle at that relay.
        handle: u64,
    },
}

impl Source {
    /// The way back.
    pub fn route(&self) -> crate::Route {
        match *self {
            Source::Udp(a) => crate::Route::Udp(a),
            Source::Relay { relay, handle } => crate::Route::Relay { relay, handle },
        }
    }

    /// Bytes that name the source, injectively.
    fn bytes(&self) -> [u8; 20] {
        let mut out = [0; 20];
        match self {
            Source::Udp(a) => {
                let ip = match a.ip() {
                    std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                    std::net::IpAddr::V6(v6) => v6,
                };
                out[1..17].copy_from_slice(&ip.octets());
                out[17..19].copy_from_slice(&a.port().to_be_bytes());
            }
            Source::Relay { relay, handle } => {
                out[0] = 1;
                out[1..5].copy_from_slice(&relay.to_be_bytes());
                out[5..13].copy_from_slice(&handle.to_be_bytes());
            }
        }
        out
    }

    /// What a limit is keyed by: an IPv4 address, an IPv6 /56, or (relay, handle); so that one abuser behind a relay
    /// does not exhaust the rest.
    fn prefix(&self) -> [u8; 20] {
        let mut b = self.bytes();
        if let Source::Udp(a) = self {
            b[17..].fill(0);
            if a.is_ipv6() {
                b[8..].fill(0);
            }
        }
        b
    }

    /// As ESTABLISHED reports it: address and port, zeros by relay.
    pub fn observed(&self) -> ([u8; 16], u16) {
        match self {
            Source::Udp(a) => {
                let mut ip = [0; 16];
                ip.copy_from_slice(&self.bytes()[1..17]);
                (ip, a.port())
            }
            Source::Relay { .. } => ([0; 16], 0),
        }
    }
}

/// Who is spoken to: what h0 names, and the keys of HELLO's MAC and of the seals of CHALLENGE and LEAF.
pub struct Contact {
    /// Network id between members and in a rendezvous; the relay's NodeId at a relay.
    pub(crate) profile: [u8; 32],
    hello_mac: Secret<32>,
    challenge_seal: Secret<32>,
    leaf_seal: Secret<32>,
    /// The invite's sealing key, mixed into k1.
    pub(crate) mix: Option<Secret<32>>,
}

impl Contact {
    /// A member of `network`, or a relay (then `network` is the relay's own NodeId, as profile).
    pub fn node(profile: &[u8; 32], responder: &[u8; 32]) -> Self {
        let key = |label| Secret::new(kdf::hash(label, &[profile, responder]));
        Contact {
            profile: *profile,
            hello_mac: key(Label::HelloMac),
            challenge_seal: key(Label::ChallengeSeal),
            leaf_seal: key(Label::LeafSeal),
            mix: None,
        }
    }

    /// A relay known by its NodeId.
    pub fn relay(relay: &[u8; 32]) -> Self {
        Self::node(relay, relay)
    }

    /// Whoever made an invite: all keys come from its secret.
    pub fn invite(
        network: &[u8; 32],
        hello_mac: Secret<32>,
        challenge_seal: Secret<32>,
        leaf_seal: Secret<32>,
        mix: Secret<32>,
    ) -> Self {
        Contact { profile: *network, hello_mac, challenge_seal, leaf_seal, mix: Some(mix) }
    }

    pub(crate) fn hello_mac(&self, maced: &[u8]) -> [u8; 16] {
        kdf::mac16(&self.hello_mac, Label::HelloMac, &[maced])
    }

    fn challenge_key(&self, nonce_i: &[u8; 32], nonce_r: &[u8; 16]) -> Secret<32> {
        kdf::derive(Label::ChallengeSeal, nonce_i, &[self.challenge_seal.expose()], nonce_r)
    }

    fn leaf_key(&self, nonce_i: &[u8; 32], nonce_r: &[u8; 16]) -> Secret<32> {
        kdf::derive(Label::LeafSeal, nonce_i, &[self.leaf_seal.expose()], nonce_r)
    }
}

/// Suites as HELLO's mask: bit n-1 for suite n.
pub fn suite_mask(suites: &[shadowmesh_crypto::aead::Suite]) -> u8 {
    suites.iter().fold(0, |mask, s| mask | 1 << (*s as u8 - 1))
}
