//! Path MTU discovery: Datagram Packetization Layer PMTUD (RFC 8899) by probes on the session, for each peer on the path
//! that it is reached by. No ICMP is believed, and nothing is asked before a session stands. [P-PMTU] [P-BLACKHOLE]
//!
//! A size is a datagram's, UDP payload without a relay header, in bytes, unless something else is said.

use super::Node;
use crate::Time;
use crate::snapshot::{PeerId, Route};
use crate::time::earlier;
use shadowmesh_wire::data::{FRAGMENT_HEADER, FRAME_OVERHEAD, Kind, LaneReport, MAX_FRAME_FRAGMENTS, Probe};
use shadowmesh_wire::handshake::LANES;
use shadowmesh_wire::relay::RELAY_HEADER;
use shadowmesh_wire::{DropReason, SAFE_DATAGRAM};
use std::net::SocketAddr;
use std::time::Duration;

/// BASE_PLPMTU, and MIN_PLPMTU (RFC 8899 section 5.1.2): what crosses every path that a handshake crosses.
const BASE: usize = SAFE_DATAGRAM;
/// IP packets that common links take, bytes, ascending; the last gives MAX_PLPMTU. IPv6's least, tunnels in tunnels,
/// WireGuard and mobile networks, IPv6 in IPv4, PPPoE (RFC 2516), Ethernet, Ethernet with room for a tunnel, jumbo frames.
const LINKS: [usize; 12] = [1280, 1320, 1360, 1400, 1420, 1440, 1460, 1480, 1492, 1500, 1600, 9000];
/// What is tried first: mostly it is one of them.
const COMMON: [usize; 3] = [1400, 1500, 9000];
/// The one of them that most have.
const ETHERNET: usize = 1500;
/// Rounds after the first in which a size may go unanswered (RFC 8899 section 5.1.2).
const MAX_PROBES: u8 = 3;
/// PROBE_TIMER: from round to round, and the most when nothing at all is answered.
const PROBE_TIMER: Duration = Duration::from_secs(1);
const MAX_PROBE_TIMER: Duration = Duration::from_secs(8);
/// PMTU_RAISE_TIMER: the path may have grown.
const PMTU_RAISE_TIMER: Duration = Duration::from_secs(600);
/// Between reports, while frames are received.
const REPORTS: Duration = Duration::from_millis(100);
/// With one and a half round trips: so long may large datagrams go out without a report of one. Two are due by then, and
/// TCP's second retransmission (RFC 6298, with Linux's least of 200 ms) comes after 600 ms.
const UNREPORTED: Duration = Duration::from_millis(350);
/// And the most, for a peer that answers probes and reports nothing.
const MAX_UNREPORTED: Duration = Duration::from_secs(64);
/// Largest frame of a device: the largest MTU that it can be given, an Ethernet header, two tags.
const LARGEST_FRAME: usize = 9216 + 14 + 8;

// The largest frame goes in fragments over the smallest path, so nobody has to be told that a packet is too big.
const _: () = assert!(LARGEST_FRAME <= MAX_FRAME_FRAGMENTS * (BASE - FRAME_OVERHEAD - FRAGMENT_HEADER));

/// How large datagrams a path takes.
#[derive(Debug)]
pub(super) struct PathMtu {
    route: Option<Route>,
    /// What each datagram becomes longer by on its way: relay, UDP and IP headers, bytes.
    headers: usize,
    /// PLPMTU: the largest that is sent.
    size: usize,
    /// What the peer says that it takes.
    announced: usize,
    /// The search goes no further: the peer's word, or what was refused or lost.
    limit: usize,
    /// Names the search in its probes, so that answers to another's count for nothing.
    search: u32,
    /// Bit i: candidate i was sent in this search.
    asked: u16,
    /// Rounds in which the path lived: without any answer a round says nothing of sizes.
    rounds: u8,
    answered: bool,
    probe_timer: Duration,
    /// The next round is due, or the next search.
    next: Option<Time>,
    /// The last report of large ones.
    reported: Reported,
    /// A datagram that is to be reported.
    unreported: Option<Expected>,
    patience: Duration,
    fell: Time,
}

