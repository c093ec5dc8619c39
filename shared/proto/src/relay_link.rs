//! A client's session with one relay, by pseudonym or anonymous: opening with backoff, keepalive, RESET, control messages.
//!
//! Handshake packets go to the relay as they are; everything inside the session is wrapped in the relay header to handle 0,
//! so that a relay that has forgotten us can say so (RESET).

use crate::handshake::{Contact, Credential, Initiator, InitiatorConfig, Progress, ResponderLeaf};
use crate::lane::{RxLane, TxLane};
use crate::relay_leg::RelayLeg;
use crate::time::earlier;
use crate::{Rng, Time};
use shadowmesh_crypto::aead::Suite;
use shadowmesh_crypto::kdf::ct_eq;
use shadowmesh_crypto::secret::Secret;
use shadowmesh_wire::control::Control;
use shadowmesh_wire::data::{Kind, Ping};
use shadowmesh_wire::handshake::{LANES, RelayGrant};
use shadowmesh_wire::relay::{Reset, TO_RELAY};
use shadowmesh_wire::{DropReason, PacketType};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

/// Between keepalives while traffic flows: a dead relay is noticed by them.
const KEEPALIVE_ACTIVE: Duration = Duration::from_secs(1);
/// And while it does not: below the 30 s of the shortest common NAT mappings (RFC 4787 REQ-5 asks 2 minutes).
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
/// Keepalives without an answer after which the relay is taken for dead.
const MAX_UNANSWERED: u32 = 3;
/// Between unanswered keepalives.
const KEEPALIVE_REPEAT: Duration = Duration::from_millis(700);
const FIRST_BACKOFF: Duration = Duration::from_millis(300);
const MAX_BACKOFF: Duration = Duration::from_secs(2);
/// Between openings that a packet by the relay provokes.
const NUDGE_EVERY: Duration = Duration::from_secs(1);
/// Confirmations are repeated so often until the relay is heard.
const CONFIRM_REPEAT: Duration = Duration::from_millis(300);

/// What the link tells its owner.
#[derive(Debug)]
pub enum LinkEvent {
    /// The relay's identity and leaf are here: verify them off the packet loop, then [`RelayLink::set_leaf`].
    Verify(Vec<u8>),
    /// The session stands.
    Up {
        /// Slot and handle there.
        grant: RelayGrant,
        /// The relay's address as used.
        address: SocketAddr,
        /// MAC keys, to and from.
        up: Secret<32>,
        /// The same.
        down: Secret<32>,
        /// Where the relay sees us: address and port.
        observed: ([u8; 16], u16),
        /// The relay's wall clock, Unix seconds.
        wall: u64,
    },
    /// The relay has taken the session: its first packet in it.
    Heard,
    /// The relay answers again, after silence.
    Back,
    /// It does not stand any more (`true`: by RESET).
    Down(bool),
    /// A message from the relay.
    Control(Control),
    /// An attempt has failed.
    Failed,
}

struct Up {
    tx: TxLane,
    rx: RxLane,
    grant: RelayGrant,
    leg: RelayLeg,
    confirm: Option<(Vec<u8>, Time)>,
    next_ping: Time,
    unanswered: u32,
    rtt: Option<Duration>,
}

/// The link.
pub struct RelayLink {
    relay: [u8; 32],
    address: Option<SocketAddr>,
    credential: Credential,
    suites: Vec<Suite>,
    leaf: Option<ResponderLeaf>,
    opening: Option<Initiator>,
    up: Option<Up>,
    retry_at: Time,
    backoff: Duration,
    /// When an opening was begun because something had come by the relay.
    nudged: Option<Time>,
    /// Traffic flowed lately: keepalives come faster. Set by the owner.
    pub active_until: Time,
    out: VecDeque<(SocketAddr, Vec<u8>)>,
    events: VecDeque<LinkEvent>,
}

