//! Who is there: pings for the RTT and for life, receiver reports.

use super::Node;
use super::peer::FIRST_BACKOFF;
use crate::snapshot::{PeerId, Route, SessionId};
use crate::{LaneStats, Time};
use shadowmesh_wire::data::{Kind, LaneReport, Ping, Report};
use std::time::Duration;

/// Between pings while the session is used, and while it is not.
pub(super) const PING_ACTIVE: Duration = Duration::from_secs(1);
const PING_IDLE: Duration = Duration::from_secs(15);
const PING_REPEAT: Duration = Duration::from_millis(700);
/// Unanswered pings after which another opening is tried beside the session, and after which the session is dead.
pub(super) const SUSPECT: u32 = 3;
const DEAD: u32 = 20;
/// Between repeats of the roster's state, when both sides agree.
pub(super) const SYNC: Duration = Duration::from_secs(20);

/// A ping that nobody asked for.
pub(super) fn ping(now: Time) -> Vec<u8> {
    let mut body = vec![];
    Ping { id: 0, stamp: now.0 }.emit(&mut body);
    body
}

impl Node {
    /// Pings: for the RTT and for life. Often while the session is used and silent.
    pub(super) fn keepalive(&mut self, now: Time, p: PeerId) {
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
        peer.carrying.missed += 1;
        let active = now.since(peer.last_active) < Duration::from_secs(60);
        peer.next_ping = now
            + if peer.unanswered.max(peer.carrying.missed) > 1 {
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
            self.send_kind(p, id, Kind::Ping, &ping(now));
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
                s.confirm = None;
            }
            let (echo, at) = self.peers[p as usize].echo;
            let held = u32::try_from(now.since(at).as_micros()).unwrap_or(u32::MAX);
            let echo = if held > 2_000_000 { 0 } else { echo };
            let mut body = vec![];
            Report { stamp: now.micros32(), echo, held, lanes }.emit(&mut body);
            // On the session that it is about: lanes are numbered in it.
            self.send_kind(p, id, Kind::Report, &body);
            self.peers[p as usize].reported_at = now;
        }
    }
}
