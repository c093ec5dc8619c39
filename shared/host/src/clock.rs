//! Time: the only place of the workspace that asks the system for it.
//!
//! The cores are given a `Duration` since the start of the process. It comes from `CLOCK_BOOTTIME`, which
//! goes on counting while a laptop sleeps: a session that outlived its keys in a closed lid must not look
//! fresh on waking. The ban on `Instant::now` (which stands still in suspend) needs no exemption for that.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// A monotonic clock that starts at zero, and the wall clock beside it. Copies tell the same time.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    source: ClockId,
    origin: Duration,
}

impl Clock {
    /// A clock whose zero is now.
    pub fn new() -> Clock {
        let (source, origin) = match read(ClockId::CLOCK_BOOTTIME) {
            Some(now) => (ClockId::CLOCK_BOOTTIME, now),
            // Without CLOCK_BOOTTIME (some sandboxes) the monotonic clock serves, and suspend goes uncounted.
            None => (ClockId::CLOCK_MONOTONIC, read(ClockId::CLOCK_MONOTONIC).unwrap_or_default()),
        };
        Clock { source, origin }
    }

    /// Time since [`Clock::new`]; never runs back; suspend counts.
    pub fn now(&self) -> Duration {
        read(self.source).unwrap_or(self.origin).saturating_sub(self.origin)
    }

    /// Wall time in whole seconds since 1970; 0 if the machine believes that it is earlier.
    pub fn unix(&self) -> u64 {
        read(ClockId::CLOCK_REALTIME).unwrap_or_default().as_secs()
    }
}

impl Default for Clock {
    fn default() -> Clock {
        Clock::new()
    }
}

fn read(id: ClockId) -> Option<Duration> {
    let t = clock_gettime(id).ok()?;
    Some(Duration::new(u64::try_from(t.tv_sec()).ok()?, u32::try_from(t.tv_nsec()).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_at_zero_and_advances() {
        let clock = Clock::new();
        let a = clock.now();
        assert!(a < Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(20));
        let b = clock.now();
        assert!(b - a >= Duration::from_millis(20), "{a:?} {b:?}");
    }

    #[test]
    fn unix_time_is_of_this_century() {
        assert!(Clock::new().unix() > 1_700_000_000);
    }
}
