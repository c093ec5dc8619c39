//! Reassembly of RESPONSE, ESTABLISHED and CERT, bounded in number, size and time.

use crate::Time;
use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

/// The pieces of one message so far.
#[derive(Debug)]
pub(crate) struct Pieces {
    parts: Vec<Option<Vec<u8>>>,
}

impl Pieces {
    pub fn new(count: u8) -> Self {
        Pieces { parts: vec![None; usize::from(count)] }
    }

    /// Adds one; a part that is there already is replaced, so that a forged one does not stay in the way of a repeat.
    pub fn add(&mut self, index: u8, bytes: &[u8]) {
        if let Some(part) = self.parts.get_mut(usize::from(index)) {
            *part = Some(bytes.to_vec());
        }
    }

    pub fn count(&self) -> usize {
        self.parts.len()
    }

    pub fn has(&self, index: u8) -> bool {
        self.parts.get(usize::from(index)).is_some_and(Option::is_some)
    }

    /// Bit n set: part n is missing.
    pub fn missing(&self) -> u32 {
        self.parts.iter().enumerate().fold(0, |m, (i, p)| if p.is_none() { m | 1 << i } else { m })
    }

    /// The parts that are there, in order.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.iter().flatten().map(Vec::as_slice)
    }

    /// The message, when all parts are there.
    pub fn whole(&self) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        for p in &self.parts {
            out.extend_from_slice(p.as_ref()?);
        }
        Some(out)
    }
}

/// Many messages under reassembly, each for `lifetime` at most, `cap` of them in all.
pub(crate) struct Reassembly<K> {
    lifetime: Duration,
    cap: usize,
    entries: HashMap<K, (Time, Pieces)>,
}

impl<K: Eq + Hash + Clone> Reassembly<K> {
    pub fn new(lifetime: Duration, cap: usize) -> Self {
        Reassembly { lifetime, cap, entries: HashMap::new() }
    }

    /// Adds a piece; gives the whole message once, when it is complete. `Err` when there is no room.
    pub fn add(
        &mut self,
        now: Time,
        key: K,
        index: u8,
        count: u8,
        bytes: &[u8],
    ) -> Result<Option<Pieces>, ()> {
        if !self.entries.contains_key(&key) && self.entries.len() >= self.cap {
            self.expire(now);
            if self.entries.len() >= self.cap {
                return Err(());
            }
        }
        let (_, pieces) = self.entries.entry(key.clone()).or_insert_with(|| (now, Pieces::new(count)));
        if pieces.count() != usize::from(count) {
            *pieces = Pieces::new(count);
        }
        pieces.add(index, bytes);
        if pieces.missing() != 0 {
            return Ok(None);
        }
        Ok(self.entries.remove(&key).map(|(_, pieces)| pieces))
    }

    pub fn expire(&mut self, now: Time) {
        let lifetime = self.lifetime;
        self.entries.retain(|_, (at, _)| now.since(*at) < lifetime);
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }
}
