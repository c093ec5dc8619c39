//! A peer as the control half knows it: its sessions, its opening, what waits for it.

use super::carrying::{Carrying, Flaps};
use super::path_mtu::PathMtu;
use super::paths::Paths;
use super::punch::Punch;
use super::session::Session;
use crate::Time;
use crate::handshake::Initiator;
use crate::pull::Puller;
use crate::snapshot::{PeerId, Route, SessionId};
use crate::time::earlier;
use shadowmesh_crypto::Hash;
use shadowmesh_identity::NodeId;
use std::collections::VecDeque;
use std::time::Duration;

/// Frames kept while a session is being made.
pub(super) const MAX_QUEUED: usize = 32;
/// And for how long.
pub(super) const QUEUE_LIFETIME: Duration = Duration::from_secs(3);
/// First wait after a failed opening; doubles.
pub(super) const FIRST_BACKOFF: Duration = Duration::from_millis(500);
/// And its end.
pub(super) const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// After a session's beginning, and after silence, the rosters are compared again so soon; then half as often, and so on.
const FIRST_SYNC: Duration = Duration::from_millis(500);

/// A peer and everything about it that moves.
pub(super) struct Peer {
    pub id: PeerId,
    pub node: NodeId,
    pub sessions: Vec<Session>,
    /// The highest of any session with it, since this process began.
    pub generation: u32,
    /// Rekeys, and of those how many both sides had started at once.
    pub rekeys: (u64, u64),
    /// The one that is sent on.
    pub sending: Option<SessionId>,
    pub opening: Option<Initiator>,
    /// The opening (or the next one) pulls the leaf: the one at hand did not answer.
    pub pull_leaf: bool,
    /// Live, and there is a way to it: as of the last snapshot, since it is asked for all peers each time.
    pub reachable: bool,
    pub next_try: Time,
    /// Openings that have failed since the last session.
    pub failures: u32,
    pub backoff: Duration,
    /// A session is wanted until then, for traffic or by a command.
    pub wanted_until: Time,
    /// A configured address.
    pub endpoint: Option<std::net::SocketAddr>,
    /// Where it announces itself on this machine's LANs.
    pub nearby: Vec<std::net::SocketAddr>,
    /// The path that carries: the way by which the session in use was made, or one that was validated since.
    pub route: Option<Route>,
    /// How large the datagrams are that it takes.
    pub path: PathMtu,
    /// And what else is known of it.
    pub carrying: Carrying,
    /// Other paths.
    pub paths: Paths,
    pub flaps: Flaps,
    pub punch: Punch,
    /// The round after which that was planned.
    pub punched_in: Option<Time>,
    /// The way that the opening goes.
    pub opening_route: Option<Route>,
    pub queue: VecDeque<(Time, Vec<u8>)>,
    pub puller: Puller,
    pub pings: VecDeque<(u64, Time)>,
    pub next_ping: Time,
    pub unanswered: u32,
    pub rtt: Option<Duration>,
    pub last_rx: Option<Time>,
    /// Something other than keepalives came or went.
    pub last_active: Time,
    /// Stamp of its last ping, microseconds, and when it came: reports echo it.
    pub echo: (u32, Time),
    /// When it was last sent a report.
    pub reported_at: Time,
    pub next_sync: Option<Time>,
    /// Between this and the next repeat of the roster's state: short until both sides agree.
    pub sync_wait: Duration,
    /// Tombstones that it has not shown to have, and when they are told again.
    pub untold: Vec<Hash>,
    pub tell_at: Time,
    /// Seconds that its clock is ahead of ours.
    pub skew: Option<i64>,
    /// Receiver report counters: packets that it says have arrived, by lane of the sending session.
    pub loss: Option<f64>,
}

impl Peer {
    pub fn new(id: PeerId, node: NodeId) -> Self {
        Peer {
            id,
            node,
            sessions: vec![],
            generation: 0,
            rekeys: (0, 0),
            sending: None,
            opening: None,
            pull_leaf: false,
            reachable: false,
            next_try: Time(0),
            failures: 0,
            backoff: FIRST_BACKOFF,
            wanted_until: Time(0),
            endpoint: None,
            nearby: vec![],
            route: None,
            path: PathMtu::default(),
            carrying: Carrying::new(Time(0), ""),
            paths: Paths::default(),
            flaps: Flaps::default(),
            punch: Punch::default(),
            punched_in: None,
            opening_route: None,
            queue: VecDeque::new(),
            puller: Puller::default(),
            pings: VecDeque::new(),
            next_ping: Time(0),
            unanswered: 0,
            rtt: None,
            last_rx: None,
            last_active: Time(0),
            echo: (0, Time(0)),
            reported_at: Time(0),
            next_sync: None,
            sync_wait: FIRST_SYNC,
            untold: vec![],
            tell_at: Time(0),
            skew: None,
            loss: None,
        }
    }

    pub fn session(&self, id: SessionId) -> Option<&Session> {
        self.sessions.iter().find(|s| s.id == id)
    }

    pub fn session_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        self.sessions.iter_mut().find(|s| s.id == id)
    }

    /// The two rosters are compared now, and again soon unless they agree.
    pub fn sync_now(&mut self, now: Time) {
        self.next_sync = Some(now);
        self.sync_wait = FIRST_SYNC;
    }

    /// A round trip to it took so long.
    pub fn measured(&mut self, rtt: Duration) {
        self.rtt = Some(rtt);
        self.puller.measured(rtt);
    }

    /// The session that is sent on.
    pub fn current(&self) -> Option<&Session> {
        self.sending.and_then(|id| self.session(id))
    }

    /// When something is due.
    pub fn deadline(&self, wants_session: bool) -> Option<Time> {
        let mut due = self.opening.as_ref().map(Initiator::deadline);
        for s in &self.sessions {
            due = earlier(due, s.deadline());
        }
        if self.sending.is_some() {
            due = earlier(due, Some(self.next_ping));
            due = earlier(due, self.next_sync);
            due = earlier(due, self.puller.deadline());
            due = earlier(due, self.path.deadline());
            due = earlier(due, self.paths_deadline());
            due = earlier(due, (!self.untold.is_empty()).then_some(self.tell_at));
        } else if self.opening.is_none() && wants_session {
            due = earlier(due, Some(self.next_try));
        }
        earlier(due, self.queue.front().map(|(at, _)| *at + QUEUE_LIFETIME))
    }
}
