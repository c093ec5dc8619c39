//! What moves data: a sealer or an opener, with the snapshot that it goes by and the memory that it works in. Each on a
//! thread of its own, or one after the other on one. What they cannot decide goes up to the node as [`Up`].

use crate::batch::{Delivered, Drops, RxBatch, TxBatch, Upcall};
use crate::snapshot::{Install, PeerId, Snapshot};
use crate::{LaneStats, Largest, Opener, Sealer, Time};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Statistics are taken so long after the first packet, in or out, since the last time. Reports say whether a path lives:
/// a dead one is noticed when a few are missing.
const STATS: Duration = Duration::from_millis(50);

/// What a data half leaves to the node, in the order in which it came: for [`crate::Endpoint::handle_up`].
pub enum Up {
    /// A frame, and the snapshot that the sealer had: whom it has sent a group frame to itself.
    Frame(Vec<u8>, Arc<Snapshot>),
    /// What the opener could not decide.
    Upcall(Upcall),
    /// Hosts behind peers, where they were heard.
    Stations(Vec<([u8; 6], PeerId)>),
    /// What lanes have received.
    Received(Vec<LaneStats>),
    /// What went out from `since` on: the peers, the largest datagram for each, and the greatest counter of any lane.
    Sent {
        /// By which sealer.
        thread: usize,
        /// When the first of it went.
        since: Time,
        /// For [`crate::Node::handle_sent`].
        largest: Vec<(PeerId, Largest)>,
        /// How near the nearest key is to its limit.
        most_sealed: u64,
    },
    /// The socket refused a datagram of so many bytes to this address: it is larger than the interface takes.
    TooBig(SocketAddr, usize),
}

/// Where keys and snapshots go: into halves on the same thread, or on their way to others.
pub trait DataHalf {
    /// Takes keys, or their end.
    fn install(&mut self, install: Install);
    /// Takes a snapshot; what was installed before is there when it counts. [P-INSTALL]
    fn publish(&mut self, now: Time, snapshot: Arc<Snapshot>);
    /// What was dropped, as far as is known here.
    fn drops(&self) -> Drops;
    /// Frames and bytes sent to and received from a peer, as far as is known here.
    fn traffic(&self, peer: PeerId) -> ((u64, u64), (u64, u64));
}

/// The sending half.
pub struct Outbound {
    sealer: Sealer,
    snapshot: Arc<Snapshot>,
    batch: TxBatch,
    stats_at: Option<Time>,
}

impl Outbound {
    /// Seals with this sealer what is put into this batch.
    pub fn new(sealer: Sealer, snapshot: Arc<Snapshot>, batch: TxBatch) -> Self {
        Outbound { sealer, snapshot, batch, stats_at: None }
    }

    /// Takes what is for the sealer; gives the rest back.
    pub fn install(&mut self, install: Install) -> Option<Install> {
        self.sealer.install(install)
    }

    /// Goes by this one from now on.
    pub fn publish(&mut self, snapshot: Arc<Snapshot>) {
        self.snapshot = snapshot;
    }

    /// Frames from the device go in here; then [`Outbound::seal`].
    pub fn batch(&mut self) -> &mut TxBatch {
        &mut self.batch
    }

    /// Seals what is in the batch, and empties it; `send` gets it with its datagrams.
    pub fn seal(&mut self, now: Time, send: impl FnOnce(&TxBatch), mut up: impl FnMut(Up)) {
        self.sealer.seal_frames(now, &self.snapshot, &mut self.batch);
        send(&self.batch);
        for frame in self.batch.upcalls() {
            up(Up::Frame(frame.to_vec(), self.snapshot.clone()));
        }
        if self.batch.datagrams().len() > 0 && self.stats_at.is_none() {
            self.stats_at = Some(now + STATS);
        }
        self.batch.clear();
    }

    /// When to call [`Outbound::handle_timeout`].
    pub fn deadline(&self) -> Option<Time> {
        self.stats_at
    }

    /// Tells what was sent, when that is due.
    pub fn handle_timeout(&mut self, now: Time, mut up: impl FnMut(Up)) {
        if let Some(at) = self.stats_at.take_if(|at| now >= *at) {
            let (largest, most_sealed) = (self.sealer.take_largest(), self.sealer.most_sealed());
            up(Up::Sent { thread: self.sealer.thread(), since: at - STATS, largest, most_sealed });
        }
    }

    /// Counts and lanes.
    pub fn sealer(&self) -> &Sealer {
        &self.sealer
    }
}

/// The receiving half.
pub struct Inbound {
    opener: Opener,
    snapshot: Arc<Snapshot>,
    batch: RxBatch,
    stats_at: Option<Time>,
}

impl Inbound {
    /// Opens what is put into this batch.
    pub fn new(opener: Opener, snapshot: Arc<Snapshot>, batch: RxBatch) -> Self {
        Inbound { opener, snapshot, batch, stats_at: None }
    }

    /// Takes what is for the opener; gives the rest back.
    pub fn install(&mut self, install: Install) -> Option<Install> {
        self.opener.install(install)
    }

    /// Goes by this one from now on.
    pub fn publish(&mut self, snapshot: Arc<Snapshot>) {
        self.snapshot = snapshot;
    }

    /// Datagrams from the socket go in here; then [`Inbound::open`].
    pub fn batch(&mut self) -> &mut RxBatch {
        &mut self.batch
    }

    /// Opens what is in the batch, and empties it; `deliver` gets each frame, over the batch's memory, `hand` each datagram
    /// that is for another opener, by its number.
    pub fn open(
        &mut self,
        now: Time,
        mut deliver: impl FnMut(Delivered<'_>),
        mut hand: impl FnMut(usize, SocketAddr, &[u8]),
        mut up: impl FnMut(Up),
    ) {
        self.opener.open_datagrams(now, &self.snapshot, &mut self.batch);
        self.batch.frames().for_each(&mut deliver);
        self.batch.elsewhere().for_each(|(owner, from, bytes)| hand(owner, from, bytes));
        if self.opener.owes_report() && self.stats_at.is_none() {
            self.stats_at = Some(now + STATS);
        }
        if !self.batch.stations().is_empty() {
            up(Up::Stations(self.batch.stations().to_vec()));
        }
        self.batch.upcalls().for_each(|u| up(Up::Upcall(u)));
        self.batch.clear();
    }

    /// When to call [`Inbound::handle_timeout`].
    pub fn deadline(&self) -> Option<Time> {
        self.stats_at
    }

    /// Tells what was received, when that is due.
    pub fn handle_timeout(&mut self, now: Time, mut up: impl FnMut(Up)) {
        if self.stats_at.take_if(|at| now >= *at).is_some() {
            self.opener.expire(now);
            up(Up::Received(self.opener.take_stats()));
        }
    }

    /// Counts.
    pub fn opener(&self) -> &Opener {
        &self.opener
    }
}
