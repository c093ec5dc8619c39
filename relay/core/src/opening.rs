//! Handshakes with clients, up to the client whose first packet is waited for.

use crate::FourTuple;
use crate::client::{Bucket, Client, NewClient, Scope, prefix};
use crate::relay::Relay;
use shadowmesh_crypto::kdf::{Hash, Label, mac16};
use shadowmesh_crypto::kem;
use shadowmesh_proto::Time;
use shadowmesh_proto::handshake::{Asked, Incoming, Local, Opened, Source, is_pseudonym};
use shadowmesh_proto::lane::{RxLane, TxLane};
use shadowmesh_wire::DropReason;
use shadowmesh_wire::data::MAX_INDEX;
use shadowmesh_wire::handshake::{CredentialKind, Established, LANES, RelayGrant};
use shadowmesh_wire::relay::RELAY_HEADER;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Largest datagram that a relay takes, behind its header: what jumbo frames of 9000 bytes hold.
const MTU: u16 = 9000 - 28 - RELAY_HEADER as u16;
/// An anonymous client, or one with a former access secret, may stay that long.
pub(crate) const ANONYMOUS_LIFETIME: Duration = Duration::from_secs(600);

/// Keys of pseudonyms that were shown before: a client that comes back needs not send its key again. Two generations,
/// so that at most twice [`Pseudonyms::HALF`] are kept, the ones used lately among them.
#[derive(Default)]
pub(crate) struct Pseudonyms {
    young: HashMap<Hash, Arc<kem::PublicKey>>,
    old: HashMap<Hash, Arc<kem::PublicKey>>,
}

impl Pseudonyms {
    /// 1.6 KB each.
    const HALF: usize = 8192;

    pub fn get(&mut self, id: &Hash) -> Option<Arc<kem::PublicKey>> {
        if let Some(key) = self.young.get(id) {
            return Some(key.clone());
        }
        let key = self.old.remove(id)?;
        self.put(*id, key.clone());
        Some(key)
    }

    pub fn put(&mut self, id: Hash, key: Arc<kem::PublicKey>) {
        if self.young.len() >= Self::HALF {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(id, key);
    }
}

/// How many handshakes come, good or not.
pub(crate) struct Load {
    since: Time,
    count: u64,
}

impl Load {
    pub fn new(now: Time) -> Self {
        Load { since: now, count: 0 }
    }

    /// Handshakes a second, once a second; `count` is of all since the start.
    fn rate(&mut self, now: Time, count: u64) -> Option<u32> {
        let passed = now.since(self.since).as_secs_f64();
        if passed < 1.0 {
            return None;
        }
        let rate = count.saturating_sub(self.count) as f64 / passed;
        *self = Load { since: now, count };
        Some(rate as u32)
    }
}

/// Bits of puzzle at this many handshakes a second: each bit doubles what one costs its sender.
fn puzzle(rate: u32, above: u32) -> u8 {
    match rate {
        r if r <= above => 0,
        r if r / 2 <= above => 12,
        r if r / 4 <= above => 14,
        _ => 16,
    }
}

impl Relay {
    pub(crate) fn on_typed(&mut self, now: Time, from: FourTuple, packet: &[u8]) -> Result<(), DropReason> {
        if let Some(rate) = self.load.rate(now, self.responder.decapsulations) {
            self.responder.puzzle = puzzle(rate, self.config.puzzle_above);
        }
        let local = Local {
            contact: &self.contact,
            node: self.id.0,
            leaves: &self.leaves.keys,
            bundle: &self.leaves.bundle,
            kinds: &[CredentialKind::Pseudonym, CredentialKind::Anonymous],
        };
        match self.responder.handle(now, Source::Udp(from.remote), packet, &[local], &mut self.rng)? {
            Incoming::Pending => Ok(()),
            Incoming::Reply(packets) => {
                self.out.extend(packets.into_iter().map(|p| (from, p)));
                Ok(())
            }
            Incoming::Opened(opened) => match opened.kind {
                CredentialKind::Anonymous => self.admit_anonymous(now, from, opened),
                _ => self.admit_pseudonym(now, from, opened),
            },
            Incoming::Certificates(asked) => self.on_key(now, from, &asked),
        }
    }

