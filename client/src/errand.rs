//! Errands: machines that run for a few seconds on sockets of their own, before there is a network to run them in.

use crate::tunnel::{self, NOWHERE, Target, Tunnel};
use shadowmesh_control::{Exit, Problem, with_dates};
use shadowmesh_crypto::Secret;
use shadowmesh_host::clock::Clock;
use shadowmesh_host::udp::{Queue, RecvBatch, Udp};
use shadowmesh_host::wake::{Interest, Poller, Waker};
use shadowmesh_identity::HostPort;
use shadowmesh_proto::join::{JoinError, JoinProgress, Joined, Joiner, Registered, Registrar};
use shadowmesh_proto::{Time, Work, WorkDone};
use std::collections::VecDeque;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;
use tracing::debug;

/// A relay that has not answered by then is tried by TCP, too.
const BESIDE: Duration = Duration::from_millis(700);
/// A name service is waited for that long.
const NAMES: Duration = Duration::from_secs(30);
/// What was sent to a relay since it was heard last, and goes out again by TCP.
const KEPT: usize = 8;

/// A machine with an end.
pub trait Machine {
    /// What it comes to.
    type Outcome;
    /// A datagram.
    fn handle_datagram(&mut self, now: Time, from: SocketAddr, datagram: &mut [u8]);
    /// What is due.
    fn handle_timeout(&mut self, now: Time);
    /// A finished job.
    fn handle_work(&mut self, now: Time, done: WorkDone);
    /// When the next thing is due.
    fn deadline(&self) -> Option<Time>;
    /// A datagram to send.
    fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)>;
    /// A job.
    fn poll_work(&mut self) -> Option<Work>;
    /// Its end, when it has come.
    fn outcome(&mut self) -> Option<Result<Self::Outcome, JoinError>>;
    /// What it waits for, in words.
    fn waiting(&self) -> &'static str;
}

macro_rules! machine {
    ($type:ty, $outcome:ty, |$me:ident| $waiting:expr) => {
        impl Machine for $type {
            type Outcome = $outcome;
            fn handle_datagram(&mut self, now: Time, from: SocketAddr, datagram: &mut [u8]) {
                self.handle_datagram(now, from, datagram);
            }
            fn handle_timeout(&mut self, now: Time) {
                self.handle_timeout(now);
            }
            fn handle_work(&mut self, now: Time, done: WorkDone) {
                self.handle_work(now, done);
            }
            fn deadline(&self) -> Option<Time> {
                self.deadline()
            }
            fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
                self.poll_transmit()
            }
            fn poll_work(&mut self) -> Option<Work> {
                self.poll_work()
            }
            fn outcome(&mut self) -> Option<Result<$outcome, JoinError>> {
                self.outcome()
            }
            fn waiting(&self) -> &'static str {
                let $me = self;
                $waiting
            }
        }
    };
}

machine!(Registrar, Registered, |_me| "the relay's answer");
machine!(Joiner, Joined, |me| match me.progress() {
    JoinProgress::Relay => "the relay's answer",
    JoinProgress::Inviter => "the machine that made the invite",
    JoinProgress::Claim => "the certificate",
    JoinProgress::Bundle => "what the members know",
});

/// What a machine starts with.
pub struct Start {
    /// Its beginning.
    pub now: Time,
    /// The clock, Unix seconds.
    pub unix: u64,
    /// Secret randomness.
    pub seed: [u8; 32],
}

