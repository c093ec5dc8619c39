//! The data half of a network: a pair of [`Sending`] and [`Receiving`] stepped by the node's thread, or several pairs, each
//! of the two on a thread of its own.

use super::beside::Found;
use super::device::Device;
use super::mailbox::{Mailbox, Mailboxes, Ups};
use super::outbox::Outbox;
use super::receiving::{HANDED, Hand, Receiving};
use super::sending::Sending;
use shadowmesh_host::clock::Clock;
use shadowmesh_host::udp::{BATCH, JOINED, Queue, SendStop, Udp};
use shadowmesh_host::wake::Waker;
use shadowmesh_proto::batch::{Drops, RxBatch, TxBatch};
use shadowmesh_proto::{Inbound, Opener, Outbound, Sealer, Snapshot, Time};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Frames of one batch at most, and the memory for them: 64 of an Ethernet, or a few superframes.
const TX_FRAMES: usize = 64;
const TX_MEMORY: usize = 256 << 10;
/// Messages of one batch, and the memory for them. What is not used of it is never touched.
const RX_MEMORY: usize = BATCH * JOINED;

/// One sending, one receiving.
type Pair = (Sending, Receiving);

/// Where the data half runs.
pub enum Data {
    /// On the node's thread.
    Here(Box<Pair>),
    /// On threads of its own, which these wake.
    There { stop: Arc<AtomicBool>, threads: Vec<(Waker, JoinHandle<()>)> },
}

/// What all pairs have in common.
pub struct Common<'a> {
    /// The network's name, for those of threads.
    pub name: &'a str,
    /// The node's, as it begins.
    pub snapshot: &'a Arc<Snapshot>,
    /// Longest frame, bytes.
    pub frame: usize,
    pub udp: &'a Arc<Udp>,
    pub ups: Ups,
    pub clock: Clock,
    /// The node's thread hears there why one of the data half's has ended.
    pub found: SyncSender<Found>,
    pub waker: &'a Waker,
}

impl Common<'_> {
    /// A pair for each of these; on the node's thread there is one.
    pub fn pairs(&self, devices: Vec<Device>, threads: bool) -> io::Result<(Mailboxes, Data)> {
        let (pairs, mut ids) = (devices.len(), [0; 4]);
        ids.copy_from_slice(&shadowmesh_crypto::Secret::<32>::random().expose()[..4]);
        let (mut mailboxes, mut halves) = (Mailboxes { tx: vec![], rx: vec![] }, vec![]);
        let (mut hands, mut ways) = (vec![], vec![]);
        for _ in 0..pairs {
            let (to, handed) = sync_channel(HANDED);
            let wakers = if threads { Some([Waker::new()?, Waker::new()?]) } else { None };
            hands.extend(wakers.iter().map(|[_, rx]| Hand { to: to.clone(), waker: rx.clone() }));
            ways.push((handed, wakers));
        }
        for (n, (device, (handed, wakers))) in devices.into_iter().zip(ways).enumerate() {
            let [tx, rx] = [0, 1].map(|half| Mailbox::new(wakers.as_ref().map(|w| w[half].clone())));
            mailboxes.tx.push(tx.clone());
            mailboxes.rx.push(rx.clone());
            // Apart, so that frame ids of two threads do not meet.
            let sealer = Sealer::new(n + 1, u32::from_be_bytes(ids).wrapping_add((n as u32) << 30));
            let batch = TxBatch::new(TX_FRAMES, self.frame, TX_MEMORY);
            let sending = Sending {
                outbound: Outbound::new(sealer, self.snapshot.clone(), batch),
                device: device.clone(),
                turn: 0,
                udp: self.udp.clone(),
                out: Outbox::default(),
                mailbox: tx,
                ups: self.ups.clone(),
                drops: Drops::default(),
                clock: self.clock,
            };
            let opener = Opener::of(n, pairs);
            let receiving = Receiving {
                queue: if pairs > 1 { Queue::Part(n) } else { Queue::Sessions },
                others: hands.clone(),
                handed,
                inbound: Inbound::new(opener, self.snapshot.clone(), RxBatch::new(RX_MEMORY)),
                device,
                udp: self.udp.clone(),
                mailbox: rx,
                ups: self.ups.clone(),
                drops: Drops::default(),
                clock: self.clock,
            };
            halves.push(((sending, receiving), wakers));
        }
        if threads {
            return Ok((mailboxes, self.start(halves)?));
        }
        let first = halves.into_iter().next().ok_or(io::ErrorKind::NotFound)?;
        Ok((mailboxes, Data::Here(Box::new(first.0))))
    }

    /// Starts the threads.
    fn start(&self, halves: Vec<(Pair, Option<[Waker; 2]>)>) -> io::Result<Data> {
        type Body = Box<dyn FnMut(&Waker, &AtomicBool) -> io::Result<()> + Send>;
        let mut bodies: Vec<(String, Waker, Body)> = vec![];
        for (n, ((mut sending, mut receiving), wakers)) in halves.into_iter().enumerate() {
            let Some([tx, rx]) = wakers else { continue };
            bodies.push((format!("tx{n}"), tx, Box::new(move |waker, stop| sending.run(waker, stop))));
            bodies.push((format!("rx{n}"), rx, Box::new(move |waker, stop| receiving.run(waker, stop))));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = vec![];
        for (name, wake, mut body) in bodies {
            let (found, waker, stop) = (self.found.clone(), self.waker.clone(), stop.clone());
            let (name, own) = (format!("sm-{name}-{}", self.name), wake.clone());
            let thread = std::thread::Builder::new().name(name).spawn(move || {
                if let Err(e) = body(&own, &stop) {
                    let _loop_ended = found.send(Found::Broken(e.to_string()));
                    waker.wake();
                }
            })?;
            threads.push((wake, thread));
        }
        Ok(Data::There { stop, threads })
    }
}

impl Data {
    /// When to step what is stepped here.
    pub fn deadline(&self) -> Option<Time> {
        match self {
            Data::Here(data) => [data.0.deadline(), data.1.deadline()].into_iter().flatten().min(),
            Data::There { .. } => None,
        }
    }

    /// The sockets take nothing from what is stepped here.
    pub fn held(&self) -> Option<SendStop> {
        match self {
            Data::Here(data) => data.0.held(),
            Data::There { .. } => None,
        }
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        if let Data::There { stop, threads } = self {
            stop.store(true, Ordering::Relaxed);
            threads.iter().for_each(|(waker, _)| waker.wake());
            for (_, thread) in threads.drain(..) {
                let _panicked = thread.join();
            }
        }
    }
}

/// A turn of a data half that has no threads: a batch of each, where there is something. `device`: the queues that have any,
/// a bit each. Kernels answer an echo, or acknowledge a segment, while it is given to them: that is sent before anything
/// else is done.
pub fn step((sending, receiving): &mut Pair, sockets: bool, device: u64) -> io::Result<()> {
    if sockets {
        receiving.step()?;
    }
    if sending.held().is_some() {
        sending.flush();
    }
    let answering = receiving.device.answering();
    if sending.held().is_none() {
        sending.step(device | answering)?;
    }
    sending.handle_timeout();
    receiving.handle_timeout();
    Ok(())
}
