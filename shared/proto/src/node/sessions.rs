//! Sessions of a peer: opening, confirming, choosing, rekeying, retiring; keepalive and reports.

use super::peer::{FIRST_BACKOFF, MAX_BACKOFF, MAX_QUEUED, Peer, QUEUE_LIFETIME};
use super::session::{GRACE, RekeyIn, RekeyOut, Root, Session, UNCONFIRMED, rekey_after};
use super::{Event, MAX_SESSIONS, Node};
use crate::batch::{Plain, TxBatch};
use crate::handshake::{
    Contact, Finished, Initiator, InitiatorConfig, Parent, Pieces, Progress, Rekey, RekeyOpened,
    ResponderLeaf, Role, SessionKeys, Source,
};
use crate::lane::{RxLane, TxLane};
use crate::snapshot::{Install, PeerId, Route, SessionId, THREADS};
use crate::{LaneStats, Time};
use shadowmesh_identity::Fact;
use shadowmesh_wire::DropReason;
use shadowmesh_wire::control::{CHUNK, Control, Piece};
use shadowmesh_wire::data::{Kind, LaneReport, Ping, Report};
use shadowmesh_wire::handshake::{Established, LANES, RelayGrant, Sid};
use std::time::Duration;

/// Packets on one key after which it is replaced.
pub(super) const REKEY_PACKETS: u64 = 1 << 28;
/// A session asked for stays wanted so long.
const WANTED: Duration = Duration::from_secs(60);
/// Between pings while the session is used, and while it is not.
const PING_ACTIVE: Duration = Duration::from_secs(1);
const PING_IDLE: Duration = Duration::from_secs(15);
const PING_REPEAT: Duration = Duration::from_millis(700);
/// Unanswered pings after which another opening is tried beside the session, and after which the session is dead.
const SUSPECT: u32 = 3;
const DEAD: u32 = 20;
const CONFIRM_REPEAT: Duration = Duration::from_millis(250);
const REKEY_REPEAT: Duration = Duration::from_millis(200);
/// Between repeats of the roster's state.
const SYNC: Duration = Duration::from_secs(20);

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
        self.is_live(&p.node)
            && self.route(p).is_some()
            && (p.wanted_until > p.next_try || self.is_neighbour(&p.node))
    }

    fn open(&mut self, now: Time, p: PeerId) {
        let peer = &self.peers[p as usize];
        if !self.is_live(&peer.node) || self.revoked_self {
            return;
        }
        let Some(route) = self.way(peer) else { return };
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

    fn responder_leaf(&self, now: Time, p: PeerId) -> Option<ResponderLeaf> {
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
        let begun = opening.began();
        let progress = opening.handle(now, packet, &mut self.rng);
        self.drain_opening(p as PeerId);
        match progress? {
            Progress::Pending => {}
            Progress::Bundle(bytes) => self.verify_leaf(p as PeerId, bytes),
            Progress::Finished(f) => self.opened(now, p as PeerId, begun, *f),
        }
        Ok(true)
    }

    /// Our opening has finished.
    fn opened(&mut self, now: Time, p: PeerId, begun: Time, f: Finished) {
        let peer = &mut self.peers[p as usize];
        peer.opening = None;
        if f.responder != peer.node.0 {
            self.drops.count(DropReason::BadHandshake);
            return;
        }
        peer.backoff = FIRST_BACKOFF;
        peer.pull_leaf = false;
        peer.skew = Some(f.established.wall as i64 - self.wall_base - (now.0 / 1_000_000_000) as i64);
        let node = self.id;
        let root = Root { begun_by: node, begun, confirmed: now, instance: f.established.instance };
        let rx = self.fresh_indexes();
        let id = self.add_session(now, p, Role::Initiator, root, None, f.keys, rx, f.established.sid_r);
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
    fn confirm_out(&mut self, now: Time, p: PeerId, id: SessionId, e: &Established) {
        self.open_tx(p, id, &e.lanes);
        let wall = self.clock(now);
        let instance = self.instance;
        let Some(s) = self.peers[p as usize].session_mut(id) else { return };
        let confirm = Control::Confirm { sid_r: e.sid_r, instance, lanes: s.rx, wall };
        s.confirm = Some((confirm.clone(), now + CONFIRM_REPEAT));
        s.confirmed = true;
        self.send_on(p, id, &confirm);
    }

    /// Eight indexes that nobody else here has. The low four bits name the opener that owns the lane: one, for now.
    pub(super) fn fresh_indexes(&mut self) -> [u32; LANES] {
        std::array::from_fn(|_| {
            loop {
                let index = (self.rng.u64() as u32) & shadowmesh_wire::data::MAX_INDEX & !15;
                if let std::collections::hash_map::Entry::Vacant(v) = self.indexes.entry(index) {
                    v.insert(SessionId::MAX);
                    return index;
                }
            }
        })
    }

    /// A session whose keys are made: it receives from now on.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn add_session(
        &mut self,
        now: Time,
        p: PeerId,
        role: Role,
        root: Root,
        parent: Option<SessionId>,
        keys: SessionKeys,
        rx: [u32; LANES],
        sid_r: Sid,
    ) -> SessionId {
        let id = self.next_session;
        self.next_session += 1;
        for (lane, index) in rx.iter().enumerate() {
            let lane = lane as u8;
            self.indexes.insert(*index, id);
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
        let rekey_after = rekey_after(self.config.rekey, role, self.config.rekey_both, &mut self.rng);
        let session = Session {
            id,
            role,
            begun_by,
            established: now,
            confirmed: false,
            parent,
            way: None,
            root,
            suite: keys.suite,
            exporter: keys.exporter.duplicate(),
            rx,
            tx: None,
            keys: Some(keys),
            sid_r,
            confirm: None,
            rekey_out: None,
            rekey_in: None,
            rekey_after,
            expires: now + self.config.rekey + self.config.rekey / 2,
            retire_at: None,
            last_rx: now,
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

    /// Installs the sending lanes of path 0: one for each thread.
    fn open_tx(&mut self, p: PeerId, id: SessionId, lanes: &[u32; LANES]) {
        let threads = self.config.data_threads + 1;
        let mut ids = [0; THREADS];
        for lane in &mut ids {
            *lane = self.next_lane;
            self.next_lane += 1;
        }
        let Some(s) = self.peers[p as usize].session_mut(id) else { return };
        let Some(keys) = s.keys.take() else { return };
        s.tx = Some(ids);
        for thread in 0..threads.min(THREADS) {
            let tx = TxLane::new(lanes[thread], keys.send_lane(thread as u8));
            self.install(Install::Tx { thread, lane: ids[thread], keys: tx });
        }
    }

    fn remove_session(&mut self, p: PeerId, id: SessionId) {
        let peer = &mut self.peers[p as usize];
        let Some(at) = peer.sessions.iter().position(|s| s.id == id) else { return };
        let s = peer.sessions.remove(at);
        if peer.sending == Some(id) {
            peer.sending = None;
            self.dirty = true;
        }
        self.sessions.remove(&id);
        if let Some(r) = &s.rekey_out {
            for index in r.rx {
                self.indexes.remove(&index);
            }
        }
        for index in s.rx {
            self.indexes.remove(&index);
            self.install(Install::RetireRx { index });
        }
        for (thread, lane) in s.tx.iter().flatten().enumerate() {
            self.install(Install::RetireTx { thread, lane: *lane });
        }
    }

    /// A session has become usable: send on it, or on the one before, by the rule that both sides share.
    fn choose(&mut self, now: Time, p: PeerId, newer: SessionId) {
        let peer = &mut self.peers[p as usize];
        let first = peer.sending.is_none();
        let (winner, loser) = match peer.current() {
            None => (newer, None),
            Some(s) if s.id == newer => return,
            Some(s) => match peer.session(newer) {
                Some(n) if s.yields_to(n) => (newer, Some(s.id)),
                _ => (s.id, Some(newer)),
            },
        };
        peer.sending = Some(winner);
        peer.failures = 0;
        if let Some(way) = peer.session(winner).and_then(|s| s.way) {
            peer.route = Some(way);
        }
        peer.unanswered = 0;
        peer.next_ping = if first { now } else { peer.next_ping.min(now + PING_ACTIVE) };
        peer.next_sync = Some(now);
        if let Some(loser) = loser.and_then(|l| peer.session_mut(l)) {
            loser.retire_at = Some(now + GRACE);
            loser.confirm = None;
            if let Some(r) = loser.rekey_out.take() {
                for index in r.rx {
                    self.indexes.remove(&index);
                }
            }
        }
        self.dirty = true;
        if first {
            let node = self.peers[p as usize].node;
            if let Some(route) = self.route(&self.peers[p as usize]) {
                self.events.push_back(Event::PeerUp(node, route));
            }
            self.publish(now);
            self.flush_queue(now, p);
        }
        self.flush_pings(now, p);
    }

    /// Sends what waited, sealed by the control half on its own lane: the data threads may not have the snapshot yet.
    fn flush_queue(&mut self, now: Time, p: PeerId) {
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
        let mut batch = TxBatch::new(0, 0);
        match self.sealer.seal_copy(&forward, frame, &mut batch) {
            Ok(()) => self.out.extend(batch.datagrams().map(|(to, bytes)| (to, bytes.to_vec()))),
            Err(reason) => self.drops.count(reason),
        }
    }

    /// Cuts a peer off: every session ends now. [P-CUT]
    pub(super) fn cut(&mut self, now: Time, p: PeerId, why: &str) {
        if self.peers[p as usize].sending.is_some() {
            let text = why.chars().take(shadowmesh_wire::control::MAX_TEXT).collect();
            self.send_control(now, p, &Control::Refused(text));
        }
        let node = self.peers[p as usize].node;
        self.drop_sessions(p, "it is no longer a member");
        self.peers[p as usize].opening = None;
        self.peers[p as usize].queue.clear();
        self.events.push_back(Event::Revoked(node));
        self.dirty = true;
    }

    fn drop_sessions(&mut self, p: PeerId, why: &'static str) {
        let was = self.peers[p as usize].sending.is_some();
        let all: Vec<SessionId> = self.peers[p as usize].sessions.iter().map(|s| s.id).collect();
        for id in all {
            self.remove_session(p, id);
        }
        if was {
            self.events.push_back(Event::PeerDown(self.peers[p as usize].node, why));
        }
    }

    /// Sends a control message on the session in use.
    pub(super) fn send_control(&mut self, _now: Time, p: PeerId, control: &Control) {
        if let Some(id) = self.peers[p as usize].sending {
            self.send_on(p, id, control);
        }
    }

    pub(super) fn send_on(&mut self, p: PeerId, id: SessionId, control: &Control) {
        let mut body = vec![];
        control.emit(&mut body);
        self.send_kind(p, id, Kind::Control, &body);
    }

    fn send_kind(&mut self, p: PeerId, id: SessionId, kind: Kind, body: &[u8]) {
        let peer = &self.peers[p as usize];
        let lane = peer.session(id).and_then(|s| s.tx).map(|tx| tx[0]);
        let (Some(lane), Some(route)) = (lane, self.route(peer)) else { return };
        let sent =
            self.sealer.seal_control(lane, kind, body).and_then(|packet| self.sealer.address(&route, packet));
        match sent {
            Ok(x) => self.out.push_back(x),
            Err(reason) => self.drops.count(reason),
        }
    }

    /// An authenticated packet came.
    fn heard_from(&mut self, now: Time, p: PeerId) {
        let peer = &mut self.peers[p as usize];
        peer.last_rx = Some(now);
        peer.unanswered = 0;
        if let Some(Route::Relay { relay, .. }) = peer.route
            && let Some(l) = self.links.get_mut(relay as usize)
        {
            l.note_activity(now);
        }
    }

    /// Opened control, report or ping from a peer.
    pub(super) fn handle_peer_plain(
        &mut self,
        now: Time,
        p: PeerId,
        plain: Plain<'_>,
    ) -> Result<(), DropReason> {
        if !self.is_live(&self.peers[p as usize].node) {
            return Err(DropReason::NotMember);
        }
        self.heard_from(now, p);
        let id = plain.session;
        if let Some(s) = self.peers[p as usize].session_mut(id) {
            s.last_rx = now;
            s.confirm = None;
        }
        match plain.kind {
            Kind::Ping => {
                let ping = Ping::parse(plain.body)?;
                self.peers[p as usize].echo = ((ping.stamp / 1000) as u32, now);
                self.send_kind(p, id, Kind::Pong, plain.body);
            }
            Kind::Pong => {
                let ping = Ping::parse(plain.body)?;
                let rtt = now.since(Time(ping.stamp));
                let peer = &mut self.peers[p as usize];
                peer.rtt = Some(rtt);
                if ping.id != 0 {
                    let node = peer.node;
                    self.events.push_back(Event::Pong { peer: node, id: ping.id, rtt, source: plain.source });
                }
            }
            Kind::Report => {
                let report = Report::parse(plain.body)?;
                let peer = &mut self.peers[p as usize];
                if report.echo != 0 {
                    let rtt = now.micros32().wrapping_sub(report.echo).wrapping_sub(report.held);
                    if rtt < 60_000_000 {
                        peer.rtt = Some(Duration::from_micros(u64::from(rtt)));
                    }
                }
                peer.last_active = now;
                for l in &report.lanes {
                    if l.highest > 0 && l.received <= l.highest + 1 {
                        peer.loss = Some(1.0 - l.received as f64 / (l.highest + 1) as f64);
                    }
                }
            }
            Kind::Control => self.handle_control(now, p, id, Control::parse(plain.body)?)?,
            Kind::Frame | Kind::Fragment => return Err(DropReason::Malformed),
        }
        Ok(())
    }

    fn handle_control(&mut self, now: Time, p: PeerId, id: SessionId, c: Control) -> Result<(), DropReason> {
        match c {
            Control::Confirm { sid_r, instance, lanes, wall } => {
                self.confirmed(now, p, id, sid_r, instance, &lanes, wall)
            }
            Control::RekeyResponse(piece) => self.rekey_asked(now, p, id, piece),
            Control::RekeyEstablished(piece) => self.rekey_answered(now, p, id, piece),
            Control::Bye => {
                self.drop_sessions(p, "it has said goodbye");
                let peer = &mut self.peers[p as usize];
                peer.next_try = now + FIRST_BACKOFF;
                peer.wanted_until = Time(0);
                Ok(())
            }
            Control::Refused(_) => {
                // Said under the session's keys, so the peer means it; whether we are revoked, the roster tells.
                self.drop_sessions(p, "it refuses this node");
                let peer = &mut self.peers[p as usize];
                peer.next_try = now + MAX_BACKOFF;
                Ok(())
            }
            other => self.handle_sync(now, p, other),
        }
    }

    /// As responder: the initiator has proved its keys. Only now may anything be sent to it. [P-CONFIRM]
    #[allow(clippy::too_many_arguments)]
    fn confirmed(
        &mut self,
        now: Time,
        p: PeerId,
        id: SessionId,
        sid_r: Sid,
        instance: u64,
        lanes: &[u32; LANES],
        wall: u64,
    ) -> Result<(), DropReason> {
        let skew = wall as i64 - self.wall_base - (now.0 / 1_000_000_000) as i64;
        let peer = &mut self.peers[p as usize];
        let s = peer.session_mut(id).ok_or(DropReason::NoSession)?;
        if s.role != Role::Responder || s.sid_r != sid_r {
            return Err(DropReason::BadHandshake);
        }
        if s.confirmed {
            // A repeat: it has not heard us yet.
            self.send_state(now, p, id);
            return Ok(());
        }
        s.confirmed = true;
        s.root.confirmed = if s.parent.is_none() { now } else { s.root.confirmed };
        s.root.instance = instance;
        let begun_by = s.root.begun_by;
        peer.skew = Some(skew);
        // The larger gives up its own opening once the smaller's session stands; never for less. [P-SIMOPEN]
        if begun_by < self.id {
            peer.opening = None;
        }
        self.open_tx(p, id, lanes);
        self.choose(now, p, id);
        self.send_state(now, p, id);
        Ok(())
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

    /// Every session in use gets new keys: one of them has sealed much.
    pub(super) fn rekey_all(&mut self, now: Time) {
        for p in 0..self.peers.len() {
            if let Some(s) = self.peers[p].current()
                && s.rekey_out.is_none()
                && now.since(s.established) > Duration::from_secs(1)
            {
                let id = s.id;
                self.start_rekey(now, p as PeerId, id);
            }
        }
    }

    fn start_rekey(&mut self, now: Time, p: PeerId, id: SessionId) {
        // Should it not come about now, it is tried again soon.
        if let Some(s) = self.peers[p as usize].session_mut(id) {
            s.rekey_after = now.since(s.established) + Duration::from_secs(1);
        }
        let (Some(leaf), Some(credential)) = (self.responder_leaf(now, p), self.credential(now)) else {
            return;
        };
        let (me, network) = (self.id, self.roster.network());
        let sid: Sid = self.rng.bytes();
        let peer = &self.peers[p as usize];
        let Some(s) = peer.session(id) else { return };
        let parent = Parent {
            profile: &network.0,
            initiator: &me.0,
            responder: &peer.node.0,
            suite: s.suite,
            exporter: &s.exporter,
        };
        let Ok((rekey, body)) = Rekey::start(&parent, sid, &leaf, credential) else { return };
        let pieces = pieces(sid, &body, Control::RekeyResponse);
        let rx = self.fresh_indexes();
        for piece in &pieces {
            self.send_on(p, id, piece);
        }
        if let Some(s) = self.peers[p as usize].session_mut(id) {
            s.rekey_out = Some(RekeyOut {
                rekey,
                pieces,
                repeat_at: now + REKEY_REPEAT,
                wait: REKEY_REPEAT,
                reply: None,
                rx,
            });
        }
    }

    /// The peer starts a rekey of this session.
    fn rekey_asked(&mut self, now: Time, p: PeerId, id: SessionId, piece: Piece) -> Result<(), DropReason> {
        let s = self.peers[p as usize].session_mut(id).ok_or(DropReason::NoSession)?;
        if !s.confirmed {
            return Err(DropReason::BadHandshake);
        }
        if s.rekey_in.as_ref().is_none_or(|r| r.sid != piece.sid) {
            s.rekey_in = Some(RekeyIn { sid: piece.sid, pieces: Pieces::new(piece.count), answer: vec![] });
        }
        let r = s.rekey_in.as_mut().ok_or(DropReason::BadHandshake)?;
        if !r.answer.is_empty() {
            // A repeat gets the same bytes, piece for piece.
            let again = r.answer.get(usize::from(piece.index)).cloned();
            if let Some(again) = again {
                self.send_on(p, id, &again);
            }
            return Ok(());
        }
        if r.pieces.count() != usize::from(piece.count) {
            return Err(DropReason::BadHandshake);
        }
        r.pieces.add(piece.index, &piece.bytes);
        let Some(body) = r.pieces.whole() else { return Ok(()) };
        self.answer_rekey(now, p, id, piece.sid, &body)
    }

    fn answer_rekey(
        &mut self,
        now: Time,
        p: PeerId,
        id: SessionId,
        sid: Sid,
        body: &[u8],
    ) -> Result<(), DropReason> {
        let (me, network) = (self.id, self.roster.network());
        let rx = self.fresh_indexes();
        let (sid_r, instance, wall) = (self.rng.bytes(), self.instance, self.clock(now));
        let peer = &self.peers[p as usize];
        let s = peer.session(id).ok_or(DropReason::NoSession)?;
        let parent = Parent {
            profile: &network.0,
            initiator: &peer.node.0,
            responder: &me.0,
            suite: s.suite,
            exporter: &s.exporter,
        };
        let opened = RekeyOpened::open(&parent, &sid, body, |leaf| self.own.leaf_key(leaf))?;
        // The same two NodeIds, or refuse: the leaf shown must be the peer's own. [P-REKEY]
        let member = self.roster.member(&peer.node).ok_or(DropReason::NotMember)?;
        let leaf = member.leaves().find(|l| l.id() == opened.leaf);
        let (Some(leaf), true) = (leaf.and_then(Fact::leaf), member.fact.id() == opened.certificate) else {
            // It has a leaf or certificate that is not here yet: ask for them; its repeat will find them.
            let wanted = [opened.leaf, opened.certificate];
            if let Some(s) = self.peers[p as usize].session_mut(id) {
                s.rekey_in = None;
            }
            for hash in wanted {
                self.pull_fact(now, p, hash);
            }
            return Ok(());
        };
        let established = Established {
            sid_r,
            instance,
            lanes: rx,
            observed: ([0; 16], 0),
            mtu: self.config.path_mtu as u16,
            wall,
            relay: RelayGrant::default(),
        };
        let (body, keys) = opened.finish(&parent, &leaf.key, &established)?;
        let root = s.root;
        self.add_session(now, p, Role::Responder, root, Some(id), keys, rx, sid_r);
        let answer = pieces(sid, &body, Control::RekeyEstablished);
        for piece in &answer {
            self.send_on(p, id, piece);
        }
        if let Some(r) = self.peers[p as usize].session_mut(id).and_then(|s| s.rekey_in.as_mut()) {
            r.answer = answer;
        }
        Ok(())
    }

    /// The answer to our rekey.
    fn rekey_answered(
        &mut self,
        now: Time,
        p: PeerId,
        id: SessionId,
        piece: Piece,
    ) -> Result<(), DropReason> {
        let (me, network) = (self.id, self.roster.network());
        let peer = &mut self.peers[p as usize];
        let node = peer.node;
        let s = peer.session_mut(id).ok_or(DropReason::NoSession)?;
        let r =
            s.rekey_out.as_mut().filter(|r| r.rekey.sid == piece.sid).ok_or(DropReason::UnknownHandshake)?;
        let reply = r.reply.get_or_insert_with(|| Pieces::new(piece.count));
        if reply.count() != usize::from(piece.count) {
            return Err(DropReason::BadHandshake);
        }
        reply.add(piece.index, &piece.bytes);
        let Some(body) = reply.whole() else { return Ok(()) };
        let parent = Parent {
            profile: &network.0,
            initiator: &me.0,
            responder: &node.0,
            suite: s.suite,
            exporter: &s.exporter,
        };
        let (keys, e) = r.rekey.finish(&parent, &body)?;
        let (rx, root) = (r.rx, s.root);
        s.rekey_out = None;
        let new = self.add_session(now, p, Role::Initiator, root, Some(id), keys, rx, e.sid_r);
        self.confirm_out(now, p, new, &e);
        self.choose(now, p, new);
        Ok(())
    }

    /// Pings: for the RTT and for life. Often while the session is used and silent.
    fn keepalive(&mut self, now: Time, p: PeerId) {
        let i = p as usize;
        if now < self.peers[i].next_ping {
            return;
        }
        // While its relay is away nothing can be said of the peer.
        if let Some(Route::Relay { relay, .. }) = self.route(&self.peers[i])
            && !self.links.get(relay as usize).is_some_and(super::relays::Link::is_up)
        {
            self.peers[i].next_ping = now + PING_ACTIVE;
            return;
        }
        let peer = &mut self.peers[i];
        peer.unanswered += 1;
        let active = now.since(peer.last_active) < Duration::from_secs(60);
        peer.next_ping = now
            + if peer.unanswered > 1 {
                PING_REPEAT
            } else if active {
                PING_ACTIVE
            } else {
                self.rng.jitter(PING_IDLE)
            };
        if peer.unanswered > DEAD {
            peer.unanswered = 0;
            self.drop_sessions(p, "it does not answer");
            return;
        }
        let suspect = peer.unanswered > SUSPECT && peer.opening.is_none() && now >= peer.next_try;
        if suspect {
            // A restarted peer knows nothing of this session: try anew beside it.
            peer.next_try = now + FIRST_BACKOFF;
            self.open(now, p);
        }
        if let Some(id) = self.peers[i].sending {
            let mut body = vec![];
            Ping { id: 0, stamp: now.0 }.emit(&mut body);
            self.send_kind(p, id, Kind::Ping, &body);
        }
    }

    /// Sends the pings that a person asked for.
    pub(super) fn flush_pings(&mut self, now: Time, p: PeerId) {
        let Some(id) = self.peers[p as usize].sending else { return };
        while let Some((n, at)) = self.peers[p as usize].pings.pop_front() {
            // One that waited for the session is stamped when it was asked: its time tells the whole wait.
            if now.since(at) < Duration::from_secs(10) {
                let mut body = vec![];
                Ping { id: n, stamp: at.0 }.emit(&mut body);
                self.send_kind(p, id, Kind::Ping, &body);
            }
        }
    }

    /// Turns receiver statistics into reports.
    pub(super) fn report(&mut self, now: Time, stats: &[LaneStats]) {
        let mut by_session: Vec<(SessionId, Vec<LaneReport>)> = vec![];
        for s in stats {
            let lane = LaneReport {
                lane: s.lane,
                highest: s.stats.highest,
                received: s.stats.received,
                largest: s.stats.largest,
            };
            match by_session.iter_mut().find(|(id, _)| *id == s.session) {
                Some((_, lanes)) => lanes.push(lane),
                None => by_session.push((s.session, vec![lane])),
            }
        }
        for (id, lanes) in by_session {
            let Some(p) = self.sessions.get(&id).copied() else { continue };
            let peer = &mut self.peers[p as usize];
            peer.last_rx = Some(now);
            peer.last_active = now;
            peer.unanswered = 0;
            if let Some(s) = peer.session_mut(id) {
                s.last_rx = now;
                s.confirm = None;
            }
            let (echo, at) = self.peers[p as usize].echo;
            let held = u32::try_from(now.since(at).as_micros()).unwrap_or(u32::MAX);
            let echo = if held > 2_000_000 { 0 } else { echo };
            let mut body = vec![];
            Report { stamp: now.micros32(), echo, held, lanes }.emit(&mut body);
            // On the session in use: the one that was measured may be on its way out.
            if let Some(current) = self.peers[p as usize].sending {
                self.send_kind(p, current, Kind::Report, &body);
            }
        }
    }

    pub(super) fn next_sync(now: Time) -> Time {
        now + SYNC
    }
}

/// A rekey message in pieces that fit a control message.
fn pieces(sid: Sid, body: &[u8], kind: fn(Piece) -> Control) -> Vec<Control> {
    let chunk = body.len().div_ceil(3).max(1);
    debug_assert!(chunk <= CHUNK + 100);
    let count = body.len().div_ceil(chunk) as u8;
    body.chunks(chunk)
        .enumerate()
        .map(|(i, b)| kind(Piece { sid, index: i as u8, count, bytes: b.to_vec() }))
        .collect()
}