/// What a report says.
#[derive(Debug, Clone, Copy, Default)]
struct Reported {
    at: Time,
    largest: usize,
    /// By lane.
    highest: [u64; LANES],
}

/// A datagram was sent: its size, lane and counter; and how long after `since` a report may be on its way, beside patience.
#[derive(Debug, Clone, Copy)]
struct Expected {
    since: Time,
    travels: Duration,
    size: usize,
    lane: usize,
    counter: u64,
}

impl Reported {
    /// Does it tell of that size, and was it made when that counter had been reached?
    fn covers(&self, e: &Expected) -> bool {
        self.largest >= e.size && self.highest.get(e.lane).is_some_and(|h| *h >= e.counter)
    }
}

impl Default for PathMtu {
    fn default() -> Self {
        PathMtu {
            route: None,
            headers: 0,
            size: BASE,
            announced: usize::MAX,
            limit: usize::MAX,
            search: 0,
            asked: 0,
            rounds: 0,
            answered: false,
            probe_timer: PROBE_TIMER,
            next: None,
            reported: Reported::default(),
            unreported: None,
            patience: UNREPORTED,
            fell: Time(0),
        }
    }
}

impl PathMtu {
    /// Of another path to the same peer: what it takes is known.
    pub fn of_peer(other: &PathMtu) -> Self {
        PathMtu { announced: other.announced, limit: other.announced, ..Self::default() }
    }

    /// Is it known that something comes through?
    pub fn is_answered(&self) -> bool {
        self.answered || self.rounds > 0 || self.size > BASE
    }

    /// It carries no more: nothing that it took is waited for.
    pub fn rest(&mut self) {
        self.unreported = None;
    }

    /// It carries from now on: reports of before are of another path.
    pub fn carry(&mut self, now: Time) {
        (self.reported, self.unreported) = (Reported { at: now, ..Reported::default() }, None);
    }

    /// PLPMTU by this route.
    pub fn size_on(&self, route: Option<Route>) -> usize {
        if route == self.route { self.size } else { BASE }
    }

    /// What a TCP segment, of a connection that begins now, is to fit: PLPMTU, or while that is searched what an Ethernet
    /// takes. [P-MSS]
    pub fn segment_on(&self, route: Option<Route>) -> usize {
        let searching = self.size == BASE && self.rounds <= MAX_PROBES;
        if route == self.route && searching {
            ETHERNET.saturating_sub(self.headers).min(self.limit).max(BASE)
        } else {
            self.size_on(route)
        }
    }

    /// The IP packet of a datagram of that size.
    pub fn packet(&self) -> usize {
        self.size + self.headers
    }

    /// The peer says what it takes.
    pub fn announced(&mut self, size: u16) {
        self.announced = usize::from(size);
    }

    /// A session stands by this route: the search begins, from what is known of the route, or from BASE.
    pub fn begin(&mut self, now: Time, route: Route, headers: usize) {
        if self.route != Some(route) {
            let PathMtu { announced, search, .. } = *self;
            *self = PathMtu { route: Some(route), announced, search, ..Self::default() };
        }
        (self.headers, self.limit, self.unreported) = (headers, self.announced, None);
        self.search(now);
    }

    /// Nothing can be asked now.
    pub fn postpone(&mut self, now: Time) {
        self.unreported = None;
        self.next = Some(now + PROBE_TIMER);
    }

    fn search(&mut self, now: Time) {
        self.search = self.search.wrapping_add(1);
        (self.asked, self.rounds, self.answered) = (0, 0, false);
        self.probe_timer = PROBE_TIMER;
        self.next = Some(now);
    }

    /// The size of a candidate: 0 is BASE, which shows that the path lives at all.
    fn candidate(&self, i: usize) -> Option<usize> {
        match i.checked_sub(1) {
            None => Some(BASE),
            Some(i) => LINKS.get(i)?.checked_sub(self.headers),
        }
    }

