//! The roster between members: anti-entropy by digests, new facts pushed by hash, everything large pulled; and the jobs
//! that check signatures off the packet loop.

use super::alive::SYNC;
use super::{Event, Node};
use crate::Time;
use crate::handshake::{Asked, ResponderLeaf, Source};
use crate::pull::serve;
use crate::snapshot::{PeerId, SessionId};
use crate::work::{Job, Outcome, Work, WorkDone};
use shadowmesh_crypto::{Hash, kdf};
use shadowmesh_identity::chain::{Chain, ChainError};
use shadowmesh_identity::roster::Merge;
use shadowmesh_identity::{Fact, NodeId, Verified};
use shadowmesh_wire::DropReason;
use shadowmesh_wire::control::{BUCKETS, CHUNK, Control, MAX_HASHES};
use shadowmesh_wire::handshake::Sid;
use std::time::Duration;

/// Between repeats of a tombstone that a peer has not shown to have.
const TELL_REPEAT: Duration = Duration::from_millis(200);
/// Peers that are sent a tombstone whole: five packets that need no question. The others are told its hash.
const SENT_WHOLE: usize = 64;
/// Jobs under way at once; past it nothing new is taken on.
const MAX_JOBS: usize = 256;
/// Seconds of the week that neighbours are drawn for.
const WEEK: u64 = 7 * 86_400;
/// Members that every member keeps sessions with.
const NEIGHBOURS: usize = 3;

/// What a job's result is for.
pub(super) enum Pending {
    /// A fact, from a peer.
    Fact(Option<PeerId>),
    /// What a responder asked an unknown initiator for.
    Certificates { source: Source, sid: Sid },
    /// A peer's leaf, pulled by an opening.
    PeerLeaf(PeerId),
    /// A relay's leaf.
    RelayLeaf(usize),
    /// A joiner's claim.
    Claim(SessionId),
}

impl Node {
    fn try_submit(&mut self, pending: Pending, job: Job) -> Result<(), DropReason> {
        if self.jobs.len() >= MAX_JOBS {
            return Err(DropReason::OverLimit);
        }
        let id = self.next_job;
        self.next_job += 1;
        self.jobs.insert(id, pending);
        self.work.push_back(Work::new(id, job));
        Ok(())
    }

    pub(super) fn submit(&mut self, pending: Pending, job: Job) {
        if let Err(reason) = self.try_submit(pending, job) {
            self.drops.count(reason);
        }
    }

    pub(super) fn verify_leaf(&mut self, p: PeerId, bytes: Vec<u8>) {
        let (genesis, now) = (Box::new(self.config.genesis.clone()), self.admin_time);
        let now = now.max(self.last_unix);
        self.submit(Pending::PeerLeaf(p), Job::Chain { genesis, bytes, now });
    }

    pub(super) fn verify_certificates(&mut self, now: Time, asked: Asked) {
        let (genesis, unix) = (Box::new(self.config.genesis.clone()), self.unix(now));
        let pending = Pending::Certificates { source: asked.source, sid: asked.sid };
        self.submit(pending, Job::Chain { genesis, bytes: asked.bytes, now: unix });
    }

    pub(super) fn verify_relay(&mut self, now: Time, link: usize, bundle: Vec<u8>) {
        let relay = NodeId(*self.links[link].relay());
        let now = self.unix(now);
        self.submit(Pending::RelayLeaf(link), Job::RelayLeaf { relay, bundle, now });
    }