    /// What a pseudonym may do, by the access secret that it shows: the network's current one, or a former one.
    /// [P-FORMER]
    fn scope_of(&self, now: Time, opened: &Opened) -> Result<Scope, DropReason> {
        let n = *self.by_tag.get(&opened.tag()).ok_or(DropReason::NotMember)?;
        let network = self.durable.networks.get(n as usize).ok_or(DropReason::NotMember)?;
        if opened.access_holds(&network.access) {
            return Ok(Scope::Network(n));
        }
        let unix = self.unix(now);
        let former = network.former.iter().any(|f| unix < f.until && opened.access_holds(&f.secret));
        if former { Ok(Scope::Former(n)) } else { Err(DropReason::NotMember) }
    }

    fn admit_pseudonym(&mut self, now: Time, from: FourTuple, opened: Box<Opened>) -> Result<(), DropReason> {
        let scope = self.scope_of(now, &opened)?;
        let mut id = [0; 32];
        id.copy_from_slice(&opened.credential[..32]);
        match self.pseudonyms.get(&id) {
            Some(key) => self.establish(now, from, opened, scope, &id, &key),
            None => {
                let packet = self.responder.ask(now, opened)?;
                self.out.push_back((from, packet));
                Ok(())
            }
        }
    }

    fn on_key(&mut self, now: Time, from: FourTuple, asked: &Asked) -> Result<(), DropReason> {
        let opened = self.responder.resume(asked.source, asked.sid).ok_or(DropReason::UnknownHandshake)?;
        let key = kem::PublicKey::parse(&asked.bytes).map_err(|_| DropReason::BadHandshake)?;
        if !is_pseudonym(&opened.credential, &key) {
            return Err(DropReason::BadHandshake);
        }
        // The secret may have been rotated meanwhile.
        let scope = self.scope_of(now, &opened)?;
        let (id, key) = (key.id(), Arc::new(key));
        self.pseudonyms.put(id, key.clone());
        self.establish(now, from, opened, scope, &id, &key)
    }

    fn establish(
        &mut self,
        now: Time,
        from: FourTuple,
        opened: Box<Opened>,
        scope: Scope,
        id: &Hash,
        key: &kem::PublicKey,
    ) -> Result<(), DropReason> {
        let (Scope::Network(n) | Scope::Former(n)) = scope else { return Err(DropReason::NotMember) };
        let tag = self.durable.networks.get(n as usize).ok_or(DropReason::NotMember)?.tag;
        let prf = mac16(&self.durable.handles, Label::Handle, &[id, &tag]);
        let handle = prf.first_chunk::<8>().map_or(1, |b| u64::from_be_bytes(*b).max(1));
        let net = self.nets.get(n as usize).ok_or(DropReason::NotMember)?;
        let full = if scope.is_current() {
            net.clients >= self.config.max_clients_per_network
        } else {
            self.anonymous >= self.config.max_anonymous
        };
        if !self.handles.contains_key(&handle) && full {
            return Err(DropReason::OverLimit);
        }
        let generation = net.generation;
        let rate = if scope.is_current() { self.config.client_rate } else { Some(self.config.former_rate) };
        self.answer(now, from, opened, handle, scope, generation, rate, Some(key))?;
        let former = u64::from(!scope.is_current());
        self.metrics.handshakes_former += former;
        self.metrics.handshakes_pseudonym += 1 - former;
        Ok(())
    }

    fn admit_anonymous(&mut self, now: Time, from: FourTuple, opened: Box<Opened>) -> Result<(), DropReason> {
        if self.anonymous >= self.config.max_anonymous {
            return Err(DropReason::OverLimit);
        }
        // Random, so it tells nothing, and for this session alone.
        let handle = self.rng.u64().max(1);
        if self.handles.contains_key(&handle) {
            return Err(DropReason::OverLimit);
        }
        let rate = Some(self.config.anonymous_rate);
        self.answer(now, from, opened, handle, Scope::Anonymous(None), 0, rate, None)?;
        self.metrics.handshakes_anonymous += 1;
        Ok(())
    }

