//! STUN at a relay: who asks learns where he is seen, by the port that he wants, in no more bytes than he has sent.
#![allow(clippy::unwrap_used, reason = "a test; clippy exempts only functions marked as such")]

mod common;

use common::*;
use shadowmesh_relay_core::{Config, FourTuple};
use shadowmesh_stun::{Change, parse_response, request, request_to};
use shadowmesh_wire::DropReason;
use std::net::SocketAddr;
use std::time::Duration;

const PLAIN: Change = Change { ip: false, port: false };
const OTHER_PORT: Change = Change { ip: false, port: true };

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A relay with two ports in each family.
fn table() -> Table {
    let mut t = Table::new(Config::default());
    let bound = |port| vec![address(&format!("0.0.0.0:{port}")), address(&format!("[::]:{port}"))];
    t.relay.set_ports(bound(443), bound(444));
    t
}

/// What the first port sends, and what the second sends, for a datagram at the first or second.
fn ask(t: &mut Table, second: bool, from: SocketAddr, datagram: &[u8]) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    if second {
        t.relay.handle_stun(t.now, from, datagram);
        t.settle();
    } else {
        t.inject(from, datagram);
    }
    let to = |(to, bytes): (FourTuple, _)| {
        assert_eq!(to, from.into());
        bytes
    };
    (t.sent.drain(..).map(to).collect(), std::iter::from_fn(|| t.relay.poll_stun()).map(to).collect())
}

#[test]
fn each_port_answers_and_lets_the_other_answer() {
    for (from, any) in [("203.0.113.4:44", "0.0.0.0"), ("[2001:db8::4]:44", "[::]")] {
        let (mut t, from) = (table(), address(from));
        for (second, change) in [(false, PLAIN), (false, OTHER_PORT), (true, PLAIN), (true, OTHER_PORT)] {
            let asked = request([7; 12], change);
            let (by_first, by_second) = ask(&mut t, second, from, &asked);
            let (mut answers, mut none) = (by_first, by_second);
            if second != change.port {
                std::mem::swap(&mut answers, &mut none);
            }
            assert!(none.is_empty() && answers.len() == 1, "{second} {change:?}");
            assert!(answers[0].len() <= asked.len());
            let said = parse_response(&answers[0]).unwrap();
            let other = address(&format!("{any}:{}", if second { 443 } else { 444 }));
            assert_eq!((said.id, said.mapped, said.other), ([7; 12], from, Some(other)));
        }
        assert_eq!(t.relay.metrics().stun, 4);
    }
}

#[test]
fn an_answer_goes_to_another_port_if_that_is_asked_for() {
    let (mut t, from) = (table(), address("203.0.113.4:44"));
    t.inject(from, &request_to([7; 12], 45));
    let (to, bytes) = t.sent.pop().unwrap();
    assert_eq!(to, address("203.0.113.4:45").into());
    assert_eq!(parse_response(&bytes).unwrap().mapped, from);
    t.relay.handle_stun(t.now, from, &request_to([7; 12], 46));
    assert_eq!(t.relay.poll_stun().unwrap().0, address("203.0.113.4:46").into());
}

#[test]
fn with_one_port_there_is_no_other() {
    let mut t = Table::new(Config::default());
    let from = address("203.0.113.4:44");
    let (answers, none) = ask(&mut t, false, from, &request([7; 12], PLAIN));
    assert!(none.is_empty());
    assert_eq!(parse_response(&answers[0]).unwrap().other, None);
    assert_eq!(ask(&mut t, false, from, &request([7; 12], OTHER_PORT)), (vec![], vec![]));
    // One that has no IPv6 says nothing of it.
    t.relay.set_ports(vec![address("0.0.0.0:443")], vec![address("0.0.0.0:444")]);
    let (answers, _) = ask(&mut t, false, address("[2001:db8::4]:44"), &request([7; 12], PLAIN));
    assert_eq!(parse_response(&answers[0]).unwrap().other, None);
}

#[test]
fn a_prefix_is_answered_so_often_and_no_oftener() {
    let mut t = table();
    let asked = request([7; 12], PLAIN);
    let many = |t: &mut Table, host: &str| {
        let before = t.relay.metrics().stun;
        for n in 0..1000u16 {
            let from = address(&format!("{host}:{}", 1000 + n));
            ask(t, n % 2 == 1, from, &asked);
        }
        t.relay.metrics().stun - before
    };
    assert_eq!(many(&mut t, "203.0.113.4"), 200);
    assert_eq!(t.drops(DropReason::RateLimited), 800);
    // Others are not kept waiting by that; he himself is heard again.
    assert_eq!(many(&mut t, "203.0.113.5"), 200);
    t.run(Duration::from_secs(1));
    assert_eq!(many(&mut t, "203.0.113.4"), 20);
}

#[test]
fn what_is_no_question_of_ours_gets_nothing() {
    let mut t = table();
    let from = address("203.0.113.4:44");
    let good = request([7; 12], PLAIN);
    let mut answered = vec![];
    for second in [false, true] {
        let answer = ask(&mut t, second, from, &good);
        answered.extend(answer.0.into_iter().chain(answer.1));
    }
    // A bare header, one byte less, an answer, a change of address, and what is of clients at the port for STUN.
    let bare = [&[0, 1, 0, 0][..], &good[4..20]].concat();
    let other_address = request([7; 12], Change { ip: true, port: false });
    for bytes in [&bare, &good[..67], &answered[0], &other_address] {
        for second in [false, true] {
            assert_eq!(ask(&mut t, second, from, bytes), (vec![], vec![]));
        }
    }
    let hello = {
        let n = t.anonymous();
        let now = t.now;
        t.peers[n].link.handle_timeout(now, &mut t.rng);
        t.peers[n].link.poll_transmit().unwrap().1
    };
    assert_eq!(ask(&mut t, true, from, &hello), (vec![], vec![]));
    assert!(!ask(&mut t, false, from, &hello).0.is_empty());
    assert_eq!(t.relay.metrics().stun, 2);
}