    pub(super) fn finish_work(&mut self, now: Time, done: WorkDone) {
        let Some(pending) = self.jobs.remove(&done.id) else { return };
        match (pending, done.outcome) {
            (Pending::Fact(from), Outcome::Fact(Ok(fact))) => self.merge(now, fact, from),
            (Pending::Fact(_), Outcome::Fact(Err(_))) => self.drops.count(DropReason::BadHandshake),
            (Pending::Certificates { source, sid }, Outcome::Chain(chain)) => match *chain {
                Ok(chain) => self.certificates_checked(now, source, sid, chain),
                Err(_) => {
                    self.responder.resume(source, sid);
                    self.drops.count(DropReason::NotMember);
                }
            },
            (Pending::PeerLeaf(p), Outcome::Chain(chain)) => self.leaf_checked(now, p, *chain),
            (Pending::Claim(session), Outcome::Claim(claim)) => self.claim_checked(now, session, claim),
            (Pending::RelayLeaf(link), Outcome::RelayLeaf(leaf)) => {
                self.relay_leaf_checked(now, link, leaf.ok().map(|l| *l))
            }
            _ => {}
        }
    }

    fn leaf_checked(&mut self, now: Time, p: PeerId, chain: Result<Chain, ChainError>) {
        let node = self.peers[p as usize].node;
        let Some(chain) = chain.ok().filter(|c| c.subject() == node) else {
            self.peers[p as usize].opening = None;
            self.drops.count(DropReason::NotMember);
            return;
        };
        for fact in chain.into_facts() {
            self.merge(now, fact, Some(p));
        }
        let unix = self.unix(now);
        let leaf = self.roster.member(&node).and_then(|m| m.leaf_fact(unix).cloned());
        let Some(leaf) = leaf.filter(|_| self.is_live(&node)) else {
            self.peers[p as usize].opening = None;
            return;
        };
        let Some(body) = leaf.leaf() else { return };
        let leaf = ResponderLeaf { node: node.0, hash: leaf.id(), key: (*body.key).clone() };
        if let Some(o) = &mut self.peers[p as usize].opening {
            let _ = o.set_leaf(now, leaf, &mut self.rng);
        }
        self.drain_opening(p);
    }

    /// A verified fact: into the roster, and what follows from it.
    pub(super) fn merge(&mut self, now: Time, fact: Verified, from: Option<PeerId>) {
        let (id, ends) = (fact.fact().id(), fact.fact().tombstone().is_some());
        let secret = fact.fact().access().is_some();
        let merged = self.roster.merge(fact);
        self.admin_time = self.roster.newest_admin_fact_time();
        if !merged.is_stored() {
            if matches!(merged.outcome, Merge::Refused(_)) {
                self.drops.count(DropReason::NotMember);
            }
            return;
        }
        self.events.push_back(Event::SaveRoster);
        self.dirty = true;
        let unix = self.unix(now);
        for node in &merged.changed {
            if self.roster.is_valid(node, unix).is_err() {
                if let Some(p) = self.by_node.get(node).copied()
                    && (!self.peers[p as usize].sessions.is_empty()
                        || self.peers[p as usize].opening.is_some())
                {
                    self.cut(p, "this member was revoked");
                }
            } else if *node != self.id
                && let Some(p) = self.peer_of(node)
            {
                // A new leaf may be the way to a peer that did not answer on the old one.
                let peer = &mut self.peers[p as usize];
                if peer.sending.is_none() {
                    peer.next_try = peer.next_try.min(now);
                    peer.pull_leaf = false;
                }
            }
        }
        self.refresh_members(now);
        self.refresh_relays(now);
        if ends || secret {
            self.refresh_rotations(now);
        }
        // An access secret waits for the tombstones that it followed.
        let mut tell = std::mem::take(&mut self.untellable);
        tell.push(id);
        let may = |h: &Hash| self.roster.get(h).is_none_or(|f| self.may_tell(f));
        let (tell, wait) = tell.into_iter().partition(may);
        self.untellable = wait;
        // Everyone who is reachable hears of it at once. [P-PUSH]
        let mut whole = 0;
        if !tell.is_empty() {
            for p in 0..self.peers.len() as PeerId {
                if Some(p) != from && self.peers[p as usize].sending.is_some() {
                    self.send_control(p, &Control::Have(tell.clone()));
                    if ends && whole < SENT_WHOLE {
                        whole += 1;
                        self.send_chunks(p, &id);
                    }
                    let peer = &mut self.peers[p as usize];
                    // Somebody's end is said until it is heard, however the network is. [P-PUSH]
                    if ends && peer.untold.len() < MAX_HASHES {
                        peer.untold.push(id);
                        peer.tell_at = now + TELL_REPEAT;
                    }
                }
            }
        }
        // What waited for this one's signer.
        for ready in self.roster.ready() {
            self.check_fact(ready, None);
        }
    }

