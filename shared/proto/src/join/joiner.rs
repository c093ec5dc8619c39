//! Joins a network by an invite whose maker is awake (PROTOCOL.md, "Invite and join"; tests/formal/rendezvous.pv):
//! rendezvous at the relay, anonymous handshake to the inviter, CLAIM, bundle.

use super::{AtRelay, JoinError, Relayed};
use crate::handshake::{Contact, Credential, Initiator, InitiatorConfig, Progress};
use crate::lane::{RxLane, TxLane};
use crate::pull::{Offered, Puller, blob_hash, serve};
use crate::time::earlier;
use crate::work::{Job, Outcome, Work, WorkDone};
use crate::{Rng, Time};
use shadowmesh_crypto::Hash;
use shadowmesh_crypto::aead::Suite;
use shadowmesh_crypto::sign::SigningKey;
use shadowmesh_identity::invite::InviteSecret;
use shadowmesh_identity::{Claim, Genesis, Invite, Name, NodeId};
use shadowmesh_wire::control::{Control, Status};
use shadowmesh_wire::data::Kind;
use shadowmesh_wire::handshake::LANES;
use shadowmesh_wire::{Class, DropReason, classify};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

const REPEAT: Duration = Duration::from_millis(400);
/// The whole of it.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long an inviter may be away (its machine restarts, its relay comes back) before that is said.
const INVITER_PATIENCE: Duration = Duration::from_secs(8);

/// What a joiner needs.
pub struct JoinConfig {
    /// The invite.
    pub invite: Invite,
    /// Its relays, with addresses as resolved; tried in turn.
    pub relays: Vec<(NodeId, SocketAddr)>,
    /// The identity that will be certified.
    pub identity: Arc<SigningKey>,
    /// The name that this machine would like.
    pub name: Name,
    /// Suites, the preferred first.
    pub suites: Vec<Suite>,
}

/// Where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JoinProgress {
    /// Reaching the relay.
    Relay,
    /// Reaching the inviter through it.
    Inviter,
    /// Waiting for the certificate.
    Claim,
    /// Fetching what members know.
    Bundle,
}

/// A machine that is in.
pub struct Joined {
    /// The network.
    pub genesis: Genesis,
    /// Verified facts, the own certificate among them.
    pub facts: Vec<Vec<u8>>,
    /// Who let it in.
    pub inviter: NodeId,
    /// Seconds that the inviter's clock is ahead of this one.
    pub skew: i64,
}

struct Talk {
    tx: TxLane,
    rx: RxLane,
    sid_r: [u8; 8],
    lanes: [u32; LANES],
    heard: bool,
    claim: Hash,
    offered: Offered,
    puller: Puller,
    bundle: Option<Hash>,
}

/// The machine. Verbs as [`crate::Endpoint`]'s; ends with [`Joiner::outcome`].
pub struct Joiner {
    config: JoinConfig,
    rng: Rng,
    unix: u64,
    relay: AtRelay,
    tried: usize,
    owner: Option<u64>,
    opening: Option<Initiator>,
    inviter: Option<(Genesis, NodeId)>,
    talk: Option<Talk>,
    skew: i64,
    verifying: bool,
    repeat_at: Time,
    unknown_since: Option<Time>,
    ends: Time,
    out: VecDeque<(SocketAddr, Vec<u8>)>,
    outcome: Option<Result<Joined, JoinError>>,
}

impl Joiner {
    /// `seed` is secret randomness; `unix` is the clock. At least one relay, or it fails at once.
    pub fn new(config: JoinConfig, now: Time, unix: u64, seed: [u8; 32]) -> Self {
        let rng = Rng::from_seed(seed);
        let first = config.relays.first().copied();
        let (relay, address) = first.unwrap_or((NodeId([0; 32]), SocketAddr::from(([0, 0, 0, 0], 0))));
        let suites = config.suites.clone();
        Joiner {
            relay: AtRelay::new(relay, address, suites, now, unix),
            outcome: first.is_none().then_some(Err(JoinError::NoRelay)),
            rng,
            unix,
            config,
            tried: 0,
            owner: None,
            opening: None,
            inviter: None,
            talk: None,
            skew: 0,
            verifying: false,
            repeat_at: now,
            unknown_since: None,
            ends: now + PATIENCE,
            out: VecDeque::new(),
        }
    }

