//! A session with a peer: keys, lanes, age, and the state of its confirmation and rekey. It knows nothing of its path.

use crate::handshake::{Parent, Rekey, Role};
use crate::snapshot::{LaneId, Route, SessionId, THREADS};
use crate::{Rng, Time};
use shadowmesh_crypto::aead::Suite;
use shadowmesh_crypto::secret::Secret;
use shadowmesh_identity::NodeId;
use shadowmesh_wire::control::Control;
use shadowmesh_wire::handshake::{LANES, Sid};
use std::cmp::Ordering;
use std::time::Duration;

/// How long a session that was replaced still receives. [P-GRACE]
pub(super) const GRACE: Duration = Duration::from_secs(5);
/// A session that its initiator has not confirmed by then is given up.
pub(super) const UNCONFIRMED: Duration = Duration::from_secs(15);
/// Which session of a pair is the newer, as both sides see it whatever came first: no clock is asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    /// CONFIRM says it: one more than any that either side had when the session was opened.
    pub generation: u32,
    /// Rekeys since.
    pub depth: u32,
}

impl Rank {
    pub fn of_rekey(self) -> Rank {
        Rank { depth: self.depth.saturating_add(1), ..self }
    }
}

/// A rekey that this side started.
pub(super) struct RekeyOut {
    pub rekey: Rekey,
    pub pieces: Vec<Control>,
    pub repeat_at: Time,
    pub wait: Duration,
    pub reply: Option<crate::handshake::Pieces>,
    /// Indexes this side will receive on.
    pub rx: [u32; LANES],
}

/// A rekey that the peer started and this side answered.
pub(super) struct RekeyIn {
    pub sid: Sid,
    pub pieces: crate::handshake::Pieces,
    /// The answer, for repeats.
    pub answer: Vec<Control>,
}

pub(super) struct Session {
    pub id: SessionId,
    pub role: Role,
    pub begun_by: NodeId,
    pub established: Time,
    /// Sending is possible: the peer's indexes are known and it has proved its keys.
    pub confirmed: bool,
    /// The way that its handshake took, for the peer's route once it is chosen; a rekey changes none.
    pub way: Option<Route>,
    pub rank: Rank,
    pub suite: Suite,
    pub exporter: Secret<32>,
    pub rx: [u32; LANES],
    /// Lanes that this side sends on, in two groups that take turns: one is used, the other was, or will be, by another
    /// path. [P-MOVE]
    pub tx: Option<[LaneId; LANES]>,
    /// The first of those in use.
    pub group: usize,
    /// Keys for the lanes that this side sends on, until the peer's indexes are known.
    pub keys: Option<crate::handshake::SessionKeys>,
    pub sid_r: Sid,
    /// CONFIRM, to be repeated until the peer is heard.
    pub confirm: Option<(Control, Time)>,
    pub rekey_out: Option<RekeyOut>,
    pub rekey_in: Option<RekeyIn>,
    /// This age asks for a rekey by this side.
    pub rekey_after: Duration,
    /// Its keys are refused from then on: 1.5 times the rekey interval.
    pub expires: Time,
    /// Set when another took its place: it only receives, until then.
    pub retire_at: Option<Time>,
}

const _: () = assert!(LANES == 2 * THREADS);

impl Session {
    /// The lanes in use, one a sending thread.
    pub fn lanes(&self) -> Option<[LaneId; THREADS]> {
        self.tx?.get(self.group..self.group + THREADS)?.try_into().ok()
    }

    /// The control half's lane for what goes by the path that carries, or by another.
    pub fn control_lane(&self, carries: bool) -> Option<LaneId> {
        let group = if carries { self.group } else { THREADS - self.group };
        self.tx?.get(group).copied()
    }

    /// A lane's number in the session.
    pub fn number_of(&self, lane: LaneId) -> Option<usize> {
        self.tx?.iter().position(|l| *l == lane)
    }

    /// Another path carries: the other lanes are used. What is under way on the first may be far behind, and would fall out
    /// of a window that both share.
    pub fn switch_lanes(&mut self) {
        self.group = THREADS - self.group;
    }

    /// Which of two sessions to send on, once both are confirmed. Both sides come to the same answer. [P-SIMOPEN]
    pub fn yields_to(&self, newer: &Session) -> bool {
        match newer.rank.cmp(&self.rank) {
            Ordering::Greater => true,
            Ordering::Less => false,
            // Both began at once.
            Ordering::Equal => newer.begun_by <= self.begun_by,
        }
    }

    /// What a rekey of it rests on: both sides' NodeIds, and whose rekey it is.
    pub fn parent<'a>(
        &'a self,
        profile: &'a [u8; 32],
        initiator: &'a NodeId,
        responder: &'a NodeId,
    ) -> Parent<'a> {
        let (initiator, responder) = (&initiator.0, &responder.0);
        Parent { profile, initiator, responder, suite: self.suite, exporter: &self.exporter }
    }

    /// When something is due.
    pub fn deadline(&self) -> Option<Time> {
        let mut due = self.retire_at;
        if let Some((_, at)) = &self.confirm {
            due = crate::time::earlier(due, Some(*at));
        }
        if self.retire_at.is_none() {
            due = crate::time::earlier(
                due,
                Some(match &self.rekey_out {
                    _ if !self.confirmed => self.established + UNCONFIRMED,
                    Some(r) => r.repeat_at.min(self.expires),
                    None => (self.established + self.rekey_after).min(self.expires),
                }),
            );
        }
        due
    }
}

/// When this side starts a rekey: the session's initiator at the interval, the responder an eighth later, both with a
/// little jitter so that a thousand sessions do not come at once. `meet`: both start at once, as a test forces it, and this
/// is the round trip; the initiator has the session half of it later, and the jitter is less than the way takes.
pub(super) fn rekey_after(interval: Duration, role: Role, meet: Option<Duration>, rng: &mut Rng) -> Duration {
    let (wait, spread) = match (role, meet) {
        (Role::Initiator, None) => (Duration::ZERO, interval / 32),
        (Role::Initiator, Some(_)) => (Duration::ZERO, interval / 512),
        (Role::Responder, None) => (interval / 8, interval / 32),
        (Role::Responder, Some(rtt)) => (rtt / 2, interval / 512),
    };
    interval + wait + Duration::from_nanos(rng.below(u64::try_from(spread.as_nanos()).unwrap_or(1).max(1)))
}
