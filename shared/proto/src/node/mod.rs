//! The control half: who is a peer, which sessions stand, what the roster says, what the data half forwards by.
//!
//! # How it is driven
//! Handle one thing (`handle_*`), then drain **in this order**: [`Node::poll_install`] into sealers and openers,
//! [`Node::poll_event`] (a [`Event::Save`] is durable before anything after it is sent), [`Node::poll_frame`] into the
//! device, [`Node::poll_transmit`] into the socket, [`Node::poll_work`] to a worker; then take [`Node::snapshot`] if its version grew,
//! and come back at [`Node::poll_timeout`]. Time never runs back. Each call does a bounded amount of work.

mod admit;
mod alive;
mod answer;
mod aside;
mod budget;
mod carrying;
mod direct;
mod driver;
mod farewell;
mod heard;
mod indexes;
mod own;
mod path_mtu;
mod paths;
mod peer;
mod publish;
mod punch;
mod rekey;
mod relays;
mod renewal;
mod rotation;
mod session;
mod sessions;
mod stations;
mod switch;
mod sync;

use crate::batch::{Drops, Plain, Upcall};
use crate::handshake::{Bounds, Credential, Responder, Source};
use crate::snapshot::{Guard, Install, LaneId, MeshPrefixes, PeerId, Route, SessionId, Snapshot};
use crate::work::{Work, WorkDone};
use crate::{LaneStats, Largest, Rng, Sealer, Table, Time};
use indexes::Indexes;
use peer::Peer;
use shadowmesh_crypto::Hash;
use shadowmesh_crypto::kem;
use shadowmesh_identity::book::InviteBook;
use shadowmesh_identity::{Fact, Genesis, NodeId, Roster};
use shadowmesh_wire::DropReason;
use shadowmesh_wire::candidate::{Candidate, Mapping};
use stations::Stations;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

pub use admit::AdminError;
pub use driver::{Event, NodeConfig, PathsStatus, PeerStatus, Timer, Tried};
pub use own::{OwnKeys, SavedLeaf};
pub use relays::RelayStatus;

/// Most peers that are tracked; a network may be larger, this node then talks to that many.
const MAX_PEERS: usize = 4096;
/// Sessions of one peer at once: sending, replaced, and being made.
const MAX_SESSIONS: usize = 6;

/// The node.
pub struct Node {
    config: NodeConfig,
    id: NodeId,
    roster: Roster,
    rng: Rng,
    /// Unix seconds at `Time(0)`, as last told.
    wall_base: i64,
    own: own::Own,
    responder: Responder,
    contact: crate::handshake::Contact,
    peers: Vec<Peer>,
    by_node: HashMap<NodeId, PeerId>,
    /// Every session's peer.
    sessions: HashMap<SessionId, PeerId>,
    indexes: Indexes,
    next_session: SessionId,
    next_lane: LaneId,
    /// The control half's own sealer, for thread 0.
    sealer: Sealer,
    links: Vec<relays::Link>,
    /// Live members in this week's order.
    neighbours: Vec<NodeId>,
    /// What a LEAF_REQUEST of a member pulls.
    bundle: Vec<u8>,
    /// And of a joiner.
    invite_bundle: Vec<u8>,
    last_unix: u64,
    /// When the newest fact by an admin was signed, Unix seconds; kept beside the roster, which would have to search.
    admin_time: u64,
    book: InviteBook,
    invites: Vec<admit::OpenInvite>,
    guests: Vec<admit::Guest>,
    farewells: Vec<farewell::Farewell>,
    rotations: Vec<rotation::Rotation>,
    /// Access secrets that may not be told yet.
    untellable: Vec<Hash>,
    jobs: HashMap<u64, sync::Pending>,
    next_job: u64,
    stations: Stations,
    /// What the driver has found of where this machine may be reached.
    own_candidates: Vec<Candidate>,
    /// What members are told, and how often it has changed.
    candidates: Vec<Candidate>,
    candidates_number: u32,
    /// How the NAT before this machine maps.
    mapping: Mapping,
    budget: budget::Budget,
    probed: punch::Probed,
    housekeeping: Time,
    revoked_self: bool,
    snapshot: Arc<Snapshot>,
    dirty: bool,
    out: VecDeque<(SocketAddr, Vec<u8>)>,
    frames: VecDeque<Vec<u8>>,
    installs: VecDeque<Install>,
    events: VecDeque<Event>,
    work: VecDeque<Work>,
    /// What was dropped in the control half.
    pub drops: Drops,
}

