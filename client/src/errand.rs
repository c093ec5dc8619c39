//! Errands: machines that run for a few seconds on sockets of their own, before there is a network to run them in.

use shadowmesh_control::{Exit, Problem, with_dates};
use shadowmesh_crypto::Secret;
use shadowmesh_host::clock::Clock;
use shadowmesh_host::udp::{Queue, RecvBatch, Udp};
use shadowmesh_host::wake::{Interest, Poller};
use shadowmesh_identity::HostPort;
use shadowmesh_proto::join::{JoinError, JoinProgress, Joined, Joiner, Registered, Registrar};
use shadowmesh_proto::{Time, Work, WorkDone};
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

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

/// Runs a machine to its end, on the calling thread. `watch` sees how far it is before it sends what follows from that;
/// it may end it.
///
/// # Errors
///
/// The machine's own within; [`Problem`]: no socket could be had, or `watch` failed.
pub fn run<M: Machine>(
    make: impl FnOnce(Start) -> M,
    mut watch: impl FnMut(&M) -> Result<(), Problem>,
) -> Result<Result<M::Outcome, JoinError>, Problem> {
    let udp = sockets()?;
    let clock = Clock::new();
    let now = || Time(u64::try_from(clock.now().as_nanos()).unwrap_or(u64::MAX));
    let broken = |e: std::io::Error| Problem::failed(format!("the network cannot be used: {e}"));
    let seed = *Secret::<32>::random().expose();
    let mut machine = make(Start { now: now(), unix: clock.unix(), seed });
    let mut poller = Poller::new();
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
            // What is lost here is sent again by the machine's own timers.
            let _lost = udp.send_to(to, &datagram);
        }
        if let Some(outcome) = machine.outcome() {
            return Ok(outcome);
        }
        let timeout = machine.deadline().map_or(Duration::from_secs(1), |at| at.since(now()));
        let fds: Vec<_> = udp.fds(Queue::Both).map(|fd| (fd, Interest::Read)).collect();
        poller.wait(&fds, Some(timeout.min(Duration::from_secs(1)))).map_err(broken)?;
        if udp.recv_batch(&mut received, Queue::Both).map_err(broken)? > 0 {
            for (from, datagram) in received.iter_mut() {
                machine.handle_datagram(now(), from, datagram);
            }
        }
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
    let found = (place.host(), place.port()).to_socket_addrs().map_err(|e| unknown(e.to_string()))?;
    found.into_iter().next().ok_or_else(|| unknown("none was found".into()))
}

/// A machine's error in three parts.
pub fn problem(error: &JoinError) -> Problem {
    let what = with_dates(&error.to_string());
    match error {
        JoinError::NoRelay => Problem::new(Exit::NoAnswer, what)
            .fix("Check that the relay runs, and that UDP to it is not blocked:  shadowmesh netcheck"),
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