    /// ESTABLISHED, and a client whose first packet is waited for.
    #[allow(clippy::too_many_arguments)]
    fn answer(
        &mut self,
        now: Time,
        from: FourTuple,
        opened: Box<Opened>,
        handle: u64,
        scope: Scope,
        generation: u32,
        rate: Option<u64>,
        key: Option<&kem::PublicKey>,
    ) -> Result<(), DropReason> {
        let anonymous = !scope.is_current();
        let (named, nameless) = self.prefixes.get(&prefix(from.remote.ip())).copied().unwrap_or_default();
        let (here, most) = if anonymous {
            (nameless, self.config.max_anonymous_per_prefix)
        } else {
            (named, self.config.max_clients_per_prefix)
        };
        if here >= most
            || self.clients.len() >= self.config.max_clients
            || self.unconfirmed >= self.config.max_pending
        {
            return Err(DropReason::OverLimit);
        }
        let slot = self.take_slot()?;
        let lanes: [u32; LANES] = std::array::from_fn(|_| self.rng.u64() as u32 & MAX_INDEX);
        let established = Established {
            sid_r: self.rng.bytes(),
            generation: 0,
            lanes,
            observed: opened.source.observed(),
            mtu: MTU,
            wall: self.unix(now),
            relay: RelayGrant {
                slot,
                handle,
                reset_token: self.slots.token(&self.durable.resets, slot),
                former: matches!(scope, Scope::Former(_)),
            },
        };
        let identity: Vec<&[u8]> = key.iter().map(|k| &k.as_bytes()[..]).collect();
        let (datagrams, keys) = self.responder.finish(now, opened, key, &identity, &established)?;
        self.out.extend(datagrams.into_iter().map(|d| (from, d)));
        self.born += 1;
        let client = Client::new(
            now,
            NewClient {
                slot,
                handle,
                path: from,
                scope,
                born: self.born,
                generation,
                ends: anonymous.then(|| now + ANONYMOUS_LIFETIME),
                bucket: Bucket::new(now, rate),
                index: lanes[0],
                // Clients take the relay's packets by its header; the index in them says nothing.
                tx: TxLane::new(0, keys.send_lane(0)),
                rx: RxLane::new(keys.receive_lane(0)),
                up: keys.relay_up,
                down: keys.relay_down,
            },
        );
        self.clients.insert(slot, Box::new(client));
        self.pending.push_back((now, slot));
        self.unconfirmed += 1;
        self.anonymous += usize::from(anonymous);
        self.count_prefix(&from, anonymous, true);
        Ok(())
    }

    /// A slot that was never given; the epoch goes on when it is used up.
    fn take_slot(&mut self) -> Result<u32, DropReason> {
        if self.held && self.bumped {
            return Err(DropReason::OverLimit);
        }
        let slot = match self.slots.take() {
            Some(slot) => slot,
            None => {
                if self.held {
                    return Err(DropReason::OverLimit);
                }
                self.durable.epoch += 1;
                self.bumped = true;
                self.slots = crate::slots::Slots::new(self.durable.epoch);
                self.save(false);
                self.slots.take().ok_or(DropReason::OverLimit)?
            }
        };
        // A client that stayed through 256 epochs: it keeps its slot.
        if self.clients.contains_key(&slot) { Err(DropReason::OverLimit) } else { Ok(slot) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_pseudonyms_are_bounded_and_the_used_ones_stay() {
        let mut p = Pseudonyms::default();
        let key = Arc::new(kem::SecretKey::generate().unwrap().public().clone());
        let id = |n: usize| {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&n.to_be_bytes());
            id
        };
        for n in 0..5 * Pseudonyms::HALF {
            p.put(id(n), key.clone());
            assert!(p.get(&id(0)).is_some());
        }
        assert!(p.get(&id(0)).is_some() && p.get(&id(1)).is_none());
        assert!(p.young.len() + p.old.len() <= 2 * Pseudonyms::HALF);
    }

    #[test]
    fn the_puzzle_grows_with_the_load() {
        let bits: Vec<u8> = [0, 500, 501, 1001, 2001, 100_000].iter().map(|r| puzzle(*r, 500)).collect();
        assert_eq!(bits, [0, 0, 12, 12, 14, 16]);
        let mut load = Load::new(Time(0));
        assert_eq!(load.rate(Time(999_999_999), 800), None);
        assert_eq!(load.rate(Time(1_500_000_000), 900), Some(600));
        assert_eq!(load.rate(Time(2_500_000_000), 1000), Some(100));
    }
}
