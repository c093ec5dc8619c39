//! Machines roam: another address, another router's address, a router that was switched off and on, both machines at once,
//! a daemon that stood still for a minute. A TCP stream through the mesh survives each, and the path is direct again.
#![allow(clippy::unwrap_used, reason = "a test; clippy exempts only functions marked as such")]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shadowmesh_host::clock::Clock;
use shadowmesh_netns_tests::{Internet, Machine, NatKind, meet, wait_until, watch};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

const SECONDS: fn(u64) -> Duration = Duration::from_secs;
/// A stream that is alive brings something so often; after a change it may take as long as TCP waits before it sends again.
const ALIVE: Duration = Duration::from_secs(20);

/// A TCP stream of numbered words, from one machine to another.
struct Stream {
    came: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    ends: Vec<JoinHandle<()>>,
}

impl Stream {
    fn start(from: &Machine, to: &Machine) -> Stream {
        let listener = to.host.enter(|| TcpListener::bind((to.overlay(), 0)).unwrap());
        let address = listener.local_addr().unwrap();
        let mut sender = from.host.enter(|| TcpStream::connect(address).unwrap());
        let (mut receiver, _) = listener.accept().unwrap();
        let (came, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, stop_sending) = (came.clone(), stop.clone());
        let send = std::thread::spawn(move || {
            for n in 0u64.. {
                if stop_sending.load(Ordering::Relaxed) {
                    return;
                }
                sender.write_all(&n.to_be_bytes()).expect("the stream is broken at its beginning");
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let receive = std::thread::spawn(move || {
            let mut word = [0; 8];
            while receiver.read_exact(&mut word).is_ok() {
                let expected = counted.fetch_add(1, Ordering::Relaxed);
                assert_eq!(u64::from_be_bytes(word), expected, "the stream is out of order");
            }
        });
        Stream { came, stop, ends: vec![send, receive] }
    }

    /// Returns when it goes on: how long that took.
    fn goes_on(&self) -> Duration {
        let (clock, before) = (Clock::new(), self.came.load(Ordering::Relaxed));
        wait_until("the stream", ALIVE, || {
            assert!(self.ends.iter().all(|e| !e.is_finished()), "the stream has ended");
            (self.came.load(Ordering::Relaxed) > before + 200).then_some(())
        });
        clock.now()
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.ends.into_iter().for_each(|e| e.join().unwrap());
    }
}

/// Within a minute, both say so.
fn becomes_direct(a: &Machine, b: &Machine) -> bool {
    let clock = Clock::new();
    while !a.both_by(b, "direct") {
        if clock.now() > SECONDS(60) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

fn why(from: &Machine, to: &Machine) -> String {
    from.quietly(&["why", to.host.name()]).unwrap_or_else(|e| e)
}

#[test]
fn a_stream_survives_every_change() {
    let mut internet = Internet::new("roaming");
    let a = internet.machine("a", NatKind::PortRestricted);
    let b = internet.machine("b", NatKind::FullCone);
    meet(&internet, &a, &b).unwrap();
    assert!(watch(&a, &b, SECONDS(5)).direct.is_some());
    let stream = Stream::start(&a, &b);
    stream.goes_on();
    type Change = fn(&mut Internet, &Machine, &Machine);
    let changes: [(&str, Change); 6] = [
        ("another address", |i, a, _| i.change_address(a)),
        ("another address of the router", |i, a, _| i.change_public_address(a)),
        ("the router was switched off and on", |i, a, _| i.restart_nat(a)),
        ("the other's router, too", |i, _, b| i.restart_nat(b)),
        ("both have other addresses", |i, a, b| {
            i.change_address(a);
            i.change_address(b);
        }),
        ("both routers have other addresses", |i, a, b| {
            i.change_public_address(a);
            i.change_public_address(b);
        }),
    ];
    for (what, change) in changes {
        change(&mut internet, &a, &b);
        let clock = Clock::new();
        let on = stream.goes_on();
        if !becomes_direct(&a, &b) {
            panic!("no direct path after: {what}\n{}\n{}", why(&a, &b), why(&b, &a));
        }
        println!("{what}: the stream goes on after {on:?}, direct after {:?}", clock.now());
        stream.goes_on();
    }
    stream.end();
}

#[test]
fn a_daemon_that_stood_still_for_a_minute() {
    let mut internet = Internet::new("asleep");
    let a = internet.machine("a", NatKind::PortRestricted);
    let b = internet.machine("b", NatKind::PortRestricted);
    meet(&internet, &a, &b).unwrap();
    assert!(watch(&a, &b, SECONDS(5)).direct.is_some());
    let stream = Stream::start(&a, &b);
    stream.goes_on();
    let daemons = a.processes();
    assert_eq!(daemons.len(), 1);
    // Beside busy sessions it gets its turn, where the kernel shares the processors so.
    if let Ok(group) = std::fs::read_to_string(format!("/proc/{}/autogroup", daemons[0])) {
        assert!(group.trim_end().ends_with("nice -10"), "{group}");
    }
    let signal = |s| kill(Pid::from_raw(daemons[0] as i32), s).unwrap();
    signal(Signal::SIGSTOP);
    std::thread::sleep(SECONDS(60));
    signal(Signal::SIGCONT);
    let clock = Clock::new();
    // TCP has waited ever longer between its tries: the next may be half a minute away.
    let before = stream.came.load(Ordering::Relaxed);
    wait_until("the stream", SECONDS(60), || {
        (stream.came.load(Ordering::Relaxed) > before + 200).then_some(())
    });
    let on = clock.now();
    assert!(becomes_direct(&a, &b), "no direct path\n{}\n{}", why(&a, &b), why(&b, &a));
    println!("the stream goes on after {on:?}, direct after {:?}", clock.now());
    stream.end();
}
