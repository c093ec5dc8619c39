//! One client: its session with the relay, its counters and windows, its place in the world.

use crate::FourTuple;
use shadowmesh_crypto::kdf::{ct_eq, mac8};
use shadowmesh_crypto::secret::Secret;
use shadowmesh_proto::Time;
use shadowmesh_proto::lane::{RxLane, TxLane};
use shadowmesh_proto::window::ReplayWindow;
use shadowmesh_wire::DropReason;
use shadowmesh_wire::control::Hash;
use shadowmesh_wire::relay::{RELAY_HEADER, RelayHeader, THREADS};
use std::net::IpAddr;
use std::time::Duration;

/// Replay window of one sending thread: 1,024 counters, 136 bytes, made on first use.
type Window = ReplayWindow<16>;
/// Between challenges to a client that seems to have moved.
const CHALLENGE_EVERY: Duration = Duration::from_secs(1);
/// How long an answer to one is waited for.
const CHALLENGE_LIFETIME: Duration = Duration::from_secs(5);

/// Whom a client may exchange packets with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The others of its network (its number).
    Network(u32),
    /// It showed a former access secret of this network: those who showed the current one, to be told it.
    Former(u32),
    /// Nobody, or the owner of a locator for a while: handle and end.
    Anonymous(Option<(u64, Time)>),
}

impl Scope {
    /// Of a network, by its current secret? Others are fewer, slower, and stay for ten minutes at most.
    pub fn is_current(&self) -> bool {
        matches!(self, Scope::Network(_))
    }
}

/// A question to where a client seems to have moved to.
struct Probe {
    to: FourTuple,
    challenge: [u8; 8],
    sent: Time,
}

/// A client.
pub(crate) struct Client {
    pub slot: u32,
    pub handle: u64,
    /// Where it is sent to.
    pub path: FourTuple,
    pub scope: Scope,
    /// Its first packet has come; nothing is done for it before. [P-CONFIRM]
    pub confirmed: bool,
    /// Another session of its handle has taken its place: what is on its way is still forwarded, until it ends.
    pub replaced: bool,
    /// Count of handshakes: of two with one handle, the later wins.
    pub born: u64,
    /// The network's access secret that it showed: count of its rotations.
    pub generation: u32,
    pub last: Time,
    /// An anonymous one goes then.
    pub ends: Option<Time>,
    pub locators: Vec<Hash>,
    pub bucket: Bucket,
    /// Index that it sends its session's packets to.
    pub index: u32,
    pub tx: TxLane,
    pub rx: RxLane,
    /// Registrations and rendezvous that changed something: bounded.
    pub asked: u32,
    up: Secret<32>,
    down: Secret<32>,
    windows: [Option<Box<Window>>; THREADS],
    sent: u64,
    probe: Option<Probe>,
    /// It is elsewhere than where its session was made.
    pub moved: bool,
}

/// What makes a client.
pub(crate) struct NewClient {
    pub slot: u32,
    pub handle: u64,
    pub path: FourTuple,
    pub scope: Scope,
    pub born: u64,
    pub generation: u32,
    pub ends: Option<Time>,
    pub bucket: Bucket,
    pub index: u32,
    pub tx: TxLane,
    pub rx: RxLane,
    pub up: Secret<32>,
    pub down: Secret<32>,
}

impl Client {
    pub fn new(now: Time, n: NewClient) -> Self {
        Client {
            slot: n.slot,
            handle: n.handle,
            path: n.path,
            scope: n.scope,
            confirmed: false,
            replaced: false,
            born: n.born,
            generation: n.generation,
            last: now,
            ends: n.ends,
            locators: vec![],
            bucket: n.bucket,
            index: n.index,
            tx: n.tx,
            rx: n.rx,
            asked: 0,
            up: n.up,
            down: n.down,
            windows: Default::default(),
            sent: 0,
            probe: None,
            moved: false,
        }
    }

