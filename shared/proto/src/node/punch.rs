//! One side's NAT gives every destination another port (symmetric), and the other side lets in only who it has sent to:
//! neither can name the port that is to be asked. So the first sends to the other from many sockets, which opens as many
//! ports, and the second asks at many ports; by the birthday bound two of them meet soon (RFC 5128 section 3.4 names the
//! problem). Only to an address that the relay has seen the peer at. [P-PUNCH]

use super::{Event, Node};
use crate::snapshot::{PeerId, Route};
use crate::{Rng, Time};
use shadowmesh_wire::DropReason;
use shadowmesh_wire::candidate::{CandidateKind, Mapping};
use shadowmesh_wire::control::Control;
use shadowmesh_wire::data::Kind;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Sockets that one side sends from, a packet each.
pub const SOCKETS: usize = 256;
/// Ports that the other asks at: 64,512 could be it, so that all miss once in 400 times.
const PORTS: u32 = 1536;
/// Of them at once, and how often.
const BURST: u32 = 16;
const PACE: Duration = Duration::from_millis(20);
/// After the beginning of a round that has led to nothing.
const AFTER: Duration = Duration::from_millis(700);
/// The relay's answer is waited for.
const ASKED: Duration = Duration::from_secs(2);
/// An address is asked so again after so long, whoever named it, then after twice as long, and so on.
const AGAIN: Duration = Duration::from_secs(20);
const LATEST: Duration = Duration::from_secs(640);
/// Addresses that are remembered for that.
const MAX_ADDRESSES: usize = 64;

/// How far the probing of one peer has come.
#[derive(Debug, Default)]
pub(super) enum Punch {
    /// Nothing is due.
    #[default]
    Idle,
    /// The round that went before has this long yet.
    Waits(Time),
    /// The relay was asked where the peer is.
    Locating(Time),
    /// Ports are asked at, or were; and sockets, on the other side.
    Probing { ip: IpAddr, challenge: [u8; 8], left: u32, next: Time, last: Time },
}

impl Punch {
    pub fn deadline(&self) -> Option<Time> {
        match self {
            Punch::Waits(at) | Punch::Locating(at) => Some(*at),
            Punch::Probing { left, next, .. } if *left > 0 => Some(*next),
            Punch::Idle | Punch::Probing { .. } => None,
        }
    }

    /// A RESPONSE from there to this challenge: how long ago the last REQUEST went, if it answers one of many.
    pub fn responded(&self, now: Time, from: SocketAddr, asked: &[u8; 8]) -> Option<Duration> {
        match self {
            Punch::Probing { ip, challenge, last, .. } if *ip == from.ip() && challenge == asked => {
                Some(now.since(*last))
            }
            _ => None,
        }
    }
}

/// When addresses were probed last, and how long they are left alone since.
#[derive(Debug, Default)]
pub(super) struct Probed(HashMap<IpAddr, (Time, Duration)>);

impl Probed {
    fn may(&mut self, now: Time, ip: IpAddr) -> bool {
        self.0.retain(|_, (at, _)| now.since(*at) < 2 * LATEST);
        let wait = match self.0.get(&ip) {
            Some((at, wait)) if now.since(*at) < *wait => return false,
            Some((_, wait)) => (*wait * 2).min(LATEST),
            None if self.0.len() >= MAX_ADDRESSES => return false,
            None => AGAIN,
        };
        self.0.insert(ip, (now, wait));
        true
    }

    /// Somebody there has answered.
    pub fn answered(&mut self, ip: &IpAddr) {
        self.0.remove(ip);
    }
}

/// A port that a NAT gives, not one of the first 1,024.
fn port(rng: &mut Rng) -> u16 {
    1024 + rng.below(64_512) as u16
}

impl Node {
    /// A round begins: should it lead to nothing, and one side's NAT be such a one, this follows.
    pub(super) fn plan_punch(&mut self, now: Time, p: PeerId) {
        let peer = &mut self.peers[p as usize];
        let theirs = peer.paths.mapping == Mapping::Dependent;
        if theirs != (self.mapping == Mapping::Dependent) && peer.punch.deadline().is_none() {
            peer.punch = Punch::Waits(now + AFTER);
        }
    }

