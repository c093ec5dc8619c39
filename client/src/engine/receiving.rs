//! From the sockets to the device: the receiving half, on a thread of its own or stepped by the node's.

use super::device::Device;
use super::mailbox::{Mailbox, Ups};
use super::sending::now;
use shadowmesh_host::clock::Clock;
use shadowmesh_host::udp::{JOINED, Queue, Udp};
use shadowmesh_host::wake::{Interest, Poller, Waker};
use shadowmesh_proto::batch::Drops;
use shadowmesh_proto::{Inbound, Time};
use shadowmesh_wire::DropReason;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::Duration;

/// What was counted is told so long after something came.
const COUNTED: Duration = Duration::from_millis(100);

/// Datagrams from other receiving halves that wait at most; then they are dropped. A relay joins datagrams of several lanes, so
/// most of a few joined messages may be handed on before the other is on a processor.
pub const HANDED: usize = 1024;

/// A datagram for another receiving half, and from where it came.
pub type Handed = (SocketAddr, Vec<u8>);

/// The way to another receiving half.
#[derive(Clone)]
pub struct Hand {
    pub to: SyncSender<Handed>,
    pub waker: Waker,
}

/// The receiving half with all that it needs.
pub struct Receiving {
    /// What the sockets give to it.
    pub queue: Queue,
    /// To the others, by number; none when it is alone.
    pub others: Vec<Hand>,
    pub handed: Receiver<Handed>,
    pub inbound: Inbound,
    pub device: Device,
    pub udp: Arc<Udp>,
    pub mailbox: Arc<Mailbox>,
    pub ups: Ups,
    pub drops: Drops,
    pub clock: Clock,
}

impl Receiving {
    /// One batch of what claims to belong to sessions, opened where it lies, given to the device. `false`: there was none.
    pub fn step(&mut self) -> io::Result<bool> {
        let batch = self.inbound.batch();
        batch.join(self.device.takes_superframes());
        let (memory, list) = batch.space();
        if self.udp.recv(memory, JOINED, list, self.queue)? == 0 {
            return Ok(false);
        }
        self.open()?;
        Ok(true)
    }

    /// What other receiving halves have handed on.
    fn take_handed(&mut self) -> io::Result<()> {
        let batch = self.inbound.batch();
        batch.join(self.device.takes_superframes());
        while let Ok((from, datagram)) = self.handed.try_recv() {
            if !batch.push(from, &datagram) {
                self.drops.count(DropReason::QueueFull);
            }
        }
        if batch.is_empty() { Ok(()) } else { self.open() }
    }

    fn open(&mut self) -> io::Result<()> {
        self.mailbox.deliver_to_inbound(&mut self.inbound);
        let now = now(&self.clock);
        let (device, drops, ups, others) = (&mut self.device, &mut self.drops, &self.ups, &self.others);
        let (mut gone, mut overflow, mut unheard) = (None, Drops::default(), Drops::default());
        let deliver = |frame: shadowmesh_proto::batch::Delivered<'_>| {
            gone = device.write(&frame, drops).err().or(gone.take());
        };
        let hand = |other: usize, from, bytes: &[u8]| match others.get(other) {
            Some(other) if other.to.try_send((from, bytes.to_vec())).is_ok() => other.waker.wake(),
            _ => unheard.count(DropReason::QueueFull),
        };
        self.inbound.open(now, deliver, hand, |up| ups.send(up, &mut overflow));
        self.drops.add(&overflow);
        self.drops.add(&unheard);
        gone.map_or(Ok(()), Err)
    }

    /// When to call [`Receiving::handle_timeout`].
    pub fn deadline(&self) -> Option<Time> {
        self.inbound.deadline()
    }

    /// Tells what was received, when that is due: ten times a second while anything is. Then the device is looked at, too.
    pub fn handle_timeout(&mut self) {
        let (ups, drops, device) = (&self.ups, &mut self.drops, &mut self.device);
        self.inbound.handle_timeout(now(&self.clock), |up| {
            device.look();
            ups.send(up, drops);
        });
    }

    /// Says what was counted.
    pub fn count(&self) {
        let opener = self.inbound.opener();
        let traffic = opener.received.iter().map(|(peer, counts)| (*peer, *counts));
        self.mailbox.count([&opener.drops, &self.drops], traffic);
    }

    /// On a thread of its own: until `stop`, or the device is gone.
    pub fn run(&mut self, waker: &Waker, stop: &AtomicBool) -> io::Result<()> {
        let udp = self.udp.clone();
        let mut poller = Poller::new()?;
        let wakes = poller.watch([waker.as_fd()], Some(Interest::Read))?;
        poller.watch(udp.fds(self.queue), Some(Interest::Read))?;
        // Also what was dropped is told of, which is no reason for a report to anybody.
        let mut count_at = None;
        while !stop.load(Ordering::Relaxed) {
            let due = [count_at, self.deadline()].into_iter().flatten().min();
            let timeout = due.map(|at| at.since(now(&self.clock)));
            let others = self.udp.others_of(self.queue);
            let passing: Vec<_> = others.iter().map(|o| (o.as_fd(), Interest::Read)).collect();
            let ready = poller.wait(&passing, timeout)?;
            drop(passing);
            if ready.readable_of(&wakes) > 0 {
                waker.clear();
                self.mailbox.deliver_to_inbound(&mut self.inbound);
                self.take_handed()?;
            }
            if self.step()? && count_at.is_none() {
                count_at = Some(now(&self.clock) + COUNTED);
            }
            self.handle_timeout();
            if count_at.take_if(|at| now(&self.clock) >= *at).is_some() {
                self.count();
            }
        }
        Ok(())
    }
}
