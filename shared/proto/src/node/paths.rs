//! The paths to one peer: what it tells of where it may be reached, what is asked there, and what has answered. Which of
//! them carries is decided in [`super::direct`].
//!
//! A path is named by the address that is sent to: from which of this machine's addresses, its routes say.

use super::budget::Budget;
use super::path_mtu::PathMtu;
use crate::snapshot::{PeerId, Route};
use crate::time::earlier;
use crate::{Rng, Time};
use shadowmesh_wire::candidate::{Candidate, CandidateKind, MAX_CANDIDATES, Mapping};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

/// A REQUEST goes to each candidate at these moments of a round: NATs on both sides have to be opened from within, and
/// the two do not begin at quite the same moment.
const SCHEDULE: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(25),
    Duration::from_millis(75),
    Duration::from_millis(200),
    Duration::from_millis(500),
];
/// A round that has led to no path is repeated after so long, and twice as long each time.
const FIRST_ROUND: Duration = Duration::from_secs(2);
const LAST_ROUND: Duration = Duration::from_secs(60);
/// So many after a loss come as fast as the first: most cuts are short.
const FAST_ROUNDS: u8 = 8;
/// What the other side begins makes this one begin, too, if its own round is that old.
const ROUND_APART: Duration = Duration::from_millis(700);
/// Where packets came from that were no candidates, remembered at most.
const MAX_PEER_REFLEXIVE: usize = 4;
/// Answers that wait for their COMPLETE.
const MAX_ANSWERED: usize = 8;
/// And for how long.
const ANSWERED: Duration = Duration::from_secs(5);
/// A path that is not in use is forgotten after so long: nothing keeps it open.
const RESTING: Duration = Duration::from_secs(30);
/// Paths that are not in use, at most.
const MAX_RESTING: usize = 4;
/// CANDIDATES that have not been heard are told again.
const FIRST_TELL: Duration = Duration::from_millis(200);
const LAST_TELL: Duration = Duration::from_secs(10);

/// A question to one address.
#[derive(Debug)]
pub(super) struct Check {
    pub candidate: Candidate,
    /// Which of the schedule is next; all of them: none is due.
    step: usize,
    round: Time,
    /// What was sent, and when: the last few.
    asked: VecDeque<([u8; 8], Time)>,
    /// In all.
    pub sent: u32,
    /// Not asked since it was named, or since a router opened it.
    fresh: bool,
    /// Not sent, since the address has had enough.
    pub held_back: u32,
    pub rtt: Option<Duration>,
}

impl Check {
    fn ask(&mut self, now: Time, challenge: [u8; 8]) {
        self.sent += 1;
        self.fresh = false;
        self.asked.push_back((challenge, now));
        if self.asked.len() > SCHEDULE.len() {
            self.asked.pop_front();
        }
    }
}

/// An answer that waits for its COMPLETE.
#[derive(Debug)]
struct Answered {
    to: SocketAddr,
    challenge: [u8; 8],
    own: [u8; 8],
    at: Time,
}

/// A path that does not carry, and might.
#[derive(Debug)]
pub(super) struct Resting {
    pub route: Route,
    pub mtu: PathMtu,
    pub rtt: Option<Duration>,
    /// When it was validated, or carried last.
    pub since: Time,
    /// How long its validation took.
    pub validated: Duration,
    /// When it is looked at, whether it is to carry: by then it is known what it takes, or will not be soon.
    pub due: Option<Time>,
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Paths {
    /// Where the peer may be reached, by its word.
    pub theirs: Vec<Candidate>,
    their_number: u32,
    /// How the NAT before it maps, by its word.
    pub mapping: Mapping,
    /// The number of ours that it has.
    heard: u32,
    tell_at: Option<Time>,
    tell_wait: Duration,
    pub checks: Vec<Check>,
    answered: VecDeque<Answered>,
    pub resting: Vec<Resting>,
    /// When the last round began, and when the next does.
    round: Option<Time>,
    next_round: Option<Time>,
    round_wait: Duration,
    fast_rounds: u8,
    /// Where it sees this machine, where no relay does: a NAT gives other destinations other ports.
    pub sees: Option<SocketAddr>,
}

/// What the timers of a peer's paths ask for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// Tell our candidates.
    Tell,
    /// A REQUEST.
    Request { to: SocketAddr, challenge: [u8; 8] },
}

