//! From the device to the sockets: the sending half, on a thread of its own or stepped by the node's.

use super::BUFFERS_FULL;
use super::device::Device;
use super::mailbox::{Mailbox, Ups};
use super::outbox::Outbox;
use shadowmesh_host::clock::Clock;
use shadowmesh_host::tap;
use shadowmesh_host::udp::{Queue, SendStop, Udp};
use shadowmesh_host::wake::{Interest, Poller, Waker};
use shadowmesh_proto::batch::Drops;
use shadowmesh_proto::{Outbound, Time, Up};
use shadowmesh_wire::DropReason;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What a queue of the device may have of a batch before the next one's turn, bytes; and what a frame counts at least. So
/// one superframe, or 16 frames.
const QUANTUM: usize = 64 << 10;
const LEAST: usize = QUANTUM / 16;

/// The sending half with all that it needs.
pub struct Sending {
    pub outbound: Outbound,
    pub device: Device,
    /// The queue of the device that was read last.
    pub turn: usize,
    pub udp: Arc<Udp>,
    pub out: Outbox,
    pub mailbox: Arc<Mailbox>,
    pub ups: Ups,
    pub drops: Drops,
    pub clock: Clock,
}

impl Sending {
    /// The sockets take nothing at the moment. Frames wait in the device's queue then: the sender slows down.
    pub fn held(&self) -> Option<SendStop> {
        self.out.stopped
    }

    /// Sends what waits for the sockets.
    pub fn flush(&mut self) {
        self.out.flush(&self.udp, &mut self.drops);
    }

    /// One batch of frames from the device, read straight into its slots, sealed there, sent. `ready`: the queues that have
    /// any, a bit each.
    pub fn step(&mut self, ready: u64) -> io::Result<()> {
        let (mut ready, mut gone) = (ready, None);
        let batch = self.outbound.batch();
        'full: while ready != 0 {
            self.turn = (self.turn + 1) % self.device.queues();
            let (bit, mut quantum) = (1 << self.turn, QUANTUM);
            while ready & bit != 0 && quantum > 0 {
                let Some(slot) = batch.reserve() else { break 'full };
                match self.device.read(self.turn, slot) {
                    Ok((len, vnet)) if len > 0 => {
                        batch.commit(len, vnet);
                        quantum = quantum.saturating_sub(len.max(LEAST));
                    }
                    Ok(_) => self.drops.count(DropReason::BadFrame),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => ready &= !bit,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => {
                        ready &= !bit;
                        // The interface may be down for a while; only a device that is gone ends the loop.
                        gone = tap::vanished(&e).then(|| self.device.gone());
                    }
                }
            }
        }
        if let Some(e) = gone {
            return Err(e);
        }
        if batch.is_empty() {
            return Ok(());
        }
        self.mailbox.deliver_to_outbound(&mut self.outbound);
        let now = now(&self.clock);
        let (out, udp, ups) = (&mut self.out, &self.udp, &self.ups);
        let (mut sent, mut overflow) = (Drops::default(), Drops::default());
        let send = |batch: &_| out.send(udp, &mut sent, shadowmesh_proto::batch::TxBatch::datagrams(batch));
        self.outbound.seal(now, send, |up| ups.send(up, &mut overflow));
        self.drops.add(&sent);
        self.drops.add(&overflow);
        for (to, len) in self.out.too_big.drain(..) {
            self.ups.send(Up::TooBig(to, len), &mut self.drops);
        }
        Ok(())
    }

    /// When to call [`Sending::handle_timeout`].
    pub fn deadline(&self) -> Option<Time> {
        self.outbound.deadline()
    }

    /// Tells what was sent, when that is due: ten times a second while anything is.
    pub fn handle_timeout(&mut self) {
        let (ups, drops) = (&self.ups, &mut self.drops);
        self.outbound.handle_timeout(now(&self.clock), |up| ups.send(up, drops));
    }

    /// Says what was counted.
    pub fn count(&self) {
        let sealer = self.outbound.sealer();
        let traffic = sealer.sent.iter().map(|(peer, s)| (*peer, (s.frames, s.bytes)));
        self.mailbox.count([&sealer.drops, &self.drops], traffic);
    }

    /// On a thread of its own: until `stop`, or the device is gone.
    pub fn run(&mut self, waker: &Waker, stop: &AtomicBool) -> io::Result<()> {
        let (device, udp) = (self.device.clone(), self.udp.clone());
        let mut poller = Poller::new()?;
        let wakes = poller.watch([waker.as_fd()], Some(Interest::Read))?;
        let queues = poller.watch(device.fds(), None)?;
        let sockets = poller.watch(udp.fds(Queue::Sessions), None)?;
        while !stop.load(Ordering::Relaxed) {
            let mut timeout = self.deadline().map(|at| at.since(now(&self.clock)));
            let held = self.held();
            if held == Some(SendStop::NoBuffers) {
                timeout = Some(BUFFERS_FULL);
            }
            let full = held == Some(SendStop::WouldBlock);
            poller.change(&queues, held.is_none().then_some(Interest::Read))?;
            poller.change(&sockets, full.then_some(Interest::Write))?;
            let others = if full { self.udp.others() } else { vec![] };
            let passing: Vec<_> = others.iter().map(|o| (o.as_fd(), Interest::Write)).collect();
            let ready = poller.wait(&passing, timeout)?;
            drop(passing);
            if ready.readable_of(&wakes) > 0 {
                waker.clear();
                self.mailbox.deliver_to_outbound(&mut self.outbound);
            }
            if held.is_some() {
                self.flush();
            } else {
                self.step(ready.readable_of(&queues))?;
            }
            if self.deadline().is_some_and(|at| now(&self.clock) >= at) {
                self.handle_timeout();
                self.count();
            }
        }
        Ok(())
    }
}

/// The time that the core is given.
pub fn now(clock: &Clock) -> Time {
    Time(0) + clock.now()
}
