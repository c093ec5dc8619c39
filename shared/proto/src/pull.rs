//! Pull by hash: how everything large moves inside a session. The requester drives, in chunks, idempotent, of which a window
//! is outstanding [P-PULL]; the holder answers from a table of blobs and keeps nothing else.

use crate::Time;
use shadowmesh_crypto::kdf::{self, Hash, Label};
use shadowmesh_wire::control::{CHUNK, Control, MAX_CHUNKS};
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// Chunks asked for and not yet here: at first and at least, and at most once they come in time.
const WINDOW: usize = 8;
const MAX_WINDOW: usize = 32;
/// An answer is late after this, or after one and a half round trips, if that is less.
const REPEAT: Duration = Duration::from_millis(300);
/// And never sooner.
const SOONEST: Duration = Duration::from_millis(50);
/// A pull that has brought nothing for so long is given up.
const PATIENCE: Duration = Duration::from_secs(8);
/// Pulls under way or waiting, at one session.
const MAX_PULLS: usize = 64;

/// Names a blob that is no fact.
pub(crate) fn blob_hash(bytes: &[u8]) -> Hash {
    kdf::hash(Label::Blob, &[bytes])
}

struct Pull {
    hash: Hash,
    /// One entry a chunk; just one while their number is not known.
    chunks: Vec<Chunk>,
    known: bool,
    progress: Time,
}

#[derive(Clone, Default)]
struct Chunk {
    bytes: Option<Vec<u8>>,
    asked: Option<Time>,
}

impl Pull {
    /// Fills the window: chunks not asked for yet, and those whose answer is late.
    fn ask(&mut self, now: Time, late: Duration, window: usize) -> Vec<Control> {
        let fresh = |c: &Chunk| c.bytes.is_none() && c.asked.is_some_and(|at| now < at + late);
        let mut room = window.saturating_sub(self.chunks.iter().filter(|c| fresh(c)).count());
        let mut out = vec![];
        for (i, c) in self.chunks.iter_mut().enumerate() {
            if room == 0 {
                break;
            }
            if c.bytes.is_none() && !fresh(c) {
                c.asked = Some(now);
                out.push(Control::Pull { hash: self.hash, chunk: i as u16 });
                room -= 1;
            }
        }
        out
    }
}

/// The pulls of one session. One blob at a time, the rest wait: the window bounds what is under way.
pub(crate) struct Puller {
    waiting: VecDeque<Hash>,
    current: Option<Pull>,
    late: Duration,
    /// One more for each chunk that comes, half after one is late: a long way takes as many round trips as a short one, a
    /// narrow one is not filled.
    window: usize,
}

impl Default for Puller {
    fn default() -> Self {
        Puller { waiting: VecDeque::new(), current: None, late: REPEAT, window: WINDOW }
    }
}

impl Puller {
    /// The round trip to the holder, as last measured.
    pub fn measured(&mut self, rtt: Duration) {
        self.late = (rtt * 3 / 2).clamp(SOONEST, REPEAT);
    }

    /// Wants a blob; asks for it at once when nothing else is under way.
    pub fn want(&mut self, now: Time, hash: Hash) -> Vec<Control> {
        if self.wants(&hash) || self.waiting.len() >= MAX_PULLS {
            return vec![];
        }
        self.waiting.push_back(hash);
        self.next(now)
    }

    pub fn wants(&self, hash: &Hash) -> bool {
        self.waiting.contains(hash) || self.current.as_ref().is_some_and(|p| p.hash == *hash)
    }

    fn next(&mut self, now: Time) -> Vec<Control> {
        if self.current.is_some() {
            return vec![];
        }
        let Some(hash) = self.waiting.pop_front() else { return vec![] };
        let chunks = vec![Chunk::default()];
        let pull = self.current.insert(Pull { hash, chunks, known: false, progress: now });
        pull.ask(now, self.late, self.window)
    }

    /// A chunk came. Gives the blob when it is whole (its hash is the caller's to check: facts and blobs are hashed
    /// differently) and what to send next.
    pub fn chunk(
        &mut self,
        now: Time,
        hash: &Hash,
        chunk: u16,
        count: u16,
        bytes: Vec<u8>,
    ) -> (Option<Vec<u8>>, Vec<Control>) {
        let Some(p) = self.current.as_mut().filter(|p| p.hash == *hash) else { return (None, vec![]) };
        if count == 0 {
            self.current = None;
            return (None, self.next(now));
        }
        if !p.known {
            p.known = true;
            p.chunks.resize(usize::from(count.min(MAX_CHUNKS)), Chunk::default());
        }
        let last = usize::from(chunk) + 1 == p.chunks.len();
        if p.chunks.len() != usize::from(count) || (!last && bytes.len() != CHUNK) {
            return (None, vec![]);
        }
        let Some(place) = p.chunks.get_mut(usize::from(chunk)) else { return (None, vec![]) };
        if place.bytes.is_none() {
            place.bytes = Some(bytes);
            p.progress = now;
            self.window = MAX_WINDOW.min(self.window + 1);
        }
        if p.chunks.iter().all(|c| c.bytes.is_some()) {
            let blob = p.chunks.iter().filter_map(|c| c.bytes.as_ref()).flatten().copied().collect();
            self.current = None;
            return (Some(blob), self.next(now));
        }
        (None, p.ask(now, self.late, self.window))
    }

