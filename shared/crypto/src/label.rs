//! The one tree of domain labels: what separates each hash, key and signature of ShadowMesh from all others.

macro_rules! labels {
    ($($(#[$doc:meta])* $name:ident = $path:literal),+ $(,)?) => {
        /// Every domain label of ShadowMesh. A label is used for one thing. [P-LABEL]
        ///
        /// The number in the strings is the generation of the whole tree; a new protocol generation gets a new
        /// tree, so that no key or signature of one means anything in the other.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Label { $($(#[$doc])* $name),+ }

        impl Label {
            /// All labels, in the order of the tree.
            pub const ALL: &[Label] = &[$(Label::$name),+];

            /// The label as it goes into a hash: `shadowmesh/1/<path>`, ASCII, without a terminator.
            pub const fn as_str(self) -> &'static str {
                match self { $(Label::$name => concat!("shadowmesh/1/", $path)),+ }
            }

            /// The label with the zero byte that ends it. As no label contains one, no label followed by data
            /// can be taken for another label followed by other data.
            pub(crate) const fn terminated(self) -> &'static [u8] {
                match self { $(Label::$name => concat!("shadowmesh/1/", $path, "\0").as_bytes()),+ }
            }
        }
    };
}

labels! {
    /// Transcript h0: version, suite, profile.
    HandshakeH0 = "handshake/h0",
    /// Transcript h1: up to the responder's static key and ct1.
    HandshakeH1 = "handshake/h1",
    /// Transcript h2: up to the initiator's credential, ct2 and ct3.
    HandshakeH2 = "handshake/h2",
    /// The hash of a whole HELLO inside cookie and transcript.
    HandshakeHello = "handshake/hello",
    /// What the initiator's credential stands for, inside h2.
    HandshakeIdentity = "handshake/identity",
    /// The first key, from the secret under the responder's leaf.
    K1 = "handshake/k1",
    /// From k1: seals RESPONSE's credential.
    K1Response = "handshake/k1/response",
    /// From k1: seals NEED_CERT.
    K1NeedCert = "handshake/k1/need-cert",
    /// From k1: seals the datagrams that carry certificates.
    K1Cert = "handshake/k1/cert",
    /// The session key, from all three secrets.
    K2 = "handshake/k2",
    /// From k2: seals ESTABLISHED's confirmation.
    K2Confirm = "handshake/k2/confirm",
    /// From k2: initiator to responder; lane keys derive from it.
    K2Initiator = "handshake/k2/initiator",
    /// From k2: responder to initiator; lane keys derive from it.
    K2Responder = "handshake/k2/responder",
    /// From k2: path validation.
    K2Path = "handshake/k2/path",
    /// From k2: the next rekey.
    K2Rekey = "handshake/k2/rekey",
    /// From k2: what other layers bind to this session.
    K2Exporter = "handshake/k2/exporter",
    /// From a direction's key: one lane.
    Lane = "session/lane",
    /// From a session with a relay: the MAC key of datagrams to the relay.
    RelayUp = "relay/up",
    /// From a session with a relay: the MAC key of datagrams from the relay.
    RelayDown = "relay/down",
    /// From the responder's NodeId: the MAC on HELLO.
    HelloMac = "hello/mac",
    /// From the responder's NodeId and HELLO's nonce: seals CHALLENGE.
    ChallengeSeal = "hello/challenge-seal",
    /// From the responder's NodeId and HELLO's nonce: seals LEAF.
    LeafSeal = "hello/leaf-seal",
    /// From an invite's secret: where the inviter is found at the relay.
    InviteLocator = "invite/locator",
    /// From an invite's secret: mixed into k1, and seals what waits in a mailbox.
    InviteSeal = "invite/seal",
    /// From an invite's secret: the seed of the invite key pair.
    InviteKey = "invite/key",
    /// From an invite's secret: the MAC on HELLO, in place of [`Label::HelloMac`].
    InviteHelloMac = "invite/hello-mac",
    /// From an invite's secret: seals CHALLENGE, in place of [`Label::ChallengeSeal`].
    InviteChallengeSeal = "invite/challenge-seal",
    /// From an invite's secret: seals LEAF, in place of [`Label::LeafSeal`].
    InviteLeafSeal = "invite/leaf-seal",
    /// The checksum at the end of an invite, against a copy with letters missing.
    InviteCheck = "invite/check",
    /// The responder's nonce, from the cookie key.
    CookieNonce = "hello/cookie-nonce",
    /// The puzzle that CHALLENGE asks for under load.
    Puzzle = "hello/puzzle",
    /// The responder's cookie.
    Cookie = "hello/cookie",
    /// A client's handle at a relay, from the relay's secret and the client's pseudonym.
    Handle = "relay/handle",
    /// A relay's stateless reset token for one handle.
    ResetToken = "relay/reset-token",
    /// The MAC under a network's access secret that lets a pseudonym use a relay.
    AccessMac = "relay/access-mac",
    /// A network's tag at a relay, from the owner secret.
    OwnerTag = "relay/owner-tag",
    /// The access secret that follows revocations, from the owner secret and the tombstones.
    AccessRotation = "relay/access-rotation",
    /// A relay's registration token, from the relay's secret and a number.
    RelayToken = "relay/token",
    /// From the master seed: root key number n.
    SeedRoot = "seed/root",
    /// From the master seed: the identity in one network.
    SeedIdentity = "seed/identity",
    /// From the master seed: the identity of a relay.
    SeedRelay = "seed/relay",
    /// From a signing seed: its Ed25519 half.
    SeedEd25519 = "seed/sign/ed25519",
    /// From a signing seed: its ML-DSA half.
    SeedMlDsa = "seed/sign/ml-dsa",
    /// The id of a node, from its signing public key.
    NodeId = "id/node",
    /// The id of a network, from its genesis.
    NetworkId = "id/network",
    /// The overlay MAC address, from the NodeId.
    Mac = "address/mac",
    /// The node's 64 bits of its IPv6 address, from the NodeId.
    Address6 = "address/ipv6",
    /// A candidate IPv4 address, from the NodeId and a counter.
    Address4 = "address/ipv4",
    /// The choice of a new network's IPv4 subnet.
    Subnet4 = "address/ipv4-subnet",
    /// The name by which members find a node on their LAN, from network, NodeId and day.
    LanName = "id/lan-name",
    /// The id of a blob that is pulled by hash and is no fact.
    Blob = "id/blob",
    /// The id of a signed fact.
    FactId = "id/fact",
    /// Signature: a certificate.
    SigCertificate = "sign/certificate",
    /// Signature: a member's leaf.
    SigLeaf = "sign/leaf",
    /// Signature: a tombstone.
    SigTombstone = "sign/tombstone",
    /// Signature: a relay's access secret.
    SigAccess = "sign/access",
    /// Signature: the claim by which a joiner asks for a certificate.
    SigClaim = "sign/claim",
    /// Signature: a relay's leaf, which belongs to no network.
    SigRelayLeaf = "sign/relay-leaf",
    /// Signature: a relay's TLS certificate is its own.
    SigStream = "sign/stream",
    /// Where a relay takes streams, from its NodeId.
    StreamPath = "relay/stream-path",
    /// The public keys that every hybrid signature is bound to.
    SigKeys = "sign/keys",
    /// The combiner of the hybrid KEM.
    KemCombine = "kem/combine",
    /// Inside the combiner: the ML-KEM ciphertext.
    KemCiphertextPq = "kem/ct-ml-kem",
    /// Inside the combiner: the X25519 ciphertext.
    KemCiphertextX = "kem/ct-x25519",
    /// Inside the combiner: the ML-KEM public key.
    KemPublicPq = "kem/pk-ml-kem",
    /// Inside the combiner: the X25519 public key.
    KemPublicX = "kem/pk-x25519",
    /// The id of a HybridKEM public key.
    KemKeyId = "id/kem-key",
    /// The digest of one bucket of the roster.
    RosterBucket = "roster/bucket",
    /// Which of a signer's facts are kept when it has signed more than anybody may.
    RosterRank = "roster/rank",
    /// The digest of the whole roster.
    RosterDigest = "roster/digest",
    /// Which members keep sessions with each other in a given week.
    Neighbour = "roster/neighbour",
}

#[cfg(test)]
mod tests {
    use super::Label;
    use std::collections::HashSet;

    #[test]
    fn labels_are_distinct_and_unambiguous_before_data() {
        let mut seen = HashSet::new();
        for label in Label::ALL {
            assert!(seen.insert(label.as_str()), "{label:?} has another label's string");
            assert!(label.as_str().starts_with("shadowmesh/1/"));
            assert!(label.as_str().bytes().all(|b| b.is_ascii_graphic()));
            assert_eq!(label.terminated().split_last(), Some((&0, label.as_str().as_bytes())));
        }
        for a in Label::ALL {
            for b in Label::ALL {
                let prefix = b.terminated().starts_with(a.terminated());
                assert_eq!(prefix, a == b, "{a:?} followed by data could be {b:?}");
            }
        }
    }
}
