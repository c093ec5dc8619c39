//! Indexes of the lanes that this node receives on: drawn at random, and not drawn again soon.

use crate::Rng;
use shadowmesh_wire::data::MAX_INDEX;
use shadowmesh_wire::handshake::LANES;
use std::collections::{HashSet, VecDeque};

/// So many rest after their session's end, the last 512 sessions' (16 KiB): what comes late for an old lane must not find
/// a new one, where it would count as a forgery.
const RESTING: usize = 4096;

#[derive(Default)]
pub(super) struct Indexes {
    taken: HashSet<u32>,
    resting: VecDeque<u32>,
}

impl Indexes {
    /// Eight that no lane has, nor had lately. The low four bits name the opener that owns the lane: one, for now.
    pub fn fresh(&mut self, rng: &mut Rng) -> [u32; LANES] {
        std::array::from_fn(|_| {
            loop {
                let index = (rng.u64() as u32) & MAX_INDEX & !15;
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
            let some = indexes.fresh(&mut rng);
            indexes.free(&some);
            assert!(some.iter().all(|i| all.insert(*i) && i % 16 == 0 && *i <= MAX_INDEX));
        }
        assert_eq!(indexes.taken.len(), RESTING);
        let some = indexes.fresh(&mut rng);
        indexes.free(&some);
        assert_eq!((indexes.taken.len(), indexes.resting.len()), (RESTING, RESTING));
    }
}
