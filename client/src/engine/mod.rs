//! The packet loop of one network: a plain thread that owns the node ([`Endpoint`]), and the [`data`] half, on
//! threads of its own beside it, or on small machines stepped by it.
//!
//! It sleeps on what strangers send, a waker, and, alone, on the device and the sockets. Signatures are checked on another
//! thread, names are resolved on threads that end with their answer. The order of draining is the node's contract: keys
//! are on their way to the data half; then events (what must be stored is stored), frames into the device, datagrams into
//! the sockets, jobs to the worker.

mod beside;
mod data;
mod device;
mod mailbox;
mod outbox;
mod punching;
mod receiving;
mod sending;
mod told;

use crate::state::NetworkState;
use beside::Found;
use data::{Common, Data, step};
use device::Device;
use mailbox::{Mailboxes, Ups};
use outbox::Outbox;
use punching::Punches;
use sending::now;
use shadowmesh_crypto::aead::Suite;
use shadowmesh_host::clock::Clock;
use shadowmesh_host::ration::Ration;
use shadowmesh_host::tap::Tap;
use shadowmesh_host::udp::{BATCH, Queue, SendStop, Udp};
use shadowmesh_host::wake::{Interest, Poller, Waker};
use shadowmesh_identity::NodeId;
use shadowmesh_proto::batch::{Drops, RxBatch};
use shadowmesh_proto::handshake::Source;
use shadowmesh_proto::{Endpoint, Event, Inbound, Node, NodeConfig, Opener, Time, Up, Work};
use shadowmesh_wire::DropReason;
use shadowmesh_wire::relay::RELAY_HEADER;
use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

/// Frames that are longer than the MTU by this: Ethernet header and a VLAN tag.
const FRAME_OVERHEAD: usize = 18;
/// Longest that a superframe can be: an IP packet of 64 KiB, Ethernet header and tags.
const SUPERFRAME: usize = 65_535 + 18;
/// Room for a datagram that the kernel has not joined with others.
const DATAGRAM: usize = 2048;
/// What the data half leaves to the node waits here at most; then it is dropped.
const UPS: usize = 1024;
/// Largest datagram that can be received in a session, behind a relay header: all that UDP over IPv4 can carry (RFC 768).
pub const LARGEST_DATAGRAM: u16 = 65_507 - RELAY_HEADER as u16;
/// Commands that wait at most.
const COMMANDS: usize = 64;
/// Jobs that wait for the worker at most; then they are done here.
const JOBS: usize = 256;
/// The system's buffers are full: try again that much later.
const BUFFERS_FULL: Duration = Duration::from_millis(1);
/// Strangers may cost one part in so many of the time: an answered HELLO costs 10 us, and a flood of them must not keep this
/// thread from the device for longer than the device's queue lasts. (What peers say by a relay is not meant.)
const STRANGERS: u32 = 8;
/// And so many datagrams of theirs are looked at, before all else is again.
const STRANGERS_BATCH: usize = BATCH / 4;
/// The wall clock is looked at so often, and what could not be stored or resolved is tried again.
const UPKEEP: Duration = Duration::from_secs(5);

/// Why a packet loop ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// In words: the device was deleted, mostly.
    Broken(String),
    /// This node was revoked; the tombstone is among the stored facts.
    Revoked,
}

/// What a network is run with.
pub struct Setup {
    /// The node's own.
    pub node: NodeConfig,
    /// The device: its queues, for each pair of data threads; once without.
    pub taps: Vec<Vec<Tap>>,
    /// The sockets.
    pub udp: Udp,
    /// Where state is kept.
    pub files: NetworkState,
    /// The data half has threads of its own.
    pub threads: bool,
}

/// An answer to a ping.
#[derive(Debug, Clone)]
pub struct Pong {
    /// As asked.
    pub id: u64,
    /// Round trip.
    pub rtt: Duration,
    /// How it came.
    pub source: Source,
}

