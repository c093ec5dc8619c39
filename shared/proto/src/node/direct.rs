//! Sessions start by a relay and move to a path that needs none as soon as one is proved; they go back the moment it
//! dies. Which path carries, and why. [P-VALIDATE] [P-MOVE] [P-FALLBACK]

use super::alive::ping;
use super::carrying::{Carrying, MAX_HOLD};
use super::path_mtu::PathMtu;
use super::paths::{Ask, Resting};
use super::peer::FIRST_BACKOFF;
use super::{Event, Node, PathsStatus, Tried};
use crate::Time;
use crate::handshake::Source;
use crate::snapshot::{PeerId, Route, SessionId};
use crate::time::earlier;
use shadowmesh_identity::{Fact, NodeId};
use shadowmesh_wire::DropReason;
use shadowmesh_wire::candidate::{Candidate, CandidateKind, MAX_CANDIDATES, Mapping, is_special};
use shadowmesh_wire::control::Control;
use shadowmesh_wire::data::{FRAME_OVERHEAD, Kind, Probe};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// A validated path carries when it is known what it takes, or after so long.
const READY: Duration = Duration::from_millis(250);
/// A path is left for a better one when it has carried so long, and was measured so often.
const SETTLED: Duration = Duration::from_secs(5);
const MEASURED: u32 = 4;
/// A path without relay may be slower than the relay by this, and half of the relay's round trip.
const SLOWER: Duration = Duration::from_millis(30);
/// So many round trips in a row that are slower than that end it.
const SLOW: u32 = 8;
/// Addresses of a member on this machine's LANs.
const MAX_NEARBY: usize = 4;
/// Pings without an answer on a path without relay, after which it is lost.
const MAX_UNANSWERED: u32 = 2;

impl super::Peer {
    /// No path without relay carries.
    pub(super) fn is_looking(&self) -> bool {
        matches!(self.route, Some(Route::Relay { .. }))
    }

    /// It carries, or might.
    fn has_path(&self, route: &Route) -> bool {
        self.route.as_ref() == Some(route) || self.paths.resting.iter().any(|r| r.route == *route)
    }

    /// When something of its paths is due.
    pub(super) fn paths_deadline(&self) -> Option<Time> {
        let looking = self.is_looking();
        let mut due = self.paths.deadline(looking);
        due = earlier(due, self.punch.deadline());
        if !looking {
            due = earlier(due, self.carrying.unreported.map(|(at, ..)| at));
        }
        for at in self.paths.resting.iter().filter_map(|r| r.due) {
            due = earlier(due, Some(at.max(self.flaps.until)));
        }
        due
    }
}

impl Node {
    /// Where this machine may be reached: its interfaces' addresses with the port that it listens on, and what routers map
    /// to it. All of them each time; what relays see is added here.
    pub fn set_candidates(&mut self, now: Time, list: Vec<Candidate>) {
        self.own_candidates = list;
        self.refresh_candidates(now);
        self.publish();
    }

    /// How the NAT before this machine maps, as a STUN server's two ports see it (RFC 5780 section 4.3).
    pub fn set_mapping(&mut self, now: Time, mapping: Mapping) {
        if mapping != self.mapping {
            self.mapping = mapping;
            self.candidates_changed(now);
        }
        self.publish();
    }

    /// As it was set.
    pub fn mapping(&self) -> Mapping {
        self.mapping
    }

    /// What members are told of where this one may be reached.
    pub fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// Does a path to a member go there, or might one soon?
    pub fn has_path(&self, to: &SocketAddr) -> bool {
        self.peers.iter().any(|p| p.has_path(&Route::Udp(*to)))
    }

    /// What `why` shows.
    pub fn paths_status(&self, node: &NodeId) -> Option<PathsStatus> {
        let peer = self.peers.get(*self.by_node.get(node)? as usize)?;
        let tried = |c: &super::paths::Check| Tried {
            candidate: c.candidate,
            sent: c.sent,
            held_back: c.held_back,
            rtt: c.rtt,
        };
        let carries = peer.current().and(peer.route).map(|r| (r, peer.rtt, peer.path.packet()));
        let rest = peer.paths.resting.iter().map(|r| (r.route, r.rtt, r.mtu.packet()));
        Some(PathsStatus {
            paths: carries.into_iter().chain(rest).collect(),
            route: peer.current().and_then(|_| self.route(peer)),
            since: peer.carrying.since,
            why: peer.carrying.why,
            looking: self.is_enabled(),
            told: peer.paths.their_number() > 0,
            tried: peer.paths.checks.iter().map(tried).collect(),
            sees: peer.paths.sees,
        })
    }

