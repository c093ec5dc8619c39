//! What a machine does before it is a member: [`Registrar`] brings a network to a relay, [`Joiner`] brings a machine into a
//! network. Both go by an anonymous session with the relay.

mod joiner;
mod registrar;

pub use joiner::{JoinConfig, JoinProgress, Joined, Joiner};
pub use registrar::{Registered, Registrar};

use crate::handshake::Credential;
use crate::relay_leg::check_down;
use crate::relay_link::{LinkEvent, RelayLink};
use crate::work::{Job, Outcome, Work, WorkDone};
use crate::{Rng, Time};
use shadowmesh_crypto::aead::Suite;
use shadowmesh_crypto::secret::Secret;
use shadowmesh_identity::NodeId;
use shadowmesh_wire::control::Control;
use shadowmesh_wire::relay::{RelayHeader, TO_RELAY};
use shadowmesh_wire::{Class, DropReason, classify};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

/// Why nothing came of it, in a sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// No relay answered.
    #[error("no relay answered")]
    NoRelay,
    /// The relay does not know the token, or somebody used it.
    #[error("the relay refuses this URL: its token was used already, or is not one of its own")]
    TokenUsed,
    /// The relay registers nobody without a token.
    #[error("the relay does not know this network, and registers none without a token")]
    Unregistered,
    /// The relay takes no more.
    #[error("the relay is full")]
    RelayFull,
    /// Nobody waits at the invite's place.
    #[error(
        "whoever made this invite is not reachable now: its machine must be on and connected to the relay"
    )]
    NoInviter,
    /// The inviter did not prove itself.
    #[error("what answers at the relay is not the network that the invite names")]
    NotTheInviter,
    /// It was used.
    #[error("{0}")]
    Used(String),
    /// Its time is over.
    #[error("{0}")]
    Expired(String),
    /// The inviter says no.
    #[error("{0}")]
    Refused(String),
    /// The identity was revoked in this network, and never comes back; another one may join.
    #[error("{0}")]
    Revoked(String),
    /// What the inviter sent does not hold.
    #[error("what the inviter sent cannot be used: {0}")]
    BadBundle(&'static str),
    /// By this machine's clock, the relay's leaf is over.
    #[error(
        "this machine's clock is ahead: it stands at {ours} (unix seconds), and the relay's key of this week ended at {ended} (unix seconds)"
    )]
    Clock {
        /// Unix seconds.
        ours: u64,
        /// Unix seconds.
        ended: u64,
    },
    /// It took too long.
    #[error("the inviter stopped answering")]
    Timeout,
}

/// An anonymous session with one relay, and what came by it.
pub(crate) struct AtRelay {
    link: RelayLink,
    relay: NodeId,
    down: Option<(u32, Secret<32>)>,
    unix: u64,
    started: Time,
    work: VecDeque<Work>,
    next_job: u64,
    failures: u32,
    /// Its leaf ended then, by this clock.
    ended: Option<u64>,
}

/// What the relay session tells.
pub(crate) enum Relayed {
    Up,
    Down,
    Control(Control),
    /// A packet from a handle.
    Peer(u64, Vec<u8>),
}

impl AtRelay {
    pub fn new(relay: NodeId, address: SocketAddr, suites: Vec<Suite>, now: Time, unix: u64) -> Self {
        let link = RelayLink::new(relay.0, Some(address), Credential::Anonymous, suites, now);
        AtRelay {
            link,
            relay,
            down: None,
            unix,
            started: now,
            work: VecDeque::new(),
            next_job: 0,
            failures: 0,
            ended: None,
        }
    }

    pub fn now_unix(&self, now: Time) -> u64 {
        self.unix + now.since(self.started).as_secs()
    }

    /// This clock must be ahead of the relay's.
    pub fn clock_error(&self, now: Time) -> Option<JoinError> {
        Some(JoinError::Clock { ours: self.now_unix(now), ended: self.ended? })
    }

    /// Openings that have failed.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    pub fn rtt(&self) -> Option<Duration> {
        self.link.rtt()
    }

    pub fn submit(&mut self, job: Job) -> u64 {
        self.next_job += 1;
        self.work.push_back(Work::new(self.next_job, job));
        self.next_job
    }

    pub fn poll_work(&mut self) -> Option<Work> {
        self.work.pop_front()
    }

    /// Gives back a result that is not the relay's.
    pub fn handle_work(&mut self, now: Time, done: WorkDone, rng: &mut Rng) -> Option<Outcome> {
        match done.outcome {
            Outcome::RelayLeaf(leaf) => {
                if let Err(Some(at)) = leaf {
                    self.ended = Some(at);
                }
                self.link.set_leaf(now, leaf.ok().map(|l| *l), rng);
                None
            }
            other => Some(other),
        }
    }

    pub fn handle_datagram(
        &mut self,
        now: Time,
        datagram: &[u8],
        rng: &mut Rng,
    ) -> Result<Option<Relayed>, DropReason> {
        match classify(datagram)? {
            Class::Typed(_) if self.link.takes(datagram) => {
                self.link.handle_typed(now, datagram, rng)?;
                Ok(None)
            }
            Class::ByRelay => {
                let (header, inner) = RelayHeader::parse(datagram)?;
                let (slot, key) = self.down.as_ref().ok_or(DropReason::UnknownSlot)?;
                if header.slot != *slot {
                    return Err(DropReason::UnknownSlot);
                }
                match check_down(key, &header)? {
                    TO_RELAY => {
                        self.link.handle_session(now, inner)?;
                        Ok(None)
                    }
                    handle => Ok(Some(Relayed::Peer(handle, inner.to_vec()))),
                }
            }
            _ => Err(DropReason::UnknownHandshake),
        }
    }

    /// What has happened at the link since.
    pub fn poll(&mut self, now: Time) -> Option<Relayed> {
        loop {
            match self.link.poll_event()? {
                LinkEvent::Verify(bundle) => {
                    let (relay, now) = (self.relay, self.now_unix(now));
                    self.submit(Job::RelayLeaf { relay, bundle, now });
                }
                LinkEvent::Up { grant, down, .. } => {
                    self.down = Some((grant.slot, down));
                    return Some(Relayed::Up);
                }
                LinkEvent::Down(_) => {
                    self.down = None;
                    return Some(Relayed::Down);
                }
                LinkEvent::Failed => self.failures += 1,
                LinkEvent::Heard | LinkEvent::Back => {}
                LinkEvent::Control(c) => return Some(Relayed::Control(c)),
            }
        }
    }

    pub fn send_control(&mut self, c: &Control) {
        self.link.send_control(c);
    }

    pub fn wrap(&mut self, handle: u64, packet: &[u8]) -> Result<(SocketAddr, Vec<u8>), DropReason> {
        self.link.wrap(handle, packet)
    }

    pub fn handle_timeout(&mut self, now: Time, rng: &mut Rng) {
        if self.link.deadline().is_some_and(|d| d <= now) {
            self.link.handle_timeout(now, rng);
        }
    }

    pub fn deadline(&self) -> Option<Time> {
        self.link.deadline()
    }

    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.link.poll_transmit()
    }
}
