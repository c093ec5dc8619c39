//! How many packets go to addresses that have not answered: by address, whichever member names it, so that a thousand
//! members who name one victim do it no harm. [P-BUDGET]

use crate::Time;
use crate::snapshot::PeerId;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// To an address at first.
const BURST: u32 = 5;
/// Another one after twice this; while nothing is answered, the next after twice as long, and so on.
const REFILL: Duration = Duration::from_secs(1);
/// And the longest that is waited.
const MAX_REFILL: Duration = Duration::from_secs(60);
/// An address that has answered has them all again, and keeps them so long.
const TRUSTED: Duration = Duration::from_secs(600);
/// An account is closed, where room is needed, so long after it was used.
const FORGOTTEN: Duration = Duration::from_secs(1800);
/// Addresses that are kept account of: 64 bytes each.
const MAX_ADDRESSES: usize = 8192;
/// And of one peer's naming: nobody fills the table alone.
const MAX_OF_PEER: usize = 32;

/// The account of one address.
#[derive(Debug)]
struct Account {
    /// Who named it first.
    peer: PeerId,
    tokens: u32,
    refill_at: Time,
    wait: Duration,
    answered: Option<Time>,
}

/// The accounts.
#[derive(Debug, Default)]
pub(super) struct Budget {
    accounts: HashMap<IpAddr, Account>,
}

impl Account {
    fn refill(&mut self, now: Time) {
        while self.tokens < BURST && now >= self.refill_at {
            self.tokens += 1;
            self.count();
        }
        if self.answered.is_some_and(|at| now.since(at) >= TRUSTED) {
            self.answered = None;
        }
    }

    /// The next one comes later than the one before, whether or not all are used meanwhile.
    fn count(&mut self) {
        if self.answered.is_none() {
            self.wait = (self.wait * 2).min(MAX_REFILL);
        }
        self.refill_at = self.refill_at + self.wait;
    }

    /// Nothing has gone there for long, so that it need not be kept.
    fn is_over(&self, now: Time) -> bool {
        self.answered.is_none() && now >= self.refill_at + FORGOTTEN
    }
}

/// What shares an account: an IPv4 address, or the /64 of an IPv6 one, of which a host may have any number.
fn key(address: &SocketAddr) -> IpAddr {
    match address.ip() {
        IpAddr::V4(a) => IpAddr::V4(a),
        IpAddr::V6(a) => IpAddr::V6((a.to_bits() & !u128::from(u64::MAX)).into()),
    }
}

impl Budget {
    /// May a packet go there now, which this peer named? It is taken off. `fresh`: this port has not been asked. The last one
    /// is kept for such: a port that a router opens is named a second or two after the others.
    pub fn take(&mut self, now: Time, to: &SocketAddr, peer: PeerId, fresh: bool) -> bool {
        let key = key(to);
        if !self.accounts.contains_key(&key) && !self.room(now, peer) {
            return false;
        }
        let account = self.accounts.entry(key).or_insert(Account {
            peer,
            tokens: BURST,
            refill_at: now,
            wait: REFILL,
            answered: None,
        });
        account.refill(now);
        let Some(left) = account.tokens.checked_sub(1) else { return false };
        if left == 0 && !fresh && account.answered.is_none() {
            return false;
        }
        if account.tokens == BURST {
            account.refill_at = now;
            account.count();
        }
        account.tokens = left;
        true
    }

    /// Somebody there has answered, under a session's keys.
    pub fn answered(&mut self, now: Time, from: &SocketAddr) {
        if let Some(account) = self.accounts.get_mut(&key(from)) {
            (account.tokens, account.wait, account.answered) = (BURST, REFILL, Some(now));
        }
    }

    fn room(&mut self, now: Time, peer: PeerId) -> bool {
        let has_room = |accounts: &HashMap<_, Account>| {
            let of_peer = accounts.values().filter(|a| a.peer == peer).count();
            accounts.len() < MAX_ADDRESSES && of_peer < MAX_OF_PEER
        };
        if !has_room(&self.accounts) {
            self.accounts.retain(|_, a| !a.is_over(now));
        }
        has_room(&self.accounts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u32) -> SocketAddr {
        SocketAddr::from((n.to_be_bytes(), 4000))
    }

    /// Five at once, ten in two minutes, then one a minute, whoever and however many name it. [P-BUDGET]
    #[test]
    fn a_victim() {
        let (mut budget, mut sent) = (Budget::default(), vec![]);
        for ms in (0..600_000).step_by(10) {
            let now = Time(ms * 1_000_000);
            let to = SocketAddr::new(address(7).ip(), ms as u16 | 1);
            if budget.take(now, &to, (ms % 1000) as PeerId, true) {
                sent.push(ms);
            }
        }
        let until = |end: u64| sent.iter().filter(|ms| **ms < end).count();
        assert_eq!(until(1000), 5);
        assert_eq!((until(120_000), until(600_000)), (10, 18));
    }

    /// One is kept for a port that is named late. [P-BUDGET]
    #[test]
    fn a_port_that_is_named_late() {
        let (mut budget, to) = (Budget::default(), address(7));
        let first = (0..10).filter(|n| budget.take(Time(*n), &to, 1, *n == 0)).count();
        assert_eq!(first, BURST as usize - 1);
        assert!(
            budget.take(Time(1_900_000_000), &to, 1, true) && !budget.take(Time(1_900_000_000), &to, 1, true)
        );
    }

    /// Nor is it more for who spares some of them.
    #[test]
    fn a_victim_that_is_asked_slowly() {
        for every in [400, 900, 1100, 2500] {
            let (mut budget, to) = (Budget::default(), address(7));
            let asked = (0..120_000).step_by(every);
            let sent = asked.filter(|ms| budget.take(Time(*ms as u64 * 1_000_000), &to, 1, true)).count();
            assert!(sent <= 10, "{sent} when asked every {every} ms");
        }
    }

    /// Whoever answers may be asked again, at once and then each second.
    #[test]
    fn one_that_answers() {
        let (mut budget, to) = (Budget::default(), address(7));
        let mut burst = |now| (0..10).filter(|_| budget.take(now, &to, 1, true)).count();
        assert_eq!(burst(Time(0)), 5);
        assert_eq!(burst(Time(1)), 0);
        budget.answered(Time(2), &to);
        let mut burst = |now| (0..10).filter(|_| budget.take(now, &to, 1, true)).count();
        assert_eq!(burst(Time(3)), 5);
        assert_eq!(burst(Time(1_100_000_000)), 1);
        assert_eq!(burst(Time(20_000_000_000)), 5);
    }

    /// One peer keeps account of so many addresses, and others find room beside it; a host's /64 is one address.
    #[test]
    fn the_table_is_bounded() {
        let mut budget = Budget::default();
        let named = (0..1000).filter(|n| budget.take(Time(0), &address(*n), 1, true)).count();
        assert_eq!(named, MAX_OF_PEER);
        assert!(budget.take(Time(0), &address(5000), 2, true));
        let many =
            (0..20_000).filter(|n| budget.take(Time(0), &address(10_000 + n), 3 + n / 16, true)).count();
        assert_eq!((many + named + 1, budget.accounts.len()), (MAX_ADDRESSES, MAX_ADDRESSES));
        let later = Time(0) + FORGOTTEN * 2;
        assert!(budget.take(later, &address(77_000_000), 9, true) && budget.accounts.len() == 1);
        let host = |n: u16| SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, n], 4000));
        assert_eq!((0..100).filter(|n| budget.take(later, &host(*n), 9, true)).count(), 5);
    }
}