impl Paths {
    /// Another session, perhaps with another process: nothing of the old paths holds. What was told is told again.
    pub fn reset(&mut self, now: Time) {
        *self = Paths::default();
        self.tell(now);
    }

    /// Our candidates are to be told.
    pub fn tell(&mut self, now: Time) {
        (self.tell_at, self.tell_wait) = (Some(now), FIRST_TELL);
    }

    /// What it has of ours, for CANDIDATES' `heard` the other way.
    pub fn their_number(&self) -> u32 {
        self.their_number
    }

    /// CANDIDATES came; `number` is ours now, `acceptable` what may be sent to. Gives whether ours are to be told in
    /// answer.
    pub fn told(
        &mut self,
        now: Time,
        number: u32,
        (theirs, heard, list): (u32, u32, Vec<Candidate>),
        acceptable: impl Fn(&SocketAddr) -> bool,
    ) -> bool {
        self.heard = heard.min(number);
        if self.heard == number {
            self.tell_at = None;
        }
        let new = theirs != self.their_number;
        if new {
            self.their_number = theirs;
            let mut list = list;
            list.retain(|c| acceptable(&c.address));
            list.truncate(MAX_CANDIDATES);
            let stays = |c: &Check| {
                c.candidate.kind == CandidateKind::PeerReflexive
                    || list.iter().any(|l| l.address == c.candidate.address)
            };
            self.checks.retain(stays);
            for candidate in &list {
                self.check(now, *candidate);
            }
            self.theirs = list;
            // Something else than before may lead to a path: rounds come as fast as at first.
            self.round_wait = Duration::ZERO;
        }
        if new || self.round.is_none_or(|at| now.since(at) >= ROUND_APART) {
            self.begin_round(now);
        }
        new
    }

    fn check(&mut self, now: Time, candidate: Candidate) {
        if let Some(check) = self.checks.iter_mut().find(|c| c.candidate.address == candidate.address) {
            // A router has opened it since, mostly the port that it had given before.
            check.fresh |= candidate.kind == CandidateKind::Mapped && check.candidate.kind != candidate.kind;
            check.candidate = candidate;
        } else {
            self.checks.push(Check {
                candidate,
                step: SCHEDULE.len(),
                round: now,
                asked: VecDeque::new(),
                sent: 0,
                fresh: true,
                held_back: 0,
                rtt: None,
            });
        }
    }

    /// When the last round began.
    pub fn round(&self) -> Option<Time> {
        self.round
    }

    /// Asks at every candidate.
    pub fn begin_round(&mut self, now: Time) {
        self.round = Some(now);
        // Where a packet has come from is asked of itself only if an answer has, too: anybody can copy a packet.
        let own = |c: &&mut Check| c.candidate.kind != CandidateKind::PeerReflexive || c.rtt.is_some();
        for check in self.checks.iter_mut().filter(own) {
            (check.step, check.round) = (0, now);
        }
        let doubled = if self.fast_rounds > 0 { Duration::ZERO } else { self.round_wait * 2 };
        self.fast_rounds = self.fast_rounds.saturating_sub(1);
        self.round_wait = doubled.clamp(FIRST_ROUND, LAST_ROUND);
        self.next_round = Some(now + self.round_wait);
    }

    /// A path was lost, or the network has changed: rounds come as fast as at first.
    pub fn begin_anew(&mut self, now: Time) {
        self.fast_rounds = FAST_ROUNDS;
        self.next_round = Some(now);
    }