    /// All of a fact, behind its hash, without being asked.
    pub(super) fn send_chunks(&mut self, p: PeerId, id: &Hash) {
        let Some(fact) = self.roster.get(id).cloned() else { return };
        for chunk in 0..fact.bytes().len().div_ceil(CHUNK) as u16 {
            self.send_control(p, &serve(Some(fact.bytes()), *id, chunk));
        }
    }

    fn check_fact(&mut self, fact: Fact, from: Option<PeerId>) {
        match self.roster.signer_key(&fact) {
            Some(key) => self.submit(Pending::Fact(from), Job::Fact(Box::new(fact), Box::new(key))),
            None => {
                self.roster.wait(fact);
            }
        }
    }

    /// Tells a peer what this side has.
    pub(super) fn send_state(&mut self, now: Time, p: PeerId, id: SessionId) {
        let state = Control::RosterState { digest: self.roster.digest(), version: self.roster.version() };
        self.send_on(p, id, &state);
        let peer = &mut self.peers[p as usize];
        peer.next_sync = Some(now + peer.sync_wait);
        peer.sync_wait = (peer.sync_wait * 2).min(SYNC);
    }

    /// A peer has shown that it has a fact, or asks for it.
    fn heard_of(&mut self, p: PeerId, hash: &Hash) {
        self.peers[p as usize].untold.retain(|h| h != hash);
    }

    pub(super) fn sync_timeout(&mut self, now: Time, p: PeerId) {
        let i = p as usize;
        if self.peers[i].next_sync.is_some_and(|at| now >= at)
            && let Some(id) = self.peers[i].sending
        {
            self.send_state(now, p, id);
        }
        if now >= self.peers[i].tell_at && !self.peers[i].untold.is_empty() {
            self.peers[i].tell_at = now + TELL_REPEAT;
            let untold = self.peers[i].untold.clone();
            self.send_control(p, &Control::Have(untold));
        }
        if self.peers[i].puller.deadline().is_some_and(|d| d <= now) {
            let (ask, _) = self.peers[i].puller.handle_timeout(now);
            for c in ask {
                self.send_control(p, &c);
            }
        }
    }

    pub(super) fn pull_fact(&mut self, now: Time, p: PeerId, hash: Hash) {
        if self.roster.knows(&hash) {
            return;
        }
        for c in self.peers[p as usize].puller.want(now, hash) {
            self.send_control(p, &c);
        }
    }