/// Runs a machine to its end, on the calling thread; its relays are those. `watch` sees how far it is before it sends what follows from that;
/// it may end it.
///
/// # Errors
///
/// The machine's own within; [`Problem`]: no socket could be had, or `watch` failed.
pub fn run<M: Machine>(
    relays: Vec<Target>,
    make: impl FnOnce(Start) -> M,
    mut watch: impl FnMut(&M) -> Result<(), Problem>,
) -> Result<Result<M::Outcome, JoinError>, Problem> {
    let udp = sockets()?;
    let waker = Waker::new().map_err(|e| Problem::failed(e.to_string()))?;
    let mut ways: Vec<Beside> = relays.into_iter().map(|r| Beside::new(r, &waker)).collect();
    let clock = Clock::new();
    let now = || Time(0) + clock.now();
    let broken = |e: std::io::Error| Problem::failed(format!("the network cannot be used: {e}"));
    let seed = *Secret::<32>::random().expose();
    let mut machine = make(Start { now: now(), unix: clock.unix(), seed });
    let mut poller = Poller::new().map_err(broken)?;
    poller
        .watch([waker.as_fd()].into_iter().chain(udp.fds(Queue::Both)), Some(Interest::Read))
        .map_err(broken)?;
    let mut received = RecvBatch::new(16, 2048);
    loop {
        let due = machine.deadline().is_none_or(|at| at <= now());
        if due {
            machine.handle_timeout(now());
        }
        while let Some(work) = machine.poll_work() {
            machine.handle_work(now(), work.run());
        }
        watch(&machine)?;
        while let Some((to, datagram)) = machine.poll_transmit() {
            let to = ways.iter_mut().find_map(|w| w.going(to, &datagram)).unwrap_or(to);
            // What is lost here is sent again by the machine's own timers.
            let _lost = udp.send_to(to, &datagram);
        }
        for way in &mut ways {
            way.turn(clock.now(), &udp);
        }
        if let Some(outcome) = machine.outcome() {
            return Ok(outcome);
        }
        let timeout = machine.deadline().map_or(Duration::from_secs(1), |at| at.since(now()));
        let due = ways.iter().filter_map(Beside::deadline).map(|at| at.saturating_sub(clock.now())).min();
        let timeout = timeout.min(due.unwrap_or(Duration::MAX)).min(Duration::from_secs(1));
        poller.wait(&[], Some(timeout)).map_err(broken)?;
        waker.clear();
        if udp.recv_batch(&mut received, Queue::Both).map_err(broken)? > 0 {
            for (from, datagram) in received.iter_mut() {
                let from = ways.iter_mut().find_map(|w| w.coming(from)).unwrap_or(from);
                machine.handle_datagram(now(), from, datagram);
            }
        }
    }
}

/// The way to a relay by TCP, beside that by UDP, which is left when it is silent. The machine knows of one address.
struct Beside {
    relay: Target,
    waker: Waker,
    state: State,
    sent: VecDeque<Vec<u8>>,
}

enum State {
    /// Nothing was sent yet.
    Idle,
    /// TCP begins then.
    Waiting(Option<Duration>),
    Connecting(Receiver<Result<tunnel::Connected, String>>),
    ByTcp(Tunnel),
    /// UDP goes through, or there is no TCP.
    Settled,
}

impl Beside {
    fn new(relay: Target, waker: &Waker) -> Self {
        Beside { relay, waker: waker.clone(), state: State::Idle, sent: VecDeque::new() }
    }

    /// Where a datagram to this relay is to go.
    fn going(&mut self, to: SocketAddr, datagram: &[u8]) -> Option<SocketAddr> {
        if self.relay.address != Some(to) {
            return None;
        }
        match &self.state {
            State::ByTcp(tunnel) => return Some(tunnel.local()),
            State::Settled => return Some(to),
            State::Idle => self.state = State::Waiting(None),
            State::Waiting(_) | State::Connecting(_) => {}
        }
        if self.sent.len() >= KEPT {
            self.sent.pop_front();
        }
        self.sent.push_back(datagram.to_vec());
        Some(to)
    }

    /// From where one comes, as the machine knows it.
    fn coming(&mut self, from: SocketAddr) -> Option<SocketAddr> {
        if self.relay.address == Some(from) && !matches!(self.state, State::ByTcp(_)) {
            (self.state, self.sent) = (State::Settled, VecDeque::new());
        }
        match &self.state {
            State::ByTcp(tunnel) if tunnel.local() == from => self.relay.address,
            _ => None,
        }
    }

    fn deadline(&self) -> Option<Duration> {
        match self.state {
            State::Waiting(at) => at,
            _ => None,
        }
    }

    fn turn(&mut self, now: Duration, udp: &Udp) {
        match &mut self.state {
            State::Waiting(None) => {
                // It was so a moment ago, and there is nothing to wait for.
                let wait =
                    if tunnel::was_needed(&self.relay.relay).is_some() { Duration::ZERO } else { BESIDE };
                self.state = State::Waiting(Some(now + wait));
                self.waker.wake();
            }
            State::Waiting(Some(at)) if now >= *at => {
                let (done, receiver) = channel();
                let (relay, waker) = (self.relay.clone(), self.waker.clone());
                let thread = std::thread::Builder::new().name("sm-tcp".into()).spawn(move || {
                    let _nobody_waits_any_more = done.send(tunnel::connect(&relay));
                    waker.wake();
                });
                self.state = thread.map_or(State::Settled, |_| State::Connecting(receiver));
            }
            State::Connecting(receiver) => match receiver.try_recv() {
                Ok(Ok(connected)) => self.begin(connected, udp),
                Ok(Err(why)) => {
                    debug!(relay = %self.relay.place, why, "the relay is not reached by tcp");
                    self.state = State::Settled;
                }
                Err(_) => {}
            },
            _ => {}
        }
    }

