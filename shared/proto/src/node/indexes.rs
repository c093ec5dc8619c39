//! Indexes of the lanes that this node receives on: drawn at random, and not drawn again soon.

use crate::Rng;
use shadowmesh_wire::data::MAX_INDEX;
use shadowmesh_wire::handshake::LANES;
use std::collections::{HashSet, VecDeque};

/// So many rest after their session's end, the last 512 sessions' (16 KiB): what comes late for an old lane must not find
/// a new one, where it would count as a forgery.
const RESTING: usize = 4096;

/// The bits of an index that name its opener ([`crate::snapshot::owner`]).
const OWNER: u32 = 15;

#[derive(Default)]
pub(super) struct Indexes {
    taken: HashSet<u32>,
    resting: VecDeque<u32>,
}

impl Indexes {
    /// Eight that no lane has, nor had lately. The low four bits name the opener, of so many, that owns the lane: another
    /// for each thread that the peer sends with, and of peers with one thread not always the same.
    pub fn fresh(&mut self, rng: &mut Rng, openers: usize) -> [u32; LANES] {
        let first = if openers > 1 { rng.below(openers as u64) as usize } else { 0 };
        std::array::from_fn(|lane| {
            // Lane 0 is the control half's, which hardly sends.
            let owner = (first + lane.saturating_sub(1)) % openers.max(1);
            loop {
                let index = (rng.u64() as u32) & MAX_INDEX & !OWNER | owner as u32;
                if self.taken.insert(index) {
                    return index;
                }
            }
        })
    }

    /// Their lanes are gone.
    pub fn free(&mut self, indexes: &[u32; LANES]) {
        self.resting.extend(indexes);
        while self.resting.len() > RESTING {
            if let Some(old) = self.resting.pop_front() {
                self.taken.remove(&old);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_rest_and_are_bounded() {
        let (mut indexes, mut rng) = (Indexes::default(), Rng::from_seed([1; 32]));
        let mut all = HashSet::new();
        for _ in 0..RESTING / LANES {
            let some = indexes.fresh(&mut rng, 1);
            indexes.free(&some);
            assert!(some.iter().all(|i| all.insert(*i) && i % 16 == 0 && *i <= MAX_INDEX));
        }
        assert_eq!(indexes.taken.len(), RESTING);
        let some = indexes.fresh(&mut rng, 1);
        indexes.free(&some);
        assert_eq!((indexes.taken.len(), indexes.resting.len()), (RESTING, RESTING));
    }

    /// A peer's threads meet different openers, and so do peers with one thread.
    #[test]
    fn openers_share_the_lanes() {
        let (mut indexes, mut rng) = (Indexes::default(), Rng::from_seed([2; 32]));
        let mut first = [0; 3];
        for _ in 0..300 {
            let owners = indexes.fresh(&mut rng, 3).map(|i| i & OWNER);
            let mut threads = owners[1..4].to_vec();
            threads.sort_unstable();
            assert_eq!(threads, [0, 1, 2]);
            first[owners[1] as usize] += 1;
        }
        assert!(first.iter().all(|n| *n > 50), "{first:?}");
    }
}
