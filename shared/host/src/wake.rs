//! Waiting on descriptors, and waking the thread that waits.
//!
//! The packet loop sleeps in [`Poller::wait`] on its TAP, its sockets and one [`Waker`]; the control plane
//! wakes it. Timeouts are finer than a millisecond, because pacing needs that.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;

/// The most descriptors that a [`Poller`] waits on.
pub const MAX_FDS: usize = 64;
/// Of those that are watched, so many are said to be ready at once; the others the next time, before these.
const EVENTS: usize = 16;
/// Below this a timeout is `ppoll`'s, which counts nanoseconds; `epoll_wait` counts this.
const MILLISECOND: Duration = Duration::from_millis(1);

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

/// What became ready, by position: those that are watched, then those that were given to [`Poller::wait`].
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

    /// Which of these can be read, as [`Ready::readable`] says it of one; a bit each, from the first on.
    pub fn readable_of(&self, range: &Range<usize>) -> u64 {
        let all = (self.readable | self.failed).unbounded_shr(range.start as u32);
        all & !u64::MAX.unbounded_shl(range.len() as u32)
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

    fn note(&mut self, i: usize, readable: bool, writable: bool, failed: bool) {
        let bit = 1u64.unbounded_shl(i as u32);
        self.readable |= if readable { bit } else { 0 };
        self.writable |= if writable { bit } else { 0 };
        self.failed |= if failed { bit } else { 0 };
    }
}

fn bit(set: u64, i: usize) -> bool {
    i < MAX_FDS && set >> i & 1 == 1
}

/// Waits on descriptors, up to [`MAX_FDS`]: on those that it watches, which are open for as long as it is and cost nothing
/// while nothing happens to them, and on others for once.
#[derive(Debug)]
pub struct Poller<'a> {
    epoll: Epoll,
    watched: Vec<(BorrowedFd<'a>, Option<Interest>)>,
}

impl<'a> Poller<'a> {
    /// A poller that watches nothing.
    ///
    /// # Errors
    /// The process or the system has no more descriptors.
    pub fn new() -> io::Result<Poller<'a>> {
        Ok(Poller { epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?, watched: vec![] })
    }

    /// Watches these from now on, too; gives their positions. `None`: not yet ([`Poller::change`]).
    ///
    /// # Errors
    /// They would be too many, or one is no descriptor that can be waited for.
    pub fn watch(
        &mut self,
        fds: impl IntoIterator<Item = BorrowedFd<'a>>,
        interest: Option<Interest>,
    ) -> io::Result<Range<usize>> {
        let first = self.watched.len();
        self.watched.extend(fds.into_iter().map(|fd| (fd, None)));
        let range = first..self.watched.len();
        if range.end > MAX_FDS {
            self.watched.truncate(first);
            return Err(too_many());
        }
        self.change(&range, interest)?;
        Ok(range)
    }

    /// Waits for this on these of the watched from now on. That costs nothing where it was so before.
    ///
    /// # Errors
    /// One is no descriptor that can be waited for.
    pub fn change(&mut self, which: &Range<usize>, interest: Option<Interest>) -> io::Result<()> {
        for (i, (fd, now)) in self.watched.iter_mut().enumerate().take(which.end).skip(which.start) {
            if *now == interest {
                continue;
            }
            let event = |interest| EpollEvent::new(events(interest), i as u64);
            match (*now, interest) {
                (None, Some(interest)) => self.epoll.add(*fd, event(interest))?,
                (Some(_), Some(interest)) => self.epoll.modify(*fd, &mut event(interest))?,
                // Without: one for which nothing is waited for would tell its errors.
                (_, None) => self.epoll.delete(*fd)?,
            }
            *now = interest;
        }
        Ok(())
    }

    /// Sleeps until one that is watched, or one of `passing`, is ready, `timeout` is over (`None`: no limit), a little of it
    /// is left, or a signal came.
    ///
    /// # Errors
    /// They are too many, or none, or one is closed.
    pub fn wait(
        &mut self,
        passing: &[(BorrowedFd<'_>, Interest)],
        timeout: Option<Duration>,
    ) -> io::Result<Ready> {
        let first = self.watched.len();
        if first + passing.len() > MAX_FDS {
            return Err(too_many());
        }
        if first + passing.len() == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "nothing to wait for"));
        }
        let fine = timeout.is_some_and(|t| !t.is_zero() && t < MILLISECOND);
        if passing.is_empty() && !fine {
            return self.watched(timeout);
        }
        let (mut ready, of_watched) = self.polled(passing, timeout)?;
        if of_watched {
            let watched = self.watched(Some(Duration::ZERO))?;
            ready.readable |= watched.readable;
            ready.writable |= watched.writable;
            ready.failed |= watched.failed;
        }
        Ok(ready)
    }

    /// Of the watched alone; whole milliseconds of the timeout.
    fn watched(&self, timeout: Option<Duration>) -> io::Result<Ready> {
        let mut events = [EpollEvent::empty(); EVENTS];
        let timeout =
            timeout.map_or(EpollTimeout::NONE, |t| u16::try_from(t.as_millis()).unwrap_or(u16::MAX).into());
        let count = match self.epoll.wait(&mut events, timeout) {
            Err(Errno::EINTR) => 0,
            other => other?,
        };
        let mut ready = Ready::default();
        for event in events.iter().take(count) {
            let (is, i) = (event.events(), event.data() as usize);
            let failed = is.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP);
            ready.note(i, is.contains(EpollFlags::EPOLLIN), is.contains(EpollFlags::EPOLLOUT), failed);
        }
        Ok(ready)
    }

    /// Of those that pass; and is any that is watched?
    fn polled(
        &self,
        passing: &[(BorrowedFd<'_>, Interest)],
        timeout: Option<Duration>,
    ) -> io::Result<(Ready, bool)> {
        let own = (self.epoll.0.as_fd(), Interest::Read);
        let all = [own].into_iter().chain(passing.iter().copied());
        let mut polled: Vec<PollFd<'_>> =
            all.map(|(fd, interest)| PollFd::new(fd, flags(interest))).collect();
        let mut ready = Ready::default();
        match ppoll(&mut polled, timeout.map(TimeSpec::from_duration), None) {
            Err(Errno::EINTR) => return Ok((ready, false)),
            other => other?,
        };
        let results = || polled.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        for (i, is) in results().skip(1).enumerate() {
            if is.contains(PollFlags::POLLNVAL) {
                return Err(Errno::EBADF.into());
            }
            let failed = is.intersects(PollFlags::POLLERR | PollFlags::POLLHUP);
            let (readable, writable) = (is.contains(PollFlags::POLLIN), is.contains(PollFlags::POLLOUT));
            ready.note(self.watched.len() + i, readable, writable, failed);
        }
        Ok((ready, results().next().is_some_and(|own| !own.is_empty())))
    }
}

fn too_many() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "more descriptors than a poller takes")
}