    /// Sizes that are still to be found out, ascending: what is sent by one segmented system call (UDP_SEGMENT) may be
    /// dropped as one, and its sizes never grow.
    fn candidates(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let all = (1..=LINKS.len()).filter_map(|i| Some((i, self.candidate(i)?)));
        all.filter(|(_, size)| *size > self.size && *size <= self.limit)
    }

    /// When something is due.
    pub fn deadline(&self) -> Option<Time> {
        earlier(self.next, self.unreported.map(|e| self.due(&e)))
    }

    fn due(&self, e: &Expected) -> Time {
        e.since + self.patience + e.travels
    }

    /// Has nothing of what was sent arrived for too long? Then this is a black hole (RFC 8899 section 4.3), and BASE it is
    /// from now on.
    fn expire(&mut self, now: Time) -> bool {
        if self.unreported.is_none_or(|e| now < self.due(&e)) {
            return false;
        }
        // A peer that answers probes and reports nothing makes this rare.
        self.patience = (self.patience * 2).min(MAX_UNREPORTED);
        self.fell = now;
        self.fall(now, self.size);
        true
    }

    /// BASE at once, and a search up to `limit`.
    fn fall(&mut self, now: Time, limit: usize) {
        (self.size, self.limit, self.unreported) = (BASE, limit, None);
        self.search(now);
    }

    /// Probes that are due, each a number and a size; `headers` are those of the path as it is now.
    pub fn probes(&mut self, now: Time, headers: usize) -> Vec<(u32, usize)> {
        if self.next.is_none_or(|at| now < at) {
            return vec![];
        }
        self.headers = headers;
        if self.rounds > MAX_PROBES {
            // PMTU_RAISE_TIMER: what was too large may not be any more.
            self.limit = self.announced;
            self.search(now);
        }
        if self.answered {
            self.rounds += 1;
            self.probe_timer = PROBE_TIMER;
        } else if self.asked != 0 {
            self.probe_timer = (self.probe_timer * 2).min(MAX_PROBE_TIMER);
        }
        self.answered = false;
        if self.rounds > MAX_PROBES || self.candidates().next().is_none() {
            self.complete(now);
            return vec![];
        }
        self.next = Some(now + self.probe_timer);
        let first = self.rounds == 0;
        let wanted = |i: usize| !first || i.checked_sub(1).is_some_and(|i| COMMON.contains(&LINKS[i]));
        let mut round = vec![(0, BASE)];
        round.extend(self.candidates().filter(|(i, _)| wanted(*i)));
        self.asked |= round.iter().map(|(i, _)| 1 << i).sum::<u16>();
        round.into_iter().map(|(i, size)| (self.search << 8 | i as u32, size)).collect()
    }

    fn complete(&mut self, now: Time) {
        self.rounds = MAX_PROBES + 1;
        self.next = Some(now + PMTU_RAISE_TIMER);
    }

    /// A probe has arrived; `true`: larger datagrams may be sent from now on.
    pub fn acked(&mut self, now: Time, number: u32) -> bool {
        let i = (number & 0xff) as usize;
        if number >> 8 != self.search & 0xff_ffff || i > LINKS.len() || self.asked & 1 << i == 0 {
            return false;
        }
        self.answered = true;
        let Some(size) = self.candidate(i).filter(|s| *s > self.size && *s <= self.limit) else {
            return false;
        };
        self.size = size;
        if self.candidates().next().is_none() {
            self.complete(now);
        }
        true
    }

    /// Frames went out from `since` on, in datagrams of this size at most, such a one by that lane with that counter: a
    /// report is to tell of it, or has done so already.
    pub fn sent(&mut self, since: Time, size: usize, (lane, counter): (usize, u64), rtt: Option<Duration>) {
        // What was sent before a larger size fell is not waited for.
        let travels = rtt.unwrap_or_default() * 3 / 2;
        let expected = Expected { since, travels, size: size.min(self.size), lane, counter };
        let reported = self.reported.at >= since && self.reported.covers(&expected);
        if expected.size <= BASE || reported || self.unreported.is_some() {
            return;
        }
        if since.since(self.fell) > 16 * self.patience {
            self.patience = UNREPORTED;
        }
        self.unreported = Some(expected);
    }

