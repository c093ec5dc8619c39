//! Cookies: what lets a responder keep nothing until the initiator has shown that it reads what is sent to its address.
//! Also the puzzle, asked for under load.

use super::{Contact, Source};
use crate::{Rng, Time};
use shadowmesh_crypto::aead::{Key, Suite};
use shadowmesh_crypto::kdf::{self, Label};
use shadowmesh_crypto::secret::Secret;
use shadowmesh_wire::DropReason;
use shadowmesh_wire::handshake::{Challenge, Choice, CookieHeader, Hello};
use std::time::Duration;

/// How long one cookie key is used; the one before stays good as long.
const ROTATION: Duration = Duration::from_secs(120);

/// The responder's cookie keys.
pub(crate) struct CookieJar {
    current: Secret<32>,
    previous: Option<Secret<32>>,
    epoch: u8,
    rotated: Time,
}

impl CookieJar {
    pub fn new(now: Time, rng: &mut Rng) -> Self {
        CookieJar { current: Secret::new(rng.bytes()), previous: None, epoch: 0, rotated: now }
    }

    fn rotate(&mut self, now: Time, rng: &mut Rng) {
        if now.since(self.rotated) >= ROTATION {
            let fresh = Secret::new(rng.bytes());
            let old = std::mem::replace(&mut self.current, fresh);
            // After a pause of two rotations, nothing from before is good any more.
            self.previous = (now.since(self.rotated) < 2 * ROTATION).then_some(old);
            self.epoch = self.epoch.wrapping_add(1);
            self.rotated = now;
        }
    }

    /// The CHALLENGE for a HELLO whose MAC holds. The same HELLO gets the same one within a rotation.
    pub fn challenge(
        &mut self,
        now: Time,
        source: &Source,
        contact: &Contact,
        hello: &Hello,
        mut choice: Choice,
        rng: &mut Rng,
    ) -> Vec<u8> {
        self.rotate(now, rng);
        choice.epoch = self.epoch;
        let hash = super::transcript::hello_hash(&hello.core());
        let (nonce, cookie) = bake(&self.current, source, &hello.sid, &hash, &choice);
        choice.cookie = cookie;
        let key = Key::new(Suite::ChaCha20Poly1305, &contact.challenge_key(&hello.nonce, &nonce));
        let header = Challenge::header(&hello.sid, &nonce);
        let mut sealed = [0; Choice::LEN + 16];
        sealed[..Choice::LEN].copy_from_slice(&choice.emit());
        let tag = key.seal(0, &header, &mut sealed[..Choice::LEN]);
        sealed[Choice::LEN..].copy_from_slice(&tag);
        Challenge { sid: hello.sid, nonce, sealed }.emit()
    }

    /// R's nonce, if the cookie is one that this jar baked for this source. [P-COOKIE]
    pub fn check(
        &mut self,
        now: Time,
        source: &Source,
        h: &CookieHeader,
        rng: &mut Rng,
    ) -> Result<[u8; 16], DropReason> {
        self.rotate(now, rng);
        let key = if h.choice.epoch == self.epoch {
            &self.current
        } else if h.choice.epoch == self.epoch.wrapping_sub(1) {
            self.previous.as_ref().ok_or(DropReason::BadCookie)?
        } else {
            return Err(DropReason::BadCookie);
        };
        let (nonce, cookie) = bake(key, source, &h.sid, &h.hello_hash, &h.choice);
        if !kdf::ct_eq(&cookie, &h.choice.cookie) || !solves(&h.choice, h.solution) {
            return Err(DropReason::BadCookie);
        }
        Ok(nonce)
    }
}

/// Nonce and cookie from the key and everything they are bound to.
fn bake(
    key: &Secret<32>,
    source: &Source,
    sid: &[u8; 8],
    hello_hash: &[u8; 32],
    choice: &Choice,
) -> ([u8; 16], [u8; 16]) {
    let source = source.bytes();
    let chosen = [choice.version, choice.suite, choice.puzzle, choice.epoch];
    let parts: [&[u8]; 4] = [&source, sid, hello_hash, &chosen];
    (kdf::mac16(key, Label::CookieNonce, &parts), kdf::mac16(key, Label::Cookie, &parts))
}

fn puzzle_bits(choice: &Choice, solution: u64) -> u32 {
    let h = kdf::hash(Label::Puzzle, &[&choice.cookie, &solution.to_be_bytes()]);
    let (head, _) = h.split_at(8);
    head.try_into().map_or(0, |b| u64::from_be_bytes(b).leading_zeros())
}

fn solves(choice: &Choice, solution: u64) -> bool {
    choice.puzzle == 0 || puzzle_bits(choice, solution) >= u32::from(choice.puzzle)
}

/// Solves the puzzle of a CHALLENGE; `None` past the cost that an initiator accepts.
pub(crate) fn solve(choice: &Choice) -> Option<u64> {
    /// 2^16 hashes: about 20 ms.
    const MAX_BITS: u8 = 16;
    if choice.puzzle == 0 {
        return Some(0);
    }
    if choice.puzzle > MAX_BITS {
        return None;
    }
    // Ten times the expected work leaves one failure in 22,000; the next CHALLENGE is another puzzle.
    (0..10u64 << choice.puzzle).find(|s| solves(choice, *s))
}
