//! Stations: hosts that members bridge into the network, learned from the source MACs of their frames, aged and bounded
//! (IEEE 802.1Q section 8.8, which calls the table a filtering database). A member's own MAC is never one.

use super::Node;
use crate::Time;
use crate::snapshot::PeerId;
use std::collections::BTreeMap;
use std::time::Duration;

/// A station that has said nothing for so long is forgotten (IEEE 802.1Q table 8-3: 300 s).
const AGE: Duration = Duration::from_secs(300);
/// Stations behind one member. One past it is not learned: frames for it go to all who may have it.
const MAX_OF_ONE: usize = 1024;
/// Stations in all.
const MAX_STATIONS: usize = 4096;

struct Station {
    peer: PeerId,
    seen: Time,
}

/// The learned stations.
#[derive(Default)]
pub(super) struct Stations(BTreeMap<[u8; 6], Station>);

impl Stations {
    /// A station was heard behind a peer; says whether that changes where frames for it go.
    fn heard(&mut self, now: Time, mac: [u8; 6], peer: PeerId) -> bool {
        if let Some(known) = self.0.get_mut(&mac) {
            known.seen = now;
            return std::mem::replace(&mut known.peer, peer) != peer;
        }
        let of_one = || self.0.values().filter(|s| s.peer == peer).count();
        if self.0.len() >= MAX_STATIONS || of_one() >= MAX_OF_ONE {
            return false;
        }
        self.0.insert(mac, Station { peer, seen: now });
        true
    }

    /// Forgets those that have been silent; says whether there were any.
    fn age(&mut self, now: Time) -> bool {
        let before = self.0.len();
        self.0.retain(|_, s| now.since(s.seen) < AGE);
        self.0.len() != before
    }

    /// Where they are.
    pub fn iter(&self) -> impl Iterator<Item = ([u8; 6], PeerId)> + '_ {
        self.0.iter().map(|(mac, s)| (*mac, s.peer))
    }
}

impl Node {
    /// Stations that openers heard: the source guard has let their frames pass. [P-LEARN]
    pub fn handle_stations(&mut self, now: Time, heard: &[([u8; 6], PeerId)]) {
        for (mac, peer) in heard {
            if (*peer as usize) < self.peers.len() {
                self.dirty |= self.stations.heard(now, *mac, *peer);
            }
        }
        self.publish();
    }

    pub(super) fn stations_expire(&mut self, now: Time) {
        self.dirty |= self.stations.age(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// [P-LEARN] They move at once, are forgotten after 300 s of silence, and one member cannot fill the table.
    #[test]
    fn they_move_age_and_are_bounded() {
        let at = |s: u64| Time(s * 1_000_000_000);
        let mut all = Stations::default();
        let place = |all: &Stations, mac: [u8; 6]| all.iter().find(|(m, _)| *m == mac).map(|(_, p)| p);
        assert!(all.heard(at(0), [2; 6], 1) && !all.heard(at(200), [2; 6], 1));
        assert!(!all.age(at(499)) && all.age(at(500)) && place(&all, [2; 6]).is_none());
        assert!(all.heard(at(0), [2; 6], 1) && all.heard(at(1), [2; 6], 7));
        assert_eq!(place(&all, [2; 6]), Some(7));
        for peer in 10..20u32 {
            for i in 0..2000u16 {
                let [a, b] = i.to_be_bytes();
                all.heard(at(2), [4, 0, 0, peer as u8, a, b], peer);
            }
        }
        let of = |peer| all.iter().filter(|(_, p)| *p == peer).count();
        assert_eq!((of(10), all.iter().count()), (MAX_OF_ONE, MAX_STATIONS));
        assert!(all.heard(at(3), [2; 6], 8), "one that is known still moves");
    }
}