    /// The peer tells what has arrived since its report before.
    pub fn reported(&mut self, now: Time, lanes: &[LaneReport]) {
        let mut report = Reported { at: now, ..Reported::default() };
        for l in lanes {
            report.largest = report.largest.max(usize::from(l.largest));
            if let Some(highest) = report.highest.get_mut(usize::from(l.lane)) {
                *highest = (*highest).max(l.highest);
            }
        }
        if report.largest >= self.reported.largest || now.since(self.reported.at) >= REPORTS {
            self.reported = report;
        }
        self.patience = UNREPORTED;
        match &mut self.unreported {
            Some(e) if report.covers(e) => self.unreported = None,
            // That size does arrive, behind a long queue.
            Some(e) if report.largest >= e.size => e.since = now,
            _ => {}
        }
    }

    /// This machine's interface does not take that size; `true`: smaller ones are sent from now on.
    fn refused(&mut self, now: Time, size: usize) -> bool {
        let limit = size.saturating_sub(1).max(BASE);
        if size <= self.size && self.size > BASE {
            self.fall(now, limit);
            return true;
        }
        self.limit = self.limit.min(limit);
        false
    }
}

impl Node {
    /// A session has been chosen: its path is searched, if it is a new one, or the peer is.
    pub(super) fn search_path(&mut self, now: Time, p: PeerId, first: bool) {
        let peer = &self.peers[p as usize];
        let Some(route) = self.route(peer) else { return };
        if first || peer.path.route != Some(route) {
            let headers = self.first_hop(&route).map_or(0, |(_, headers)| headers);
            self.peers[p as usize].path.begin(now, route, headers);
            self.dirty = true;
        }
    }

    /// What the search asks for.
    pub(super) fn path_timeout(&mut self, now: Time, p: PeerId) {
        let peer = &self.peers[p as usize];
        // Not by a relay that is not there, nor where frames wait. [P-FORMER]
        let route = self.route(peer).filter(|r| !self.is_former(Some(*r)));
        let hop = route.and_then(|r| self.first_hop(&r));
        let (Some(id), Some((_, headers))) = (peer.sending, hop) else {
            return self.peers[p as usize].path.postpone(now);
        };
        let path = &mut self.peers[p as usize].path;
        self.dirty |= path.expire(now);
        for (number, size) in path.probes(now, headers) {
            self.send_kind(p, id, Kind::Probe, &Probe { number }.emit(size - FRAME_OVERHEAD));
        }
    }

    /// A datagram was larger than the interface by which this address is reached.
    pub(super) fn refused(&mut self, now: Time, to: SocketAddr, len: usize) {
        for p in 0..self.peers.len() {
            let hop_is_it = |r: &Route| self.first_hop(r).is_some_and(|(hop, _)| hop == to);
            let resting = self.peers[p].paths.resting.iter().map(|r| r.route);
            for route in resting.filter(hop_is_it).collect::<Vec<_>>() {
                let size = len.saturating_sub(relay_header(&route));
                let path = self.peers[p].paths.resting.iter_mut().find(|r| r.route == route);
                path.map(|r| r.mtu.refused(now, size));
            }
            let route = self.peers[p].path.route;
            if let Some(route) = route
                && self.first_hop(&route).is_some_and(|(hop, _)| hop == to)
            {
                let size = len.saturating_sub(relay_header(&route));
                if self.peers[p].path.refused(now, size) {
                    // More than a probe, frames too.
                    self.drops.count(DropReason::TooLong);
                    self.dirty = true;
                }
            }
        }
    }

    /// Where datagrams by this route go first, and the headers that they get, bytes.
    pub(super) fn first_hop(&self, route: &Route) -> Option<(SocketAddr, usize)> {
        let hop = match *route {
            Route::Udp(address) => address,
            Route::Relay { relay, .. } => {
                self.links.get(relay as usize).filter(|l| l.is_up()).and_then(|l| l.address())?
            }
        };
        // RFC 791, RFC 8200, RFC 768.
        let ip = if hop.is_ipv4() { 20 } else { 40 };
        Some((hop, relay_header(route) + 8 + ip))
    }
}

