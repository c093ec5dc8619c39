//! Which counters of a sender were seen: a sliding window of bits (RFC 4303 section 3.4.3, in RFC 6479's word-wise form).

use shadowmesh_wire::DropReason;

/// The last `64 * WORDS` counters, the newest 64 short.
#[derive(Debug)]
pub struct ReplayWindow<const WORDS: usize> {
    /// One past the highest counter accepted.
    next: u64,
    words: [u64; WORDS],
}

impl<const WORDS: usize> Default for ReplayWindow<WORDS> {
    fn default() -> Self {
        ReplayWindow { next: 0, words: [0; WORDS] }
    }
}

impl<const WORDS: usize> ReplayWindow<WORDS> {
    /// A counter is too old so far below the next: the oldest word is given up as a whole.
    pub const SPAN: u64 = 64 * (WORDS as u64 - 1);

    /// Is this counter new?
    ///
    /// # Errors
    /// `TooOld` below the window, `Replayed` when seen.
    pub fn check(&self, counter: u64) -> Result<(), DropReason> {
        if counter >= self.next {
            return Ok(());
        }
        if self.next - counter > Self::SPAN {
            return Err(DropReason::TooOld);
        }
        let seen = self.words[Self::word(counter)] >> (counter % 64) & 1 == 1;
        if seen { Err(DropReason::Replayed) } else { Ok(()) }
    }

    /// Marks a counter, below `u64::MAX`, that [`ReplayWindow::check`] allowed and whose packet is authentic.
    pub fn accept(&mut self, counter: u64) {
        if counter >= self.next {
            // Words entered for the first time are cleared; at most all of them.
            let old = if self.next == 0 { 0 } else { (self.next - 1) / 64 + 1 };
            let new = counter / 64;
            if new >= old.saturating_add(WORDS as u64) {
                self.words.fill(0);
            } else {
                for w in old..=new {
                    self.words[(w % WORDS as u64) as usize] = 0;
                }
            }
            self.next = counter + 1;
        }
        self.words[Self::word(counter)] |= 1 << (counter % 64);
    }

    fn word(counter: u64) -> usize {
        (counter / 64 % WORDS as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    /// Against the plainest possible model: a set of everything seen.
    fn is_a_set<const WORDS: usize>(jumps: &[(u64, bool)], base: u64) -> Result<(), TestCaseError> {
        let (mut w, mut seen, mut top) = (ReplayWindow::<WORDS>::default(), HashSet::new(), base);
        for (jump, forward) in jumps {
            let back = jump % (ReplayWindow::<WORDS>::SPAN + 200);
            let c = if *forward { top + jump } else { top.saturating_sub(back) };
            let expect = if seen.is_empty() || c > top {
                Ok(())
            } else if top + 1 - c > ReplayWindow::<WORDS>::SPAN {
                Err(DropReason::TooOld)
            } else if seen.contains(&c) {
                Err(DropReason::Replayed)
            } else {
                Ok(())
            };
            prop_assert_eq!(w.check(c), expect);
            if expect.is_ok() {
                w.accept(c);
                top = if seen.is_empty() { c } else { top.max(c) };
                seen.insert(c);
            }
        }
        Ok(())
    }

    proptest! {
        /// A lane's, and a relay client's. [P-REPLAY] [P-RELAY-MAC]
        #[test]
        fn window_is_a_set(jumps in prop::collection::vec((0u64..20_000, any::<bool>()), 1..300), base: u32) {
            is_a_set::<128>(&jumps, base.into())?;
            is_a_set::<16>(&jumps, base.into())?;
            let near: Vec<_> = jumps.iter().map(|(j, f)| (j % 90, *f)).collect();
            is_a_set::<128>(&near, 0)?;
            is_a_set::<16>(&near, 0)?;
        }
    }

    #[test]
    fn the_end_of_the_counters_is_no_overflow() {
        let mut w = ReplayWindow::<16>::default();
        w.accept(u64::MAX - 1);
        assert_eq!(w.check(u64::MAX - 1), Err(DropReason::Replayed));
        assert_eq!(w.check(5), Err(DropReason::TooOld));
    }
}