    /// Roster messages of a peer.
    pub(super) fn handle_sync(&mut self, now: Time, p: PeerId, c: Control) -> Result<(), DropReason> {
        match c {
            Control::RosterState { digest, .. } => {
                if digest != self.roster.digest() {
                    // Whom to cut comes before all else that is new, and then what lets the peer in at the relays.
                    let ended = self.roster.newest_tombstones(MAX_HASHES);
                    let access = self.roster.accesses().into_iter().filter(|f| self.may_tell(f));
                    let access: Vec<Hash> = access.map(Fact::id).take(MAX_HASHES).collect();
                    for first in [ended, access].into_iter().filter(|ids| !ids.is_empty()) {
                        self.send_control(p, &Control::Have(first));
                    }
                    let buckets = Box::new(self.roster.bucket_digests());
                    self.send_control(p, &Control::RosterBuckets(buckets));
                } else {
                    let peer = &mut self.peers[p as usize];
                    peer.untold.clear();
                    peer.sync_wait = SYNC;
                }
            }
            Control::RosterBuckets(theirs) => {
                let ours = self.roster.bucket_digests();
                let differing = (0..BUCKETS).filter(|b| ours.get(*b) != theirs.get(*b));
                for bucket in differing {
                    let ids = self.roster.ids_in_bucket(bucket as u8);
                    let parts = ids.chunks(MAX_HASHES).len().clamp(1, 255);
                    let mut chunks = ids.chunks(MAX_HASHES);
                    for part in 0..parts {
                        let ids = chunks.next().unwrap_or_default().to_vec();
                        let part = (part as u8, parts as u8);
                        self.send_control(p, &Control::RosterIds { bucket: bucket as u8, part, ids });
                    }
                }
            }
            Control::RosterIds { bucket, part, ids } => {
                // What they have and we do not is pulled; what we have and they do not is offered.
                for id in &ids {
                    self.heard_of(p, id);
                    self.pull_fact(now, p, *id);
                }
                if part.1 == 1 {
                    let ours = self.roster.ids_in_bucket(bucket);
                    let extra: Vec<Hash> = ours.into_iter().filter(|h| !ids.contains(h)).collect();
                    for some in extra.chunks(MAX_HASHES) {
                        self.send_control(p, &Control::Have(some.to_vec()));
                    }
                }
            }
            Control::Have(ids) => {
                for id in ids {
                    self.heard_of(p, &id);
                    self.pull_fact(now, p, id);
                }
            }
            Control::Pull { hash, chunk } => {
                self.heard_of(p, &hash);
                let fact = self.roster.get(&hash).filter(|f| self.may_tell(f));
                let reply = serve(fact.map(Fact::bytes), hash, chunk);
                self.send_control(p, &reply);
            }
            Control::Chunk { hash, chunk, count, bytes } => {
                let (blob, ask) = self.peers[p as usize].puller.chunk(now, &hash, chunk, count, bytes);
                for c in ask {
                    self.send_control(p, &c);
                }
                if let Some(blob) = blob {
                    let fact = Fact::parse(&blob).map_err(|_| DropReason::Malformed)?;
                    if fact.id() != hash || fact.network() != self.roster.network() {
                        return Err(DropReason::Malformed);
                    }
                    if !self.roster.knows(&hash) {
                        self.check_fact(fact, Some(p));
                    }
                }
            }
            _ => return Err(DropReason::Malformed),
        }
        Ok(())
    }

    /// Is this member one that we keep a session with? The first three of this week's order that can be reached. The
    /// graph is random and changes each week; either side's choice makes the edge. [P-NEIGHBOUR]
    pub(super) fn is_neighbour(&self, node: &NodeId) -> bool {
        let mut reached = 0;
        for n in &self.neighbours {
            if n == node {
                return true;
            }
            let peer = self.by_node.get(n).map(|p| &self.peers[*p as usize]);
            // Who does not answer is tried again now and then, and does not count.
            let hoped = |p: &super::Peer| {
                p.failures == 0 && !p.opening.as_ref().is_some_and(crate::handshake::Initiator::is_unheard)
            };
            reached += usize::from(peer.is_some_and(|p| p.sending.is_some() || hoped(p)));
            if reached >= NEIGHBOURS {
                return false;
            }
        }
        false
    }

    /// Draws this week's order of neighbours.
    pub(super) fn refresh_neighbours(&mut self, now: Time) {
        let week = (self.unix(now) / WEEK).to_be_bytes();
        let network = self.roster.network();
        let me = self.id;
        let mut ranked: Vec<(Hash, NodeId)> = self
            .roster
            .members()
            .map(|m| m.id)
            .filter(|n| self.is_live(n))
            .map(|n| {
                let (a, b) = if n < me { (n, me) } else { (me, n) };
                (kdf::hash(kdf::Label::Neighbour, &[&network.0, &a.0, &b.0, &week]), n)
            })
            .collect();
        ranked.sort();
        self.neighbours = ranked.into_iter().map(|(_, n)| n).collect();
    }
}