fn events(interest: Interest) -> EpollFlags {
    match interest {
        Interest::Read => EpollFlags::EPOLLIN,
        Interest::Write => EpollFlags::EPOLLOUT,
        Interest::ReadWrite => EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT,
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
        let mut poller = Poller::new().unwrap();
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
        let mut poller = Poller::new().unwrap();
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
        let mut poller = Poller::new().unwrap();
        let wait = [(waker.as_fd(), Interest::Read), (a.as_fd(), Interest::ReadWrite)];
        let ready = poller.wait(&wait, None).unwrap();
        assert!(!ready.readable(0) && !ready.readable(1) && ready.writable(1));
        drop(b);
        let ready = poller.wait(&wait, None).unwrap();
        assert!(ready.failed(1) && ready.readable(1));
        assert!(!ready.readable(63) && !ready.readable(64));
        assert_eq!([0..2, 1..2, 0..1, 2..64, 64..67].map(|range| ready.readable_of(&range)), [2, 1, 0, 0, 0]);
    }

    #[test]
    fn what_is_watched_and_what_passes() {
        let (waker, other) = (Waker::new().unwrap(), Waker::new().unwrap());
        let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut poller = Poller::new().unwrap();
        let wakes = poller.watch([waker.as_fd()], Some(Interest::Read)).unwrap();
        let stream = poller.watch([a.as_fd()], None).unwrap();
        assert_eq!((&wakes, &stream), (&(0..1), &(1..2)));
        let soon = Some(Duration::from_millis(5));
        // Nothing is waited for, so that it can be written, or has ended, is not told.
        assert!(poller.wait(&[], soon).unwrap().is_empty());
        poller.change(&stream, Some(Interest::Write)).unwrap();
        let ready = poller.wait(&[], soon).unwrap();
        assert!(ready.writable(1) && ready.readable_of(&stream) == 0);
        poller.change(&stream, Some(Interest::Read)).unwrap();
        assert!(poller.wait(&[], soon).unwrap().is_empty());
        poller.change(&stream, None).unwrap();
        drop(b);
        assert!(poller.wait(&[], soon).unwrap().is_empty());

        for timeout in [soon, None, Some(Duration::from_micros(50)), Some(Duration::ZERO)] {
            let passing = [(other.as_fd(), Interest::Read)];
            other.wake();
            let ready = poller.wait(&passing, timeout).unwrap();
            assert!(ready.readable(2) && !ready.readable(0), "{timeout:?}");
            waker.wake();
            let ready = poller.wait(&passing, timeout).unwrap();
            assert!(ready.readable(2) && ready.readable(0), "{timeout:?}");
            assert!(other.clear());
            let ready = poller.wait(&passing, timeout).unwrap();
            assert!(!ready.readable(2) && ready.readable_of(&wakes) == 1, "{timeout:?}");
            assert!(poller.wait(&[], timeout).unwrap().readable(0), "{timeout:?}");
            assert!(waker.clear());
        }
    }

    #[test]
    fn timeouts_above_a_millisecond_do_not_spin() {
        let waker = Waker::new().unwrap();
        let mut poller = Poller::new().unwrap();
        poller.watch([waker.as_fd()], Some(Interest::Read)).unwrap();
        let clock = Clock::new();
        let (until, mut turns) = (clock.now() + Duration::from_micros(40_700), 0);
        while clock.now() < until {
            assert!(poller.wait(&[], Some(until.saturating_sub(clock.now()))).unwrap().is_empty());
            turns += 1;
        }
        assert!(turns <= 3, "{turns}");
    }

    #[test]
    fn bad_calls_are_refused() {
        assert!(Poller::new().unwrap().wait(&[], None).is_err());
        let waker = Waker::new().unwrap();
        let many = vec![(waker.as_fd(), Interest::Read); MAX_FDS + 1];
        assert!(Poller::new().unwrap().wait(&many, None).is_err());
        let mut poller = Poller::new().unwrap();
        assert!(poller.watch(many.iter().map(|(fd, _)| *fd), None).is_err());
        poller.watch([waker.as_fd()], Some(Interest::Read)).unwrap();
        assert!(poller.wait(&many[1..], None).is_err());
    }
}