    /// When something is due; `looking`: no path without relay carries.
    pub fn deadline(&self, looking: bool) -> Option<Time> {
        let check = |c: &Check| SCHEDULE.get(c.step).map(|d| c.round + *d);
        let mut due = earlier(self.tell_at, self.checks.iter().filter_map(check).min());
        if looking {
            due = earlier(due, self.next_round.filter(|_| !self.checks.is_empty()));
        }
        for r in &self.resting {
            due = earlier(due, r.mtu.deadline());
        }
        due
    }

    /// What is due; `number` is that of our candidates.
    pub fn due(
        &mut self,
        now: Time,
        looking: bool,
        number: u32,
        (budget, peer): (&mut Budget, PeerId),
        rng: &mut Rng,
    ) -> Vec<Ask> {
        let mut asks = vec![];
        if looking && !self.checks.is_empty() && self.next_round.is_some_and(|at| now >= at) {
            self.begin_round(now);
            // The other side is to begin at the same time.
            asks.push(Ask::Tell);
        }
        if self.tell_at.is_some_and(|at| now >= at) {
            self.tell_wait = (self.tell_wait * 2).min(LAST_TELL);
            self.tell_at = (self.heard != number).then(|| now + self.tell_wait);
            if asks.is_empty() {
                asks.push(Ask::Tell);
            }
        }
        // Those that were not asked, or least, come first, since an address has only so many.
        let mut turns: Vec<usize> = (0..self.checks.len()).collect();
        turns.sort_by_key(|i| (!self.checks[*i].fresh, self.checks[*i].sent));
        for i in turns {
            let check = &mut self.checks[i];
            while SCHEDULE.get(check.step).is_some_and(|d| now >= check.round + *d) {
                check.step += 1;
                if !budget.take(now, &check.candidate.address, peer, check.fresh) {
                    check.held_back += 1;
                    continue;
                }
                let challenge = rng.bytes();
                check.ask(now, challenge);
                asks.push(Ask::Request { to: check.candidate.address, challenge });
            }
        }
        self.resting.retain(|r| matches!(r.route, Route::Relay { .. }) || now.since(r.since) < RESTING);
        asks
    }

    /// A REQUEST came from there: gives the challenge of its answer.
    pub fn asked(&mut self, now: Time, from: SocketAddr, challenge: [u8; 8], rng: &mut Rng) -> [u8; 8] {
        self.answered.retain(|a| now.since(a.at) < ANSWERED);
        while self.answered.len() >= MAX_ANSWERED {
            self.answered.pop_front();
        }
        let own = rng.bytes();
        self.answered.push_back(Answered { to: from, challenge, own, at: now });
        own
    }

    /// The peer uses a path from there, which this side has not validated: its COMPLETE was lost. Gives the challenge of a
    /// REQUEST, which is smaller than what came.
    pub fn ask_back(&mut self, now: Time, from: SocketAddr, rng: &mut Rng) -> Option<[u8; 8]> {
        let reflexive = |c: &Check| c.candidate.kind == CandidateKind::PeerReflexive;
        if self.checks.iter().all(|c| c.candidate.address != from) {
            if self.checks.iter().filter(|c| reflexive(c)).count() >= MAX_PEER_REFLEXIVE {
                let oldest = self.checks.iter().position(reflexive)?;
                self.checks.remove(oldest);
            }
            self.check(now, Candidate { kind: CandidateKind::PeerReflexive, address: from });
        }
        let check = self.checks.iter_mut().find(|c| c.candidate.address == from)?;
        let challenge = rng.bytes();
        check.ask(now, challenge);
        Some(challenge)
    }

    /// A RESPONSE came from there: the time that it took, if it answers what was sent to there. [P-VALIDATE]
    pub fn responded(&mut self, now: Time, from: SocketAddr, challenge: &[u8; 8]) -> Option<Duration> {
        let check = self.checks.iter_mut().find(|c| c.candidate.address == from)?;
        let at = check.asked.iter().find(|(c, _)| c == challenge)?.1;
        let rtt = now.since(at);
        check.asked.clear();
        check.rtt = Some(rtt);
        Some(rtt)
    }

