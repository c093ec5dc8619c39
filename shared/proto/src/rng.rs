//! The one source of randomness of the cores, injected: the product seeds it from the operating system, the simulator
//! from its world's number. (KEM keys and signatures take theirs inside the crypto backend; no logic branches on them.)

use rand_chacha::ChaCha20Rng;
use rand_core::{Rng as _, SeedableRng as _};
use std::time::Duration;

/// A ChaCha20 generator.
pub struct Rng(ChaCha20Rng);

impl Rng {
    /// Seeds it; the seed must be secret in the product.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Rng(ChaCha20Rng::from_seed(seed))
    }

    /// Fresh bytes.
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        self.0.fill_bytes(&mut out);
        out
    }

    /// A fresh number.
    pub fn u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number below `n` (which is not 0). The bias is below 2^-32 for the small `n` used here.
    pub fn below(&mut self, n: u64) -> u64 {
        self.u64() % n.max(1)
    }

    /// `d`, more or less a quarter: so that a thousand clients do not come at once.
    pub fn jitter(&mut self, d: Duration) -> Duration {
        let span = u64::try_from(d.as_nanos() / 2).unwrap_or(u64::MAX).max(1);
        d - d / 4 + Duration::from_nanos(self.below(span))
    }
}