impl RelayLink {
    /// A link to the relay with this NodeId; opens at the first timeout after it has an address.
    pub fn new(
        relay: [u8; 32],
        address: Option<SocketAddr>,
        credential: Credential,
        suites: Vec<Suite>,
        now: Time,
    ) -> Self {
        RelayLink {
            relay,
            address,
            credential,
            suites,
            leaf: None,
            opening: None,
            up: None,
            retry_at: now,
            backoff: FIRST_BACKOFF,
            nudged: None,
            active_until: Time(0),
            out: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// The relay's NodeId.
    pub fn relay(&self) -> &[u8; 32] {
        &self.relay
    }

    /// Where the relay is, once its name is resolved.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// The relay's name has resolved, perhaps to another address: the next opening uses it.
    pub fn set_address(&mut self, now: Time, address: SocketAddr) {
        if self.address != Some(address) {
            self.address = Some(address);
            self.retry_at = self.retry_at.min(now);
        }
    }

    /// The relay is reached by another way from now on. The session that stands goes with it: the relay learns where this
    /// side is by a ping. An opening begins anew. [P-TCP]
    pub fn move_to(&mut self, now: Time, address: SocketAddr, rng: &mut Rng) {
        if self.address == Some(address) {
            return;
        }
        self.address = Some(address);
        match &mut self.up {
            Some(up) => {
                up.leg.set_address(address);
                (up.next_ping, up.unanswered) = (now, 0);
            }
            None => (self.opening, self.retry_at, self.backoff) = (None, now, FIRST_BACKOFF),
        }
        self.handle_timeout(now, rng);
    }

    /// Does the session stand?
    pub fn is_up(&self) -> bool {
        self.up.is_some()
    }

    /// Slot and handle, while it does.
    pub fn grant(&self) -> Option<&RelayGrant> {
        self.up.as_ref().map(|u| &u.grant)
    }

    /// Last measured round trip to the relay.
    pub fn rtt(&self) -> Option<Duration> {
        self.up.as_ref().and_then(|u| u.rtt)
    }

    /// The next datagram, and where it goes.
    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        if let (Some(opening), Some(address)) = (&mut self.opening, self.address)
            && let Some(packet) = opening.poll_transmit()
        {
            return Some((address, packet));
        }
        self.out.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<LinkEvent> {
        self.events.pop_front()
    }

    /// When to call [`RelayLink::handle_timeout`].
    pub fn deadline(&self) -> Option<Time> {
        let opening = match &self.opening {
            Some(o) => Some(o.deadline()),
            None => (self.up.is_none() && self.address.is_some()).then_some(self.retry_at),
        };
        let up = self.up.as_ref().and_then(|u| earlier(Some(u.next_ping), u.confirm.as_ref().map(|c| c.1)));
        earlier(opening, up)
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time, rng: &mut Rng) {
        if let Some(o) = &mut self.opening
            && now >= o.deadline()
            && !o.handle_timeout(now, rng)
        {
            // The leaf at hand may be one that the relay has erased.
            self.leaf = None;
            self.opening = None;
            self.retry_at = now + rng.jitter(self.backoff);
            self.backoff = (self.backoff * 2).min(MAX_BACKOFF);
            self.events.push_back(LinkEvent::Failed);
        }
        if self.opening.is_none() && self.up.is_none() && self.address.is_some() && now >= self.retry_at {
            self.open(now, rng);
        }
        let Some(up) = &mut self.up else { return };
        let mut send = vec![];
        if let Some((body, at)) = &mut up.confirm
            && now >= *at
        {
            *at = now + CONFIRM_REPEAT;
            send.push((Kind::Control, body.clone()));
        }
        if now >= up.next_ping {
            if up.unanswered >= MAX_UNANSWERED {
                self.go_down(now, false, rng);
                return;
            }
            let mut body = vec![];
            Ping { id: 0, stamp: now.0 }.emit(&mut body);
            send.push((Kind::Ping, body));
            up.unanswered += 1;
            // The answer sets the next one; without it, this is a repeat.
            up.next_ping = now + KEEPALIVE_REPEAT;
        }
        for (kind, body) in send {
            self.send(kind, &body);
        }
    }

    /// Traffic flows by this relay: notice soon when it dies.
    pub fn note_activity(&mut self, now: Time) {
        self.active_until = now + Duration::from_secs(60);
        if let Some(up) = &mut self.up {
            up.next_ping = up.next_ping.min(now + KEEPALIVE_ACTIVE);
        }
    }

    /// Asks now: this machine's addresses have changed, and the relay learns of it by a packet.
    pub fn ask(&mut self, now: Time, rng: &mut Rng) {
        match &mut self.up {
            Some(up) => up.next_ping = now,
            None => (self.retry_at, self.backoff) = (now, FIRST_BACKOFF),
        }
        self.handle_timeout(now, rng);
    }

    /// Something came by the relay, for a session that this side has given up: the relay can be reached again, so that
    /// no wait is needed. A copy of an old packet may say so too, hence once a second at most.
    pub fn nudge(&mut self, now: Time, rng: &mut Rng) {
        let lately = self.nudged.is_some_and(|at| now.since(at) < NUDGE_EVERY);
        if self.up.is_none() && self.address.is_some() && !lately {
            self.nudged = Some(now);
            self.backoff = FIRST_BACKOFF;
            self.open(now, rng);
        }
    }

    fn open(&mut self, now: Time, rng: &mut Rng) {
        let config = InitiatorConfig {
            contact: Contact::relay(&self.relay),
            leaf: self.leaf.clone(),
            credential: self.credential.clone(),
            suites: self.suites.clone(),
        };
        self.opening = Some(Initiator::new(config, now, rng));
    }

    fn go_down(&mut self, now: Time, by_reset: bool, rng: &mut Rng) {
        self.up = None;
        self.backoff = FIRST_BACKOFF;
        self.retry_at = now;
        self.events.push_back(LinkEvent::Down(by_reset));
        if self.opening.is_none() && self.address.is_some() {
            self.open(now, rng);
        }
    }

    /// The bundle that [`LinkEvent::Verify`] gave was good; `None`: it was not.
    pub fn set_leaf(&mut self, now: Time, leaf: Option<ResponderLeaf>, rng: &mut Rng) {
        match (leaf, &mut self.opening) {
            (Some(leaf), Some(o)) => {
                self.leaf = Some(leaf.clone());
                let _ = o.set_leaf(now, leaf, rng);
            }
            _ => {
                self.opening = None;
                self.retry_at = now + rng.jitter(self.backoff);
                self.backoff = (self.backoff * 2).min(MAX_BACKOFF);
                self.events.push_back(LinkEvent::Failed);
            }
        }
    }

    /// Is this typed packet for this link? (By its sid; RESET by its slot.)
    pub fn takes(&self, packet: &[u8]) -> bool {
        match packet.first().and_then(|b| PacketType::from_byte(*b)) {
            Some(PacketType::Reset) => self.up.is_some(),
            _ => sid_of(packet).is_some_and(|sid| self.opening.as_ref().is_some_and(|o| *o.sid() == sid)),
        }
    }

    /// Takes a typed packet that came straight from the relay.
    ///
    /// # Errors
    /// Why it was dropped.
    pub fn handle_typed(&mut self, now: Time, packet: &[u8], rng: &mut Rng) -> Result<(), DropReason> {
        if packet.first() == Some(&(PacketType::Reset as u8)) {
            let reset = Reset::parse(packet)?;
            let up = self.up.as_ref().ok_or(DropReason::UnknownSlot)?;
            // Only the relay that gave the token can show it; anyone else's word is nothing. [P-RESET]
            if reset.slot != up.grant.slot || !ct_eq(&reset.token, &up.grant.reset_token) {
                return Err(DropReason::BadMac);
            }
            self.go_down(now, true, rng);
            return Ok(());
        }
        let opening = self.opening.as_mut().ok_or(DropReason::UnknownHandshake)?;
        match opening.handle(now, packet, rng)? {
            Progress::Pending => {}
            Progress::Bundle(bundle) => self.events.push_back(LinkEvent::Verify(bundle)),
            Progress::Finished(f) => {
                let (e, keys) = (f.established, f.keys);
                let address = self.address.ok_or(DropReason::UnknownHandshake)?;
                let mut confirm = vec![];
                Control::Confirm {
                    sid_r: e.sid_r,
                    generation: 0,
                    // The relay answers on lane 0 alone; what it sends comes behind its own header.
                    lanes: [0; LANES],
                    wall: 0,
                }
                .emit(&mut confirm);
                self.opening = None;
                self.backoff = FIRST_BACKOFF;
                self.up = Some(Up {
                    tx: TxLane::new(e.lanes[0], keys.send_lane(0)),
                    rx: RxLane::new(keys.receive_lane(0)),
                    leg: RelayLeg::new(address, e.relay.slot, 0, keys.relay_up.duplicate()),
                    grant: e.relay,
                    confirm: Some((confirm, now)),
                    next_ping: now,
                    unanswered: 0,
                    rtt: None,
                });
                self.events.push_back(LinkEvent::Up {
                    grant: e.relay,
                    address,
                    up: keys.relay_up,
                    down: keys.relay_down,
                    observed: e.observed,
                    wall: e.wall,
                });
                self.handle_timeout(now, rng);
            }
        }
        Ok(())
    }

    /// Takes what came behind the relay's own header (its MAC has been checked).
    ///
    /// # Errors
    /// Why it was dropped.
    pub fn handle_session(&mut self, now: Time, packet: &[u8]) -> Result<(), DropReason> {
        let up = self.up.as_mut().ok_or(DropReason::NoSession)?;
        let mut packet = packet.to_vec();
        let (kind, body) = up.rx.open_in_place(now, &mut packet)?;
        if up.confirm.take().is_some() {
            self.events.push_back(LinkEvent::Heard);
        }
        let body = &packet[body];
        match kind {
            Kind::Pong => {
                let ping = Ping::parse(body)?;
                up.rtt = Some(now.since(Time(ping.stamp)));
                if up.unanswered > 1 {
                    self.events.push_back(LinkEvent::Back);
                }
                up.unanswered = 0;
                let wait = if now < self.active_until { KEEPALIVE_ACTIVE } else { KEEPALIVE_IDLE };
                up.next_ping = now + wait;
            }
            Kind::Ping => {
                let body = body.to_vec();
                self.send(Kind::Pong, &body);
            }
            Kind::Control => match Control::parse(body)? {
                // We are where we are: answering from here is the proof.
                Control::PathChallenge(c) => self.send_control(&Control::PathResponse(c)),
                c => self.events.push_back(LinkEvent::Control(c)),
            },
            _ => return Err(DropReason::Malformed),
        }
        Ok(())
    }

    /// Sends a message to the relay; lost when the link is down (who asks repeats).
    pub fn send_control(&mut self, control: &Control) {
        let mut body = vec![];
        control.emit(&mut body);
        self.send(Kind::Control, &body);
    }

    fn send(&mut self, kind: Kind, body: &[u8]) {
        let Some(up) = &mut self.up else { return };
        if let Ok(packet) = up.tx.seal(kind, body) {
            self.out.push_back((up.leg.address(), up.leg.wrap(TO_RELAY, &packet)));
        }
    }

    /// Wraps a packet to a handle, by the control half's own counter.
    ///
    /// # Errors
    /// `NoSession` while the link is down.
    pub fn wrap(&mut self, handle: u64, packet: &[u8]) -> Result<(SocketAddr, Vec<u8>), DropReason> {
        let up = self.up.as_mut().ok_or(DropReason::NoSession)?;
        Ok((up.leg.address(), up.leg.wrap(handle, packet)))
    }
}

/// The sid of a typed packet that answers an opening.
pub(crate) fn sid_of(packet: &[u8]) -> Option<[u8; 8]> {
    let at = match PacketType::from_byte(*packet.first()?)? {
        PacketType::Challenge => 8,
        PacketType::Established | PacketType::LeafReply | PacketType::NeedCert => 4,
        _ => return None,
    };
    packet.get(at..at + 8)?.try_into().ok()
}
