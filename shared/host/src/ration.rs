//! A part of the time for one kind of work and no more: what a flood can make a packet loop spend on strangers.

use std::time::Duration;

/// Work that may take one part in so many of the time.
#[derive(Debug, Clone, Copy)]
pub struct Ration {
    parts: u32,
    next: Duration,
}

impl Ration {
    /// One of `parts` (1: all of it).
    pub fn one_of(parts: u32) -> Ration {
        Ration { parts: parts.max(1), next: Duration::ZERO }
    }

    /// When it may go on: at once, mostly.
    pub fn next(&self) -> Duration {
        self.next
    }

    /// Work was done from `began` to `ended`; the others have their parts before it goes on.
    pub fn spent(&mut self, began: Duration, ended: Duration) {
        self.next = ended + ended.saturating_sub(began) * (self.parts - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_without_end_gets_its_part() {
        for (parts, part) in [(1, 1.0), (2, 0.5), (8, 0.125)] {
            let mut ration = Ration::one_of(parts);
            let (mut now, mut worked) = (Duration::ZERO, Duration::ZERO);
            for n in 0..1000 {
                now = now.max(ration.next());
                let took = Duration::from_micros(10 + n % 500);
                worked += took;
                ration.spent(now, now + took);
                now += took;
            }
            let share = worked.as_secs_f64() / now.as_secs_f64();
            assert!((share - part).abs() < 0.01, "{share} of {part}");
        }
    }

    #[test]
    fn who_did_nothing_waits_for_nothing() {
        let mut ration = Ration::one_of(8);
        let now = Duration::from_secs(5);
        ration.spent(now, now);
        assert_eq!(ration.next(), now);
    }
}
