//! State directories of a network's members, made without invites: certificates signed by one root.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use shadowmesh::state::{Meta, NewNetwork, State};
use shadowmesh_host::clock::Clock;
use shadowmesh_identity::fact::Body;
use shadowmesh_identity::{Bridge, Certificate, DAY, Fact, Genesis, NodeId, Roles, Seed};

/// A member whose state directory was made.
#[derive(Debug)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its `SHADOWMESH_DIR`.
    pub directory: PathBuf,
    /// Its overlay IPv4 address.
    pub ipv4: Ipv4Addr,
    /// Its overlay IPv6 address.
    pub ipv6: Ipv6Addr,
    /// Its NodeId.
    pub node: NodeId,
}

/// Makes the network `home` with a member of each name under `directory`; the first one is its admin. All know each
/// other's certificates, which let them bridge so.
pub fn make_network(directory: &Path, names: &[&str], bridge: &Bridge) -> Vec<Member> {
    let now = Clock::new().unix();
    let root = Seed::random().root_key(0).expect("a root key");
    let genesis = Genesis {
        name: "home".parse().expect("a name"),
        root: root.public().clone(),
        created: now - 60,
        nonce: [7; 16],
        subnet4: (Ipv4Addr::new(10, 83, 0, 0), 16),
    };
    let network = genesis.id();
    let (mut members, mut facts, mut states) = (vec![], vec![], vec![]);
    for (n, name) in names.iter().enumerate() {
        let directory = directory.join(name);
        let state = State::open(directory.join("state")).expect("a state directory");
        let identity = state.seed_or_new().expect("a seed").identity_key(&network, 0).expect("an identity");
        let node = NodeId::of(identity.public());
        let ipv4 = Ipv4Addr::new(10, 83, 1, n as u8 + 1);
        let certificate = Certificate {
            key: identity.public().clone(),
            name: name.parse().expect("a name"),
            roles: if n == 0 { Roles::ADMIN.with(Roles::MEMBER) } else { Roles::MEMBER },
            tags: vec![],
            ipv4: Some(ipv4),
            not_before: now - 3600,
            not_after: now + 300 * DAY,
            serial: [n as u8; 16],
            bridge: bridge.clone(),
        };
        let body = Body::Certificate(certificate);
        let fact = Fact::sign(&root, network, node, n as u64 + 1, now - 60, &body).expect("a certificate");
        facts.push(fact.into_fact().bytes().to_vec());
        members.push(Member { name: (*name).into(), directory, ipv4, ipv6: node.ipv6(&network), node });
        states.push(state);
    }
    for (member, state) in members.iter().zip(states) {
        let meta = Meta { incarnation: 0, device: member.name.clone(), port: 0, up: true, root: None };
        let new = NewNetwork { genesis: genesis.clone(), facts: facts.clone(), meta, owners: vec![] };
        state.add_network(&genesis.name, &new).expect("a stored network");
    }
    members
}
