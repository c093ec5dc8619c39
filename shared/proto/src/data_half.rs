//! What moves data: a sealer or an opener, with the snapshot that it goes by and the memory that it works in. Each on a
//! thread of its own, or one after the other on one. What they cannot decide goes up to the node as [`Up`].

use crate::batch::{Delivered, Drops, RxBatch, TxBatch, Upcall};
use crate::snapshot::{Install, PeerId, Snapshot};
use crate::{LaneStats, Opener, Sealer, Time};
use std::sync::Arc;
use std::time::Duration;

/// Receiver statistics are taken so long after the first packet since the last time: reports at least every 100 ms.
const STATS: Duration = Duration::from_millis(100);
/// Datagrams after which the node hears how much the keys have sealed.
const SEALED: u64 = 1 << 16;

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
    /// The greatest counter of any sending lane.
    Sealed(u64),
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
    /// Datagrams since the node was told how much is sealed.
    untold: u64,
}

impl Outbound {
    /// Seals with this sealer what is put into this batch.
    pub fn new(sealer: Sealer, snapshot: Arc<Snapshot>, batch: TxBatch) -> Self {
        Outbound { sealer, snapshot, batch, untold: 0 }
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
        self.untold += self.batch.datagrams().len() as u64;
        if self.untold >= SEALED {
            self.untold = 0;
            up(Up::Sealed(self.sealer.most_sealed()));
        }
        self.batch.clear();
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
    pub fn new(snapshot: Arc<Snapshot>, batch: RxBatch) -> Self {
        Inbound { opener: Opener::new(), snapshot, batch, stats_at: None }
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

    /// Opens what is in the batch, and empties it; `deliver` gets each frame, over the batch's memory.
    pub fn open(&mut self, now: Time, mut deliver: impl FnMut(Delivered<'_>), mut up: impl FnMut(Up)) {
        self.opener.open_datagrams(now, &self.snapshot, &mut self.batch);
        let mut any = false;
        for frame in self.batch.frames() {
            any = true;
            deliver(frame);
        }
        if any && self.stats_at.is_none() {
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
        if self.stats_at.is_some_and(|at| now >= at) {
            self.stats_at = None;
            self.opener.expire(now);
            up(Up::Received(self.opener.take_stats()));
        }
    }

    /// Counts.
    pub fn opener(&self) -> &Opener {
        &self.opener
    }
}
