//! Rate limits on strangers, in constant memory: token buckets in a table that is indexed by a keyed hash of the
//! source's prefix. Two prefixes may share a bucket; nobody can choose to.

use super::Source;
use crate::Time;
use shadowmesh_crypto::kdf::mac8;
use shadowmesh_crypto::secret::Secret;

const BUCKETS: usize = 4096;

/// Token buckets for one kind of work.
pub struct Limits {
    key: Secret<32>,
    /// Tokens a second.
    rate: f64,
    burst: f64,
    buckets: Vec<(Time, f32)>,
}

impl Limits {
    /// `rate` a second for each prefix, `burst` at once.
    pub fn new(key: [u8; 32], rate: f64, burst: f64) -> Self {
        Limits { key: Secret::new(key), rate, burst, buckets: vec![(Time(0), burst as f32); BUCKETS] }
    }

    /// Takes one token for this source.
    pub fn allow(&mut self, now: Time, source: &Source) -> bool {
        let slot = u64::from_le_bytes(mac8(&self.key, &source.prefix())) as usize % BUCKETS;
        let Some((at, tokens)) = self.buckets.get_mut(slot) else { return false };
        let filled = f64::from(*tokens) + now.since(*at).as_secs_f64() * self.rate;
        let filled = filled.min(self.burst);
        *at = now;
        let ok = filled >= 1.0;
        *tokens = if ok { filled - 1.0 } else { filled } as f32;
        ok
    }
}
