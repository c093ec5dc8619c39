//! The path that carries: what of it is reported, measured, or missed; and how often such paths were lost. [P-FALLBACK]

use crate::Time;
use shadowmesh_wire::data::LaneReport;
use shadowmesh_wire::handshake::LANES;
use std::time::Duration;

/// With two round trips: so long may frames go out on a path without being reported. Two reports are due by then.
const UNREPORTED: Duration = Duration::from_millis(140);
/// Paths are lost again and again: the next carries after so long, and twice as long each time.
const FIRST_HOLD: Duration = Duration::from_secs(1);
pub(super) const MAX_HOLD: Duration = Duration::from_secs(60);
/// A path that lasted so long ends that.
const STABLE: Duration = Duration::from_secs(5);

/// What is known of the path that carries.
#[derive(Debug)]
pub(super) struct Carrying {
    pub since: Time,
    /// Why it does, for people.
    pub why: &'static str,
    /// A frame that is to be reported: by when, its lane and counter.
    pub unreported: Option<(Time, usize, u64)>,
    /// As reported, by lane.
    highest: [u64; LANES],
    /// Pings that were not answered before it did.
    pub unanswered: u32,
    /// Pings by it that were not answered: what is heard by another path says nothing of this one.
    pub missed: u32,
    /// Round trips measured, the shortest, and how many in a row were too long.
    pub samples: u32,
    pub low: Duration,
    pub slow: u32,
    /// What the relay's path took since the first of those.
    pub relayed: Option<Duration>,
    /// The ping that the last of them came by: every report echoes it until there is another one.
    pub echoed: u32,
}

impl Carrying {
    pub fn new(now: Time, why: &'static str) -> Self {
        Carrying {
            since: now,
            why,
            unreported: None,
            highest: [0; LANES],
            unanswered: 0,
            missed: 0,
            samples: 0,
            low: Duration::MAX,
            slow: 0,
            relayed: None,
            echoed: 0,
        }
    }

    /// Another session is used: its lanes count from 0.
    pub fn rekeyed(&mut self) {
        (self.unreported, self.highest) = (None, [0; LANES]);
    }

    /// Frames went out from `since` on, one by that lane with that counter.
    pub fn sent(&mut self, since: Time, lane: usize, counter: u64, rtt: Option<Duration>) {
        let told = self.highest.get(lane).is_some_and(|h| *h >= counter);
        if !told && self.unreported.is_none() && since >= self.since {
            self.unreported = Some((since + UNREPORTED + 2 * rtt.unwrap_or_default(), lane, counter));
        }
    }

    /// The peer tells what has arrived.
    pub fn reported(&mut self, now: Time, lanes: &[LaneReport], rtt: Option<Duration>) {
        for l in lanes {
            let Some(highest) = self.highest.get_mut(usize::from(l.lane)) else { continue };
            if l.highest <= *highest {
                continue;
            }
            *highest = l.highest;
            if let Some((due, lane, counter)) = &mut self.unreported
                && *lane == usize::from(l.lane)
            {
                // What came before it does arrive: it may be behind a long queue.
                *due = now + UNREPORTED + 2 * rtt.unwrap_or_default();
                if l.highest >= *counter {
                    self.unreported = None;
                }
            }
        }
    }
}

/// Losses of paths without relay, so that one that comes and goes does not take the session with it each time.
#[derive(Debug, Default)]
pub(super) struct Flaps {
    wait: Duration,
    /// No path without relay carries before.
    pub until: Time,
}

impl Flaps {
    pub fn lost(&mut self, now: Time, since: Time) {
        if now.since(since) >= STABLE {
            self.wait = Duration::ZERO;
        }
        self.until = now + self.wait;
        self.wait = (self.wait * 2).clamp(FIRST_HOLD, MAX_HOLD);
    }

    /// One side is elsewhere now: its paths are other ones than those that were lost.
    pub fn forget(&mut self, now: Time) {
        (self.wait, self.until) = (Duration::ZERO, now);
    }
}
