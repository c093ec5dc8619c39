//! The relay's state and its verbs; what each does is in `opening`, `forward`, `session` and `stun`.

use crate::client::{Bucket, Client, Scope, prefix};
use crate::durable::Durable;
use crate::leaf::Leaves;
use crate::metrics::Metrics;
use crate::opening::{Load, Pseudonyms};
use crate::session::Locator;
use crate::slots::Slots;
use crate::stun::{Port, Ports, STUN_BURST, STUN_RATE};
use crate::{Config, FourTuple};
use shadowmesh_crypto::sign::SigningKey;
use shadowmesh_identity::NodeId;
use shadowmesh_identity::fact::FactError;
use shadowmesh_proto::Table;
use shadowmesh_proto::handshake::{Bounds, Contact, Limits, Responder, Source};
use shadowmesh_proto::{Rng, Time};
use shadowmesh_wire::control::Hash;
use shadowmesh_wire::relay::{RELAY_HEADER, RelayHeader, Reset, TO_RELAY};
use shadowmesh_wire::{Class, DropReason, classify};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;
use zeroize::Zeroizing;

/// Between looks for what has ended.
const SWEEP: Duration = Duration::from_secs(5);
/// A client's first packet must come within.
pub(crate) const PENDING_LIFETIME: Duration = Duration::from_secs(10);
/// A session that was replaced by another of its handle still forwards for so long.
const REPLACED: Duration = Duration::from_secs(2);
/// RESETs a second to one source prefix, and at once.
const RESET_RATE: f64 = 20.0;
const RESET_BURST: f64 = 200.0;
/// What is held for handshakes. Everybody comes at once when a relay has been restarted: all that it can answer in the five
/// seconds that one waits (800 a second, by `answered`) have room. 64 MB if strangers fill it all, which takes good cookies
/// from many prefixes, and for `asked` members.
const BOUNDS: Bounds = Bounds { reassembly: 4096, asked: 4096, answered: 8192 };

