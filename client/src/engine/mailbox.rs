//! Between the node's thread and the data half, which may be on others: keys and snapshots one way, what the node has to see
//! the other way, and counts for whoever asks. Locks are held for a few assignments; nothing is locked for a batch that
//! brings no news.

use shadowmesh_host::wake::Waker;
use shadowmesh_proto::batch::Drops;
use shadowmesh_proto::{DataHalf, Inbound, Install, Outbound, PeerId, Snapshot, Time, To, Up};
use shadowmesh_wire::DropReason;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Frames and bytes, by peer.
type Traffic = HashMap<PeerId, (u64, u64)>;

#[derive(Default)]
struct Mail {
    installs: Vec<Install>,
    snapshot: Option<Arc<Snapshot>>,
}

/// What one half was sent, and what it has counted.
pub struct Mailbox {
    any: AtomicBool,
    mail: Mutex<Mail>,
    counts: Mutex<(Drops, Traffic)>,
    /// Of the thread that reads it, if it is another.
    waker: Option<Waker>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Mailbox {
    /// `waker` wakes its reader.
    pub fn new(waker: Option<Waker>) -> Arc<Self> {
        let (mail, counts) = (Mutex::default(), Mutex::default());
        Arc::new(Mailbox { any: AtomicBool::new(false), mail, counts, waker })
    }

    fn put(&self, change: impl FnOnce(&mut Mail)) {
        change(&mut lock(&self.mail));
        // Whoever is sent a datagram because of this answers later than this can be seen.
        if !self.any.swap(true, Ordering::SeqCst)
            && let Some(waker) = &self.waker
        {
            waker.wake();
        }
    }

    /// What is new, if the flag says, read in this order, that anything is.
    fn take(&self, order: Ordering) -> Option<Mail> {
        let any = self.any.load(order) && self.any.swap(false, Ordering::SeqCst);
        any.then(|| std::mem::take(&mut *lock(&self.mail)))
    }

    /// What came for the sending half: keys before the snapshot that names them. [P-INSTALL]
    pub fn deliver_to_outbound(&self, half: &mut Outbound) {
        if let Some(mail) = self.take(Ordering::Relaxed) {
            mail.installs.into_iter().for_each(|i| drop(half.install(i)));
            mail.snapshot.into_iter().for_each(|s| half.publish(s));
        }
    }

    /// The same for the receiving half. To be called between receiving and opening: what answers a datagram of ours is
    /// opened with all that was put here before that was sent.
    pub fn deliver_to_inbound(&self, half: &mut Inbound) {
        if let Some(mail) = self.take(Ordering::SeqCst) {
            mail.installs.into_iter().for_each(|i| drop(half.install(i)));
            mail.snapshot.into_iter().for_each(|s| half.publish(s));
        }
    }

    /// Counts, for whoever asks: those of the half, and of what is around it.
    pub fn count(&self, drops: [&Drops; 2], traffic: impl Iterator<Item = (PeerId, (u64, u64))>) {
        let mut counts = lock(&self.counts);
        counts.0 = drops[0].clone();
        counts.0.add(drops[1]);
        counts.1.clear();
        counts.1.extend(traffic);
    }
}

/// The data half as the node's thread sees it.
pub struct Mailboxes {
    /// The sending halves': of threads 1 and up.
    pub tx: Vec<Arc<Mailbox>>,
    /// The receiving halves', by their number.
    pub rx: Vec<Arc<Mailbox>>,
}

impl Mailboxes {
    /// The receiving halves look again at what there is to read from.
    pub fn wake_readers(&self) {
        self.rx.iter().filter_map(|half| half.waker.as_ref()).for_each(Waker::wake);
    }
}

impl DataHalf for Mailboxes {
    fn install(&mut self, install: Install) {
        let to = match install.to() {
            To::Sealer(thread) => thread.checked_sub(1).and_then(|n| self.tx.get(n)),
            To::Opener(n) => self.rx.get(n),
            To::Openers => {
                for other in &self.rx[1..] {
                    install.duplicate().into_iter().for_each(|i| other.put(|mail| mail.installs.push(i)));
                }
                self.rx.first()
            }
        };
        if let Some(to) = to {
            to.put(|mail| mail.installs.push(install));
        }
    }

    fn publish(&mut self, _now: Time, snapshot: Arc<Snapshot>) {
        for half in self.tx.iter().chain(&self.rx) {
            half.put(|mail| mail.snapshot = Some(snapshot.clone()));
        }
    }

    fn drops(&self) -> Drops {
        let mut all = Drops::default();
        self.tx.iter().chain(&self.rx).for_each(|half| all.add(&lock(&half.counts).0));
        all
    }

    fn traffic(&self, peer: PeerId) -> ((u64, u64), (u64, u64)) {
        let of = |halves: &[Arc<Mailbox>]| {
            let each = halves.iter().filter_map(|half| lock(&half.counts).1.get(&peer).copied());
            each.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
        };
        (of(&self.tx), of(&self.rx))
    }
}

/// The way up to the node's thread.
#[derive(Clone)]
pub struct Ups {
    channel: SyncSender<Up>,
    waker: Waker,
}

impl Ups {
    /// By this channel; the waker is the node's.
    pub fn new(channel: SyncSender<Up>, waker: Waker) -> Self {
        Ups { channel, waker }
    }

    /// Sends one up, or counts that the node is overwhelmed.
    pub fn send(&self, up: Up, drops: &mut Drops) {
        match self.channel.try_send(up) {
            Ok(()) => self.waker.wake(),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => drops.count(DropReason::QueueFull),
        }
    }
}
