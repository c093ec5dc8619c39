//! The cast: one network with a root, an admin and members, signed once and used by every world (signing costs more than
//! most worlds do).

use shadowmesh_crypto::secret::Secret;
use shadowmesh_crypto::sign::SigningKey;
use shadowmesh_identity::Access;
use shadowmesh_identity::fact::Body;
use shadowmesh_identity::{Bridge, Certificate, DAY, Fact, Genesis, NodeId, Roles, Seed, Verified};
use shadowmesh_proto::join::Registrar;
use shadowmesh_proto::{Rng, Time};
use shadowmesh_relay_core::{Config, Durable, Event, Relay};
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};

/// When every world begins, Unix seconds.
pub const EPOCH: u64 = 1_800_000_000;
/// Members of the cast.
pub const MEMBERS: usize = 6;

/// What members may bridge; they do so in worlds that say so.
pub const MAY_BRIDGE: [&str; MEMBERS] =
    ["", "", "", "any", "any vlan:9", "02:00:5e:10:00:01 vlan:7 192.168.7.0/24"];

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
    for (n, may_bridge) in MAY_BRIDGE.iter().enumerate() {
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
            bridge: Bridge::from_words(may_bridge.split_whitespace()).expect("a grant"),
        });
        let signer = if n == 0 { &root } else { &members[0].identity };
        let certificate =
            Fact::sign(signer, network, id, n as u64 + 1, EPOCH - DAY, &body).expect("certificate");
        members.push(Member { identity, id, certificate });
    }
    Cast { genesis, root, members }
});

/// The relay of the cast: its identity, where it is, and the state in which the network is registered.
pub struct Stage {
    /// What it has stored.
    pub durable: Vec<u8>,
    /// What members know of it.
    pub access: Verified,
    /// What the admin keeps.
    pub owner: Secret<32>,
    /// Who it is.
    pub relay: NodeId,
}

/// Where the relay is.
pub fn relay_address() -> SocketAddr {
    SocketAddr::from(([198, 51, 100, 1], 443))
}

/// The relay's identity.
pub fn relay_identity() -> SigningKey {
    Seed::new(Secret::new([99; 32])).relay_identity().expect("relay identity")
}

/// What the relay is configured with: worlds are small, and come all at once.
pub fn relay_config() -> Config {
    Config { open: true, ..Config::default() }
}

/// The relay with the network registered, by the machine that registers networks.
pub static STAGE: LazyLock<Stage> = LazyLock::new(|| {
    let mut rng = Rng::from_seed([98; 32]);
    let durable = Durable::new(&mut rng);
    let (mut now, from) = (Time(0), SocketAddr::from(([192, 0, 2, 200], 4000)));
    let mut relay = Relay::new(relay_config(), relay_identity(), durable, now, EPOCH, rng).expect("a relay");
    let suites = vec![shadowmesh_crypto::aead::Suite::ChaCha20Poly1305];
    let mut registrar = Registrar::new(relay.id(), relay_address(), None, suites, now, EPOCH, [97; 32]);
    let mut stored = vec![];
    let registered = loop {
        registrar.handle_timeout(now);
        while let Some((_, bytes)) = registrar.poll_transmit() {
            relay.handle_datagram(now, from, &bytes);
        }
        while let Some(event) = relay.poll_event() {
            if let Event::Save { state, .. } = event {
                stored = state.to_vec();
            }
        }
        while let Some((_, mut bytes)) = relay.poll_transmit() {
            registrar.handle_datagram(now, relay_address(), &mut bytes);
        }
        while let Some(work) = registrar.poll_work() {
            registrar.handle_work(now, work.run());
        }
        if let Some(outcome) = registrar.outcome() {
            break outcome.expect("the network is registered");
        }
        now = now + std::time::Duration::from_millis(10);
    };
    let body = Body::Access(Access {
        address: "198.51.100.1:443".parse().expect("address"),
        tag: registered.tag,
        secret: registered.access,
        ended: 0,
    });
    let admin = &CAST.members[0].identity;
    let access = Fact::sign(admin, CAST.genesis.id(), relay.id(), MEMBERS as u64 + 1, EPOCH - DAY, &body);
    Stage { durable: stored, access: access.expect("access"), owner: registered.owner, relay: relay.id() }
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