fn relay_header(route: &Route) -> usize {
    if matches!(route, Route::Relay { .. }) { RELAY_HEADER } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: usize = 28;
    const MS: u64 = 1_000_000;

    fn route() -> Route {
        Route::Udp(SocketAddr::from(([192, 0, 2, 1], 4000)))
    }

    /// A path whose search has begun.
    fn begun() -> PathMtu {
        let mut path = PathMtu::default();
        path.begin(Time(0), route(), V4);
        path
    }

    /// Plays a link that takes packets of `mtu` bytes for so long, losing each probe for which `lost` says so; gives how
    /// many there were.
    fn play(path: &mut PathMtu, from: Time, d: Duration, mtu: usize, lost: impl Fn(usize) -> bool) -> usize {
        let (mut probes, end) = (0, from + d);
        while let Some(at) = path.deadline().map(|at| at.max(from)).filter(|at| *at < end) {
            path.expire(at);
            for (number, size) in path.probes(at, V4) {
                probes += 1;
                if size + V4 <= mtu && !lost(probes) {
                    path.acked(at, number);
                }
            }
        }
        probes
    }

    /// Common links are known within one round, others within a second, with few probes. [P-PMTU]
    #[test]
    fn links_are_found() {
        for mtu in LINKS {
            let mut path = begun();
            let first = Duration::from_millis(1);
            play(&mut path, Time(0), first, mtu, |_| false);
            assert_eq!(path.packet(), COMMON.into_iter().rfind(|c| *c <= mtu).unwrap_or(BASE + V4));
            let probes = play(&mut path, Time(0) + first, Duration::from_secs(60), mtu, |_| false);
            assert_eq!(path.packet(), mtu);
            assert!(probes < 40, "{probes} probes for {mtu}");
        }
    }

    /// A link that takes less than any candidate, and one that takes something between two.
    #[test]
    fn what_is_found_fits() {
        for (mtu, found) in [(1260, BASE + V4), (1300, 1280), (1499, 1492), (8999, 1600), (65_535, 9000)] {
            let mut path = begun();
            play(&mut path, Time(0), Duration::from_secs(10), mtu, |_| false);
            assert_eq!(path.packet(), found);
        }
    }

    /// Losing half of the probes costs time, not size.
    #[test]
    fn loss_is_no_answer() {
        let mut path = begun();
        play(&mut path, Time(0), Duration::from_secs(10), 1500, |n| n % 2 == 0);
        assert_eq!(path.packet(), 1500);
        // Nor does a path that is dead for a minute.
        let mut path = begun();
        let probes = play(&mut path, Time(0), Duration::from_secs(60), 1500, |_| true);
        assert!(path.packet() == BASE + V4 && probes < 60, "{probes} probes");
        play(&mut path, Time(60_000 * MS), Duration::from_secs(10), 1500, |_| false);
        assert_eq!(path.packet(), 1500);
    }

    /// The peer's word bounds the search, and after ten minutes there is another. [P-PMTU]
    #[test]
    fn announced_and_raised() {
        let mut path = PathMtu::default();
        path.announced(1400 - V4 as u16);
        path.begin(Time(0), route(), V4);
        play(&mut path, Time(0), Duration::from_secs(10), 9000, |_| false);
        assert_eq!(path.packet(), 1400);
        let mut path = begun();
        play(&mut path, Time(0), Duration::from_secs(590), 1400, |_| false);
        assert_eq!(path.packet(), 1400);
        play(&mut path, Time(590_000 * MS), Duration::from_secs(20), 1500, |_| false);
        assert_eq!(path.packet(), 1500);
    }

    /// An answer counts for what was asked in this search alone.
    #[test]
    fn answers_to_other_questions() {
        let mut path = begun();
        let jumbo = path.search << 8 | LINKS.len() as u32;
        assert!(!path.acked(Time(0), jumbo), "nothing was asked yet");
        path.probes(Time(0), V4);
        path.begin(Time(1), route(), V4);
        path.probes(Time(1), V4);
        for number in [jumbo, 0, u32::MAX, path.search << 8 | 0xff, path.search << 8 | 13] {
            assert!(!path.acked(Time(1), number), "{number:x}");
        }
        assert!(path.acked(Time(1), path.search << 8 | LINKS.len() as u32));
    }

    /// Another route begins at BASE; the same one, in another session, where it was.
    #[test]
    fn another_route() {
        let mut path = begun();
        play(&mut path, Time(0), Duration::from_secs(10), 1500, |_| false);
        path.begin(Time(20_000 * MS), route(), V4);
        assert_eq!(path.size_on(Some(route())), 1500 - V4);
        let relayed = Route::Relay { relay: 0, handle: 1 };
        assert_eq!(path.size_on(Some(relayed)), BASE);
        path.begin(Time(20_000 * MS), relayed, V4 + RELAY_HEADER);
        assert_eq!(path.size_on(Some(relayed)), BASE);
    }

    fn found(mtu: usize) -> PathMtu {
        let mut path = begun();
        play(&mut path, Time(0), Duration::from_secs(10), mtu, |_| false);
        assert_eq!(path.packet(), mtu);
        path
    }

    fn report(largest: usize, highest: u64) -> [LaneReport; 1] {
        [LaneReport { lane: 1, highest, received: highest + 1, largest: largest as u16 }]
    }

    /// What is not reported for a third of a second has not arrived. [P-BLACKHOLE]
    #[test]
    fn a_black_hole() {
        let (t, mut path) = (|ms: u64| Time((20_000 + ms) * MS), found(1500));
        let (large, rtt) = (1500 - V4, Some(Duration::from_millis(20)));
        // Reported before it was known to have been sent, and after; what is small needs no report.
        path.reported(t(50), &report(large, 7));
        path.sent(t(0), large, (1, 7), rtt);
        assert!(path.unreported.is_none());
        path.sent(t(100), large, (1, 8), rtt);
        path.reported(t(210), &report(large, 9));
        assert!(path.unreported.is_none());
        path.sent(t(320), BASE, (1, 10), rtt);
        assert!(path.unreported.is_none());
        // A report of what came before it; then small ones arrive, large ones do not.
        path.reported(t(410), &report(large, 11));
        path.sent(t(400), large, (1, 12), rtt);
        path.reported(t(450), &report(100, 13));
        path.sent(t(500), large, (1, 14), rtt);
        path.reported(t(550), &report(100, 15));
        assert!(!path.expire(t(779)) && path.expire(t(780)));
        assert_eq!(path.size_on(Some(route())), BASE);
        play(&mut path, t(780), Duration::from_secs(5), 1420, |_| false);
        assert_eq!(path.packet(), 1420);
        // A while later it is missed as soon as before.
        path.sent(t(20_000), 1420 - V4, (1, 16), rtt);
        assert!(!path.expire(t(20_379)) && path.expire(t(20_380)));
    }

    /// A peer that answers probes and reports nothing makes us search ever more rarely.
    #[test]
    fn no_reports_at_all() {
        let (mut path, mut falls, mut probes) = (found(9000), 0, 0);
        for ms in 0..600_000 {
            let now = Time((20_000 + ms) * MS);
            if ms % 100 == 0 {
                path.sent(now, path.size, (1, ms), None);
            }
            falls += u32::from(path.expire(now));
            probes += play(&mut path, now, Duration::from_nanos(1), 9000, |_| false);
        }
        assert!(falls < 20 && probes < 100, "{falls} falls, {probes} probes in ten minutes");
    }

    /// The own interface shrinks: at once, and what it refused is not asked for again in this search.
    #[test]
    fn refused_here() {
        let (now, mut path) = (Time(20_000 * MS), found(9000));
        assert!(!path.refused(now, 9000) && path.packet() == 9000);
        assert!(path.refused(now, 1500 - V4) && path.packet() == BASE + V4);
        let asked: Vec<_> = path.probes(now, V4).into_iter().map(|(_, size)| size).collect();
        assert_eq!(asked, [BASE, 1400 - V4]);
        assert!(!path.refused(now, BASE) && path.packet() == BASE + V4);
    }
}