    /// Addresses or routes of this machine have changed: the paths in use may be gone.
    pub fn network_changed(&mut self, now: Time) {
        for i in 0..self.links.len() {
            // The relay sees it move by this.
            self.ask_link(now, i);
        }
        for p in 0..self.peers.len() as PeerId {
            if self.peers[p as usize].sending.is_none() {
                continue;
            }
            self.peers[p as usize].paths.forget();
            self.path_lost(now, p, "this machine's network has changed");
            self.peers[p as usize].flaps.forget(now);
            self.peers[p as usize].next_ping = now;
            if self.config.direct {
                self.peers[p as usize].paths.begin_round(now);
            }
        }
        self.publish();
    }

    /// What members are to be told: of this machine's own addresses, and of what relays see.
    pub(super) fn refresh_candidates(&mut self, now: Time) {
        let mut list = vec![];
        if self.config.direct {
            list.clone_from(&self.own_candidates);
            let seen = self.links.iter().filter_map(super::relays::Link::observed);
            list.extend(seen.map(|address| Candidate { kind: CandidateKind::Reflexive, address }));
        }
        list.sort_by_key(|c| c.kind);
        let mut known: Vec<SocketAddr> = vec![];
        list.retain(|c| {
            let new = !known.contains(&c.address);
            known.push(c.address);
            new
        });
        list.truncate(MAX_CANDIDATES);
        if list == self.candidates && self.candidates_number > 0 {
            return;
        }
        self.candidates = list;
        self.candidates_changed(now);
    }

    /// All peers are told.
    fn candidates_changed(&mut self, now: Time) {
        self.candidates_number += 1;
        for peer in self.peers.iter_mut().filter(|p| p.sending.is_some()) {
            peer.paths.tell(now);
            peer.flaps.forget(now);
        }
    }

    /// May a member be asked for there? Never inside the mesh, nor where only this machine is.
    fn is_acceptable(&self, a: &SocketAddr) -> bool {
        let inside = match a.ip() {
            IpAddr::V4(ip) => self.snapshot.prefixes.holds4(ip),
            IpAddr::V6(ip) => self.snapshot.prefixes.holds6(ip),
        };
        let own = self.own_candidates.iter().any(|c| c.address == *a);
        !is_special(a.ip()) && !inside && a.port() != 0 && !own
    }

    /// How a peer is reached without a path that was validated: by its configured address, or a relay that its leaf names.
    pub(super) fn base(&self, p: PeerId) -> Option<Route> {
        self.bases(p).next()
    }

    fn bases(&self, p: PeerId) -> impl Iterator<Item = Route> {
        let peer = &self.peers[p as usize];
        let leaves =
            self.roster.member(&peer.node).into_iter().flat_map(|m| m.leaves().filter_map(Fact::leaf));
        let by_relay = leaves.flat_map(|l| l.locations.iter()).filter_map(|l| {
            let relay = self.links.iter().position(|k| k.relay() == &l.relay.0 && k.is_up())?;
            Some(Route::Relay { relay: relay as u32, handle: l.handle })
        });
        peer.endpoint.map(Route::Udp).into_iter().chain(by_relay)
    }

    /// The ways of an opening, the best first: those, where it announces itself on the LAN; if there is none, where it was
    /// last: a path that was lost is mostly none any more. (A packet that comes from elsewhere moves nothing: whoever copies
    /// one could send it first. A path is changed by a handshake, whose cookie shows that the address reads what is sent to
    /// it, or by a validation.) [P-ROUTE]
    pub(super) fn ways(&self, p: PeerId) -> impl Iterator<Item = Route> {
        let peer = &self.peers[p as usize];
        let mut known = self.bases(p).chain(peer.nearby.iter().copied().map(Route::Udp)).peekable();
        let last = if known.peek().is_none() { peer.route } else { None };
        known.chain(last)
    }