    /// The same for COMPLETE.
    pub fn completed(
        &mut self,
        now: Time,
        from: SocketAddr,
        challenge: &[u8; 8],
        own: &[u8; 8],
    ) -> Option<Duration> {
        let at =
            self.answered.iter().position(|a| a.to == from && a.challenge == *challenge && a.own == *own)?;
        let rtt = now.since(self.answered.remove(at)?.at);
        if let Some(c) = self.checks.iter_mut().find(|c| c.candidate.address == from) {
            c.rtt = Some(rtt);
        }
        Some(rtt)
    }

    /// Enough is known of the path there: it is asked no more in this round.
    pub fn answers(&mut self, from: SocketAddr) {
        if let Some(c) = self.checks.iter_mut().find(|c| c.candidate.address == from) {
            c.step = SCHEDULE.len();
        }
    }

    /// A path that might carry.
    pub fn rest(&mut self, path: Resting) {
        self.resting.retain(|r| r.route != path.route);
        if self.resting.len() >= MAX_RESTING {
            self.resting.remove(0);
        }
        self.resting.push(path);
    }

    /// One of them is to carry, or is none any more.
    pub fn take(&mut self, route: &Route) -> Option<Resting> {
        let at = self.resting.iter().position(|r| r.route == *route)?;
        Some(self.resting.remove(at))
    }

