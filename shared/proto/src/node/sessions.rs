//! Sessions of a peer: opening, confirming, choosing, rekeying, retiring; keepalive and reports.

use super::alive::PING_ACTIVE;
use super::peer::{FIRST_BACKOFF, MAX_BACKOFF, MAX_QUEUED, Peer, QUEUE_LIFETIME};
use super::session::{GRACE, Rank, Session, UNCONFIRMED, rekey_after};
use super::{Event, MAX_SESSIONS, Node};
use crate::Time;
use crate::batch::TxBatch;
use crate::handshake::{
    Contact, Finished, Initiator, InitiatorConfig, Progress, ResponderLeaf, Role, SessionKeys, Source,
};
use crate::lane::{RxLane, TxLane};
use crate::snapshot::{Install, PeerId, Route, SessionId, THREADS};
use shadowmesh_wire::DropReason;
use shadowmesh_wire::control::Control;
use shadowmesh_wire::data::Kind;
use shadowmesh_wire::handshake::{Established, LANES, Sid};
use std::time::Duration;

/// Packets on one key after which it is replaced.
pub(super) const REKEY_PACKETS: u64 = 1 << 28;
/// A session asked for stays wanted so long.
const WANTED: Duration = Duration::from_secs(60);
const CONFIRM_REPEAT: Duration = Duration::from_millis(250);

impl Node {
    /// Makes sure of a session with a peer, now or soon.
    pub(super) fn want(&mut self, now: Time, p: PeerId) {
        let peer = &mut self.peers[p as usize];
        peer.wanted_until = now + WANTED;
        peer.last_active = now;
        if peer.sending.is_none() && peer.opening.is_none() && now >= peer.next_try {
            self.open(now, p);
        }
    }

    /// Keeps a frame until the session stands.
    pub(super) fn queue_frame(&mut self, now: Time, p: PeerId, frame: &[u8]) {
        self.want(now, p);
        let peer = &mut self.peers[p as usize];
        if peer.queue.len() >= MAX_QUEUED {
            peer.queue.pop_front();
            self.drops.count(DropReason::NoSession);
        }
        peer.queue.push_back((now, frame.to_vec()));
    }

    /// Is a session wanted, whoever begins it?
    pub(super) fn wants_session(&self, p: &Peer) -> bool {
        p.reachable && (p.wanted_until > p.next_try || self.is_neighbour(&p.node))
    }

    pub(super) fn open(&mut self, now: Time, p: PeerId) {
        let peer = &self.peers[p as usize];
        if !self.is_live(&peer.node) || self.revoked_self {
            return;
        }
        // By each in its turn, twice, since each second one asks for the leaf.
        let ways: Vec<Route> = self.ways(p).collect();
        let Some(route) = ways.get(peer.failures as usize / 2 % ways.len().max(1)).copied() else { return };
        if let Route::Relay { relay, .. } = route
            && !self.links.get(relay as usize).is_some_and(super::relays::Link::is_up)
        {
            return;
        }
        let Some(credential) = self.credential(now) else { return };
        let node = peer.node;
        let leaf = if peer.pull_leaf { None } else { self.responder_leaf(now, p) };
        let config = InitiatorConfig {
            contact: Contact::node(&self.roster.network().0, &node.0),
            leaf,
            credential,
            suites: self.config.suites.clone(),
        };
        let opening = Initiator::new(config, now, &mut self.rng);
        self.peers[p as usize].opening = Some(opening);
        self.peers[p as usize].opening_route = Some(route);
        self.drain_opening(p);
    }

    pub(super) fn responder_leaf(&self, now: Time, p: PeerId) -> Option<ResponderLeaf> {
        let node = self.peers[p as usize].node;
        let fact = self.roster.member(&node)?.leaf_fact(self.unix(now))?.clone();
        Some(ResponderLeaf { node: node.0, hash: fact.id(), key: (*fact.leaf()?.key).clone() })
    }

    pub(super) fn drain_opening(&mut self, p: PeerId) {
        let Some(route) = self.peers[p as usize].opening_route else { return };
        while let Some(packet) = self.peers[p as usize].opening.as_mut().and_then(Initiator::poll_transmit) {
            self.send_typed(&route.source(), packet);
        }
    }

