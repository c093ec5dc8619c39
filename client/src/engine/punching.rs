//! Many sockets for one address: a symmetric NAT opens a port for each, and the one that is answered is kept.

use super::Loop;
use shadowmesh_host::udp::Punch;
use shadowmesh_proto::Time;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;
use tracing::debug;

/// What is not answered by then is not any more.
const LASTS: Duration = Duration::from_secs(10);
/// A socket that was answered is kept so long whether or not a path has come of it.
const NEW: Duration = Duration::from_secs(5);
/// At once; the oldest makes room.
const MAX_PUNCHES: usize = 2;

/// The sockets that wait for answers, and the addresses for which one was kept, with when that was.
#[derive(Default)]
pub(super) struct Punches {
    waiting: Vec<(Punch, Time)>,
    kept: Vec<(SocketAddr, Time)>,
}

impl Punches {
    /// What to wait on.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.waiting.iter().map(|(punch, _)| punch.as_fd())
    }
}

impl Loop {
    pub(super) fn punch(&mut self, to: SocketAddr, packets: &[Vec<u8>]) {
        let waiting = &mut self.punches.waiting;
        waiting.retain(|(p, _)| p.to() != to);
        if waiting.len() >= MAX_PUNCHES {
            waiting.remove(0);
        }
        match Punch::send(to, packets) {
            Ok(punch) => self.punches.waiting.push((punch, super::now(&self.clock) + LASTS)),
            Err(e) => debug!(%to, "no further sockets: {e}"),
        }
    }

    /// Some of them have something to read.
    pub(super) fn punched(&mut self) {
        let now = super::now(&self.clock);
        for (punch, _) in &mut self.punches.waiting {
            let to = punch.to();
            for fd in punch.answered() {
                if let Err(e) = self.udp.adopt(to, fd) {
                    debug!(%to, "a socket could not be kept: {e}");
                    continue;
                }
                self.punches.kept.retain(|(a, _)| *a != to);
                self.punches.kept.push((to, now));
                // Who reads sessions reads this, too.
                self.endpoint.data.wake_readers();
            }
        }
    }

    /// What has come to nothing is closed.
    pub(super) fn end_punches(&mut self, now: Time) {
        self.punches.waiting.retain(|(_, until)| now < *until);
        let node = &self.endpoint.node;
        self.punches.kept.retain(|(to, since)| now < *since + NEW || node.has_path(to));
        let kept = &self.punches.kept;
        self.udp.release(|to| kept.iter().any(|(a, _)| a == to));
    }
}
