//! The node and its data half: the order of draining is kept here. [`Endpoint`] drives the node, whichever threads the data
//! half runs on; with [`OneThread`] it is all in one, which is what the simulator plays.

use crate::batch::{Delivered, Drops, RxBatch, TxBatch};
use crate::data_half::{DataHalf, Inbound, Outbound, Up};
use crate::node::{Event, Node};
use crate::snapshot::{Install, PeerId, Snapshot, THREADS};
use crate::time::earlier;
use crate::work::{Work, WorkDone};
use crate::{Opener, Sealer, Time};
use std::cell::Cell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// The node, and where its keys and snapshots go.
pub struct Endpoint<D> {
    /// The control half. After a direct call to it, call [`Endpoint::settle`].
    pub node: Node,
    /// The data half.
    pub data: D,
    /// The newest snapshot that was published.
    version: u64,
    /// By each sealer.
    most_sealed: [u64; THREADS],
    out: VecDeque<(SocketAddr, Vec<u8>)>,
    frames: VecDeque<Vec<u8>>,
    /// When the node has something to do, once that was asked since it changed: every peer is asked for it.
    due: Cell<Option<Option<Time>>>,
}

impl<D: DataHalf> Endpoint<D> {
    /// `data` goes by the snapshot that the node has now.
    pub fn new(node: Node, data: D) -> Self {
        let version = node.snapshot().version;
        Endpoint {
            node,
            data,
            version,
            most_sealed: [0; THREADS],
            out: VecDeque::new(),
            frames: VecDeque::new(),
            due: Cell::default(),
        }
    }

    /// What the data half leaves to the node.
    pub fn handle_up(&mut self, now: Time, up: Up) {
        match up {
            Up::Frame(frame, by) => self.node.handle_frame(now, &frame, &by),
            Up::Upcall(upcall) => self.node.handle_upcall(now, upcall),
            Up::Stations(heard) => self.node.handle_stations(now, &heard),
            Up::Received(lanes) => {
                // Each is told again while there is sent.
                let most = std::mem::take(&mut self.most_sealed).into_iter().max().unwrap_or(0);
                self.node.handle_stats(now, &lanes, most);
            }
            Up::Sent { thread, since, largest, most_sealed } => {
                if let Some(most) = self.most_sealed.get_mut(thread) {
                    *most = most_sealed;
                }
                self.node.handle_sent(since, &largest);
            }
            Up::TooBig(to, len) => self.node.handle_too_big(now, to, len),
        }
        self.settle(now);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.deadline().is_some_and(|at| at <= now) {
            self.node.handle_timeout(now);
        }
        self.settle(now);
    }

    /// A finished job.
    pub fn handle_work(&mut self, now: Time, done: WorkDone) {
        self.node.handle_work(now, done);
        self.settle(now);
    }

    /// Takes over what the node has decided: keys first, then the snapshot that names them, then what it sends.
    /// [P-INSTALL]
    pub fn settle(&mut self, now: Time) {
        self.due.set(None);
        while let Some(install) = self.node.poll_install() {
            self.data.install(install);
        }
        let snapshot = self.node.snapshot();
        if snapshot.version != self.version {
            self.version = snapshot.version;
            self.data.publish(now, snapshot);
        }
        while let Some(frame) = self.node.poll_frame() {
            self.frames.push_back(frame);
        }
        while let Some(x) = self.node.poll_transmit() {
            self.out.push_back(x);
        }
    }

    /// When to call [`Endpoint::handle_timeout`].
    pub fn deadline(&self) -> Option<Time> {
        let asked = || self.node.poll_timeout().map(|(at, _)| at);
        let due = self.due.get().unwrap_or_else(asked);
        debug_assert_eq!(due, asked(), "the node was changed, and not settled");
        self.due.set(Some(due));
        due
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
        all.add(&self.data.drops());
        all.add(self.node.sealer_drops());
        all
    }