    fn begin(&mut self, connected: tunnel::Connected, udp: &Udp) {
        let Ok(tunnel) = Tunnel::start(connected, &udp.local_addrs(), || ()) else {
            self.state = State::Settled;
            return;
        };
        tunnel::note_needed(self.relay.relay, tunnel.by_proxy());
        for datagram in self.sent.drain(..) {
            let _lost = udp.send_to(tunnel.local(), &datagram);
        }
        self.state = State::ByTcp(tunnel);
    }
}

fn sockets() -> Result<Udp, Problem> {
    let any = [SocketAddr::from(([0u8; 4], 0)), SocketAddr::from(([0u8; 16], 0))];
    Udp::bind(&any).map_err(|e| Problem::failed(e.to_string()))
}

/// An address for a relay; blocks while a name is looked up.
///
/// # Errors
///
/// [`Problem`]: the name has none.
pub fn resolve(place: &HostPort) -> Result<SocketAddr, Problem> {
    let unknown = |why: String| {
        Problem::new(Exit::NoAnswer, format!("the relay's name {} has no address: {why}", place.host()))
            .fix("Check its spelling, and whether this machine is online.")
    };
    let (done, found) = channel();
    let asked = (place.host().to_owned(), place.port());
    let thread = std::thread::Builder::new().name("sm-resolve".into()).spawn(move || {
        let found = asked.to_socket_addrs().map_err(|e| e.to_string());
        let first = found.and_then(|mut f| f.next().ok_or_else(|| "none was found".into()));
        let _waited_no_longer = done.send(first);
    });
    thread.map_err(|e| unknown(e.to_string()))?;
    // Behind a proxy there may be no name service, and the proxy has one.
    let has_proxy = tunnel::for_host(place.host()).is_some();
    let patience = if has_proxy { BESIDE } else { NAMES };
    match found.recv_timeout(patience) {
        Ok(Ok(address)) => Ok(address),
        _ if has_proxy => Ok(SocketAddr::new(NOWHERE, place.port())),
        Ok(Err(why)) => Err(unknown(why)),
        Err(_) => Err(unknown("the name service does not answer".into())),
    }
}

/// A machine's error in three parts.
pub fn problem(error: &JoinError) -> Problem {
    let what = with_dates(&error.to_string());
    match error {
        JoinError::NoRelay => Problem::new(Exit::NoAnswer, what).fix(
            "Check that the relay runs, and that neither UDP nor TCP to it is blocked:  shadowmesh netcheck",
        ),
        JoinError::Unregistered | JoinError::TokenUsed => Problem::new(Exit::Refused, what)
            .fix("Ask the relay's host for a new URL:  shadowmesh-relay token new"),
        JoinError::RelayFull => Problem::failed(what).fix("Ask its host, or take another relay."),
        JoinError::NoInviter | JoinError::Timeout => Problem::new(Exit::NoAnswer, what)
            .fix("Start it there (shadowmesh up), then join again: the invite is still good."),
        JoinError::NotTheInviter => Problem::new(Exit::Refused, what)
            .fix("Do not go on. Ask who made the invite to send it again, by another way."),
        JoinError::Used(_) | JoinError::Expired(_) => Problem::new(Exit::Refused, what)
            .fix("Ask for a new one:  shadowmesh invite <name>      (or --reusable for several machines)"),
        JoinError::Revoked(_) => {
            Problem::new(Exit::Refused, what).fix("Ask an admin for a new invite:  shadowmesh invite <name>")
        }
        JoinError::Clock { .. } => {
            Problem::failed(what).fix("Set the clock, then do this again:  timedatectl set-ntp true")
        }
        JoinError::Refused(_) => Problem::new(Exit::Refused, what),
        JoinError::BadBundle(_) => Problem::failed(what),
    }
}