    /// Who announces itself where on this machine's LANs: all of them each time. Whoever does so may lie, and is sent
    /// openings at most, at a member's pace. [P-LAN]
    pub fn set_nearby(&mut self, now: Time, found: &[(NodeId, Vec<SocketAddr>)]) {
        for p in 0..self.peers.len() {
            let there = found.iter().filter(|(node, _)| *node == self.peers[p].node).flat_map(|(_, a)| a);
            let mut there: Vec<SocketAddr> = there.copied().filter(|a| self.is_acceptable(a)).collect();
            there.truncate(MAX_NEARBY);
            let peer = &mut self.peers[p];
            if !self.config.direct || peer.nearby == there {
                continue;
            }
            peer.nearby = there;
            if !peer.nearby.is_empty() && peer.sending.is_none() && peer.opening.is_none() {
                // Not when the last failure says: that knew nothing of this.
                (peer.next_try, peer.failures, peer.backoff) = (now, 0, FIRST_BACKOFF);
            }
            self.dirty = true;
        }
        self.publish();
    }

    /// A relay is away: the sessions that go by it go by another one, where both ends have one.
    pub(super) fn relay_lost(&mut self, now: Time, relay: u32) {
        for p in 0..self.peers.len() as PeerId {
            let by = |r: Route| matches!(r, Route::Relay { relay: by, .. } if by == relay);
            if self.peers[p as usize].route.is_some_and(by) {
                self.change_relay(now, p, "its relay does not answer");
            }
        }
    }

    /// Another relay is to carry.
    fn change_relay(&mut self, now: Time, p: PeerId, why: &'static str) {
        let current = self.peers[p as usize].route;
        let other = self.bases(p).find(|r| Some(*r) != current);
        if let (Some(other), Some(_)) = (other, self.peers[p as usize].sending) {
            // Who answers by no relay is dead in the end.
            let unanswered = self.peers[p as usize].unanswered;
            self.move_to(now, p, other, why);
            let peer = &mut self.peers[p as usize];
            (peer.unanswered, peer.carrying.unanswered) = (unanswered, unanswered);
        }
    }

    /// Another handshake has made a session, by this way: paths are looked for anew.
    pub(super) fn start_paths(&mut self, now: Time, p: PeerId, why: &'static str) {
        let peer = &mut self.peers[p as usize];
        peer.paths.reset(now);
        peer.carrying = Carrying::new(now, why);
    }

    /// What is due of a peer's paths.
    pub(super) fn paths_timeout(&mut self, now: Time, p: PeerId) {
        let i = p as usize;
        let Some(id) = self.peers[i].sending else { return };
        let (looking, number) = (self.is_enabled() && self.peers[i].is_looking(), self.candidates_number);
        let asks = self.peers[i].paths.due(now, looking, number, (&mut self.budget, p), &mut self.rng);
        let round = self.peers[i].paths.round();
        if looking && round != self.peers[i].punched_in {
            self.peers[i].punched_in = round;
            self.plan_punch(now, p);
        }
        self.punch_timeout(now, p);
        for ask in asks {
            match ask {
                Ask::Tell => self.tell_candidates(p),
                Ask::Request { to, challenge } => {
                    let request = Control::ValidationRequest { challenge, to };
                    self.send_control_via(p, id, &Route::Udp(to), &request);
                }
            }
        }
        let resting: Vec<Route> = self.peers[i].paths.resting.iter().map(|r| r.route).collect();
        for route in resting {
            let hop = self.first_hop(&route);
            let path = self.peers[i].paths.resting.iter_mut().find(|r| r.route == route);
            let probes = path.map_or(vec![], |r| match hop {
                Some((_, headers)) => r.mtu.probes(now, headers),
                None => {
                    r.mtu.postpone(now);
                    vec![]
                }
            });
            for (number, size) in probes {
                let body = Probe { number }.emit(size - FRAME_OVERHEAD);
                self.send_via(p, id, &route, Kind::Probe, &body);
            }
        }
        let peer = &self.peers[i];
        if peer.is_looking() {
            if peer.unanswered > peer.carrying.unanswered + MAX_UNANSWERED {
                self.change_relay(now, p, "pings by the other relay were not answered");
            }
        } else {
            let unreported = peer.carrying.unreported.is_some_and(|(at, ..)| now >= at);
            if unreported {
                self.peers[i].carrying.unreported = None;
                self.path_lost(now, p, "what was sent on the direct path was not reported");
            } else if peer.carrying.missed > MAX_UNANSWERED {
                self.path_lost(now, p, "pings on the direct path were not answered");
            }
        }
        self.consider(now, p);
    }

