//! Waiting on descriptors, and waking the thread that waits.
//!
//! The packet loop sleeps in [`Poller::wait`] on its TAP, its sockets and one [`Waker`]; the control plane
//! wakes it. Timeouts are finer than a millisecond (`ppoll`), because pacing needs that.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;

/// The most descriptors that one [`Poller::wait`] takes.
pub const MAX_FDS: usize = 64;

/// Wakes a thread out of [`Poller::wait`]. Clones wake the same one.
#[derive(Debug, Clone)]
pub struct Waker(Arc<EventFd>);

impl Waker {
    /// A waker that nobody has used yet.
    pub fn new() -> io::Result<Waker> {
        let fd = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Waker(Arc::new(fd)))
    }

    /// Makes the descriptor readable. Any number of calls before [`Waker::clear`] count as one.
    pub fn wake(&self) {
        // The only possible failure is EAGAIN, a counter that is full: then it is readable already.
        let _full = self.0.write(1);
    }

    /// Takes back all wakes so far; says whether there was one. Clear first, then look for work.
    pub fn clear(&self) -> bool {
        self.0.read().is_ok()
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What to wait for on a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Until it can be read.
    Read,
    /// Until it can be written (after a send that would have blocked).
    Write,
    /// Either.
    ReadWrite,
}

/// What became ready, by the position in the list given to [`Poller::wait`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ready {
    readable: u64,
    writable: u64,
    failed: u64,
}

impl Ready {
    /// The descriptor can be read, or has an error that reading will tell.
    pub fn readable(&self, i: usize) -> bool {
        bit(self.readable | self.failed, i)
    }

    /// Which of so many descriptors from the first on can be read, as [`Ready::readable`] says it of one; a bit each.
    pub fn readable_from(&self, first: usize, count: usize) -> u64 {
        let all = (self.readable | self.failed).unbounded_shr(first as u32);
        all & !u64::MAX.unbounded_shl(count as u32)
    }

    /// The descriptor can be written.
    pub fn writable(&self, i: usize) -> bool {
        bit(self.writable, i)
    }

    /// The descriptor has an error or its other end is gone.
    pub fn failed(&self, i: usize) -> bool {
        bit(self.failed, i)
    }

    /// Nothing: the time ran out, or a signal came.
    pub fn is_empty(&self) -> bool {
        self.readable | self.writable | self.failed == 0
    }
}

fn bit(set: u64, i: usize) -> bool {
    i < MAX_FDS && set >> i & 1 == 1
}

/// Waits on up to [`MAX_FDS`] descriptors.
#[derive(Debug, Default)]
pub struct Poller(());

impl Poller {
    /// A poller. It holds nothing between calls.
    pub fn new() -> Poller {
        Poller(())
    }

    /// Sleeps until a descriptor is ready, `timeout` is over (`None`: no limit) or a signal came.
    pub fn wait(
        &mut self,
        fds: &[(BorrowedFd<'_>, Interest)],
        timeout: Option<Duration>,
    ) -> io::Result<Ready> {
        let Some(&(first, _)) = fds.first() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "nothing to wait for"));
        };
        if fds.len() > MAX_FDS {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "more descriptors than a poller takes"));
        }
        // On the stack: this is called once a batch of packets and must not allocate.
        let mut polled: [PollFd; MAX_FDS] = std::array::from_fn(|i| match fds.get(i) {
            Some((fd, interest)) => PollFd::new(*fd, flags(*interest)),
            None => PollFd::new(first, PollFlags::empty()),
        });
        let polled = &mut polled[..fds.len()];
        match ppoll(polled, timeout.map(TimeSpec::from_duration), None) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Ready::default()),
            Err(e) => return Err(e.into()),
        }
        let mut ready = Ready::default();
        for (i, fd) in polled.iter().enumerate() {
            let got = fd.revents().unwrap_or(PollFlags::empty());
            if got.contains(PollFlags::POLLNVAL) {
                return Err(Errno::EBADF.into());
            }
            ready.readable |= u64::from(got.contains(PollFlags::POLLIN)) << i;
            ready.writable |= u64::from(got.contains(PollFlags::POLLOUT)) << i;
            ready.failed |= u64::from(got.intersects(PollFlags::POLLERR | PollFlags::POLLHUP)) << i;
        }
        Ok(ready)
    }
}

fn flags(interest: Interest) -> PollFlags {
    match interest {
        Interest::Read => PollFlags::POLLIN,
        Interest::Write => PollFlags::POLLOUT,
        Interest::ReadWrite => PollFlags::POLLIN | PollFlags::POLLOUT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn a_wake_before_and_during_the_wait() {
        let waker = Waker::new().unwrap();
        let mut poller = Poller::new();
        assert!(!waker.clear());
        waker.wake();
        waker.clone().wake();
        let ready = poller.wait(&[(waker.as_fd(), Interest::Read)], None).unwrap();
        assert!(ready.readable(0) && !ready.writable(0) && !ready.failed(0));
        assert!(waker.clear());
        assert!(!waker.clear());

        let other = waker.clone();
        let clock = Clock::new();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            other.wake();
        });
        let ready = poller.wait(&[(waker.as_fd(), Interest::Read)], Some(Duration::from_secs(10))).unwrap();
        assert!(ready.readable(0));
        assert!(clock.now() < Duration::from_secs(5));
        thread.join().unwrap();
    }

    #[test]
    fn timeouts_below_a_millisecond_neither_return_early_nor_spin() {
        let waker = Waker::new().unwrap();
        let mut poller = Poller::new();
        let clock = Clock::new();
        for _ in 0..100 {
            let timeout = Some(Duration::from_micros(300));
            assert!(poller.wait(&[(waker.as_fd(), Interest::Read)], timeout).unwrap().is_empty());
        }
        let took = clock.now();
        assert!(took >= Duration::from_millis(30), "{took:?}");
    }

    #[test]
    fn positions_and_the_end_of_a_stream() {
        let waker = Waker::new().unwrap();
        let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut poller = Poller::new();
        let wait = [(waker.as_fd(), Interest::Read), (a.as_fd(), Interest::ReadWrite)];
        let ready = poller.wait(&wait, None).unwrap();
        assert!(!ready.readable(0) && !ready.readable(1) && ready.writable(1));
        drop(b);
        let ready = poller.wait(&wait, None).unwrap();
        assert!(ready.failed(1) && ready.readable(1));
        assert!(!ready.readable(63) && !ready.readable(64));
        assert_eq!(
            [(0, 2), (1, 1), (0, 1), (2, 62), (64, 3)].map(|(i, n)| ready.readable_from(i, n)),
            [2, 1, 0, 0, 0]
        );
    }

    #[test]
    fn bad_calls_are_refused() {
        assert!(Poller::new().wait(&[], None).is_err());
        let waker = Waker::new().unwrap();
        let many = vec![(waker.as_fd(), Interest::Read); MAX_FDS + 1];
        assert!(Poller::new().wait(&many, None).is_err());
    }
}
