//! Worlds in which members name a victim as the place where they are to be found, in all the ways that they can: what
//! reaches it stays within the bound. [P-BUDGET]

use crate::nat::NatKind;
use crate::plan::Outcome;
use crate::world::{Setup, Weather, World};
use shadowmesh_proto::{Rng, Time};
use shadowmesh_wire::candidate::{Candidate, CandidateKind, MAX_CANDIDATES, Mapping};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// What one node sends to an address that answers nobody, within so long of the first: five packets, then one after 2, 4,
/// 8, 16, 32 and 60 s, and one a minute.
pub fn bound(d: Duration) -> u64 {
    let (mut wait, mut at, mut sent) = (1u64, 0, 5);
    loop {
        wait = (wait * 2).min(60);
        at += wait;
        if at > d.as_secs() {
            return sent;
        }
        sent += 1;
    }
}

/// Plays world number `seed`: one or two members that do no wrong, one to four that do, for half a minute at most, or in
/// one of fifty for four.
///
/// # Errors
/// The victim got more than that; panics say of other invariants.
pub fn play(seed: u64) -> Result<Outcome, String> {
    let mut bytes = [3; 32];
    bytes[..8].copy_from_slice(&seed.to_be_bytes());
    let mut dice = Rng::from_seed(bytes);
    let honest = if dice.below(4) == 0 { 2 } else { 1 };
    let hostile = if dice.below(4) == 0 { 1 + dice.below(4) as usize } else { 1 };
    let weather = Weather {
        delay: Duration::from_millis(1 + dice.below(50)),
        jitter: Duration::from_millis(dice.below(30)),
        loss: if dice.below(2) == 0 { 0 } else { dice.below(100) },
        repeat: 0,
        attack: 0,
    };
    let nodes = honest + hostile;
    let setup = Setup { direct: true, ..Setup::plain(nodes, true) };
    let mut w = World::new(seed, setup, weather);
    for n in 0..nodes {
        if dice.below(2) == 0 {
            w.shelter(n, NatKind::ALL[dice.below(4) as usize]);
        }
    }
    // An IPv6 victim's whole /64 is one.
    let v6 = dice.below(4) == 0;
    let victim = |dice: &mut Rng| {
        let port = dice.u64() as u16;
        match v6 {
            true => SocketAddr::new(
                Ipv6Addr::from(0x2001_0db8_0000_0000_u128 << 64 | u128::from(dice.u64())).into(),
                port,
            ),
            false => SocketAddr::from(([203, 0, 113, 9], port)),
        }
    };
    let began = w.now;
    let rounds = if dice.below(50) == 0 { 240 } else { 6 + dice.below(24) };
    for _ in 0..rounds {
        for n in honest..nodes {
            if dice.below(3) == 0 {
                let many = 1 + dice.below(MAX_CANDIDATES as u64);
                let kinds = [CandidateKind::Host, CandidateKind::Mapped, CandidateKind::Reflexive];
                let mut candidate =
                    || Candidate { kind: kinds[dice.below(3) as usize], address: victim(&mut dice) };
                let list = (0..many).map(|_| candidate()).collect();
                let mapping = [Mapping::Unknown, Mapping::Independent, Mapping::Dependent];
                let mapping = mapping[dice.below(3) as usize];
                let now = w.now;
                let node = &mut w.nodes[n].endpoint;
                node.node.set_candidates(now, list);
                node.node.set_mapping(now, mapping);
                node.settle(now);
            }
            if dice.below(60) == 0 {
                w.restart(n);
            }
            w.drain(n);
            w.send(n, dice.below(honest as u64) as usize, 100);
        }
        w.send(0, honest, 100);
        w.run(Duration::from_secs(1));
    }
    let is_victim = |ip: &IpAddr| match ip {
        IpAddr::V4(a) => a.octets() == [203, 0, 113, 9],
        IpAddr::V6(a) => a.segments()[..4] == [0x2001, 0xdb8, 0, 0],
    };
    let from_honest = w.sent_from(|n| n < honest, is_victim);
    let (most, time) = (honest as u64 * bound(w.now.since(began)), w.now.since(Time(0)));
    if from_honest > most {
        return Err(format!(
            "{from_honest} packets to the victim from {honest} in {time:?}, {most} are the bound"
        ));
    }
    Ok(Outcome {
        sent: w.judge.count(),
        delivered: w.judge.delivered,
        joined: from_honest,
        datagrams: w.datagrams,
        replies: w.replies,
        seconds: w.now.0 / 1_000_000_000,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The documents' figures.
    #[test]
    fn the_bound() {
        let within = |s| bound(Duration::from_secs(s));
        assert_eq!((within(1), within(2), within(120), within(600)), (5, 6, 10, 18));
    }

    /// A few of the worlds that `make no-flood` plays; in some the victim is asked. [P-BUDGET]
    #[test]
    fn a_few_worlds() {
        let got: u64 = (0..100).map(|seed| play(seed).unwrap_or_else(|e| panic!("{seed}: {e}")).joined).sum();
        assert!(got > 100, "{got} packets to victims in 100 worlds");
    }
}
