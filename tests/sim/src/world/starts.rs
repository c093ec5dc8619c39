//! How a world, its nodes and its relay begin: all at once, from what a world before it left, or again after a kill.

use super::{LARGEST_FRAME, Setup, SimNode, SimRelay, Weather, World, address};
use crate::cast::{CAST, EPOCH, STAGE, relay_config, relay_identity};
use crate::guest::Judge;
use shadowmesh_crypto::aead::Suite;
use shadowmesh_proto::batch::{RxBatch, TxBatch};
use shadowmesh_proto::{Endpoint, Node, NodeConfig, OneThread, OwnKeys, Rng, SavedLeaf, Sealer, Time};
use shadowmesh_wire::candidate::{Candidate, CandidateKind};
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::sync::LazyLock;
use std::time::Duration;

/// What relayed worlds begin with.
struct Premiere {
    facts: Vec<Vec<u8>>,
    keys: Vec<OwnKeys>,
    relay: Vec<u8>,
}

static PREMIERE: LazyLock<Premiere> = LazyLock::new(World::premiere);

fn certificates(nodes: usize) -> Vec<Vec<u8>> {
    CAST.members.iter().take(nodes).map(|m| m.certificate.fact().bytes().to_vec()).collect()
}

fn copy(keys: &OwnKeys) -> OwnKeys {
    let leaf = |l: &SavedLeaf| SavedLeaf { leaf: l.leaf, not_after: l.not_after, key: l.key.clone() };
    OwnKeys { leaves: keys.leaves.iter().map(leaf).collect(), pseudonyms: keys.pseudonyms.clone() }
}

impl World {
    /// A world with its nodes started, by relay or each with a configured address of all others.
    pub fn new(seed: u64, setup: Setup, weather: Weather) -> Self {
        let setup_relayed = setup.relayed;
        let mut world = Self::empty(seed, setup, weather);
        if world.setup.relayed {
            world.relay = Some(SimRelay { core: None, stored: PREMIERE.relay.clone() });
            world.start_relay();
        }
        // With known addresses, members need not know each other's leaves; by relay, a leaf says where a member is.
        let nodes = world.setup.nodes;
        let facts = if setup_relayed { PREMIERE.facts.clone() } else { certificates(nodes) };
        world.enter(facts, |n| if setup_relayed { copy(&PREMIERE.keys[n]) } else { OwnKeys::default() });
        world
    }

