//! Brings a network to a relay: REGISTER{token, owner secret, access secret} in an anonymous session.

use super::{AtRelay, JoinError, Relayed};
use crate::work::{Work, WorkDone};
use crate::{Rng, Time};
use shadowmesh_crypto::aead::Suite;
use shadowmesh_crypto::kdf::{self, Label};
use shadowmesh_crypto::secret::Secret;
use shadowmesh_identity::NodeId;
use shadowmesh_wire::control::{Control, Status};
use std::net::SocketAddr;
use std::time::Duration;

const REPEAT: Duration = Duration::from_millis(400);
const PATIENCE: Duration = Duration::from_secs(15);

/// What a registered network keeps.
pub struct Registered {
    /// Only root and admins keep it: it rotates the access secret.
    pub owner: Secret<32>,
    /// What members show the relay.
    pub access: Secret<32>,
    /// The network's tag at this relay.
    pub tag: [u8; 32],
    /// Round trip to the relay.
    pub rtt: Option<Duration>,
}

/// The machine. Verbs as [`crate::Endpoint`]'s; ends with [`Registrar::outcome`].
pub struct Registrar {
    relay: AtRelay,
    rng: Rng,
    token: [u8; 16],
    owner: Secret<32>,
    access: Secret<32>,
    up: bool,
    repeat_at: Time,
    ends: Time,
    outcome: Option<Result<Registered, JoinError>>,
}

impl Registrar {
    /// `token` from the relay's URL; `seed` is secret randomness. `unix` is the clock.
    pub fn new(
        relay: NodeId,
        address: SocketAddr,
        token: Option<[u8; 16]>,
        suites: Vec<Suite>,
        now: Time,
        unix: u64,
        seed: [u8; 32],
    ) -> Self {
        let mut rng = Rng::from_seed(seed);
        let (owner, access) = (Secret::new(rng.bytes()), Secret::new(rng.bytes()));
        Registrar {
            relay: AtRelay::new(relay, address, suites, now, unix),
            rng,
            token: token.unwrap_or_default(),
            owner,
            access,
            up: false,
            repeat_at: now,
            ends: now + PATIENCE,
            outcome: None,
        }
    }

    /// Sets another access secret at a relay where the network is registered, by its owner secret. Asked twice for the
    /// same, the relay changes nothing.
    pub fn rotate(
        relay: NodeId,
        address: SocketAddr,
        (owner, access): (Secret<32>, Secret<32>),
        suites: Vec<Suite>,
        now: Time,
        unix: u64,
        seed: [u8; 32],
    ) -> Self {
        // No token: where one is needed, a network that the relay has forgotten is not registered anew by this.
        Registrar { owner, access, ..Self::new(relay, address, None, suites, now, unix, seed) }
    }

    /// How it ended; `None` while it goes on.
    pub fn outcome(&mut self) -> Option<Result<Registered, JoinError>> {
        self.outcome.take()
    }

    /// A datagram from the relay's address.
    pub fn handle_datagram(&mut self, now: Time, _from: SocketAddr, datagram: &mut [u8]) {
        let _ = self.relay.handle_datagram(now, datagram, &mut self.rng);
        self.settle(now);
    }

    /// A finished job.
    pub fn handle_work(&mut self, now: Time, done: WorkDone) {
        let _ = self.relay.handle_work(now, done, &mut self.rng);
        self.settle(now);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time) {
        self.relay.handle_timeout(now, &mut self.rng);
        self.settle(now);
        if self.up && now >= self.repeat_at {
            self.repeat_at = now + REPEAT;
            let (token, owner, access) = (self.token, *self.owner.expose(), *self.access.expose());
            self.relay.send_control(&Control::Register { token, owner, access });
        }
        if let (None, Some(e)) = (&self.outcome, self.relay.clock_error(now)) {
            self.outcome = Some(Err(e));
        }
        if now >= self.ends && self.outcome.is_none() {
            self.outcome = Some(Err(JoinError::NoRelay));
        }
    }

    fn settle(&mut self, now: Time) {
        while let Some(r) = self.relay.poll(now) {
            match r {
                Relayed::Up => {
                    self.up = true;
                    self.repeat_at = now;
                }
                Relayed::Down => self.up = false,
                Relayed::Control(Control::RegisterReply(status)) if self.outcome.is_none() => {
                    self.outcome = Some(match status {
                        Status::Ok => Ok(Registered {
                            owner: self.owner.duplicate(),
                            access: self.access.duplicate(),
                            tag: kdf::hash(Label::OwnerTag, &[self.owner.expose()]),
                            rtt: self.relay.rtt(),
                        }),
                        Status::Busy => Err(JoinError::RelayFull),
                        Status::Pending => continue,
                        Status::Unknown => Err(JoinError::Unregistered),
                        _ => Err(JoinError::TokenUsed),
                    });
                }
                Relayed::Control(_) | Relayed::Peer(..) => {}
            }
        }
    }

    /// When to call [`Registrar::handle_timeout`].
    pub fn deadline(&self) -> Option<Time> {
        let own = if self.up { self.repeat_at.min(self.ends) } else { self.ends };
        crate::time::earlier(self.relay.deadline(), Some(own))
    }

    /// A datagram to send.
    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.relay.poll_transmit()
    }

    /// A job for another thread.
    pub fn poll_work(&mut self) -> Option<Work> {
        self.relay.poll_work()
    }
}