    /// Frames and bytes sent to and received from a peer.
    pub fn traffic(&self, peer: PeerId) -> ((u64, u64), (u64, u64)) {
        self.data.traffic(peer)
    }
}

/// Both data halves beside the node, on its thread.
pub struct OneThread {
    /// The sending half.
    pub tx: Outbound,
    /// The receiving half.
    pub rx: Inbound,
    /// Snapshots on their way, and when they arrive.
    coming: VecDeque<(Time, Arc<Snapshot>)>,
    /// How late snapshots are: zero but in the simulator, where the data threads' lag is played.
    pub lag: Duration,
    ups: Vec<Up>,
}

impl OneThread {
    /// For a node whose snapshot this is.
    pub fn new(snapshot: Arc<Snapshot>, sealer: Sealer, tx: TxBatch, rx: RxBatch) -> Self {
        OneThread {
            tx: Outbound::new(sealer, snapshot.clone(), tx),
            rx: Inbound::new(Opener::new(), snapshot, rx),
            coming: VecDeque::new(),
            lag: Duration::ZERO,
            ups: vec![],
        }
    }

    fn advance(&mut self, now: Time) {
        while self.coming.front().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, snapshot)) = self.coming.pop_front() {
                self.tx.publish(snapshot.clone());
                self.rx.publish(snapshot);
            }
        }
    }
}

impl DataHalf for OneThread {
    fn install(&mut self, install: Install) {
        if let Some(other) = self.tx.install(install) {
            self.rx.install(other);
        }
    }

    fn publish(&mut self, now: Time, snapshot: Arc<Snapshot>) {
        self.coming.push_back((now + self.lag, snapshot));
        self.advance(now);
    }

    fn drops(&self) -> Drops {
        let mut all = self.tx.sealer().drops.clone();
        all.add(&self.rx.opener().drops);
        all
    }

    fn traffic(&self, peer: PeerId) -> ((u64, u64), (u64, u64)) {
        let sent = self.tx.sealer().sent.get(&peer).copied().unwrap_or_default();
        let received = self.rx.opener().received.get(&peer).copied();
        ((sent.frames, sent.bytes), received.unwrap_or_default())
    }
}

impl Endpoint<OneThread> {
    /// Seals what is in the sending half's batch; `send` gets it with its datagrams.
    pub fn seal(&mut self, now: Time, send: impl FnOnce(&TxBatch)) {
        let OneThread { tx, ups, .. } = self.advance(now);
        tx.seal(now, send, |up| ups.push(up));
        self.ups(now);
    }

    /// Opens what is in the receiving half's batch; `deliver` gets each frame.
    pub fn open(&mut self, now: Time, deliver: impl FnMut(Delivered<'_>)) {
        let OneThread { rx, ups, .. } = self.advance(now);
        rx.open(now, deliver, |_, _, _| (), |up| ups.push(up));
        self.ups(now);
    }

    /// Does what is due, in all of it.
    pub fn handle_all_timeouts(&mut self, now: Time) {
        let OneThread { tx, rx, ups, .. } = self.advance(now);
        tx.handle_timeout(now, |up| ups.push(up));
        rx.handle_timeout(now, |up| ups.push(up));
        self.ups(now);
        self.handle_timeout(now);
    }

    /// When to call [`Endpoint::handle_all_timeouts`].
    pub fn first_deadline(&self) -> Option<Time> {
        let coming = self.data.coming.front().map(|(at, _)| *at);
        let data = earlier(self.data.tx.deadline(), self.data.rx.deadline());
        earlier(earlier(self.deadline(), data), coming)
    }

    fn advance(&mut self, now: Time) -> &mut OneThread {
        self.data.advance(now);
        &mut self.data
    }

    fn ups(&mut self, now: Time) {
        let mut ups = std::mem::take(&mut self.data.ups);
        ups.drain(..).for_each(|up| self.handle_up(now, up));
        self.data.ups = ups;
        self.settle(now);
    }
}