    /// When to call [`Puller::handle_timeout`].
    pub fn deadline(&self) -> Option<Time> {
        let p = self.current.as_ref()?;
        let late = |c: &Chunk| if c.bytes.is_none() { c.asked.map(|at| at + self.late) } else { None };
        Some(p.chunks.iter().filter_map(late).min().unwrap_or(p.progress + PATIENCE))
    }

    /// Asks again for what did not come. The second value names a blob that was given up.
    pub fn handle_timeout(&mut self, now: Time) -> (Vec<Control>, Option<Hash>) {
        let late = self.deadline().is_some_and(|d| d <= now);
        let Some(p) = self.current.as_mut() else { return (vec![], None) };
        if now.since(p.progress) >= PATIENCE {
            let lost = p.hash;
            self.current = None;
            return (self.next(now), Some(lost));
        }
        if late {
            self.window = WINDOW.max(self.window / 2);
        }
        (p.ask(now, self.late, self.window), None)
    }
}

/// One chunk of a blob; `count` 0 says that it is not here.
pub(crate) fn serve(blob: Option<&[u8]>, hash: Hash, chunk: u16) -> Control {
    let bytes = blob.unwrap_or_default();
    let count = bytes.len().div_ceil(CHUNK) as u16;
    match bytes.chunks(CHUNK).nth(usize::from(chunk)) {
        Some(piece) if count <= MAX_CHUNKS => Control::Chunk { hash, chunk, count, bytes: piece.to_vec() },
        _ => Control::Chunk { hash, chunk: 0, count: 0, bytes: vec![] },
    }
}

/// Blobs that are offered to one session for a while.
#[derive(Default)]
pub(crate) struct Offered(HashMap<Hash, Vec<u8>>);

impl Offered {
    pub fn add(&mut self, bytes: Vec<u8>) -> Hash {
        let hash = blob_hash(&bytes);
        self.0.insert(hash, bytes);
        hash
    }

    pub fn get(&self, hash: &Hash) -> Option<&[u8]> {
        self.0.get(hash).map(Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;

    /// [P-PULL] The window: one more for each chunk that comes, to its bound; half after one is late.
    #[test]
    fn what_comes_widens_the_window() {
        let blob = vec![7; usize::from(MAX_CHUNKS) * CHUNK];
        let hash = blob_hash(&blob);
        let (mut p, mut now, mut out) = (Puller::default(), Time(0), vec![]);
        let mut asked = p.want(now, hash);
        for _ in 0..5 {
            out.push(asked.len());
            let mut next = vec![];
            for c in std::mem::take(&mut asked) {
                let Control::Pull { hash, chunk } = c else { panic!() };
                let Control::Chunk { count, bytes, .. } = serve(Some(&blob), hash, chunk) else { panic!() };
                next.extend(p.chunk(now, &hash, chunk, count, bytes).1);
            }
            asked = next;
        }
        assert_eq!(out, [1, 9, 18, 32, 32]);
        assert!(p.handle_timeout(now).0.is_empty(), "nothing is late yet");
        now = p.deadline().unwrap();
        assert_eq!(p.handle_timeout(now).0.len(), 16);
    }

    /// [P-PULL] Any loss on the way: the blob arrives whole, or the pull ends; never more than the window outstanding.
    #[test]
    fn pulls_under_loss() {
        for seed in 0..50 {
            let mut dice = Rng::from_seed([seed; 32]);
            let blob: Vec<u8> = (0..dice.below(30_000) as usize + 1).map(|i| (i * 7) as u8).collect();
            let hash = blob_hash(&blob);
            let (mut p, mut now, mut got) = (Puller::default(), Time(0), None);
            let mut requests = p.want(now, hash);
            for _ in 0..10_000 {
                assert!(requests.len() <= MAX_WINDOW);
                let mut more = vec![];
                for r in requests {
                    let Control::Pull { hash: h, chunk } = r else { panic!() };
                    if dice.below(4) == 0 {
                        continue;
                    }
                    let Control::Chunk { hash: h, chunk, count, bytes } = serve(Some(&blob), h, chunk) else {
                        panic!()
                    };
                    if dice.below(4) == 0 {
                        continue;
                    }
                    let (whole, next) = p.chunk(now, &h, chunk, count, bytes);
                    got = whole.or(got);
                    more.extend(next);
                }
                requests = more;
                if requests.is_empty() {
                    let Some(d) = p.deadline() else { break };
                    now = d;
                    requests = p.handle_timeout(now).0;
                }
            }
            assert_eq!(got, Some(blob));
        }
    }
}
