//! The cast: one network with a root, an admin and members, signed once and used by every world (signing costs more than
//! most worlds do).

use shadowmesh_crypto::secret::Secret;
use shadowmesh_crypto::sign::SigningKey;
use shadowmesh_identity::fact::Body;
use shadowmesh_identity::{Bridge, Certificate, DAY, Fact, Genesis, NodeId, Roles, Seed, Verified};
use std::sync::{Arc, LazyLock};

/// When every world begins, Unix seconds.
pub const EPOCH: u64 = 1_800_000_000;
/// Members of the cast.
pub const MEMBERS: usize = 6;

/// A member of the cast.
pub struct Member {
    /// Its identity in the network.
    pub identity: Arc<SigningKey>,
    /// The same as NodeId.
    pub id: NodeId,
    /// Its certificate.
    pub certificate: Verified,
}

/// The cast.
pub struct Cast {
    /// The network.
    pub genesis: Genesis,
    /// Its root key.
    pub root: SigningKey,
    /// Member 0 is an admin, signed by the root; it signed the others.
    pub members: Vec<Member>,
}

/// The one cast.
pub static CAST: LazyLock<Cast> = LazyLock::new(|| {
    let seed = |n: u8| Seed::new(Secret::new([n; 32]));
    let root = seed(0).root_key(0).expect("root key");
    let genesis = Genesis {
        name: "sim".parse().expect("name"),
        root: root.public().clone(),
        created: EPOCH - DAY,
        nonce: [1; 16],
        subnet4: ("10.83.0.0".parse().expect("address"), 16),
    };
    let network = genesis.id();
    let mut members: Vec<Member> = vec![];
    for n in 0..MEMBERS {
        let identity = Arc::new(seed(n as u8 + 1).identity_key(&network, 0).expect("identity"));
        let id = NodeId::of(identity.public());
        let body = Body::Certificate(Certificate {
            key: identity.public().clone(),
            name: format!("node{n}").parse().expect("name"),
            roles: if n == 0 { Roles::ADMIN.with(Roles::MEMBER) } else { Roles::MEMBER },
            tags: vec![],
            ipv4: Some(format!("10.83.1.{}", n + 1).parse().expect("address")),
            not_before: EPOCH - DAY,
            not_after: EPOCH + 300 * DAY,
            serial: [n as u8; 16],
            bridge: Bridge::default(),
        });
        let signer = if n == 0 { &root } else { &members[0].identity };
        let certificate =
            Fact::sign(signer, network, id, n as u64 + 1, EPOCH - DAY, &body).expect("certificate");
        members.push(Member { identity, id, certificate });
    }
    Cast { genesis, root, members }
});

impl Cast {
    /// Member `n` revoked by the admin.
    pub fn tombstone(&self, n: usize, seq: u64) -> Verified {
        let body = Body::Tombstone(shadowmesh_identity::Tombstone {
            reason: shadowmesh_identity::fact::Reason::UNSPECIFIED,
            void_after: None,
        });
        let (signer, subject) = (&self.members[0].identity, self.members[n].id);
        Fact::sign(signer, self.genesis.id(), subject, seq, EPOCH, &body).expect("tombstone")
    }
}