/// What a call on the engine's thread may touch.
pub struct Inside<'a> {
    /// The node, and what is known of the data half.
    pub endpoint: &'a mut Endpoint<Mailboxes>,
    /// Now.
    pub now: Time,
    /// The clock, Unix seconds.
    pub unix: u64,
    /// Drops that the driver counts.
    pub drops: &'a Drops,
    /// What went wrong lately: storing, mostly.
    pub trouble: Option<&'a str>,
    /// Peers that have refused this node.
    pub refused: &'a HashSet<NodeId>,
    /// Relays that have not taken a new access secret, and why.
    pub unrotated: &'a HashMap<NodeId, String>,
    pongs: &'a mut HashMap<u64, mpsc::Sender<Pong>>,
    next_ping: &'a mut u64,
}

impl Inside<'_> {
    /// Asks a peer; the answer comes by `to`. Gives the ping's id; `None`: no such peer.
    pub fn ping(&mut self, peer: &NodeId, to: mpsc::Sender<Pong>) -> Option<u64> {
        *self.next_ping += 1;
        let id = *self.next_ping;
        // Whoever asked and went away is forgotten here.
        self.pongs.retain(|_, s| !s.is_closed());
        if !self.endpoint.node.ping(self.now, peer, id) {
            return None;
        }
        self.pongs.insert(id, to);
        Some(id)
    }
}