    /// Is this header the client's, and new? The window moves only after the MAC holds. [P-RELAY-MAC]
    pub fn admit(&mut self, now: Time, header: &RelayHeader) -> Result<(), DropReason> {
        let window = self.windows.get_mut(usize::from(header.thread)).ok_or(DropReason::Malformed)?;
        if let Some(w) = window {
            w.check(header.counter)?;
        }
        if header.counter == u64::MAX || !ct_eq(&mac8(&self.up, &header.maced()), &header.mac) {
            return Err(DropReason::BadMac);
        }
        window.get_or_insert_default().accept(header.counter);
        self.last = now;
        Ok(())
    }

    /// The header of the next packet to this client, from a handle.
    pub fn header(&mut self, from: u64) -> [u8; RELAY_HEADER] {
        let mut h = RelayHeader { thread: 0, slot: self.slot, handle: from, counter: self.sent, mac: [0; 8] };
        h.mac = mac8(&self.down, &h.maced());
        self.sent += 1;
        h.emit()
    }

    /// It was heard from another address: the question to send there, unless one is out already.
    pub fn challenge(&mut self, now: Time, to: FourTuple, fresh: [u8; 8]) -> Option<[u8; 8]> {
        if self.probe.as_ref().is_some_and(|p| now.since(p.sent) < CHALLENGE_EVERY) {
            return None;
        }
        self.probe = Some(Probe { to, challenge: fresh, sent: now });
        Some(fresh)
    }

    /// An answer from this address: the client has moved, if it is the right one. [P-RELAY-MAC]
    pub fn rebind(&mut self, now: Time, from: FourTuple, answer: &[u8; 8]) -> bool {
        let holds = self.probe.as_ref().is_some_and(|p| {
            p.to == from && ct_eq(&p.challenge, answer) && now.since(p.sent) < CHALLENGE_LIFETIME
        });
        if holds {
            self.probe = None;
            self.path = from;
            self.moved = true;
        }
        holds
    }

    /// Is it over?
    pub fn expired(&self, now: Time, idle: Duration) -> bool {
        now.since(self.last) >= idle || self.ends.is_some_and(|end| now >= end)
    }
}

/// A token bucket of bytes; a quarter of a second's worth may come at once, and at least 64 KiB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bucket {
    rate: Option<f64>,
    tokens: f64,
    at: Time,
}

impl Bucket {
    pub fn new(now: Time, rate: Option<u64>) -> Self {
        let rate = rate.map(|r| r as f64);
        Bucket { rate, tokens: rate.map_or(0.0, Self::burst), at: now }
    }

    fn burst(rate: f64) -> f64 {
        (rate / 4.0).max(65536.0)
    }

    /// Takes so many bytes' worth.
    pub fn take(&mut self, now: Time, bytes: usize) -> Result<(), DropReason> {
        let Some(rate) = self.rate else { return Ok(()) };
        self.tokens = (self.tokens + now.since(self.at).as_secs_f64() * rate).min(Self::burst(rate));
        self.at = now;
        if self.tokens < bytes as f64 {
            return Err(DropReason::RateLimited);
        }
        self.tokens -= bytes as f64;
        Ok(())
    }
}

/// What limits are keyed by: an IPv4 address, an IPv6 /56.
pub fn prefix(ip: IpAddr) -> [u8; 8] {
    let mut out = [0; 8];
    match ip {
        IpAddr::V4(a) => out[..4].copy_from_slice(&a.octets()),
        IpAddr::V6(a) => {
            // The eighth byte tells the families apart; a /56 leaves it free.
            out[..7].copy_from_slice(&a.octets()[..7]);
            out[7] = 6;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_what_comes_at_once_and_fills() {
        let mut b = Bucket::new(Time(0), Some(1_000_000));
        let sent = (0..1000).filter(|_| b.take(Time(0), 1000).is_ok()).count();
        assert_eq!(sent, 250);
        assert!(b.take(Time(1_000_000), 1000).is_ok());
        assert!(b.take(Time(1_000_000), 1000).is_err());
        assert!(Bucket::new(Time(0), None).take(Time(0), usize::MAX).is_ok());
    }
}
