//! What an opened packet of a peer says: pings, reports, control messages, and the confirmation that makes a session.

use super::peer::{FIRST_BACKOFF, MAX_BACKOFF};
use super::{Event, Node};
use crate::Time;
use crate::batch::Plain;
use crate::handshake::{Role, Source};
use crate::snapshot::{PeerId, Route, SessionId, THREADS};
use shadowmesh_wire::DropReason;
use shadowmesh_wire::control::Control;
use shadowmesh_wire::data::{Kind, Ping, Probe, Report};
use shadowmesh_wire::handshake::{LANES, Sid};
use std::time::Duration;

/// Whoever sent a report so lately sends another one soon, most likely.
const REPORTED: Duration = Duration::from_millis(100);

impl Node {
    /// An authenticated packet came.
    pub(super) fn heard_from(&mut self, now: Time, p: PeerId) {
        let peer = &mut self.peers[p as usize];
        peer.last_rx = Some(now);
        if peer.unanswered > 1 {
            // Something was lost, and a revocation may be what it was.
            peer.sync_now(now);
        }
        peer.unanswered = 0;
        if let Some(Route::Relay { relay, .. }) = peer.route
            && let Some(l) = self.links.get_mut(relay as usize)
        {
            l.note_activity(now);
        }
    }

    /// Opened control, report or ping from a peer.
    pub(super) fn handle_peer_plain(&mut self, now: Time, p: PeerId, plain: Plain) -> Result<(), DropReason> {
        if !self.is_live(&self.peers[p as usize].node) {
            return Err(DropReason::NotMember);
        }
        self.heard_from(now, p);
        let id = plain.session;
        if let Some(s) = self.peers[p as usize].session_mut(id) {
            s.confirm = None;
        }
        match plain.kind {
            Kind::Ping => {
                let ping = Ping::parse(&plain.body)?;
                // While reports go out, the next one echoes it. Else by the way that it came, so that it measures one path.
                let peer = &mut self.peers[p as usize];
                let carries = peer.route == Some(plain.source.route());
                let echoed = carries && now.since(peer.reported_at) < REPORTED;
                if carries {
                    peer.echo = ((ping.stamp / 1000) as u32, now);
                }
                if ping.id != 0 || !echoed {
                    self.answer_by(p, id, plain.source, Kind::Pong, &plain.body);
                }
            }
            Kind::Pong => {
                let ping = Ping::parse(&plain.body)?;
                let rtt = now.since(Time(ping.stamp));
                let peer = &self.peers[p as usize];
                let node = peer.node;
                let route = plain.source.route();
                if peer.route == Some(route) && Time(ping.stamp) >= peer.carrying.since {
                    self.path_measured(now, p, rtt);
                } else if peer.route != Some(route) {
                    self.resting_measured(p, &route, rtt);
                }
                if ping.id != 0 {
                    self.events.push_back(Event::Pong { peer: node, id: ping.id, rtt, source: plain.source });
                }
            }
            Kind::Report => {
                let report = Report::parse(&plain.body)?;
                let asked = Duration::from_micros(u64::from(now.micros32().wrapping_sub(report.echo)));
                let peer = &mut self.peers[p as usize];
                let again = std::mem::replace(&mut peer.carrying.echoed, report.echo) == report.echo;
                if report.echo != 0 && !again && asked <= now.since(peer.carrying.since) {
                    let rtt = asked.saturating_sub(Duration::from_micros(report.held.into()));
                    if rtt < Duration::from_secs(60) {
                        self.path_measured(now, p, rtt);
                    }
                }
                let peer = &mut self.peers[p as usize];
                peer.last_active = now;
                if peer.sending != Some(id) {
                    return Ok(());
                }
                peer.path.reported(now, &report.lanes);
                peer.carrying.reported(now, &report.lanes, peer.rtt);
                // The control half's lanes carry probes, which are lost for a purpose.
                for l in report.lanes.iter().filter(|l| usize::from(l.lane) % THREADS > 0) {
                    if l.highest > 0 && l.received <= l.highest + 1 {
                        peer.loss = Some(1.0 - l.received as f64 / (l.highest + 1) as f64);
                    }
                }
            }
            Kind::Probe => {
                let probe = Probe::parse(&plain.body)?;
                self.answer_by(p, id, plain.source, Kind::ProbeAck, &probe.emit(0));
                self.path_used(now, p, id, plain.source);
            }
            Kind::ProbeAck => {
                let probe = Probe::parse(&plain.body)?;
                let route = plain.source.route();
                if self.peers[p as usize].route == Some(route) {
                    self.dirty |= self.peers[p as usize].path.acked(now, probe.number);
                } else {
                    self.resting_acked(now, p, &route, probe.number);
                }
            }
            Kind::Control => self.handle_control(now, p, id, plain.source, Control::parse(&plain.body)?)?,
            Kind::Frame | Kind::Chunk | Kind::Fragment => return Err(DropReason::Malformed),
        }
        Ok(())
    }

    /// An answer, by the way that the question came: it is no larger.
    fn answer_by(&mut self, p: PeerId, id: SessionId, source: Source, kind: Kind, body: &[u8]) {
        self.send_via(p, id, &source.route(), kind, body);
    }

    fn handle_control(
        &mut self,
        now: Time,
        p: PeerId,
        id: SessionId,
        source: Source,
        c: Control,
    ) -> Result<(), DropReason> {
        match c {
            Control::Candidates { .. }
            | Control::ValidationRequest { .. }
            | Control::ValidationResponse { .. }
            | Control::ValidationComplete { .. }
            | Control::PathLost => self.handle_path(now, p, id, source, c),
            Control::Confirm { sid_r, generation, lanes, wall } => {
                self.confirmed(now, p, id, sid_r, generation, &lanes, wall)
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
        generation: u32,
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
        if s.rank.depth == 0 {
            s.rank.generation = generation;
        }
        let begun_by = s.begun_by;
        peer.generation = peer.generation.max(generation);
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
}