    /// Does the node look for paths without relay?
    fn is_enabled(&self) -> bool {
        self.config.direct && !self.revoked_self
    }

    fn tell_candidates(&mut self, p: PeerId) {
        let heard = self.peers[p as usize].paths.their_number();
        let (number, mapping, list) = (self.candidates_number, self.mapping, self.candidates.clone());
        self.send_control(p, &Control::Candidates { number, heard, mapping, list });
    }

    /// What a peer says of paths.
    pub(super) fn handle_path(
        &mut self,
        now: Time,
        p: PeerId,
        id: SessionId,
        source: Source,
        c: Control,
    ) -> Result<(), DropReason> {
        match c {
            Control::Candidates { number, heard, mapping, list } => {
                let acceptable: Vec<SocketAddr> =
                    list.iter().map(|c| c.address).filter(|a| self.is_acceptable(a)).collect();
                let enabled = self.is_enabled();
                let paths = &mut self.peers[p as usize].paths;
                let told = (number, heard, list);
                paths.mapping = mapping;
                if paths.told(now, self.candidates_number, told, |a| enabled && acceptable.contains(a)) {
                    self.peers[p as usize].flaps.forget(now);
                    self.tell_candidates(p);
                }
                self.paths_timeout(now, p);
                Ok(())
            }
            Control::PathLost => {
                if !self.peers[p as usize].is_looking() {
                    self.path_lost(now, p, "the peer does not hear this side on the direct path");
                }
                Ok(())
            }
            c => self.validate(now, p, id, source, c),
        }
    }

    /// REQUEST, RESPONSE, COMPLETE: by the path that they are about, each answered to where it came from. [P-VALIDATE]
    fn validate(
        &mut self,
        now: Time,
        p: PeerId,
        id: SessionId,
        source: Source,
        c: Control,
    ) -> Result<(), DropReason> {
        let Source::Udp(from) = source else { return Err(DropReason::BadPath) };
        let peer = &mut self.peers[p as usize];
        // Only a session that stands says where its peer is.
        let stands = peer.session(id).is_some_and(|s| s.confirmed && s.retire_at.is_none());
        if !self.config.direct || !stands {
            return Err(DropReason::BadPath);
        }
        let took = match c {
            Control::ValidationRequest { challenge, .. } => {
                let own = peer.paths.asked(now, from, challenge, &mut self.rng);
                let answer = Control::ValidationResponse { challenge, own, seen: from };
                self.send_control_via(p, id, &Route::Udp(from), &answer);
                return Ok(());
            }
            Control::ValidationResponse { challenge, own, seen } => {
                let took = peer.paths.responded(now, from, &challenge);
                let took = took.or_else(|| peer.punch.responded(now, from, &challenge));
                let took = took.ok_or(DropReason::BadPath)?;
                peer.paths.sees = Some(seen);
                self.send_control_via(
                    p,
                    id,
                    &Route::Udp(from),
                    &Control::ValidationComplete { challenge, own },
                );
                took
            }
            Control::ValidationComplete { challenge, own } => {
                peer.paths.completed(now, from, &challenge, &own).ok_or(DropReason::BadPath)?
            }
            _ => return Err(DropReason::Malformed),
        };
        self.budget.answered(now, &from);
        self.probed.answered(&from.ip());
        self.validated(now, p, Route::Udp(from), took);
        Ok(())
    }