/// Runs inside; what it gives is run when everything that came of it is stored and sent.
type Call = Box<dyn FnOnce(&mut Inside<'_>) -> Box<dyn FnOnce(Option<&str>)> + Send>;

enum Command {
    Call(Call),
    Shutdown,
}

/// A running network.
pub struct Engine {
    commands: SyncSender<Command>,
    waker: Waker,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// The engine has ended, or is overwhelmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the network's packet loop does not answer")]
pub struct Gone;

impl Engine {
    /// Starts the threads. `ended` is told why, when the loop ends by itself.
    ///
    /// # Errors
    ///
    /// What the system said.
    pub fn start(setup: Setup, ended: impl FnOnce(End) + Send + 'static) -> io::Result<Engine> {
        let waker = Waker::new()?;
        let (commands, inbox) = sync_channel(COMMANDS);
        let (found, findings) = sync_channel(JOBS * 2);
        let (jobs, work) = sync_channel::<Work>(JOBS);
        let name = setup.files.name().to_string();
        std::thread::Builder::new().name(format!("sm-work-{name}")).spawn({
            let (found, waker) = (found.clone(), waker.clone());
            move || {
                // Ends when the loop's end of the channel goes.
                while let Ok(job) = work.recv() {
                    if found.send(Found::Work(Box::new(job.run()))).is_err() {
                        break;
                    }
                    waker.wake();
                }
            }
        })?;
        let thread = std::thread::Builder::new().name(format!("sm-{name}")).spawn({
            let waker = waker.clone();
            move || {
                let result = Loop::new(setup, waker, inbox, found, findings, jobs).and_then(|mut engine| {
                    // Whoever hears of the end finds the device closed.
                    engine.run().map(|()| engine.revoked)
                });
                match result {
                    Ok(true) => ended(End::Revoked),
                    Ok(false) => debug!(network = %name, "the packet loop has ended"),
                    Err(e) => ended(End::Broken(e.to_string())),
                }
            }
        })?;
        Ok(Engine { commands, waker, thread: Mutex::new(Some(thread)) })
    }

    /// Runs a function on the engine's thread; what it changed is stored when the answer is there.
    ///
    /// # Errors
    ///
    /// [`Gone`].
    pub async fn call<R: Send + 'static>(
        &self,
        function: impl FnOnce(&mut Inside<'_>) -> R + Send + 'static,
    ) -> Result<R, Gone> {
        self.change(function).await.map(|(answer, _)| answer)
    }

    /// The same, and what could not be stored, in words.
    ///
    /// # Errors
    ///
    /// [`Gone`].
    pub async fn change<R: Send + 'static>(
        &self,
        function: impl FnOnce(&mut Inside<'_>) -> R + Send + 'static,
    ) -> Result<(R, Option<String>), Gone> {
        let (reply, answer) = oneshot::channel();
        let call: Call = Box::new(move |inside| {
            let result = function(inside);
            Box::new(move |trouble| {
                let _asker_went_away = reply.send((result, trouble.map(str::to_owned)));
            })
        });
        self.commands.try_send(Command::Call(call)).map_err(|_| Gone)?;
        self.waker.wake();
        answer.await.map_err(|_| Gone)
    }

    /// Says goodbye to the peers, stores what is to be stored, ends.
    pub fn stop(&self) {
        // A loop that has ended needs no order; one that is overwhelmed gets it when there is room.
        let _ended = self.commands.send(Command::Shutdown);
        self.waker.wake();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _panicked = thread.join();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Whoever did not wait for the end has it all the same.
        let _ended_or_full = self.commands.try_send(Command::Shutdown);
        self.waker.wake();
    }
}

struct Loop {
    endpoint: Endpoint<Mailboxes>,
    data: Data,
    ups: Receiver<Up>,
    /// What strangers send is looked at here, so that it does not keep the data half from its work.
    strangers: Inbound,
    clock: Clock,
    device: Device,
    udp: Arc<Udp>,
    files: NetworkState,
    waker: Waker,
    inbox: Receiver<Command>,
    found: SyncSender<Found>,
    findings: Receiver<Found>,
    jobs: SyncSender<Work>,
    out: Outbox,
    drops: Drops,
    pongs: HashMap<u64, mpsc::Sender<Pong>>,
    punches: Punches,
    next_ping: u64,
    refused: HashSet<NodeId>,
    unrotated: HashMap<NodeId, String>,
    suites: Vec<Suite>,
    unsaved_facts: bool,
    unsaved_keys: bool,
    unsaved_invites: bool,
    trouble: Option<String>,
    /// Names that did not resolve.
    unresolved: Vec<(u32, String, u16)>,
    upkeep: Time,
    ending: bool,
    revoked: bool,
    /// Why the data half has ended, if it has.
    broken: Option<String>,
}

impl Loop {
    fn new(
        mut setup: Setup,
        waker: Waker,
        inbox: Receiver<Command>,
        found: SyncSender<Found>,
        findings: Receiver<Found>,
        jobs: SyncSender<Work>,
    ) -> io::Result<Self> {
        let clock = Clock::new();
        let vnet = setup.taps.iter().flatten().all(|t| t.options().vnet);
        let frame = if vnet { SUPERFRAME } else { setup.node.mtu + FRAME_OVERHEAD };
        let suites = setup.node.suites.clone();
        let node = Node::new(setup.node, Time(0), clock.unix());
        setup.udp.use_offloads();
        let udp = Arc::new(setup.udp);
        let (up, ups) = sync_channel(UPS);
        let snapshot = node.snapshot();
        let devices: Vec<Device> = setup.taps.into_iter().map(Device::new).collect();
        // By the first queue goes also what the node itself has for the device.
        let device = devices.first().cloned().ok_or(io::ErrorKind::NotFound)?;
        let common = Common {
            name: setup.files.name().as_str(),
            snapshot: &snapshot,
            frame,
            udp: &udp,
            ups: Ups::new(up, waker.clone()),
            clock,
            found: found.clone(),
            waker: &waker,
        };
        let (mailboxes, data) = common.pairs(devices, setup.threads)?;
        Ok(Loop {
            endpoint: Endpoint::new(node, mailboxes),
            data,
            ups,
            strangers: Inbound::new(Opener::new(), snapshot, RxBatch::new(STRANGERS_BATCH * DATAGRAM)),
            clock,
            device,
            udp,
            files: setup.files,
            waker,
            inbox,
            found,
            findings,
            jobs,
            out: Outbox::default(),
            drops: Drops::default(),
            pongs: HashMap::new(),
            punches: Punches::default(),
            next_ping: 0,
            refused: HashSet::new(),
            unrotated: HashMap::new(),
            suites,
            unsaved_facts: false,
            unsaved_keys: false,
            unsaved_invites: false,
            trouble: None,
            unresolved: vec![],
            upkeep: Time(0),
            ending: false,
            revoked: false,
            broken: None,
        })
    }

    fn now(&self) -> Time {
        now(&self.clock)
    }

    fn run(&mut self) -> io::Result<()> {
        let (waker, udp, device) = (self.waker.clone(), self.udp.clone(), self.device.clone());
        let here = matches!(self.data, Data::Here(_));
        let mut poller = Poller::new()?;
        let wakes = poller.watch([waker.as_fd()], Some(Interest::Read))?;
        let unknown = poller.watch(udp.fds(Queue::Strangers), None)?;
        let sessions = poller.watch(udp.fds(Queue::Sessions), None)?;
        let queues = poller.watch(device.fds(), None)?;
        let mut strangers = Ration::one_of(STRANGERS);
        self.endpoint.settle(self.now());
        self.drain();
        while !self.ending {
            let now = self.now();
            let due = [self.endpoint.deadline(), self.data.deadline(), Some(self.upkeep)];
            let mut timeout = due.into_iter().flatten().min().map_or(UPKEEP, |at| at.since(now));
            let (held, others) = (self.data.held(), self.udp.others());
            let stopped = self.out.stopped.or(held);
            if stopped == Some(SendStop::NoBuffers) {
                timeout = timeout.min(BUFFERS_FULL);
            }
            let interest = match (here, stopped == Some(SendStop::WouldBlock)) {
                (true, false) => Some(Interest::Read),
                (true, true) => Some(Interest::ReadWrite),
                (false, true) => Some(Interest::Write),
                (false, false) => None,
            };
            poller.change(&sessions, interest)?;
            // While the sockets take nothing, frames wait in the device's queue: the sender slows down.
            poller.change(&queues, (here && held.is_none()).then_some(Interest::Read))?;
            let wait = strangers.next().saturating_sub(self.clock.now());
            poller.change(&unknown, wait.is_zero().then_some(Interest::Read))?;
            if !wait.is_zero() {
                timeout = timeout.min(wait);
            }
            let mut passing: Vec<_> = others.iter().filter_map(|o| Some((o.as_fd(), interest?))).collect();
            passing.extend(self.punches.fds().map(|fd| (fd, Interest::Read)));
            let others = queues.end..queues.end + passing.len() - self.punches.fds().count();
            let punches = others.end..queues.end + passing.len();
            let ready = poller.wait(&passing, Some(timeout))?;
            drop(passing);

            if ready.readable_of(&punches) > 0 {
                self.punched();
            }
            if self.out.stopped.is_some() {
                self.out.flush(&self.udp, &mut self.drops);
            }
            if ready.readable_of(&wakes) > 0 {
                self.waker.clear();
                self.findings();
                self.commands();
            }
            if let Data::Here(data) = &mut self.data {
                let sockets = [&sessions, &others].iter().any(|range| ready.readable_of(range) > 0);
                step(data, sockets, ready.readable_of(&queues))?;
            }
            self.heed();
            if ready.readable_of(&unknown) > 0 {
                let began = self.clock.now();
                self.hear_strangers()?;
                strangers.spent(began, self.clock.now());
            }
            let now = self.now();
            if self.endpoint.deadline().is_some_and(|at| at <= now) {
                self.endpoint.handle_timeout(now);
                self.drain();
            }
            if now >= self.upkeep {
                self.upkeep = now + UPKEEP;
                self.keep_up(now);
            }
        }
        match self.broken.take() {
            Some(what) => Err(io::Error::other(what)),
            None => Ok(()),
        }
    }

    /// What the data half has left to the node.
    fn heed(&mut self) {
        for _ in 0..UPS {
            let Ok(up) = self.ups.try_recv() else { return };
            let now = self.now();
            self.endpoint.handle_up(now, up);
            self.drain();
        }
        // There may be more, after all else.
        self.waker.wake();
    }

    /// A few datagrams that claim to belong to no session.
    fn hear_strangers(&mut self) -> io::Result<()> {
        let (memory, list) = self.strangers.batch().space();
        self.udp.recv(memory, DATAGRAM, list, Queue::Strangers)?;
        let now = self.now();
        let mut ups = vec![];
        self.strangers.open(now, |_| (), |_, _, _| (), |up| ups.push(up));
        for up in ups {
            self.endpoint.handle_up(now, up);
            self.drain();
        }
        Ok(())
    }

    /// Events, frames, datagrams, jobs, in this order; again while jobs have to be done here.
    fn drain(&mut self) {
        while self.drain_once() {}
    }

    fn drain_once(&mut self) -> bool {
        let mut save = false;
        while let Some(event) = self.endpoint.poll_event() {
            match event {
                Event::SaveRoster => (self.unsaved_facts, save) = (true, true),
                Event::SaveKeys => (self.unsaved_keys, save) = (true, true),
                Event::SaveInvites => (self.unsaved_invites, save) = (true, true),
                other => self.tell(other),
            }
        }
        if save {
            self.save();
        }
        while let Some(frame) = self.endpoint.poll_frame() {
            if let Err(e) = self.device.write_plain(&frame, &mut self.drops) {
                debug!("{e}");
            }
        }
        let unsaved = self.unsaved();
        while let Some((to, datagram)) = self.endpoint.poll_transmit() {
            if unsaved {
                // What is not durable must not be told. All of this is sent again by its own timers.
                self.drops.count(DropReason::QueueFull);
            } else {
                self.out.push(to, &datagram);
            }
        }
        self.out.flush(&self.udp, &mut self.drops);
        let mut again = false;
        for (to, len) in std::mem::take(&mut self.out.too_big) {
            let now = self.now();
            self.endpoint.handle_up(now, Up::TooBig(to, len));
            again = true;
        }
        while let Some(job) = self.endpoint.poll_work() {
            match self.jobs.try_send(job) {
                Ok(()) => {}
                Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => {
                    let now = self.now();
                    self.endpoint.handle_work(now, job.run());
                    again = true;
                }
            }
        }
        again
    }

    fn findings(&mut self) {
        while let Ok(found) = self.findings.try_recv() {
            let now = self.now();
            match found {
                Found::Work(done) => self.endpoint.handle_work(now, *done),
                Found::Address { relay, address: Some(address), .. } => {
                    self.endpoint.node.set_relay_address(now, relay, address);
                    self.endpoint.settle(now);
                }
                Found::Rotated { relay, access, trouble } => {
                    self.rotated(now, &relay, access, trouble);
                    self.endpoint.settle(now);
                }
                Found::Broken(what) => (self.broken, self.ending) = (Some(what), true),
                Found::Address { relay, host, port, address: None } => {
                    debug!(host, "the relay's name has no address now");
                    self.unresolved.push((relay, host, port));
                }
            }
            self.drain();
        }
    }

    fn commands(&mut self) {
        loop {
            match self.inbox.try_recv() {
                Ok(Command::Call(call)) => {
                    let now = self.now();
                    if let Data::Here(data) = &self.data {
                        data.0.count();
                        data.1.count();
                    }
                    let mut drops = self.drops.clone();
                    drops.add(&self.strangers.opener().drops);
                    let answer = call(&mut Inside {
                        endpoint: &mut self.endpoint,
                        now,
                        unix: self.clock.unix(),
                        drops: &drops,
                        trouble: self.trouble.as_deref(),
                        refused: &self.refused,
                        unrotated: &self.unrotated,
                        pongs: &mut self.pongs,
                        next_ping: &mut self.next_ping,
                    });
                    self.endpoint.settle(now);
                    self.drain();
                    answer(self.trouble.as_deref());
                }
                // Nobody holds the other end: as if told to end.
                Ok(Command::Shutdown) | Err(TryRecvError::Disconnected) => {
                    let now = self.now();
                    self.endpoint.node.shutdown();
                    self.endpoint.settle(now);
                    self.drain();
                    self.ending = true;
                    return;
                }
                Err(TryRecvError::Empty) => return,
            }
        }
    }

    /// The clock, and what did not work before.
    fn keep_up(&mut self, now: Time) {
        self.endpoint.node.set_wall(now, self.clock.unix());
        self.end_punches(now);
        if self.unsaved() {
            self.save();
        }
        for (relay, host, port) in std::mem::take(&mut self.unresolved) {
            self.resolve(relay, host, port);
        }
        self.endpoint.settle(now);
        self.drain();
    }
}
