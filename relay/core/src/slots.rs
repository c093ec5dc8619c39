//! Slots, and the proof that one is dead.
//!
//! A slot is the low byte of the epoch and a sequence number of 24 bits. No slot is given twice within an epoch, and no
//! epoch is used twice. So a slot of another epoch, or below the next sequence number, that is not live now never will be
//! again, and its reset token may be shown to anybody. The token of a slot that lives, or may live, is shown to nobody
//! but its client. [P-RESET]

use shadowmesh_crypto::kdf::{Label, mac16};
use shadowmesh_crypto::secret::Secret;

const SEQUENCES: u32 = 1 << 24;

/// Gives slots out.
pub(crate) struct Slots {
    /// Of the slots given out now.
    epoch: u64,
    /// The next sequence number; 0 is never used.
    next: u32,
}

impl Slots {
    /// `epoch` was never used before.
    pub fn new(epoch: u64) -> Self {
        Slots { epoch, next: 1 }
    }

    /// A slot that was never given; `None`: the epoch is used up.
    pub fn take(&mut self) -> Option<u32> {
        let sequence = self.next;
        if sequence >= SEQUENCES {
            return None;
        }
        self.next += 1;
        Some((self.epoch as u32 & 0xff) << 24 | sequence)
    }

    /// The token of a slot given out in this epoch.
    pub fn token(&self, key: &Secret<32>, slot: u32) -> [u8; 16] {
        token(key, self.epoch, slot)
    }

    /// The token of a slot that is not live, if it is certain that it never will be.
    pub fn token_of_dead(&self, key: &Secret<32>, slot: u32) -> Option<[u8; 16]> {
        let back = (self.epoch as u32 & 0xff).wrapping_sub(slot >> 24) & 0xff;
        let sequence = slot & (SEQUENCES - 1);
        // The epoch before the first, a slot that was not given yet, one that never is.
        let epoch = self.epoch.checked_sub(u64::from(back))?;
        if sequence == 0 || (back == 0 && sequence >= self.next) {
            return None;
        }
        Some(token(key, epoch, slot))
    }
}

fn token(key: &Secret<32>, epoch: u64, slot: u32) -> [u8; 16] {
    mac16(key, Label::ResetToken, &[&epoch.to_be_bytes(), &slot.to_be_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever is asked for now, it is the token of no slot that is given later. [P-RESET]
        #[test]
        fn no_token_of_the_future(epoch in 1u64..2000, given in 0u32..50, slot: u32, later in 0u64..600, n in 0u32..100) {
            let key = Secret::new([7; 32]);
            let mut slots = Slots::new(epoch);
            let mine: Vec<u32> = (0..given).filter_map(|_| slots.take()).collect();
            let asked = [slot, slot & 0xff00_0000 | n, (epoch as u32 & 0xff) << 24 | n];
            let shown: Vec<_> = asked.iter().filter_map(|s| slots.token_of_dead(&key, *s)).collect();
            let mut future = if later == 0 { slots } else { Slots::new(epoch + later) };
            for _ in 0..100 {
                let slot = future.take().unwrap();
                prop_assert!(!mine.contains(&slot) || later > 0);
                prop_assert!(!shown.contains(&future.token(&key, slot)));
            }
            // And a slot that was given is known to be dead, with the token that its client has.
            for s in mine {
                let before = Slots { epoch, next: given + 1 };
                prop_assert_eq!(before.token_of_dead(&key, s), Some(before.token(&key, s)));
                if later < 256 && later > 0 {
                    prop_assert_eq!(future.token_of_dead(&key, s), Some(before.token(&key, s)));
                }
            }
        }
    }

    #[test]
    fn an_epoch_ends() {
        let mut slots = Slots { epoch: 3, next: SEQUENCES - 1 };
        assert_eq!(slots.take(), Some(0x03ff_ffff));
        assert_eq!(slots.take(), None);
    }
}