    /// Where it stands.
    pub fn progress(&self) -> JoinProgress {
        match &self.talk {
            Some(t) if t.bundle.is_some() => JoinProgress::Bundle,
            Some(_) => JoinProgress::Claim,
            None if self.owner.is_some() => JoinProgress::Inviter,
            None => JoinProgress::Relay,
        }
    }

    /// How it ended; `None` while it goes on.
    pub fn outcome(&mut self) -> Option<Result<Joined, JoinError>> {
        self.outcome.take()
    }

    fn end(&mut self, outcome: Result<Joined, JoinError>) {
        if self.outcome.is_none() {
            self.outcome = Some(outcome);
        }
    }

    /// A datagram from the relay's address.
    pub fn handle_datagram(&mut self, now: Time, _from: SocketAddr, datagram: &mut [u8]) {
        // What does not hold is dropped; who waits repeats.
        if let Ok(Some(relayed)) = self.relay.handle_datagram(now, datagram, &mut self.rng) {
            let _ = self.relayed(now, relayed);
        }
        self.settle(now);
    }

    /// A finished job.
    pub fn handle_work(&mut self, now: Time, done: WorkDone) {
        if let Some(outcome) = self.relay.handle_work(now, done, &mut self.rng) {
            match outcome {
                Outcome::Inviter(Some(found)) => {
                    let (genesis, chain, leaf) = *found;
                    self.inviter = Some((genesis, chain.subject()));
                    if let Some(o) = &mut self.opening {
                        let _ = o.set_leaf(now, leaf, &mut self.rng);
                    }
                }
                Outcome::Inviter(None) => self.end(Err(JoinError::NotTheInviter)),
                Outcome::JoinBundle(Ok(facts)) => {
                    if let Some((genesis, inviter)) = self.inviter.clone() {
                        self.end(Ok(Joined { genesis, facts, inviter, skew: self.skew }));
                    }
                }
                Outcome::JoinBundle(Err(why)) => self.end(Err(JoinError::BadBundle(why))),
                _ => {}
            }
        }
        self.settle(now);
    }

    fn settle(&mut self, now: Time) {
        while let Some(r) = self.relay.poll(now) {
            let _ = self.relayed(now, r);
        }
        while let Some(p) = self.opening.as_mut().and_then(Initiator::poll_transmit) {
            self.send_to_inviter(&p);
        }
    }

    fn send_to_inviter(&mut self, packet: &[u8]) {
        if let Some(owner) = self.owner
            && let Ok(x) = self.relay.wrap(owner, packet)
        {
            self.out.push_back(x);
        }
    }

    fn relayed(&mut self, now: Time, r: Relayed) -> Result<(), DropReason> {
        match r {
            Relayed::Up => self.repeat_at = now,
            Relayed::Down => {
                // The relay has forgotten us, and the pair with the inviter with it: from the start.
                self.owner = None;
                self.opening = None;
                self.talk = None;
            }
            Relayed::Control(Control::RendezvousReply { status, owner, .. }) if self.owner.is_none() => {
                match status {
                    Status::Ok => {
                        self.owner = Some(owner);
                        self.unknown_since = None;
                        self.open(now);
                    }
                    Status::Unknown => {
                        let since = *self.unknown_since.get_or_insert(now);
                        if now.since(since) >= INVITER_PATIENCE {
                            self.end(Err(JoinError::NoInviter));
                        }
                    }
                    Status::Busy => self.end(Err(JoinError::RelayFull)),
                    _ => {}
                }
            }
            Relayed::Control(_) => {}
            Relayed::Peer(handle, packet) if Some(handle) == self.owner => {
                return self.handle_inviter(now, packet);
            }
            Relayed::Peer(..) => return Err(DropReason::NotAllowed),
        }
        Ok(())
    }