    /// Nothing that was validated holds any more.
    pub fn forget(&mut self) {
        self.resting.retain(|r| matches!(r.route, Route::Relay { .. }));
        self.answered.clear();
        self.checks.retain(|c| c.candidate.kind != CandidateKind::PeerReflexive);
        self.checks.iter_mut().for_each(|c| {
            c.asked.clear();
            (c.step, c.rtt) = (SCHEDULE.len(), None);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ([u8; 4], u16) = ([192, 0, 2, 1], 4000);
    const B: ([u8; 4], u16) = ([192, 0, 2, 2], 4000);

    fn host(address: ([u8; 4], u16)) -> Candidate {
        Candidate { kind: CandidateKind::Host, address: address.into() }
    }

    /// What a round that begins now asks until so long after.
    fn play(paths: &mut Paths, from: Time, d: Duration) -> Vec<(Time, Ask)> {
        let (mut budget, mut rng, mut out) = (Budget::default(), Rng::from_seed([1; 32]), vec![]);
        while let Some(at) = paths.deadline(true).map(|at| at.max(from)).filter(|at| *at <= from + d) {
            let asks = paths.due(at, true, 1, (&mut budget, 0), &mut rng);
            out.extend(asks.into_iter().map(|a| (at, a)));
        }
        out
    }

    fn challenges(asks: &[(Time, Ask)], of: ([u8; 4], u16)) -> Vec<[u8; 8]> {
        let challenge = |(_, a): &(Time, Ask)| match a {
            Ask::Request { to, challenge } if *to == of.into() => Some(*challenge),
            _ => None,
        };
        asks.iter().filter_map(challenge).collect()
    }

    /// An answer counts once, from where it was asked, to what was asked there. [P-VALIDATE]
    #[test]
    fn answers_to_other_questions() {
        let mut paths = Paths::default();
        assert!(paths.told(Time(0), 1, (1, 0, vec![host(A), host(B)]), |_| true));
        let asks = play(&mut paths, Time(0), Duration::from_millis(100));
        let (a, b) = (challenges(&asks, A), challenges(&asks, B));
        assert_eq!((a.len(), b.len()), (3, 3));
        let now = Time(150_000_000);
        for (from, challenge) in [(B, a[0]), (A, b[0]), (A, [0; 8]), (([9; 4], 1), a[0])] {
            assert_eq!(paths.responded(now, from.into(), &challenge), None);
        }
        assert_eq!(paths.responded(now, A.into(), &a[2]), Some(Duration::from_millis(75)));
        assert_eq!(paths.responded(now, A.into(), &a[2]), None);
        // Whoever has answered is not asked again in this round.
        paths.answers(A.into());
        let asks = play(&mut paths, now, Duration::from_secs(1));
        assert_eq!((challenges(&asks, A).len(), challenges(&asks, B).len()), (0, 2));
    }

    /// A router opens a port a while after the session stands: it is asked at once, although its address has had nearly
    /// all that it gets. [P-BUDGET]
    #[test]
    fn a_port_that_is_opened_late() {
        // The port that the router had given before, and another one.
        let opened = [(A.0, 4000), (A.0, 5000)].iter().flat_map(|to| [100, 300, 1900].map(|ms| (*to, ms)));
        for (to, opened) in opened {
            let mapped = Candidate { kind: CandidateKind::Mapped, address: to.into() };
            let (mut paths, mut budget, mut rng) =
                (Paths::default(), Budget::default(), Rng::from_seed([1; 32]));
            let mut play = |paths: &mut Paths, from: u64, until: u64| {
                let at = |ms: u64| Time(ms * 1_000_000);
                (from..until).flat_map(|ms| paths.due(at(ms), true, 1, (&mut budget, 0), &mut rng)).count()
            };
            paths.told(Time(0), 1, (1, 1, vec![host(A)]), |_| true);
            let before = play(&mut paths, 0, opened);
            assert_eq!(before, if opened < 200 { 3 } else { 4 });
            paths.told(
                Time(opened * 1_000_000),
                1,
                (2, 1, if to == A { vec![mapped] } else { vec![mapped, host(A)] }),
                |_| true,
            );
            play(&mut paths, opened, opened + 1);
            let asked = paths.checks.iter().find(|c| c.candidate == mapped).map(|c| c.sent as usize);
            let before = if to == A { before } else { 0 };
            assert_eq!(asked, Some(before + 1), "{to:?} opened after {opened} ms");
        }
    }

    /// COMPLETE counts once, from where RESPONSE was sent, with both challenges, for a while. [P-VALIDATE]
    #[test]
    fn completions() {
        let (mut paths, mut rng) = (Paths::default(), Rng::from_seed([1; 32]));
        let (now, later) = (Time(0), Time(5_000_000));
        let own = paths.asked(now, A.into(), [7; 8], &mut rng);
        for (from, challenge, answer) in [(B, [7; 8], own), (A, [8; 8], own), (A, [7; 8], [7; 8])] {
            assert_eq!(paths.completed(later, from.into(), &challenge, &answer), None);
        }
        assert_eq!(paths.completed(later, A.into(), &[7; 8], &own), Some(Duration::from_millis(5)));
        assert_eq!(paths.completed(later, A.into(), &[7; 8], &own), None);
        // Those that wait are few: the oldest is forgotten.
        let first = paths.asked(now, A.into(), [1; 8], &mut rng);
        for n in 0..MAX_ANSWERED {
            paths.asked(now, B.into(), [n as u8; 8], &mut rng);
        }
        assert_eq!(paths.completed(later, A.into(), &[1; 8], &first), None);
        assert_eq!(paths.answered.len(), MAX_ANSWERED);
    }

    /// Candidates are told until they have been heard; what must not be asked is not; a repeat begins a round, rarely.
    /// [P-PATHS]
    #[test]
    fn telling() {
        let mut paths = Paths::default();
        paths.reset(Time(0));
        let tells = play(&mut paths, Time(0), Duration::from_secs(60));
        assert!((8..15).contains(&tells.len()) && tells.iter().all(|(_, a)| *a == Ask::Tell));
        let now = Time(60_000_000_000);
        assert!(paths.told(now, 1, (1, 1, vec![host(A), host(B)]), |a| *a == SocketAddr::from(B)));
        assert_eq!(paths.theirs, [host(B)]);
        assert!(!paths.told(now, 1, (1, 1, vec![host(A)]), |_| true), "the same number again");
        assert_eq!(challenges(&play(&mut paths, now, Duration::from_secs(1)), B).len(), 4);
        for ms in 0..1000 {
            paths.told(now + Duration::from_millis(ms), 1, (1, 1, vec![]), |_| true);
        }
        assert_eq!(paths.round, Some(now + ROUND_APART));
    }
}