    fn empty(seed: u64, setup: Setup, weather: Weather) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_be_bytes());
        World {
            now: Time(1_000_000_000),
            rng: Rng::from_seed(bytes),
            nodes: vec![],
            nats: HashMap::new(),
            lan: HashSet::new(),
            sockets: HashMap::new(),
            relay: None,
            joiners: vec![],
            weather,
            cut: HashSet::new(),
            mtu: HashMap::new(),
            delay: HashMap::new(),
            deaf: HashSet::new(),
            rotations_unsaid: false,
            judge: Judge::default(),
            joined: 0,
            flights: BinaryHeap::new(),
            in_flight: HashMap::new(),
            next_flight: 0,
            too_big: vec![],
            seen: HashSet::new(),
            events: vec![],
            filter: None,
            counts: HashMap::new(),
            heard_at: HashMap::new(),
            first: HashMap::new(),
            taken: vec![],
            trace: false,
            datagrams: 0,
            replies: 0,
            unanswered: None,
            setup,
        }
    }

    fn enter(&mut self, facts: Vec<Vec<u8>>, keys: impl Fn(usize) -> OwnKeys) {
        for n in 0..self.setup.nodes {
            let endpoint = self.start(n, facts.clone(), keys(n));
            self.nodes.push(SimNode {
                endpoint,
                address: address(n),
                id: CAST.members[n].id,
                stored_facts: facts.clone(),
                stored_keys: keys(n),
            });
        }
    }

    /// The whole cast with the relay, each knowing only certificates: what they have after two seconds, their places at
    /// the relay among it, is what other worlds begin with.
    fn premiere() -> Premiere {
        let setup = Setup::plain(crate::cast::MEMBERS, true);
        let mut w = World::empty(0, setup, Weather::CALM);
        w.relay = Some(SimRelay { core: None, stored: STAGE.durable.clone() });
        w.start_relay();
        let mut facts = certificates(crate::cast::MEMBERS);
        facts.push(STAGE.access.fact().bytes().to_vec());
        w.enter(facts.clone(), |_| OwnKeys::default());
        w.run(Duration::from_secs(2));
        for n in &w.nodes {
            let roster = n.endpoint.node.roster();
            let me = roster.member(&n.id).expect("a member");
            let leaf = me.leaf_fact(EPOCH).expect("a leaf");
            assert!(!leaf.leaf().expect("a leaf").locations.is_empty(), "no place at the relay");
            facts.push(leaf.bytes().to_vec());
        }
        let keys = w.nodes.iter().map(|n| n.endpoint.node.own_keys()).collect();
        Premiere { facts, keys, relay: w.relay.map(|r| r.stored).unwrap_or_default() }
    }

    fn start(&mut self, n: usize, facts: Vec<Vec<u8>>, keys: OwnKeys) -> Endpoint<OneThread> {
        self.start_as(n, CAST.members[n].identity.clone(), facts, keys)
    }

    fn start_as(
        &mut self,
        n: usize,
        identity: std::sync::Arc<shadowmesh_crypto::sign::SigningKey>,
        facts: Vec<Vec<u8>>,
        keys: OwnKeys,
    ) -> Endpoint<OneThread> {
        let endpoints = (0..self.setup.nodes)
            .filter(|m| *m != n && !self.setup.relayed)
            .map(|m| (CAST.members[m].id, address(m)))
            .collect();
        let config = NodeConfig {
            genesis: CAST.genesis.clone(),
            identity,
            facts,
            keys,
            root: None,
            owners: if n == 0 { vec![(STAGE.relay, STAGE.owner.duplicate())] } else { vec![] },
            invites: Default::default(),
            suites: vec![Suite::ChaCha20Poly1305],
            bridge: self.setup.bridge,
            mtu: 1500,
            datagram: 65_475,
            rekey: self.setup.rekey,
            rekey_both: self.setup.rekey_both,
            endpoints,
            direct: self.setup.direct,
            data_threads: 1,
            seed: self.rng.bytes(),
        };
        let node = Node::new(config, self.now, EPOCH);
        let sealer = Sealer::new(1, self.rng.u64() as u32);
        let (tx, rx) = (TxBatch::new(64, LARGEST_FRAME, 256 << 10), RxBatch::new(1 << 20));
        let data = OneThread::new(node.snapshot(), sealer, tx, rx);
        let mut endpoint = Endpoint::new(node, data);
        endpoint.data.lag = self.setup.lag;
        let host = Candidate { kind: CandidateKind::Host, address: address(n) };
        endpoint.node.set_candidates(self.now, vec![host]);
        endpoint
    }

    /// `kill -9`, then a start from what was stored.
    pub fn restart(&mut self, n: usize) {
        // The new process may draw an index that the old one had; its keys are others.
        self.seen.clear();
        let facts = self.nodes[n].stored_facts.clone();
        let keys = std::mem::take(&mut self.nodes[n].stored_keys);
        let endpoint = self.start(n, facts, keys);
        self.nodes[n].stored_keys = endpoint.node.own_keys();
        self.nodes[n].endpoint = endpoint;
    }

    /// `kill -9` the relay.
    pub fn kill_relay(&mut self) {
        if let Some(r) = &mut self.relay {
            r.core = None;
        }
    }

    /// Starts the relay from what it has stored.
    pub fn start_relay(&mut self) {
        let (now, rng) = (self.now, Rng::from_seed(self.rng.bytes()));
        let Some(r) = &mut self.relay else { return };
        let durable = shadowmesh_relay_core::Durable::parse(&r.stored).expect("what the relay stored");
        let core =
            shadowmesh_relay_core::Relay::new(relay_config(), relay_identity(), durable, now, EPOCH, rng);
        r.core = Some(core.expect("a relay"));
        self.drain_relay();
    }

    /// A machine that has joined becomes a node.
    pub fn enter_joined(
        &mut self,
        identity: std::sync::Arc<shadowmesh_crypto::sign::SigningKey>,
        facts: Vec<Vec<u8>>,
    ) -> usize {
        let n = self.nodes.len();
        let id = shadowmesh_identity::NodeId::of(identity.public());
        let endpoint = self.start_as(n, identity, facts.clone(), OwnKeys::default());
        let stored_keys = endpoint.node.own_keys();
        self.nodes.push(SimNode { endpoint, address: address(n), id, stored_facts: facts, stored_keys });
        n
    }
}