impl Node {
    /// A node; nothing is sent before the first timeout. `wall` is the clock, Unix seconds.
    pub fn new(mut config: NodeConfig, now: Time, wall: u64) -> Self {
        let mut rng = Rng::from_seed(config.seed);
        let id = NodeId::of(config.identity.public());
        let (roster, _) = Roster::restore(config.genesis.clone(), config.facts.iter().cloned());
        let network = config.genesis.id();
        let prefix6 = {
            let mut p = [0; 8];
            p.copy_from_slice(&id.ipv6(&network).octets()[..8]);
            p
        };
        let snapshot = Arc::new(Snapshot {
            version: 0,
            mtu: config.mtu,
            prefixes: MeshPrefixes { subnet4: config.genesis.subnet4, prefix6 },
            peers: Table::default(),
            own: Guard { mac: id.mac(), ipv4: None, ipv6: id.ipv6(&network), bridge: None },
            macs: Table::default(),
            stations: Table::default(),
            bridges: vec![],
            flood: vec![],
            unreached: false,
        });
        let responder = Responder::new(config.suites.clone(), 20.0, Bounds::default(), now, &mut rng);
        let fragment_id = rng.u64() as u32;
        let mut node = Node {
            contact: crate::handshake::Contact::node(&network.0, &id.0),
            own: own::Own::new(&config.keys),
            id,
            roster,
            wall_base: 0,
            responder,
            peers: vec![],
            by_node: HashMap::new(),
            sessions: HashMap::new(),
            indexes: Indexes::default(),
            next_session: 0,
            next_lane: 0,
            sealer: Sealer::new(0, fragment_id),
            links: vec![],
            neighbours: vec![],
            bundle: vec![],
            invite_bundle: vec![],
            last_unix: wall,
            admin_time: 0,
            book: std::mem::take(&mut config.invites),
            invites: vec![],
            guests: vec![],
            farewells: vec![],
            rotations: vec![],
            untellable: vec![],
            jobs: HashMap::new(),
            next_job: 0,
            stations: Stations::default(),
            own_candidates: vec![],
            candidates: vec![],
            candidates_number: 0,
            mapping: Mapping::Unknown,
            budget: budget::Budget::default(),
            probed: punch::Probed::default(),
            housekeeping: now,
            revoked_self: false,
            snapshot,
            dirty: true,
            out: VecDeque::new(),
            frames: VecDeque::new(),
            installs: VecDeque::new(),
            events: VecDeque::new(),
            work: VecDeque::new(),
            drops: Drops::default(),
            rng,
            config,
        };
        node.admin_time = node.roster.newest_admin_fact_time();
        node.set_wall(now, wall);
        node.refresh_own(now);
        node.refresh_members(now);
        node.refresh_relays(now);
        node.refresh_candidates(now);
        node.refresh_invites(now);
        node.refresh_rotations(now);
        node.publish();
        node
    }

    // Getters.

    /// This node.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// The facts, as read.
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// The network's genesis.
    pub fn genesis(&self) -> &Genesis {
        &self.config.genesis
    }

    /// Facts to store.
    pub fn facts(&self) -> impl Iterator<Item = &[u8]> {
        self.roster.held().map(Fact::bytes)
    }

    /// Keys to store.
    pub fn own_keys(&self) -> OwnKeys {
        self.own.save()
    }

    /// What the control half's own sealer dropped.
    pub fn sealer_drops(&self) -> &Drops {
        &self.sealer.drops
    }

