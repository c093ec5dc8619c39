//! Node, sealer and opener in one thread: what small devices and the simulator run. The order of draining is kept here.

use crate::batch::{Delivered, Drops, RxBatch, TxBatch};
use crate::node::{Event, Node};
use crate::snapshot::Snapshot;
use crate::time::earlier;
use crate::work::{Work, WorkDone};
use crate::{Opener, Sealer, Time};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Receiver statistics are taken so long after the first packet since the last time: reports at least every 100 ms.
const STATS: Duration = Duration::from_millis(100);

/// Frames of one batch at most.
const TX_FRAMES: usize = 64;
/// Memory of a batch on its way out: 64 frames of an Ethernet, or a few superframes.
const TX_MEMORY: usize = 256 << 10;
/// And of one on its way in: 64 messages, each of which may be datagrams that the kernel has joined. What is not used is
/// never touched.
const RX_MEMORY: usize = 64 * 68 << 10;

/// The whole of a node in one thread.
pub struct Endpoint {
    /// The control half. After a direct call to it, call [`Endpoint::settle`].
    pub node: Node,
    sealer: Sealer,
    opener: Opener,
    snapshot: Arc<Snapshot>,
    /// Snapshots on their way to the data half, and when they arrive.
    coming: VecDeque<(Time, Arc<Snapshot>)>,
    /// How late snapshots are: zero but in the simulator, where the data threads' lag is played.
    pub lag: Duration,
    stats_at: Option<Time>,
    tx: TxBatch,
    rx: RxBatch,
    out: VecDeque<(SocketAddr, Vec<u8>)>,
    frames: VecDeque<Vec<u8>>,
}

impl Endpoint {
    /// `frame` is the largest frame that the device gives, bytes: superframes, if it makes any.
    pub fn new(node: Node, frame: usize, frame_id: u32) -> Self {
        let snapshot = node.snapshot();
        Endpoint {
            node,
            sealer: Sealer::new(1, frame_id),
            opener: Opener::new(),
            snapshot,
            coming: VecDeque::new(),
            lag: Duration::ZERO,
            stats_at: None,
            tx: TxBatch::new(TX_FRAMES, frame, TX_MEMORY),
            rx: RxBatch::new(RX_MEMORY),
            out: VecDeque::new(),
            frames: VecDeque::new(),
        }
    }

    /// A batch of frames from the device, to be filled; then [`Endpoint::seal`].
    pub fn tx(&mut self) -> &mut TxBatch {
        &mut self.tx
    }

    /// Seals what is in the batch; `send` gets it with its datagrams.
    pub fn seal(&mut self, now: Time, send: impl FnOnce(&TxBatch)) {
        self.advance(now);
        self.sealer.seal_frames(now, &self.snapshot, &mut self.tx);
        send(&self.tx);
        let mut tx = std::mem::replace(&mut self.tx, TxBatch::new(0, 0, 0));
        for frame in tx.upcalls() {
            self.node.handle_frame(now, frame, &self.snapshot);
        }
        tx.clear();
        self.tx = tx;
        self.settle(now);
    }

    /// A batch of datagrams from the socket, to be filled; then [`Endpoint::open`].
    pub fn rx(&mut self) -> &mut RxBatch {
        &mut self.rx
    }

    /// Opens what is in the batch; `deliver` gets each frame, over the batch's memory.
    pub fn open(&mut self, now: Time, mut deliver: impl FnMut(Delivered<'_>)) {
        if self.rx.is_empty() {
            return;
        }
        self.advance(now);
        self.opener.open_datagrams(now, &self.snapshot, &mut self.rx);
        for frame in self.rx.frames() {
            deliver(frame);
        }
        if self.rx.frames().next().is_some() && self.stats_at.is_none() {
            self.stats_at = Some(now + STATS);
        }
        let mut rx = std::mem::replace(&mut self.rx, RxBatch::new(0));
        if !rx.stations().is_empty() {
            self.node.handle_stations(now, rx.stations());
            self.settle(now);
        }
        for upcall in rx.upcalls() {
            self.node.handle_upcall(now, upcall);
            self.settle(now);
        }
        rx.clear();
        self.rx = rx;
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time) {
        self.advance(now);
        if self.stats_at.is_some_and(|at| now >= at) {
            self.stats_at = None;
            self.opener.expire(now);
            let stats = self.opener.take_stats();
            self.node.handle_stats(now, &stats, self.sealer.most_sealed());
        }
        if self.node.poll_timeout().is_some_and(|(at, _)| at <= now) {
            self.node.handle_timeout(now);
        }
        self.settle(now);
    }

    /// A finished job.
    pub fn handle_work(&mut self, now: Time, done: WorkDone) {
        self.node.handle_work(now, done);
        self.settle(now);
    }

    /// Takes over what the node has decided: keys first, then what it sends. [P-INSTALL]
    pub fn settle(&mut self, now: Time) {
        while let Some(install) = self.node.poll_install() {
            if let Some(other) = self.sealer.install(install) {
                self.opener.install(other);
            }
        }
        let newest = self.coming.back().map_or(self.snapshot.version, |(_, s)| s.version);
        let snapshot = self.node.snapshot();
        if snapshot.version != newest {
            self.coming.push_back((now + self.lag, snapshot));
        }
        self.advance(now);
        while let Some(frame) = self.node.poll_frame() {
            self.frames.push_back(frame);
        }
        while let Some(x) = self.node.poll_transmit() {
            self.out.push_back(x);
        }
    }

    fn advance(&mut self, now: Time) {
        while self.coming.front().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, snapshot)) = self.coming.pop_front() {
                self.snapshot = snapshot;
            }
        }
    }

    /// When to call [`Endpoint::handle_timeout`].
    pub fn deadline(&self) -> Option<Time> {
        let node = self.node.poll_timeout().map(|(at, _)| at);
        earlier(earlier(node, self.stats_at), self.coming.front().map(|(at, _)| *at))
    }

    /// A datagram that the node wants sent.
    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.out.pop_front()
    }

    /// A frame that the node wants delivered.
    pub fn poll_frame(&mut self) -> Option<Vec<u8>> {
        self.frames.pop_front()
    }

    /// What happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.node.poll_event()
    }

    /// A job for another thread.
    pub fn poll_work(&mut self) -> Option<Work> {
        self.node.poll_work()
    }

    /// Everything that was dropped, in both halves.
    pub fn drops(&self) -> Drops {
        let mut all = self.node.drops.clone();
        all.add(&self.sealer.drops);
        all.add(&self.opener.drops);
        all.add(self.node.sealer_drops());
        all
    }

    /// Frames and bytes sent to and received from a peer.
    pub fn traffic(&self, peer: crate::PeerId) -> ((u64, u64), (u64, u64)) {
        let of = |m: &std::collections::HashMap<_, _>| m.get(&peer).copied().unwrap_or_default();
        (of(&self.sealer.sent), of(&self.opener.received))
    }
}