    /// The peer has sent a probe by this path, so that it takes it for one. Does this side?
    pub(super) fn path_used(&mut self, now: Time, p: PeerId, id: SessionId, source: Source) {
        let peer = &mut self.peers[p as usize];
        let (Source::Udp(from), route) = (source, source.route()) else { return };
        if peer.has_path(&route) || !self.config.direct || peer.sending != Some(id) {
            return;
        }
        if let Some(challenge) = peer.paths.ask_back(now, from, &mut self.rng) {
            let request = Control::ValidationRequest { challenge, to: from };
            self.send_control_via(p, id, &Route::Udp(from), &request);
        }
    }

    /// A path answers: what it takes is found out, then it may carry.
    fn validated(&mut self, now: Time, p: PeerId, route: Route, took: Duration) {
        let peer = &mut self.peers[p as usize];
        // One round trip that took long may be a machine's that was busy: it is measured again.
        let slow = peer.is_looking() && peer.rtt.is_some_and(|relayed| is_slow(took, relayed));
        if let (Route::Udp(from), false) = (route, slow) {
            peer.paths.answers(from);
        }
        if let Some(r) = peer.paths.resting.iter_mut().find(|r| r.route == route) {
            (r.rtt, r.since) = (Some(took), now);
            return self.consider(now, p);
        }
        if peer.route == Some(route) {
            return;
        }
        let mut mtu = PathMtu::of_peer(&peer.path);
        let headers = self.first_hop(&route).map_or(0, |(_, headers)| headers);
        mtu.begin(now, route, headers);
        let due = Some(now + READY);
        let path = Resting { route, mtu, rtt: Some(took), since: now, validated: took, due };
        self.peers[p as usize].paths.rest(path);
        self.paths_timeout(now, p);
    }

    /// A probe was answered on a path that does not carry.
    pub(super) fn resting_acked(&mut self, now: Time, p: PeerId, route: &Route, number: u32) {
        let resting = &mut self.peers[p as usize].paths.resting;
        if let Some(r) = resting.iter_mut().find(|r| r.route == *route) {
            r.mtu.acked(now, number);
            self.consider(now, p);
        }
    }

    /// Is there a better path than the one that carries? [P-MOVE]
    fn consider(&mut self, now: Time, p: PeerId) {
        let peer = &mut self.peers[p as usize];
        let Some(current) = peer.route.filter(|_| peer.sending.is_some()) else { return };
        if now >= peer.flaps.until {
            peer.paths.resting.iter_mut().for_each(|r| r.due = r.due.filter(|at| now < *at));
        }
        let peer = &self.peers[p as usize];
        let rtt = |r: &Resting| r.rtt.unwrap_or(Duration::MAX);
        let ready = |r: &&Resting| {
            matches!(r.route, Route::Udp(_)) && (r.mtu.is_answered() || r.due.is_none_or(|at| now >= at))
        };
        let Some(best) = peer.paths.resting.iter().filter(ready).min_by_key(|r| rtt(r)) else { return };
        let (route, took) = (best.route, rtt(best));
        let better = match current {
            Route::Relay { relay, .. } => {
                let up = self.links.get(relay as usize).is_some_and(super::relays::Link::is_up);
                !up || now >= peer.flaps.until && peer.rtt.is_none_or(|r| !is_slow(took, r))
            }
            Route::Udp(_) => {
                let c = &peer.carrying;
                c.samples >= MEASURED
                    && now.since(c.since) >= SETTLED
                    && took * 5 / 4 + Duration::from_millis(1) < c.low
            }
        };
        if better {
            let why = if peer.is_looking() { "it answers, and needs no relay" } else { "it is shorter" };
            self.move_to(now, p, route, why);
        }
    }

    /// The path that carries is dead, or about to be: another one that was validated takes its place, else what reaches
    /// the peer by a relay. [P-FALLBACK]
    pub(super) fn path_lost(&mut self, now: Time, p: PeerId, why: &'static str) {
        let peer = &self.peers[p as usize];
        let (Some(lost @ Route::Udp(_)), Some(_)) = (peer.route, peer.sending) else { return };
        let direct = |r: &&Resting| matches!(r.route, Route::Udp(_));
        let other = peer.paths.resting.iter().filter(direct).min_by_key(|r| r.rtt).map(|r| r.route);
        let Some(next) = self.base(p).filter(|b| *b != lost).or(other) else { return };
        let since = peer.carrying.since;
        self.move_to(now, p, next, why);
        let peer = &mut self.peers[p as usize];
        peer.paths.take(&lost);
        peer.flaps.lost(now, since);
        peer.paths.begin_anew(now);
        // Reports of what the peer sends there, and its pongs, may be what is lost.
        self.send_control(p, &Control::PathLost);
    }

