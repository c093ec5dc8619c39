//! A flow of numbered datagrams that goes on while things happen: what was lost, came twice or late, and for how long
//! nothing came. Each carries its time of sending; both ends read one clock.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use shadowmesh_host::clock::Clock;

use crate::Host;

/// Bytes of a datagram.
const LEN: usize = 100;
/// Sent at once when the pace was lost.
const BURST: u64 = 16;
/// What comes later than this after the last was sent is not waited for.
const LATE: Duration = Duration::from_millis(500);

/// A flow that goes on.
#[derive(Debug)]
pub struct Flow {
    clock: Clock,
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Vec<Duration>>,
    receiver: JoinHandle<Vec<Arrival>>,
    arrived: Arc<AtomicBool>,
}

/// A datagram that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Its number, from 0.
    pub number: u64,
    /// When it was sent.
    pub sent: Duration,
    /// When it came.
    pub came: Duration,
}

/// A flow that has ended.
#[derive(Debug, Clone, Default)]
pub struct Flown {
    /// When each was sent.
    pub sent: Vec<Duration>,
    /// In order of arrival.
    pub arrivals: Vec<Arrival>,
}

/// What came of the datagrams of some time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Sent.
    pub sent: u64,
    /// Of them, never arrived.
    pub lost: u64,
    /// Arrivals beyond the first.
    pub repeated: u64,
    /// Arrived after one that was sent later.
    pub overtaken: u64,
}

impl Flow {
    /// From one host to an address of another, `rate` a second, at an even pace, until stopped.
    pub fn start(from: &Host, to: &Host, address: &str, rate: f64) -> Flow {
        let receiver = to.enter(|| UdpSocket::bind((address, 0)).expect("a socket"));
        // The receiver of a measurement must not be what loses.
        setsockopt(&receiver, sockopt::RcvBufForce, &(64 << 20)).expect("a buffer");
        receiver.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout");
        let target = receiver.local_addr().expect("an address");
        let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let sender = from.enter(|| UdpSocket::bind(any).expect("a socket"));
        sender.connect(target).expect("a route");
        let (clock, stop, arrived) = (Clock::new(), Arc::new(AtomicBool::new(false)), Arc::default());
        let (stop_sending, stop_receiving) = (Arc::clone(&stop), Arc::clone(&stop));
        let tell = Arc::clone(&arrived);
        Flow {
            clock,
            stop,
            sender: std::thread::spawn(move || send(&sender, clock, rate, &stop_sending)),
            receiver: std::thread::spawn(move || receive(&receiver, clock, &stop_receiving, &tell)),
            arrived,
        }
    }

    /// The flow's time.
    pub fn now(&self) -> Duration {
        self.clock.now()
    }

    /// Whether anything has come since this was asked last.
    pub fn comes(&self) -> bool {
        self.arrived.swap(false, Ordering::Relaxed)
    }

    /// Ends it, waits for what is under way, and tells.
    pub fn stop(self) -> Flown {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().expect("the sender");
        let arrivals = self.receiver.join().expect("the receiver");
        Flown { sent, arrivals }
    }
}

fn send(socket: &UdpSocket, clock: Clock, rate: f64, stop: &AtomicBool) -> Vec<Duration> {
    let (mut sent, mut payload) = (Vec::new(), [0; LEN]);
    let (mut due, mut last) = (0.0, clock.now());
    while !stop.load(Ordering::Relaxed) {
        let now = clock.now();
        due += (now - last).as_secs_f64() * rate;
        last = now;
        let count = (due as u64).min(BURST);
        for _ in 0..count {
            let now = clock.now();
            payload[..8].copy_from_slice(&(sent.len() as u64).to_be_bytes());
            payload[8..16].copy_from_slice(&(now.as_nanos() as u64).to_be_bytes());
            // One that the kernel refuses (no buffer, no route for a moment) is lost.
            let _lost = socket.send(&payload);
            sent.push(now);
        }
        due = if count == BURST { 0.0 } else { due - count as f64 };
        if due < 1.0 {
            std::thread::sleep(Duration::from_secs_f64((1.0 - due) / rate));
        }
    }
    sent
}

fn receive(socket: &UdpSocket, clock: Clock, stop: &AtomicBool, tell: &AtomicBool) -> Vec<Arrival> {
    let (mut arrivals, mut buffer) = (Vec::new(), [0; 2048]);
    let mut until = None;
    loop {
        let now = clock.now();
        if stop.load(Ordering::Relaxed) && now > *until.get_or_insert(now + LATE) {
            return arrivals;
        }
        match socket.recv(&mut buffer) {
            Ok(n) if n >= 16 => {
                let read = |at: usize| u64::from_be_bytes(buffer[at..at + 8].try_into().expect("8 bytes"));
                arrivals.push(Arrival {
                    number: read(0),
                    sent: Duration::from_nanos(read(8)),
                    came: clock.now(),
                });
                tell.store(true, Ordering::Relaxed);
            }
            Ok(_) => {}
            // A refusal is the answer to nothing that this socket sent.
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(e) => panic!("receiving: {e}"),
        }
    }
}

impl Flown {
    /// Of what was sent from one time to another.
    pub fn counts(&self, from: Duration, to: Duration) -> Counts {
        let range = from..to;
        let (mut seen, mut newest) = (vec![false; self.sent.len()], 0);
        let mut counts = Counts::default();
        for a in &self.arrivals {
            let again = seen.get_mut(a.number as usize).is_none_or(|s| std::mem::replace(s, true));
            if range.contains(&a.sent) {
                counts.repeated += u64::from(again);
                counts.overtaken += u64::from(!again && a.number < newest);
            }
            newest = newest.max(a.number);
        }
        for (at, arrived) in self.sent.iter().zip(seen) {
            if range.contains(at) {
                counts.sent += 1;
                counts.lost += u64::from(!arrived);
            }
        }
        counts
    }

    /// The longest time without an arrival between two times.
    pub fn gap(&self, from: Duration, to: Duration) -> Duration {
        let (mut last, mut gap) = (from, Duration::ZERO);
        for came in self.arrivals.iter().map(|a| a.came).filter(|c| (from..to).contains(c)).chain([to]) {
            gap = gap.max(came.saturating_sub(last));
            last = came;
        }
        gap
    }

    /// When the first came after that time that was under way for less than `than`.
    pub fn first_faster(&self, after: Duration, than: Duration) -> Option<Duration> {
        let mut late = self.arrivals.iter().filter(|a| a.sent >= after);
        late.find(|a| a.came.saturating_sub(a.sent) < than).map(|a| a.came)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn what_is_counted() {
        let sent: Vec<_> = (0..6).map(|n| MS(10 * n)).collect();
        // 2 is lost, 1 is overtaken by 3, 4 comes twice.
        let came = [(0, 80), (3, 81), (1, 90), (4, 91), (4, 92), (5, 130)];
        let arrivals = came.map(|(n, t)| Arrival { number: n, sent: MS(10 * n), came: MS(t) }).to_vec();
        let flown = Flown { sent, arrivals };
        let all = Counts { sent: 6, lost: 1, repeated: 1, overtaken: 1 };
        assert_eq!(flown.counts(MS(0), MS(60)), all);
        assert_eq!(flown.counts(MS(30), MS(60)), Counts { sent: 3, lost: 0, repeated: 1, overtaken: 0 });
        assert_eq!((flown.gap(MS(80), MS(130)), flown.gap(MS(80), MS(200))), (MS(38), MS(70)));
        assert_eq!(flown.first_faster(MS(0), MS(60)), Some(MS(81)));
        assert_eq!(flown.first_faster(MS(50), MS(60)), None);
    }
}