    /// Puts a handshake packet on its way.
    pub(super) fn send_typed(&mut self, to: &Source, packet: Vec<u8>) {
        let addressed = match *to {
            Source::Udp(a) => Ok((a, packet)),
            Source::Relay { relay, handle } => match self.links.get_mut(relay as usize) {
                Some(l) => l.wrap(handle, &packet),
                None => Err(DropReason::NoSession),
            },
        };
        match addressed {
            Ok(x) => self.out.push_back(x),
            Err(reason) => self.drops.count(reason),
        }
    }

    /// A packet that answers one of our openings; `false` when it answers none.
    pub(super) fn handle_opening(&mut self, now: Time, packet: &[u8]) -> Result<bool, DropReason> {
        let Some(sid) = crate::relay_link::sid_of(packet) else { return Ok(false) };
        let Some(p) = self.peers.iter().position(|p| p.opening.as_ref().is_some_and(|o| *o.sid() == sid))
        else {
            return Ok(false);
        };
        let opening = self.peers[p].opening.as_mut().ok_or(DropReason::UnknownHandshake)?;
        let progress = opening.handle(now, packet, &mut self.rng);
        self.drain_opening(p as PeerId);
        match progress? {
            Progress::Pending => {}
            Progress::Bundle(bytes) => self.verify_leaf(p as PeerId, bytes),
            Progress::Finished(f) => self.opened(now, p as PeerId, *f),
        }
        Ok(true)
    }

    /// Our opening has finished.
    fn opened(&mut self, now: Time, p: PeerId, f: Finished) {
        let peer = &mut self.peers[p as usize];
        peer.opening = None;
        if f.responder != peer.node.0 {
            self.drops.count(DropReason::BadHandshake);
            return;
        }
        peer.backoff = FIRST_BACKOFF;
        peer.pull_leaf = false;
        peer.path.announced(f.established.mtu);
        peer.skew = Some(f.established.wall as i64 - self.wall_base - (now.0 / 1_000_000_000) as i64);
        let peer = &mut self.peers[p as usize];
        peer.generation = peer.generation.max(f.established.generation).saturating_add(1);
        let rank = Rank { generation: peer.generation, depth: 0 };
        let rx = self.indexes.fresh(&mut self.rng, self.config.data_threads);
        let id = self.add_session(now, p, Role::Initiator, rank, f.keys, rx, f.established.sid_r);
        let way = self.peers[p as usize].opening_route;
        if let Some(s) = self.peers[p as usize].session_mut(id) {
            s.way = way;
        }
        if self.peers[p as usize].sending.is_none() {
            self.peers[p as usize].route = way;
        }
        self.confirm_out(now, p, id, &f.established);
        self.heard_from(now, p);
        self.choose(now, p, id);
    }

    /// As initiator: the peer's indexes are known, so this side can send; CONFIRM goes out until the peer is heard.
    pub(super) fn confirm_out(&mut self, now: Time, p: PeerId, id: SessionId, e: &Established) {
        self.open_tx(p, id, &e.lanes);
        let wall = self.clock(now);
        let Some(s) = self.peers[p as usize].session_mut(id) else { return };
        let generation = s.rank.generation;
        let confirm = Control::Confirm { sid_r: e.sid_r, generation, lanes: s.rx, wall };
        s.confirm = Some((confirm.clone(), now + CONFIRM_REPEAT));
        s.confirmed = true;
        self.send_on(p, id, &confirm);
    }