    /// From now on this path carries, in lanes of its own: what is under way on the other is still taken. [P-MOVE]
    fn move_to(&mut self, now: Time, p: PeerId, route: Route, why: &'static str) {
        let headers = self.first_hop(&route).map_or(0, |(_, headers)| headers);
        let peer = &mut self.peers[p as usize];
        let Some(before) = peer.route else { return };
        let next = peer.paths.take(&route).unwrap_or_else(|| {
            let mut mtu = PathMtu::of_peer(&peer.path);
            mtu.begin(now, route, headers);
            Resting { route, mtu, rtt: None, since: now, validated: Duration::ZERO, due: None }
        });
        let mut mtu = std::mem::replace(&mut peer.path, next.mtu);
        mtu.rest();
        let validated = Duration::ZERO;
        peer.paths.rest(Resting { route: before, mtu, rtt: peer.rtt, since: now, validated, due: None });
        peer.path.carry(now);
        (peer.route, peer.rtt, peer.loss) = (Some(route), next.rtt, None);
        (peer.unanswered, peer.next_ping) = (0, now);
        peer.carrying = Carrying::new(now, why);
        if let Some(s) = peer.sending.and_then(|id| peer.session_mut(id)) {
            s.switch_lanes();
        }
        let (node, validated) = (peer.node, next.validated);
        // One that was there before has not waited.
        let moved = if validated.is_zero() { Duration::ZERO } else { now.since(next.since) };
        self.dirty = true;
        self.events.push_back(Event::PathChanged { peer: node, route, why, validated, moved });
        self.publish();
    }

    /// A round trip on the path that carries.
    pub(super) fn path_measured(&mut self, now: Time, p: PeerId, rtt: Duration) {
        let peer = &mut self.peers[p as usize];
        peer.measured(rtt);
        (peer.carrying.samples, peer.carrying.missed) = (peer.carrying.samples + 1, 0);
        peer.carrying.low = peer.carrying.low.min(rtt);
        let relay = peer.paths.resting.iter().find(|r| matches!(r.route, Route::Relay { .. }));
        let relay = relay.filter(|_| !peer.is_looking()).map(|r| (r.route, r.rtt));
        let slower = |(route, before): (Route, Option<Duration>)| {
            let relayed = peer.carrying.relayed.or(before)?;
            is_slow(rtt, relayed).then_some(route)
        };
        let Some(route) = relay.and_then(slower) else {
            (peer.carrying.slow, peer.carrying.relayed) = (0, None);
            return;
        };
        peer.carrying.slow += 1;
        if peer.carrying.slow >= SLOW && peer.carrying.relayed.is_some() {
            self.path_lost(now, p, "the direct path has become slower than the relay");
            let flaps = &mut self.peers[p as usize].flaps;
            flaps.until = flaps.until.max(now + MAX_HOLD);
        } else if let Some(id) = peer.sending {
            // What the relay took is of long ago: what slows the one path may slow the other.
            self.send_via(p, id, &route, Kind::Ping, &ping(now));
        }
    }

    /// A round trip on a path that does not carry.
    pub(super) fn resting_measured(&mut self, p: PeerId, route: &Route, rtt: Duration) {
        let peer = &mut self.peers[p as usize];
        if let Some(r) = peer.paths.resting.iter_mut().find(|r| r.route == *route) {
            r.rtt = Some(rtt);
            if matches!(route, Route::Relay { .. }) && peer.carrying.slow > 0 {
                peer.carrying.relayed = Some(rtt);
            }
        }
    }
}

/// Much slower than the relay's path?
fn is_slow(direct: Duration, relayed: Duration) -> bool {
    direct > relayed * 3 / 2 + SLOWER
}