    /// What is held for strangers: RESPONSEs under reassembly, handshakes that wait for certificates, answers kept.
    pub fn held_for_strangers(&self) -> (usize, usize, usize) {
        self.responder.held()
    }

    /// A peer's number, as counters use it.
    pub fn peer_id(&self, node: &NodeId) -> Option<PeerId> {
        self.by_node.get(node).copied()
    }

    /// What the data half forwards by.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.clone()
    }

    /// The node's time of day: the greatest of the clock, and the newest fact by an admin. Unix seconds.
    /// (A machine without a clock battery joins; the build date is the driver's to add.)
    pub fn unix(&self, now: Time) -> u64 {
        self.clock(now).max(self.admin_time)
    }

    /// The clock alone.
    fn clock(&self, now: Time) -> u64 {
        u64::try_from(self.wall_base + (now.0 / 1_000_000_000) as i64).unwrap_or(0)
    }

    /// How long until the next thing is due, and what it is.
    pub fn poll_timeout(&self) -> Option<(Time, Timer)> {
        let mut next = Some((self.housekeeping, Timer::Housekeeping));
        let mut consider = |at: Option<Time>, timer: Timer| {
            if let Some(at) = at
                && next.is_none_or(|(t, _)| at < t)
            {
                next = Some((at, timer));
            }
        };
        for p in &self.peers {
            consider(p.deadline(self.wants_session(p)), Timer::Peer(p.id));
        }
        consider(self.locators_due(), Timer::Invites);
        consider(self.rotations.iter().map(|r| r.due).min(), Timer::Rotation);
        for (i, l) in self.links.iter().enumerate() {
            consider(l.deadline(), Timer::Relay(i as u32));
        }
        next
    }

    /// What `status` shows.
    pub fn peer_status(&self) -> Vec<PeerStatus> {
        let status = |p: &Peer| {
            let current = p.current();
            PeerStatus {
                node: p.node,
                route: current.and_then(|_| self.route(p)),
                rtt: current.and(p.rtt),
                loss: current.and(p.loss),
                suite: current.map(|s| s.suite),
                keyed: current.map(|s| s.established),
                rekeys: p.rekeys,
                last_rx: p.last_rx,
                mtu: current.map(|_| p.path.packet()),
                skew: p.skew,
            }
        };
        self.peers.iter().filter(|p| self.is_live(&p.node)).map(status).collect()
    }

    // Handles.

    /// What an opener could not decide.
    pub fn handle_upcall(&mut self, now: Time, upcall: Upcall) {
        let by_relay = match &upcall {
            Upcall::Typed { source: Source::Relay { relay, .. }, .. } => Some(*relay),
            Upcall::Plain(Plain { source: Source::Relay { relay, .. }, .. }) => Some(*relay),
            Upcall::FromRelay { relay, .. } => Some(*relay),
            _ => None,
        };
        if let Some(relay) = by_relay {
            self.nudge_link(now, relay as usize);
        }
        let result = match upcall {
            Upcall::Typed { source, packet } => self.handle_typed(now, source, &packet),
            Upcall::Plain(plain) => self.handle_plain(now, plain),
            Upcall::FromRelay { relay, packet } => self.handle_relay_session(now, relay, &packet),
        };
        if let Err(reason) = result {
            self.drops.count(reason);
        }
        self.publish();
    }

    /// Receiver statistics from the openers: they become reports, and say who is alive. `most_sealed` is the greatest
    /// counter of any sending lane.
    pub fn handle_stats(&mut self, now: Time, stats: &[LaneStats], most_sealed: u64) {
        self.report(now, stats);
        if most_sealed > sessions::REKEY_PACKETS {
            self.rekey_all(now);
        }
        self.publish();
    }

    /// What a sealer has sent from `since` on: the peers, and the largest datagram for each.
    pub fn handle_sent(&mut self, since: Time, largest: &[(PeerId, Largest)]) {
        for (p, largest) in largest {
            let Some(peer) = self.peers.get_mut(*p as usize) else { continue };
            // What went by a session that is on its way out says nothing of the next.
            let lane = peer.current().and_then(|s| s.number_of(largest.lane));
            if let Some(lane) = lane {
                peer.path.sent(since, largest.size, (lane, largest.counter), peer.rtt);
                peer.carrying.sent(since, lane, largest.counter, peer.rtt);
            }
        }
    }

    /// The system would not send a datagram of `len` bytes to this address: it is larger than the interface takes.
    pub fn handle_too_big(&mut self, now: Time, to: SocketAddr, len: usize) {
        self.refused(now, to, len);
        self.publish();
    }

    /// A finished job.
    pub fn handle_work(&mut self, now: Time, done: WorkDone) {
        self.finish_work(now, done);
        self.publish();
    }

    /// A frame from the device that the sealer left to us; `by` is the snapshot that it had: whom it has sent a group
    /// frame to itself.
    pub fn handle_frame(&mut self, now: Time, frame: &[u8], by: &Snapshot) {
        if let Err(reason) = self.switch_frame(now, frame, by) {
            self.drops.count(reason);
        }
        self.publish();
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time) {
        if now >= self.housekeeping {
            self.housekeeping = now + Duration::from_secs(10);
            self.responder.expire(now);
            self.refresh_own(now);
            self.refresh_members(now);
            self.refresh_invites(now);
            self.guests_expire(now);
            self.farewells_expire(now);
            self.stations_expire(now);
            self.renew_certificates(now);
            self.refresh_rotations(now);
        }
        if self.locators_due().is_some_and(|d| d <= now) {
            self.open_locators(now);
        }
        if self.rotations.iter().any(|r| r.due <= now) {
            self.rotate(now);
        }
        for i in 0..self.links.len() {
            if self.links[i].deadline().is_some_and(|d| d <= now) {
                self.link_timeout(now, i);
            }
        }
        for p in 0..self.peers.len() {
            let wants = self.wants_session(&self.peers[p]);
            if self.peers[p].deadline(wants).is_some_and(|d| d <= now) {
                self.peer_timeout(now, p as PeerId);
            }
        }
        self.publish();
    }

    // Commands.

    /// The wall clock, Unix seconds: at the start, and when it was set.
    pub fn set_wall(&mut self, now: Time, wall: u64) {
        self.wall_base = wall as i64 - (now.0 / 1_000_000_000) as i64;
    }

    /// Asks a peer; the answer is [`Event::Pong`]. A session is made when there is none.
    pub fn ping(&mut self, now: Time, node: &NodeId, id: u64) -> bool {
        let Some(p) = self.by_node.get(node).copied() else { return false };
        self.want(now, p);
        self.peers[p as usize].pings.push_back((id, now));
        if self.peers[p as usize].pings.len() > 16 {
            self.peers[p as usize].pings.pop_front();
        }
        self.flush_pings(now, p);
        true
    }

    /// Adds a fact that this node or its admin has just signed, and tells the others.
    pub fn add_fact(&mut self, now: Time, fact: shadowmesh_identity::Verified) {
        self.merge(now, fact, None);
        self.publish();
    }

    /// Says goodbye on every session: peers need not wait for silence.
    pub fn shutdown(&mut self) {
        for p in 0..self.peers.len() {
            if self.peers[p].sending.is_some() {
                self.send_control(p as PeerId, &shadowmesh_wire::control::Control::Bye);
            }
        }
    }

    // Polls.

    /// Keys for the data half: before anything is sent.
    pub fn poll_install(&mut self) -> Option<Install> {
        self.installs.pop_front()
    }

    /// What happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// A frame for the local device.
    pub fn poll_frame(&mut self) -> Option<Vec<u8>> {
        self.frames.pop_front()
    }

    /// A datagram to send.
    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.out.pop_front()
    }

    /// A bounded job for another thread (or this one): its result goes to [`Node::handle_work`].
    pub fn poll_work(&mut self) -> Option<Work> {
        self.work.pop_front()
    }

    // Inside.

    /// Keys to the data half, except those of the control half's own lanes.
    fn install(&mut self, install: Install) {
        if let Some(other) = self.sealer.install(install) {
            self.installs.push_back(other);
        }
    }

    fn is_live(&self, node: &NodeId) -> bool {
        !self.revoked_self && *node != self.id && self.roster.is_valid(node, self.admin_time).is_ok()
    }

    /// The peer with this number, or the one that gets the next.
    fn peer_of(&mut self, node: &NodeId) -> Option<PeerId> {
        if let Some(p) = self.by_node.get(node) {
            return Some(*p);
        }
        if self.peers.len() >= MAX_PEERS {
            return None;
        }
        let id = self.peers.len() as PeerId;
        let mut peer = Peer::new(id, *node);
        peer.endpoint = self.config.endpoints.get(node).copied();
        self.peers.push(peer);
        self.by_node.insert(*node, id);
        Some(id)
    }

    /// Members that the roster knows become peers; those it no longer allows are cut.
    fn refresh_members(&mut self, now: Time) {
        let unix = self.unix(now);
        let members: Vec<NodeId> = self.roster.members().map(|m| m.id).filter(|m| *m != self.id).collect();
        for node in members {
            let valid = self.roster.is_valid(&node, unix);
            match (valid, self.by_node.get(&node).copied()) {
                (Ok(()), None) => {
                    self.peer_of(&node);
                    self.dirty = true;
                }
                (Err(e), Some(p)) if !self.peers[p as usize].sessions.is_empty() => {
                    self.cut(p, &e.to_string());
                }
                _ => {}
            }
        }
        self.last_unix = unix;
        self.refresh_neighbours(now);
        self.refresh_bundle(now);
        if !self.revoked_self
            && matches!(
                self.roster.is_valid(&self.id, unix),
                Err(shadowmesh_identity::Invalid::Revoked | shadowmesh_identity::Invalid::IssuerRevoked)
            )
        {
            self.end_self();
        }
    }

    /// This node is no member any more: the roster says so, by a tombstone that it has verified. It says nothing more to
    /// anybody, and takes nothing. [P-FAREWELL]
    fn end_self(&mut self) {
        self.revoked_self = true;
        for p in 0..self.peers.len() {
            self.drop_sessions(p as PeerId, "this node was revoked");
            self.peers[p].opening = None;
            self.peers[p].queue.clear();
        }
        self.links.clear();
        self.invites.clear();
        self.dirty = true;
        self.events.push_back(Event::SelfRevoked);
    }

    /// How to reach a peer now: the way that its session was made by, else the way an opening would go.
    fn route(&self, p: &Peer) -> Option<Route> {
        p.route.filter(|_| p.sending.is_some()).or_else(|| self.ways(p.id).next())
    }

    fn credential(&self, now: Time) -> Option<Credential> {
        let facts = self.roster.chain(&self.id, self.unix(now))?;
        let member = self.roster.member(&self.id)?;
        let leaf = member.leaf_fact(self.unix(now))?;
        let key: Arc<kem::SecretKey> = self.own.leaf_key(&leaf.id())?;
        let chain: Vec<u8> = facts.iter().flat_map(|f| f.bytes().iter().copied()).collect();
        Some(Credential::Member { certificate: member.fact.id(), leaf: leaf.id(), key, chain: chain.into() })
    }

    fn handle_plain(&mut self, now: Time, plain: Plain) -> Result<(), DropReason> {
        if let Some(done) = self.handle_guest(now, &plain) {
            return done;
        }
        if let Some(done) = self.handle_farewell(&plain) {
            return done;
        }
        let p = *self.sessions.get(&plain.session).ok_or(DropReason::NoSession)?;
        self.handle_peer_plain(now, p, plain)
    }

    fn parse_hash(bytes: &[u8]) -> Option<Hash> {
        bytes.try_into().ok()
    }
}