    fn open(&mut self, now: Time) {
        let secret = &self.config.invite.secret;
        let contact = Contact::invite(
            &self.config.invite.network.0,
            secret.hello_mac_key(),
            secret.challenge_seal_key(),
            secret.leaf_seal_key(),
            secret.mix_key(),
        );
        let config = InitiatorConfig {
            contact,
            leaf: None,
            credential: Credential::Anonymous,
            suites: self.config.suites.clone(),
        };
        self.opening = Some(Initiator::new(config, now, &mut self.rng));
    }

    fn handle_inviter(&mut self, now: Time, mut packet: Vec<u8>) -> Result<(), DropReason> {
        match classify(&packet)? {
            Class::Typed(_) => {
                let opening = self.opening.as_mut().ok_or(DropReason::UnknownHandshake)?;
                match opening.handle(now, &packet, &mut self.rng)? {
                    Progress::Pending => {}
                    Progress::Bundle(bundle) => {
                        let (network, now) = (self.config.invite.network, self.relay.now_unix(now));
                        self.relay.submit(Job::Inviter { network, bundle, now });
                    }
                    Progress::Finished(f) => self.begin(now, *f)?,
                }
                Ok(())
            }
            Class::Data => {
                let talk = self.talk.as_mut().ok_or(DropReason::NoSession)?;
                let (kind, body) = talk.rx.open_in_place(now, &mut packet)?;
                talk.heard = true;
                if kind != Kind::Control {
                    return Err(DropReason::Malformed);
                }
                let control = Control::parse(&packet[body])?;
                self.control(now, control)
            }
            Class::Stun | Class::ByRelay => Err(DropReason::Malformed),
        }
    }

    fn begin(&mut self, now: Time, f: crate::handshake::Finished) -> Result<(), DropReason> {
        self.skew = f.established.wall as i64 - self.relay.now_unix(now) as i64;
        let network = self.config.invite.network;
        let claim = Claim::sign(&self.config.identity, network, self.config.name.clone(), &f.keys.h2)
            .map_err(|_| DropReason::BadHandshake)?;
        let mut offered = Offered::default();
        let claim = offered.add(claim.encode());
        let lanes = std::array::from_fn(|_| (self.rng.u64() as u32) & shadowmesh_wire::data::MAX_INDEX);
        self.talk = Some(Talk {
            tx: TxLane::new(f.established.lanes[0], f.keys.send_lane(0)),
            rx: RxLane::new(f.keys.receive_lane(0)),
            sid_r: f.established.sid_r,
            lanes,
            heard: false,
            claim,
            offered,
            puller: Puller::default(),
            bundle: None,
        });
        self.opening = None;
        self.repeat_at = now;
        self.repeat(now);
        Ok(())
    }

    fn send(&mut self, c: &Control) {
        let Some(talk) = &mut self.talk else { return };
        let mut body = vec![];
        c.emit(&mut body);
        if let Ok(packet) = talk.tx.seal(Kind::Control, &body) {
            self.send_to_inviter(&packet);
        }
    }