    /// A session whose keys are made: it receives from now on.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn add_session(
        &mut self,
        now: Time,
        p: PeerId,
        role: Role,
        rank: Rank,
        keys: SessionKeys,
        rx: [u32; LANES],
        sid_r: Sid,
    ) -> SessionId {
        let id = self.next_session;
        self.next_session += 1;
        for (lane, index) in rx.iter().enumerate() {
            let lane = lane as u8;
            self.install(Install::Rx {
                index: *index,
                lane,
                session: id,
                peer: p,
                keys: RxLane::new(keys.receive_lane(lane)),
            });
        }
        self.sessions.insert(id, p);
        let begun_by = match role {
            Role::Initiator => self.id,
            Role::Responder => self.peers[p as usize].node,
        };
        let meet = self.config.rekey_both.then(|| self.peers[p as usize].rtt.unwrap_or_default());
        let rekey_after = rekey_after(self.config.rekey, role, meet, &mut self.rng);
        let session = Session {
            id,
            role,
            begun_by,
            established: now,
            confirmed: false,
            way: None,
            rank,
            suite: keys.suite,
            exporter: keys.exporter.duplicate(),
            rx,
            tx: None,
            group: 0,
            keys: Some(keys),
            sid_r,
            confirm: None,
            rekey_out: None,
            rekey_in: None,
            rekey_after,
            expires: now + self.config.rekey + self.config.rekey / 2,
            retire_at: None,
        };
        self.peers[p as usize].sessions.push(session);
        if self.peers[p as usize].sessions.len() > MAX_SESSIONS {
            // The oldest that is not sent on goes.
            let peer = &self.peers[p as usize];
            let oldest = peer.sessions.iter().map(|s| s.id).find(|s| Some(*s) != peer.sending && *s != id);
            if let Some(oldest) = oldest {
                self.remove_session(p, oldest);
            }
        }
        id
    }

    /// Installs the sending lanes: two groups of one for each thread.
    pub(super) fn open_tx(&mut self, p: PeerId, id: SessionId, lanes: &[u32; LANES]) {
        let threads = self.config.data_threads + 1;
        let mut ids = [0; LANES];
        for lane in &mut ids {
            *lane = self.next_lane;
            self.next_lane += 1;
        }
        let Some(s) = self.peers[p as usize].session_mut(id) else { return };
        let Some(keys) = s.keys.take() else { return };
        s.tx = Some(ids);
        for number in (0..LANES).filter(|n| n % THREADS < threads) {
            let tx = TxLane::new(lanes[number], keys.send_lane(number as u8));
            self.install(Install::Tx { thread: number % THREADS, lane: ids[number], keys: tx });
        }
    }

    pub(super) fn remove_session(&mut self, p: PeerId, id: SessionId) {
        let peer = &mut self.peers[p as usize];
        let Some(at) = peer.sessions.iter().position(|s| s.id == id) else { return };
        let s = peer.sessions.remove(at);
        if peer.sending == Some(id) {
            peer.sending = None;
            self.dirty = true;
        }
        self.sessions.remove(&id);
        if let Some(r) = &s.rekey_out {
            self.indexes.free(&r.rx);
        }
        self.indexes.free(&s.rx);
        for index in s.rx {
            self.install(Install::RetireRx { index });
        }
        for (number, lane) in s.tx.iter().flatten().enumerate() {
            self.install(Install::RetireTx { thread: number % THREADS, lane: *lane });
        }
    }

    /// A session has become usable: send on it, or on the one before, by the rule that both sides share.
    pub(super) fn choose(&mut self, now: Time, p: PeerId, newer: SessionId) {
        let peer = &mut self.peers[p as usize];
        let first = peer.sending.is_none();
        let (mut winner, mut loser) = (newer, None);
        if let (Some(s), Some(n)) = (peer.current(), peer.session(newer)) {
            if s.id == newer {
                return;
            }
            (winner, loser) = if s.yields_to(n) { (newer, Some(s.id)) } else { (s.id, Some(newer)) };
            if n.rank.depth > 0 {
                let crossed = n.rank == s.rank;
                peer.rekeys.0 += u64::from(!crossed);
                peer.rekeys.1 += u64::from(crossed);
            }
        }
        peer.sending = Some(winner);
        peer.failures = 0;
        // What was validated under another session's keys says nothing of this one; a rekey's are of the same two.
        let way = peer.session(winner).and_then(|s| s.way).filter(|_| winner == newer);
        if let Some(way) = way {
            peer.route = Some(way);
        }
        if winner == newer {
            peer.carrying.rekeyed();
        }
        peer.unanswered = 0;
        peer.next_ping = if first { now } else { peer.next_ping.min(now + PING_ACTIVE) };
        peer.sync_now(now);
        if let Some(loser) = loser.and_then(|l| peer.session_mut(l)) {
            loser.retire_at = Some(now + GRACE);
            loser.confirm = None;
            if let Some(r) = loser.rekey_out.take() {
                self.indexes.free(&r.rx);
            }
        }
        self.dirty = true;
        if way.is_some() {
            self.start_paths(now, p, "the session was made by it");
        }
        if first {
            let node = self.peers[p as usize].node;
            if let Some(route) = self.route(&self.peers[p as usize]) {
                self.events.push_back(Event::PeerUp(node, route));
            }
            self.publish();
            self.flush_queue(now, p);
        }
        self.search_path(now, p, first);
        self.flush_pings(now, p);
    }

    /// Sends what waited, sealed by the control half on its own lane: the data threads may not have the snapshot yet.
    pub(super) fn flush_queue(&mut self, now: Time, p: PeerId) {
        if self.is_former(self.route(&self.peers[p as usize])) {
            return;
        }
        let queued = std::mem::take(&mut self.peers[p as usize].queue);
        for (at, frame) in queued {
            if now.since(at) < QUEUE_LIFETIME {
                self.send_frame(p, &frame);
            } else {
                self.drops.count(DropReason::NoSession);
            }
        }
    }

    /// One frame to one peer, on the control half's lane.
    pub(super) fn send_frame(&mut self, p: PeerId, frame: &[u8]) {
        let Some(forward) = self.snapshot.peers.get(&p).cloned() else { return };
        let mut batch = TxBatch::new(0, 0, 0);
        match self.sealer.seal_copy(&forward, frame, &mut batch) {
            Ok(()) => self.out.extend(batch.datagrams().map(|(to, bytes)| (to, bytes.to_vec()))),
            Err(reason) => self.drops.count(reason),
        }
    }

    /// Cuts a peer off: every session ends now. [P-CUT]
    pub(super) fn cut(&mut self, p: PeerId, why: &str) {
        if self.peers[p as usize].sending.is_some() {
            // Its last words are the proof: of five packets that may be lost, since nothing that it asks is answered any
            // more. Who misses one hears it when it comes back. [P-FAREWELL]
            if let Some(id) =
                self.roster.ending(&self.peers[p as usize].node).map(shadowmesh_identity::Fact::id)
            {
                self.send_control(p, &Control::Have(vec![id]));
                self.send_chunks(p, &id);
            }
            let text = why.chars().take(shadowmesh_wire::control::MAX_TEXT).collect();
            self.send_control(p, &Control::Refused(text));
        }
        let node = self.peers[p as usize].node;
        self.drop_sessions(p, "it is no longer a member");
        self.peers[p as usize].opening = None;
        self.peers[p as usize].queue.clear();
        self.events.push_back(Event::Revoked(node));
        self.dirty = true;
    }

    pub(super) fn drop_sessions(&mut self, p: PeerId, why: &'static str) {
        let was = self.peers[p as usize].sending.is_some();
        let all: Vec<SessionId> = self.peers[p as usize].sessions.iter().map(|s| s.id).collect();
        for id in all {
            self.remove_session(p, id);
        }
        // The next session begins with a comparison of all.
        self.peers[p as usize].untold.clear();
        if was {
            self.events.push_back(Event::PeerDown(self.peers[p as usize].node, why));
        }
    }

    /// Sends a control message on the session in use.
    pub(super) fn send_control(&mut self, p: PeerId, control: &Control) {
        if let Some(id) = self.peers[p as usize].sending {
            self.send_on(p, id, control);
        }
    }

    pub(super) fn send_on(&mut self, p: PeerId, id: SessionId, control: &Control) {
        let mut body = vec![];
        control.emit(&mut body);
        self.send_kind(p, id, Kind::Control, &body);
    }

    pub(super) fn send_control_via(&mut self, p: PeerId, id: SessionId, route: &Route, control: &Control) {
        let mut body = vec![];
        control.emit(&mut body);
        self.send_via(p, id, route, Kind::Control, &body);
    }

    pub(super) fn send_kind(&mut self, p: PeerId, id: SessionId, kind: Kind, body: &[u8]) {
        if let Some(route) = self.route(&self.peers[p as usize]) {
            self.send_via(p, id, &route, kind, body);
        }
    }

    /// Sends by this path, whichever carries.
    pub(super) fn send_via(&mut self, p: PeerId, id: SessionId, route: &Route, kind: Kind, body: &[u8]) {
        let peer = &self.peers[p as usize];
        let carries = self.route(peer) == Some(*route);
        let Some(lane) = peer.session(id).and_then(|s| s.control_lane(carries)) else { return };
        let sent =
            self.sealer.seal_control(lane, kind, body).and_then(|packet| self.sealer.address(route, packet));
        match sent {
            Ok(x) => self.out.push_back(x),
            Err(reason) => self.drops.count(reason),
        }
    }

    /// What the timers of one peer ask for.
    pub(super) fn peer_timeout(&mut self, now: Time, p: PeerId) {
        let i = p as usize;
        if let Some(o) = &mut self.peers[i].opening
            && now >= o.deadline()
        {
            if o.handle_timeout(now, &mut self.rng) {
                self.drain_opening(p);
            } else {
                let peer = &mut self.peers[i];
                peer.opening = None;
                peer.pull_leaf = !peer.pull_leaf;
                peer.failures += 1;
                peer.next_try = now + self.rng.jitter(peer.backoff);
                peer.backoff = (peer.backoff * 2).min(MAX_BACKOFF);
            }
        }
        while self.peers[i].queue.front().is_some_and(|(at, _)| now.since(*at) >= QUEUE_LIFETIME) {
            self.peers[i].queue.pop_front();
            self.drops.count(DropReason::NoSession);
        }
        let ids: Vec<SessionId> = self.peers[i].sessions.iter().map(|s| s.id).collect();
        for id in ids {
            self.session_timeout(now, p, id);
        }
        if self.peers[i].sending.is_some() {
            self.keepalive(now, p);
            self.sync_timeout(now, p);
            self.path_timeout(now, p);
            self.paths_timeout(now, p);
        }
        let peer = &self.peers[i];
        if peer.sending.is_none() && peer.opening.is_none() && now >= peer.next_try {
            if self.wants_session(peer) {
                self.peers[i].next_try = now + FIRST_BACKOFF;
                self.open(now, p);
            } else {
                self.peers[i].next_try = now + FIRST_BACKOFF;
            }
        }
    }

    fn session_timeout(&mut self, now: Time, p: PeerId, id: SessionId) {
        let Some(s) = self.peers[p as usize].session_mut(id) else { return };
        if s.retire_at.is_some_and(|at| now >= at) {
            return self.remove_session(p, id);
        }
        if !s.confirmed && now >= s.established + UNCONFIRMED {
            // Never confirmed: the initiator is gone.
            return self.remove_session(p, id);
        }
        if let Some((confirm, at)) = &mut s.confirm
            && now >= *at
        {
            *at = now + CONFIRM_REPEAT;
            let confirm = confirm.clone();
            self.send_on(p, id, &confirm);
        }
        let Some(s) = self.peers[p as usize].session_mut(id) else { return };
        if s.retire_at.is_some() || !s.confirmed {
            return;
        }
        if now >= s.expires {
            // The rekey did not come about: data is refused on the old key, a new opening must do. [P-HARDSTOP]
            s.retire_at = Some(now + GRACE);
            s.rekey_out = None;
            let peer = &mut self.peers[p as usize];
            if peer.sending == Some(id) {
                peer.sending = None;
                peer.next_try = now;
                self.dirty = true;
                let node = self.peers[p as usize].node;
                self.events.push_back(Event::PeerDown(node, "its keys have expired"));
            }
            return;
        }
        match &mut s.rekey_out {
            Some(r) if now >= r.repeat_at => {
                r.wait = (r.wait * 5 / 4).min(Duration::from_secs(1));
                r.repeat_at = now + r.wait;
                let pieces = r.pieces.clone();
                for piece in pieces {
                    self.send_on(p, id, &piece);
                }
            }
            None if now >= s.established + s.rekey_after => self.start_rekey(now, p, id),
            _ => {}
        }
    }
}
