//! Tests of `udp`, on the loopback interface.

use super::*;
use crate::wake::{Interest, Poller};
use std::time::Duration;

fn local(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn both() -> Udp {
    Udp::bind(&[local("127.0.0.1:0"), local("[::1]:0")]).unwrap()
}

fn wait(udp: &Udp) {
    let fds: Vec<_> = udp.fds(Queue::Both).map(|f| (f, Interest::Read)).collect();
    let ready = Poller::new().unwrap().wait(&fds, Some(Duration::from_secs(5))).unwrap();
    assert!(!ready.is_empty(), "nothing arrived in five seconds");
}

#[test]
fn batches_over_both_families_keep_sender_bytes_and_order() {
    let (a, b) = (both(), both());
    let [to4, to6] = b.local_addrs()[..] else { panic!("two sockets") };
    let payloads: Vec<Vec<u8>> = (0..200u16).map(|i| vec![i as u8; 1 + usize::from(i) * 5]).collect();
    let list: Vec<_> =
        payloads.iter().enumerate().map(|(i, p)| (if i % 3 == 0 { to6 } else { to4 }, &p[..])).collect();
    let sent = a.send_batch(&list, &mut |i, e| panic!("{i}: {e:?}"));
    assert_eq!(sent, Sent { done: 200, stop: None });

    let mut batch: RecvBatch = RecvBatch::new(64, 2048);
    let (mut got4, mut got6) = (Vec::new(), Vec::new());
    while got4.len() + got6.len() < 200 {
        wait(&b);
        assert!(b.recv_batch(&mut batch, Queue::Both).unwrap() <= 64);
        for (from, bytes) in batch.iter() {
            assert!(a.local_addrs().contains(&from), "{from}");
            if from.is_ipv4() { &mut got4 } else { &mut got6 }.push(bytes.to_vec());
        }
    }
    // In order, among those of sessions and among the others.
    let divided = |list: &[Vec<u8>]| list.iter().cloned().partition::<Vec<_>, _>(|p| p[0] >= 0x80);
    let expect = |six: bool| {
        let of = payloads.iter().enumerate().filter(|(i, _)| (i % 3 == 0) == six);
        divided(&of.map(|(_, p)| p.clone()).collect::<Vec<_>>())
    };
    assert!(divided(&got4) == expect(false) && divided(&got6) == expect(true));
    assert_eq!(b.recv_batch(&mut batch, Queue::Both).unwrap(), 0);
    assert!(batch.is_empty() && batch.iter().next().is_none());
}

#[test]
fn datagrams_longer_than_a_slot_are_dropped_and_counted_and_the_others_stay() {
    let (a, b) = (both(), both());
    let to = b.local_addrs()[0];
    let (long, short) = ([7u8; 501], [8u8; 500]);
    a.send_batch(&[(to, &long), (to, &short), (to, &long), (to, &[9])], &mut |_, e| panic!("{e:?}"));
    let mut batch: RecvBatch = RecvBatch::new(8, 500);
    let mut got = Vec::new();
    while got.len() < 2 {
        wait(&b);
        b.recv_batch(&mut batch, Queue::Both).unwrap();
        for (_, bytes) in batch.iter_mut() {
            bytes[0] ^= 0xff;
            got.push(bytes.to_vec());
        }
    }
    assert_eq!(b.truncated(), 2);
    assert_eq!(got[0].len(), 500);
    assert_eq!((got[0][0], got[0][1]), (8 ^ 0xff, 8));
    assert_eq!(got[1], [9 ^ 0xff]);
}

#[test]
fn who_is_answered_hears_the_address_that_it_asked() {
    let ip = |n| Some([127, 0, 0, n].into());
    let asker = Udp::bind(&[local("127.0.0.1:0")]).unwrap();
    let me = asker.local_addrs()[0];
    let mut answers: RecvBatch = RecvBatch::new(64, 100);
    let mut hears = |expect: &[String]| {
        let mut got = vec![];
        while got.len() < expect.len() {
            wait(&asker);
            asker.recv_batch(&mut answers, Queue::Both).unwrap();
            got.extend(answers.iter().map(|(from, d)| format!("{} {}", from.ip(), d[0])));
        }
        assert_eq!(got, expect);
    };
    let all = Udp::bind(&[local("0.0.0.0:0")]).unwrap();
    all.tell_local(true);
    let two = Udp::bind(&[local("127.0.0.7:0"), local("127.0.0.8:0")]).unwrap();
    for asked in [&all, &two] {
        let port = asked.local_addrs()[0].port();
        let mut batch: RecvBatch<(SocketAddr, Option<IpAddr>)> = RecvBatch::new(64, 100);
        let (mut list, mut came) = (vec![], vec![]);
        for n in [7, 8, 7] {
            asker.send_to(SocketAddr::from(([127, 0, 0, n], port)), &[n]).unwrap();
            wait(asked);
            asked.recv_batch(&mut batch, Queue::Both).unwrap();
            came.extend(batch.iter().map(|(from, d)| (from, d.to_vec())));
        }
        assert!(came.iter().map(|(from, d)| (*from, d[0])).eq([7, 8, 7].map(|n| ((me, ip(n)), n))));
        list.extend(came.iter().map(|(from, d)| (*from, &d[..])));
        assert_eq!(asked.send_batch(&list, &mut |_, e| panic!("{e:?}")), Sent { done: 3, stop: None });
        hears(&["127.0.0.7 7".into(), "127.0.0.8 8".into(), "127.0.0.7 7".into()]);
    }
    // By one that this machine has not, or no more: by whichever, and nothing else is held up.
    let gone = (me, Some([192, 0, 2, 77].into()));
    let list: Vec<(_, &[u8])> = vec![((me, ip(7)), &[1]), (gone, &[2]), (gone, &[3]), ((me, ip(8)), &[4])];
    assert_eq!(all.send_batch(&list, &mut |_, e| panic!("{e:?}")), Sent { done: 4, stop: None });
    hears(&["127.0.0.7 1".into(), "127.0.0.1 2".into(), "127.0.0.1 3".into(), "127.0.0.8 4".into()]);
    all.tell_local(false);
    asker.send_to(SocketAddr::from(([127, 0, 0, 7], all.local_addrs()[0].port())), &[1]).unwrap();
    wait(&all);
    let mut batch: RecvBatch<(SocketAddr, Option<IpAddr>)> = RecvBatch::new(64, 100);
    all.recv_batch(&mut batch, Queue::Both).unwrap();
    assert_eq!(batch.iter().map(|(from, _)| from).collect::<Vec<_>>(), [(me, None)]);
}

#[test]
fn an_empty_datagram_is_one() {
    let (a, b) = (both(), both());
    a.send_to(b.local_addrs()[1], &[]).unwrap();
    wait(&b);
    let mut batch: RecvBatch = RecvBatch::new(1, 10);
    assert_eq!(b.recv_batch(&mut batch, Queue::Both).unwrap(), 1);
    assert_eq!(batch.iter().next().unwrap().1, &[] as &[u8]);
}

#[test]
fn both_families_get_one_port_and_a_taken_port_is_said() {
    let a = both();
    let addrs = a.local_addrs();
    assert_ne!(addrs[0].port(), 0);
    assert_eq!(addrs[0].port(), addrs[1].port());
    assert!(matches!(Udp::bind(&[addrs[0]]), Err(UdpError::InUse(x)) if x == addrs[0]));
    assert!(matches!(Udp::bind(&[local("203.0.113.1:0")]), Err(UdpError::NoAddress(_))));
    assert!(matches!(Udp::bind(&[]), Err(UdpError::Nothing)));
}

#[test]
fn one_bad_destination_does_not_stop_the_others() {
    let a = both();
    let only4 = Udp::bind(&[local("127.0.0.1:0")]).unwrap();
    let to = only4.local_addrs()[0];
    let big = vec![0u8; 65_507];
    // Loopback takes 65,536 with headers; a datagram of 65,507 fits IPv4 and port 0 is nobody's.
    let list: Vec<(SocketAddr, &[u8])> = vec![
        (to, b"1"),
        (local("127.0.0.1:0"), b"x"),
        (to, b"2"),
        (to, &big),
        (local("[::1]:9"), b"6"),
        (to, b"3"),
    ];
    let mut refused = Vec::new();
    let sent = only4.send_batch(&list, &mut |i, e| refused.push((i, e)));
    assert_eq!(sent, Sent { done: 6, stop: None });
    assert_eq!(refused, [(1, SendError::Unreachable), (4, SendError::NoSocket)]);
    let mut batch: RecvBatch = RecvBatch::new(64, 2048);
    let mut got = Vec::new();
    while got.len() < 3 {
        wait(&only4);
        only4.recv_batch(&mut batch, Queue::Both).unwrap();
        got.extend(batch.iter().map(|(_, b)| b.to_vec()));
    }
    assert_eq!(got, [b"1", b"2", b"3"]);
    assert_eq!(only4.truncated(), 1);
    assert!(a.reaches(&local("[::1]:9")) && !only4.reaches(&local("[::1]:9")));
}

#[test]
fn too_big_is_told_apart() {
    let a = both();
    let big = vec![0u8; 65_508];
    assert_eq!(a.send_to(local("127.0.0.1:9"), &big), Err(SendError::TooBig));
    assert_eq!(a.send_to(local("[::1]:9"), &vec![0u8; 65_530]), Err(SendError::TooBig));
}

#[test]
fn port_unreachable_neither_breaks_receiving_nor_sending() {
    let (a, b) = (both(), both());
    let gone = both();
    let dead = gone.local_addrs();
    drop(gone);
    let mut batch: RecvBatch = RecvBatch::new(64, 2048);
    for _ in 0..20 {
        for to in &dead {
            a.send_to(*to, b"anyone?").unwrap();
        }
        assert_eq!(a.recv_batch(&mut batch, Queue::Both).unwrap(), 0);
    }
    b.send_to(a.local_addrs()[0], b"hello").unwrap();
    wait(&a);
    assert_eq!(a.recv_batch(&mut batch, Queue::Both).unwrap(), 1);
}

#[test]
fn buffers_are_large_and_the_receive_order_is_fair() {
    let (a, b) = (both(), both());
    let [to4, to6] = b.local_addrs()[..] else { panic!("two sockets") };
    for _ in 0..300 {
        a.send_to(to4, &[4; 100]).unwrap();
    }
    a.send_to(to6, &[6; 100]).unwrap();
    let mut batch: RecvBatch = RecvBatch::new(64, 2048);
    let mut six_after = None;
    for round in 0..10 {
        b.recv_batch(&mut batch, Queue::Both).unwrap();
        if batch.iter().any(|(_, bytes)| bytes[0] == 6) {
            six_after = Some(round);
            break;
        }
    }
    assert!(six_after.is_some_and(|r| r <= 1), "{six_after:?}");
    let size = nix::sys::socket::getsockopt(&b.sockets[0].sessions[0], sockopt::RcvBuf).unwrap();
    if nix::unistd::geteuid().is_root() {
        assert!(size >= 2 * BUFFER, "{size}");
    }
}

/// A flood of what any stranger can send fills its own queue, and sessions do not wait in it; nor do strangers in that of
/// what claims to be of sessions.
#[test]
fn strangers_and_sessions_do_not_fill_each_others_queue() {
    for (flood, single, queue) in [
        ([0x41; 1200], [0xc1; 1200], Queue::Sessions),
        ([0x7f; 1200], [0x80; 1200], Queue::Sessions),
        ([0x80; 1200], [0x43; 1200], Queue::Strangers),
        ([0xc1; 1200], [0; 1200], Queue::Strangers),
    ] {
        let (a, b) = (both(), both());
        for to in b.local_addrs() {
            let mut batch: RecvBatch = RecvBatch::new(64, 2048);
            let many = vec![(to, &flood[..]); 64];
            // Far more than a queue holds.
            for _ in 0..500 {
                a.send_batch(&many, &mut |_, e| panic!("{e:?}"));
            }
            a.send_to(to, &single).unwrap();
            assert_eq!(b.recv_batch(&mut batch, queue).unwrap(), 1);
            assert!(batch.iter().all(|(_, bytes)| bytes == single));
            while b.recv_batch(&mut batch, Queue::Both).unwrap() > 0 {}
        }
    }
    // The empty ones, too, are a stranger's.
    let (a, b) = (both(), both());
    a.send_to(b.local_addrs()[0], &[]).unwrap();
    wait(&b);
    let mut batch: RecvBatch = RecvBatch::new(64, 2048);
    assert_eq!(b.recv_batch(&mut batch, Queue::Strangers).unwrap(), 1);
}

/// What claims to be of a session goes to the reader that the low four bits of its index name, behind a relay header or not;
/// to any of them when they name none; strangers to neither.
#[test]
fn sessions_are_divided_among_readers() {
    const BEHIND: usize = 24;
    let any = [local("127.0.0.1:0"), local("[::1]:0")];
    let (a, b) = (both(), Udp::bind_divided(&any, 3, BEHIND).unwrap());
    let mut batch: RecvBatch = RecvBatch::new(64, 2048);
    for to in b.local_addrs() {
        for low in 0..16u8 {
            let mut direct = vec![0x80, 1, 2, 0xf0 | low, 9, 9, 9];
            let relayed = [&[0xc1; BEHIND][..], &direct].concat();
            for sent in [&direct, &relayed] {
                a.send_to(to, sent).unwrap();
                wait(&b);
                let part = if low < 3 { usize::from(low) } else { 0 };
                for queue in [Queue::Strangers, Queue::Part((part + 1) % 3), Queue::Part((part + 2) % 3)] {
                    assert_eq!(b.recv_batch(&mut batch, queue).unwrap(), 0, "{low} in {queue:?}");
                }
                assert_eq!(b.recv_batch(&mut batch, Queue::Part(part)).unwrap(), 1);
                assert!(batch.iter().all(|(_, bytes)| bytes == &sent[..]));
            }
            direct[0] = 0x41;
            a.send_to(to, &direct).unwrap();
            wait(&b);
            assert_eq!(b.recv_batch(&mut batch, Queue::Sessions).unwrap(), 0);
            assert_eq!(b.recv_batch(&mut batch, Queue::Strangers).unwrap(), 1);
        }
    }
}

/// Many sockets send to one address; the one that it answers is then the one that it is reached by, and read like the
/// others; another's packet to one of them changes nothing.
#[test]
fn a_socket_that_is_answered() {
    let peer = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let stranger = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = peer.local_addr().unwrap();
    let udp = Udp::bind(&["127.0.0.1:0".parse().unwrap()]).unwrap();
    let packets: Vec<Vec<u8>> = (0..20).map(|n| vec![0x80 | n; 40]).collect();
    let mut punch = Punch::send(to, &packets).unwrap();
    let mut from = vec![];
    for _ in 0..20 {
        let (n, a) = peer.recv_from(&mut [0; 100]).unwrap();
        assert_eq!(n, 40);
        from.push(a);
    }
    from.sort();
    from.dedup();
    assert_eq!(from.len(), 20);
    stranger.send_to(&[0x81; 40], from[3]).unwrap();
    assert!(punch.answered().is_empty());
    peer.send_to(&[0x82; 50], from[7]).unwrap();
    let answered = punch.answered();
    assert_eq!((answered.len(), punch.answered().len()), (1, 0));
    for fd in answered {
        udp.adopt(to, fd).unwrap();
    }
    let mut batch: RecvBatch = RecvBatch::new(8, 2000);
    assert_eq!(udp.recv_batch(&mut batch, Queue::Sessions).unwrap(), 1);
    assert!(batch.iter().all(|(a, bytes)| a == to && bytes == [0x82; 50]));
    let sent = |udp: &Udp| {
        let other = stranger.local_addr().unwrap();
        let list = [(to, &[1; 9][..]), (other, &[2; 9]), (to, &[3; 9])];
        assert_eq!(udp.send_batch(&list, &mut |_, e| panic!("{e:?}")), Sent { done: 3, stop: None });
        let to_stranger = stranger.recv_from(&mut [0; 100]).unwrap().1;
        let to_peer = [0, 1].map(|_| peer.recv_from(&mut [0; 100]).unwrap().1);
        (to_peer, to_stranger)
    };
    let own = udp.local_addrs()[0];
    assert_eq!(sent(&udp), ([from[7]; 2], own));
    udp.release(|_| true);
    assert_eq!(sent(&udp), ([from[7]; 2], own));
    udp.release(|a| *a != to);
    assert_eq!(sent(&udp), ([own; 2], own));
    assert!(udp.others().is_empty());
}

/// A router has opened the port: all are answered, and the first of them is in use before the last has come.
#[test]
fn of_many_that_are_answered_the_first_are_kept() {
    let peer = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = peer.local_addr().unwrap();
    let mut punch = Punch::send(to, &vec![vec![0x80; 40]; 20]).unwrap();
    let from: Vec<_> = (0..20).map(|_| peer.recv_from(&mut [0; 100]).unwrap().1).collect();
    peer.send_to(&[0x81; 40], from[5]).unwrap();
    let first = punch.answered();
    from.iter().for_each(|a| drop(peer.send_to(&[0x82; 40], a)));
    let others = punch.answered();
    assert_eq!((first.len(), others.len(), punch.answered().len()), (1, 1, 0));
    let port = std::net::UdpSocket::from(first.into_iter().next().unwrap()).local_addr().unwrap();
    assert_eq!(port.port(), from[5].port());
}