    fn control(&mut self, now: Time, c: Control) -> Result<(), DropReason> {
        let talk = self.talk.as_mut().ok_or(DropReason::NoSession)?;
        match c {
            Control::Pull { hash, chunk } => {
                let reply = serve(talk.offered.get(&hash), hash, chunk);
                self.send(&reply);
            }
            Control::JoinReply { status, text, bundle } => match status {
                Status::Ok if talk.bundle.is_none() => {
                    talk.bundle = Some(bundle);
                    for ask in talk.puller.want(now, bundle) {
                        self.send(&ask);
                    }
                }
                Status::Ok | Status::Pending => {}
                Status::Used => self.end(Err(JoinError::Used(text))),
                Status::Expired => self.end(Err(JoinError::Expired(text))),
                Status::Revoked => self.end(Err(JoinError::Revoked(text))),
                _ => self.end(Err(JoinError::Refused(text))),
            },
            Control::Chunk { hash, chunk, count, bytes } => {
                let (blob, more) = talk.puller.chunk(now, &hash, chunk, count, bytes);
                let wanted = talk.bundle;
                for ask in more {
                    self.send(&ask);
                }
                if let Some(blob) = blob.filter(|b| Some(blob_hash(b)) == wanted && !self.verifying)
                    && let Some((genesis, _)) = self.inviter.clone()
                {
                    self.verifying = true;
                    let me = NodeId::of(self.config.identity.public());
                    let least_version = self.config.invite.least_version;
                    let now = self.relay.now_unix(now);
                    self.relay.submit(Job::JoinBundle {
                        genesis: Box::new(genesis),
                        bundle: blob,
                        me,
                        least_version,
                        now,
                    });
                }
            }
            _ => return Err(DropReason::Malformed),
        }
        Ok(())
    }

    /// Repeats what is unanswered.
    fn repeat(&mut self, now: Time) {
        if now < self.repeat_at {
            return;
        }
        self.repeat_at = now + REPEAT;
        if self.owner.is_none() {
            self.relay.send_control(&Control::Rendezvous(self.config.invite.locator()));
        }
        let wall = self.relay.now_unix(now);
        let Some(t) = &self.talk else { return };
        let confirm =
            (!t.heard).then_some(Control::Confirm { sid_r: t.sid_r, generation: 0, lanes: t.lanes, wall });
        let claim = t.bundle.is_none().then_some(Control::Claim(t.claim));
        for c in [confirm, claim].into_iter().flatten() {
            self.send(&c);
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time) {
        self.relay.handle_timeout(now, &mut self.rng);
        self.settle(now);
        self.repeat(now);
        if let Some(o) = &mut self.opening
            && now >= o.deadline()
            && !o.handle_timeout(now, &mut self.rng)
        {
            self.opening = None;
            self.end(Err(JoinError::NoInviter));
        }
        if let Some(t) = &mut self.talk
            && t.puller.deadline().is_some_and(|d| d <= now)
        {
            for ask in t.puller.handle_timeout(now).0 {
                self.send(&ask);
            }
        }
        self.settle(now);
        if self.owner.is_none() && self.relay.failures() > 0 && self.tried + 1 < self.config.relays.len() {
            // The next relay of the invite.
            self.tried += 1;
            let (relay, address) = self.config.relays[self.tried];
            let suites = self.config.suites.clone();
            let unix = self.unix;
            self.relay = AtRelay::new(relay, address, suites, now, unix);
        }
        if let (None, Some(e)) = (self.owner, self.relay.clock_error(now)) {
            self.end(Err(e));
        }
        if now >= self.ends {
            let e = if self.owner.is_none() { JoinError::NoRelay } else { JoinError::Timeout };
            self.end(Err(e));
        }
    }

    /// When to call [`Joiner::handle_timeout`].
    pub fn deadline(&self) -> Option<Time> {
        let mut due = earlier(self.relay.deadline(), Some(self.ends));
        due = earlier(due, self.opening.as_ref().map(Initiator::deadline));
        due = earlier(due, self.talk.as_ref().and_then(|t| t.puller.deadline()));
        earlier(due, Some(self.repeat_at))
    }

    /// A datagram to send.
    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.relay.poll_transmit().or_else(|| self.out.pop_front())
    }

    /// A job for another thread.
    pub fn poll_work(&mut self) -> Option<Work> {
        self.relay.poll_work()
    }
}