/// Why a relay cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RelayError {
    /// Its leaf could not be made.
    #[error("the relay's leaf could not be made: {0}")]
    Leaf(#[from] FactError),
    /// A key could not be stored.
    #[error("a key of the relay could not be made: {0}")]
    Key(#[from] shadowmesh_crypto::Error),
}

/// What the relay tells its owner.
#[derive(Debug)]
pub enum Event {
    /// Store this **before sending anything** that [`Relay::poll_transmit`] gives from here on: a token counts as used,
    /// and an epoch as begun, when it is on disk, and only then is it answered. [P-REGISTER]
    Save {
        /// [`Durable::encode`]'s bytes: secrets are among them.
        state: Zeroizing<Vec<u8>>,
        /// A secret has ended: keep no copy of the version before this one.
        forget: bool,
    },
    /// A network was registered: its tag.
    Registered([u8; 32]),
    /// A network's access secret was rotated: its tag.
    Rotated([u8; 32]),
    /// The next leaf could not be made; it is tried again in an hour.
    LeafFailed(RelayError),
}

/// What is known of a network besides its tag and secret.
pub(crate) struct Net {
    pub clients: usize,
    pub locators: usize,
    /// Rotations of the access secret since the start, and the last of them.
    pub generation: u32,
    pub rotated: Time,
    pub bucket: Bucket,
}

/// A relay. After each call drain [`Relay::poll_event`], **then** [`Relay::poll_transmit`]; come back at
/// [`Relay::poll_timeout`]. Time never runs back.
pub struct Relay {
    pub(crate) config: Config,
    pub(crate) identity: SigningKey,
    pub(crate) id: NodeId,
    pub(crate) contact: Contact,
    pub(crate) leaves: Leaves,
    pub(crate) durable: Durable,
    pub(crate) nets: Vec<Net>,
    /// First half of the tag to number.
    pub(crate) by_tag: HashMap<[u8; 16], u32>,
    pub(crate) slots: Slots,
    /// By slot.
    pub(crate) clients: Table<u32, Box<Client>>,
    /// Handle to slot, of clients whose first packet has come.
    pub(crate) handles: Table<u64, u32>,
    /// Slots whose first packet has not come, the oldest first.
    pub(crate) pending: VecDeque<(Time, u32)>,
    pub(crate) unconfirmed: usize,
    pub(crate) anonymous: usize,
    /// Clients by prefix of their address: with a pseudonym, anonymous.
    pub(crate) prefixes: HashMap<[u8; 8], (usize, usize)>,
    pub(crate) locators: BTreeMap<Hash, Locator>,
    pub(crate) responder: Responder,
    pub(crate) pseudonyms: Pseudonyms,
    pub(crate) load: Load,
    pub(crate) born: u64,
    /// The last state could not be stored.
    pub(crate) held: bool,
    /// The epoch went on while the relay ran.
    pub(crate) bumped: bool,
    resets: Limits,
    pub(crate) stun_limit: Limits,
    pub(crate) ports: Ports,
    /// Unix time at some moment.
    wall: (Time, u64),
    leaf_due: u64,
    next_sweep: Time,
    pub(crate) rng: Rng,
    pub(crate) out: VecDeque<(FourTuple, Vec<u8>)>,
    /// What goes out by the port for STUN.
    pub(crate) stun_out: VecDeque<(FourTuple, Vec<u8>)>,
    pub(crate) events: VecDeque<Event>,
    pub(crate) metrics: Metrics,
}

impl Relay {
    /// Begins a new epoch; the first event is to save it. `unix` is the wall clock in seconds; `rng` must be seeded
    /// afresh at each start.
    ///
    /// # Errors
    /// [`RelayError`].
    pub fn new(
        config: Config,
        identity: SigningKey,
        mut durable: Durable,
        now: Time,
        unix: u64,
        mut rng: Rng,
    ) -> Result<Self, RelayError> {
        durable.epoch += 1;
        let id = NodeId::of(identity.public());
        let leaves = Leaves::restore(&durable.leaves);
        let nets: Vec<Net> = durable.networks.iter().map(|_| Net::new(now, &config)).collect();
        let by_tag = durable.networks.iter().enumerate().map(|(i, n)| (short(&n.tag), i as u32)).collect();
        let mut relay = Relay {
            contact: Contact::relay(&id.0),
            leaves,
            nets,
            by_tag,
            slots: Slots::new(durable.epoch),
            clients: Table::default(),
            handles: Table::default(),
            pending: VecDeque::new(),
            unconfirmed: 0,
            anonymous: 0,
            prefixes: HashMap::new(),
            locators: BTreeMap::new(),
            responder: Responder::new(config.suites.clone(), config.handshake_rate, BOUNDS, now, &mut rng),
            pseudonyms: Pseudonyms::default(),
            load: Load::new(now),
            born: 0,
            held: false,
            bumped: false,
            resets: Limits::new(rng.bytes(), RESET_RATE, RESET_BURST),
            stun_limit: Limits::new(rng.bytes(), STUN_RATE, STUN_BURST),
            ports: Ports::default(),
            wall: (now, unix),
            leaf_due: 0,
            next_sweep: now,
            out: VecDeque::new(),
            stun_out: VecDeque::new(),
            events: VecDeque::new(),
            metrics: Metrics::default(),
            config,
            identity,
            id,
            durable,
            rng,
        };
        let (_, erased) = relay.refresh_leaves(now)?;
        relay.save(erased);
        Ok(relay)
    }

    /// A datagram that may be written to. `Some`: send it, as it is now, there; that is the forwarding path, which
    /// allocates nothing.
    pub fn handle_in_place(
        &mut self,
        now: Time,
        from: impl Into<FourTuple>,
        datagram: &mut [u8],
    ) -> Option<FourTuple> {
        self.metrics.datagrams_in += 1;
        self.metrics.bytes_in += datagram.len() as u64;
        match self.take(now, from.into(), datagram) {
            Ok(to) => to,
            Err(reason) => {
                self.metrics.drops.count(reason);
                None
            }
        }
    }

    /// A datagram. What is forwarded comes out of [`Relay::poll_transmit`] too.
    pub fn handle_datagram(&mut self, now: Time, from: impl Into<FourTuple>, datagram: &[u8]) {
        let mut copy = datagram.to_vec();
        if let Some(to) = self.handle_in_place(now, from, &mut copy) {
            self.out.push_back((to, copy));
        }
    }

    fn take(
        &mut self,
        now: Time,
        from: FourTuple,
        datagram: &mut [u8],
    ) -> Result<Option<FourTuple>, DropReason> {
        match classify(datagram)? {
            Class::ByRelay => {
                let (header, _) = RelayHeader::parse(datagram)?;
                let result = if header.handle == TO_RELAY {
                    self.on_session(now, from, &header, datagram).map(|()| None)
                } else {
                    self.forward(now, from, datagram).map(Some)
                };
                if result == Err(DropReason::UnknownSlot) {
                    self.reset(now, from, header.slot, datagram.len());
                }
                result
            }
            Class::Typed(_) => self.on_typed(now, from, datagram).map(|()| None),
            Class::Data => Err(DropReason::UnknownIndex),
            Class::Stun => self.on_stun(now, from, Port::Main, datagram).map(|()| None),
        }
    }

    /// Tells whoever sent it that the slot is dead, when that is certain. Smaller than what provoked it. [P-RESET]
    fn reset(&mut self, now: Time, from: FourTuple, slot: u32, provoked_by: usize) {
        let alive = self.clients.contains_key(&slot);
        if alive || provoked_by < RELAY_HEADER || !self.resets.allow(now, &Source::Udp(from.remote)) {
            return;
        }
        if let Some(token) = self.slots.token_of_dead(&self.durable.resets, slot) {
            self.metrics.resets += 1;
            self.out.push_back((from, Reset { slot, token }.emit()));
        }
    }

    /// The next datagram to send, and where to.
    pub fn poll_transmit(&mut self) -> Option<(FourTuple, Vec<u8>)> {
        self.out.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When to call [`Relay::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Time> {
        let leaf = self.wall.0 + Duration::from_secs(self.leaf_due.saturating_sub(self.wall.1));
        let mut at = leaf;
        if !self.clients.is_empty() {
            at = at.min(self.next_sweep);
        }
        if let Some((since, _)) = self.pending.front() {
            at = at.min(*since + PENDING_LIFETIME);
        }
        Some(at)
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time) {
        while let Some((since, slot)) = self.pending.front().copied()
            && now.since(since) >= PENDING_LIFETIME
        {
            self.pending.pop_front();
            if self.clients.get(&slot).is_some_and(|c| !c.confirmed) {
                self.remove(slot);
            }
        }
        if now >= self.next_sweep {
            self.next_sweep = now + SWEEP;
            self.sweep(now);
        }
        if self.unix(now) >= self.leaf_due {
            match self.refresh_leaves(now) {
                Ok((true, erased)) => self.save(erased),
                Ok(_) => {}
                Err(e) => {
                    self.leaf_due = self.unix(now) + 3600;
                    self.events.push_back(Event::LeafFailed(e));
                }
            }
        }
    }

    fn sweep(&mut self, now: Time) {
        self.responder.expire(now);
        self.expire_locators(now);
        let gone: Vec<u32> = self
            .clients
            .values()
            .filter(|c| {
                let rotated = match c.scope {
                    Scope::Network(n) => self.nets.get(n as usize).is_none_or(|net| {
                        net.generation != c.generation && now.since(net.rotated) >= self.config.rotation_grace
                    }),
                    Scope::Former(_) | Scope::Anonymous(_) => false,
                };
                rotated || c.expired(now, self.config.idle)
            })
            .map(|c| c.slot)
            .collect();
        for slot in gone {
            self.remove(slot);
        }
    }

    /// The last state could not be stored (`true`; throw away what [`Relay::poll_transmit`] gives until it is empty), or
    /// was at last. Meanwhile nothing is answered that would rest on it; all else goes on. [P-REGISTER]
    pub fn hold(&mut self, held: bool) {
        self.held = held;
        self.bumped &= held;
    }

    /// Other bounds from now on; who is in stays in. Suites, and rates of handshakes and of whoever is in, stay as they
    /// are.
    pub fn set_limits(&mut self, config: Config) {
        let (suites, handshake_rate) = (std::mem::take(&mut self.config.suites), self.config.handshake_rate);
        self.config = Config { suites, handshake_rate, ..config };
    }

    /// The wall clock says so now; call it now and then, as clocks are set.
    pub fn set_clock(&mut self, now: Time, unix: u64) {
        self.wall = (now, unix);
        // A clock that was set back makes the leaf one of the future.
        if unix < self.leaves.begins() {
            self.leaf_due = unix;
        }
    }

    pub(crate) fn unix(&self, now: Time) -> u64 {
        self.wall.1 + now.since(self.wall.0).as_secs()
    }

    fn refresh_leaves(&mut self, now: Time) -> Result<(bool, bool), RelayError> {
        let unix = self.unix(now);
        let done = self.leaves.refresh(unix, &self.identity, &self.config.suites)?;
        if done.0 {
            self.durable.leaves = self.leaves.save()?;
        }
        self.leaf_due = self.leaves.due();
        Ok(done)
    }

    pub(crate) fn save(&mut self, forget: bool) {
        // Only the last of several counts, and it is not the worse for one that forgets.
        let mut forget = forget;
        if let Some(Event::Save { forget: f, .. }) = self.events.back() {
            forget |= *f;
            self.events.pop_back();
        }
        self.events.push_back(Event::Save { state: self.durable.encode(), forget });
    }

    /// Another session of a client's handle is there: this one takes nothing more, and what it has sent already is still
    /// forwarded.
    pub(crate) fn replace(&mut self, now: Time, slot: u32) {
        let Some(client) = self.clients.get_mut(&slot).filter(|c| !c.replaced) else { return };
        client.replaced = true;
        client.ends = Some(now + REPLACED);
        if let Scope::Network(n) = client.scope
            && let Some(net) = self.nets.get_mut(n as usize)
        {
            net.clients = net.clients.saturating_sub(1);
        }
    }

    /// Takes a client out, and what hangs on it.
    pub(crate) fn remove(&mut self, slot: u32) {
        let Some(client) = self.clients.remove(&slot) else { return };
        if client.confirmed {
            if self.handles.get(&client.handle) == Some(&slot) {
                self.handles.remove(&client.handle);
            }
            if let Scope::Network(n) = client.scope
                && !client.replaced
                && let Some(net) = self.nets.get_mut(n as usize)
            {
                net.clients = net.clients.saturating_sub(1);
            }
            for locator in &client.locators {
                self.drop_locator(locator);
            }
        } else {
            self.unconfirmed = self.unconfirmed.saturating_sub(1);
        }
        let anonymous = !client.scope.is_current();
        self.anonymous -= usize::from(anonymous && self.anonymous > 0);
        self.count_prefix(&client.path, anonymous, false);
    }

    pub(crate) fn count_prefix(&mut self, path: &FourTuple, anonymous: bool, up: bool) {
        let key = prefix(path.remote.ip());
        let entry = self.prefixes.entry(key).or_default();
        let n = if anonymous { &mut entry.1 } else { &mut entry.0 };
        *n = if up { *n + 1 } else { n.saturating_sub(1) };
        if *entry == (0, 0) {
            self.prefixes.remove(&key);
        }
    }

    /// A token that registers one network.
    pub fn mint(&mut self) -> shadowmesh_crypto::secret::Secret<16> {
        self.durable.mint(&mut self.rng)
    }

    /// The relay's NodeId.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Counters since the start.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Clients whose first packet has come: of a network, and others (anonymous, or with a former access secret).
    pub fn clients(&self) -> (usize, usize) {
        let anonymous = self.clients.values().filter(|c| c.confirmed && !c.scope.is_current()).count();
        (self.handles.len() - anonymous.min(self.handles.len()), anonymous)
    }

    /// Clients whose first packet has not come.
    pub fn pending(&self) -> usize {
        self.unconfirmed
    }

    /// Networks registered.
    pub fn networks(&self) -> usize {
        self.nets.len()
    }

    /// Locators open.
    pub fn open_locators(&self) -> usize {
        self.locators.len()
    }

    /// What is held for handshakes of strangers: under reassembly, asked, answered.
    pub fn held(&self) -> (usize, usize, usize) {
        self.responder.held()
    }

    /// Bits of the puzzle that an opening costs now; 0 unless there is load.
    pub fn puzzle(&self) -> u8 {
        self.responder.puzzle
    }

    /// Part of what it may hold that is used, 0 to 1: the largest of its bounds.
    pub fn fullness(&self) -> f64 {
        let part = |n: usize, max: usize| n as f64 / max.max(1) as f64;
        part(self.clients.len(), self.config.max_clients)
            .max(part(self.unconfirmed, self.config.max_pending))
            .max(part(self.nets.len(), self.config.max_networks))
            .min(1.0)
    }
}

impl Net {
    pub fn new(now: Time, config: &Config) -> Self {
        Net {
            clients: 0,
            locators: 0,
            generation: 0,
            rotated: now,
            bucket: Bucket::new(now, config.network_rate),
        }
    }
}

/// What of a tag is on the wire.
pub(crate) fn short(tag: &[u8; 32]) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&tag[..16]);
    out
}