    /// What is due of it.
    pub(super) fn punch_timeout(&mut self, now: Time, p: PeerId) {
        let peer = &mut self.peers[p as usize];
        if peer.punch.deadline().is_none_or(|at| now < at) {
            return;
        }
        let Some(Route::Relay { relay, handle }) = peer.route.filter(|_| peer.sending.is_some()) else {
            peer.punch = Punch::Idle;
            return;
        };
        match &mut peer.punch {
            Punch::Waits(_) => {
                peer.punch = Punch::Locating(now + ASKED);
                self.link_control(relay as usize, &Control::Locate(handle));
            }
            Punch::Probing { ip, challenge, left, next, last } => {
                let (ip, challenge) = (*ip, *challenge);
                let burst = BURST.min(*left);
                (*left, *next, *last) = (*left - burst, now + PACE, now);
                for _ in 0..burst {
                    let to = SocketAddr::new(ip, port(&mut self.rng));
                    if let Some(id) = self.peers[p as usize].sending {
                        let request = Control::ValidationRequest { challenge, to };
                        self.send_control_via(p, id, &Route::Udp(to), &request);
                    }
                }
            }
            Punch::Locating(_) | Punch::Idle => peer.punch = Punch::Idle,
        }
    }

    /// A relay says where it sees a peer.
    pub(super) fn located(&mut self, now: Time, link: usize, handle: u64, address: SocketAddr) {
        let route = Route::Relay { relay: link as u32, handle };
        let asked = |p: &&super::Peer| p.route == Some(route) && matches!(p.punch, Punch::Locating(_));
        let Some(p) = self.peers.iter().find(asked).map(|p| p.id) else { return };
        let peer = &mut self.peers[p as usize];
        let ip = address.ip();
        let there = |kind| {
            let named = peer.paths.theirs.iter().filter(move |c| c.kind == kind);
            named.map(|c| c.address).find(|a| a.ip() == ip)
        };
        let named = there(CandidateKind::Reflexive).or_else(|| there(CandidateKind::Host));
        let (Some(to), Some(id)) = (named, peer.sending) else {
            peer.punch = Punch::Idle;
            return;
        };
        if !self.probed.may(now, ip) {
            self.peers[p as usize].punch = Punch::Idle;
            return;
        }
        let challenge = self.rng.bytes();
        let many_sockets = self.mapping == Mapping::Dependent;
        let left = if many_sockets { 0 } else { PORTS };
        self.peers[p as usize].punch = Punch::Probing { ip, challenge, left, next: now, last: now };
        if many_sockets {
            let mut body = vec![];
            Control::ValidationRequest { challenge, to }.emit(&mut body);
            let lane = self.peers[p as usize].session(id).and_then(|s| s.control_lane(false));
            let Some(lane) = lane else { return };
            let sealed = (0..SOCKETS).map(|_| self.sealer.seal_control(lane, Kind::Control, &body));
            match sealed.collect::<Result<Vec<_>, DropReason>>() {
                Ok(packets) => self.events.push_back(Event::Punch { to, packets }),
                Err(reason) => self.drops.count(reason),
            }
        }
        self.punch_timeout(now, p);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An address that answers nobody is left alone for ever longer; one that answers is not; few are kept. [P-PUNCH]
    #[test]
    fn again_and_again() {
        let (mut probed, ip) = (Probed::default(), IpAddr::from([192, 0, 2, 1]));
        let mut in_an_hour = || (0..3600).filter(|s| probed.may(Time(s * 1_000_000_000), ip)).count();
        assert_eq!(in_an_hour(), 10);
        let now = Time(3_600_000_000_000);
        assert!(!probed.may(now, ip));
        probed.answered(&ip);
        assert!(probed.may(now, ip) && !probed.may(now + Duration::from_secs(19), ip));
        let others = (0..1000u32).filter(|n| probed.may(now, IpAddr::from(n.to_be_bytes()))).count();
        assert_eq!(others, MAX_ADDRESSES - 1);
    }
}
