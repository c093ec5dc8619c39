//! Numbered datagrams from one host of a lab to another, at an even pace: which arrived, which did not, which twice.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use shadowmesh_host::clock::Clock;

use crate::Host;

/// Sent at once when the pace was lost; what is beyond is put off, so that no burst is made of a pause.
const BURST: u64 = 16;

/// What came of a stream.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Streamed {
    /// Datagrams a second that were sent.
    pub rate: f64,
    /// Datagrams sent.
    pub sent: u64,
    /// Of them, those that never arrived.
    pub lost: u64,
    /// Arrivals beyond the first.
    pub repeated: u64,
}

/// Sends datagrams of `len` bytes (8 or more) from one host to an address of another, `rate` a second, for a while; then
/// waits a second for those that are under way.
pub fn stream(from: &Host, to: &Host, address: &str, rate: f64, len: usize, time: Duration) -> Streamed {
    let receiver = to.enter(|| {
        let socket = UdpSocket::bind((address, 0)).expect("a socket");
        // The receiver of a measurement must not be what loses: this machine's default holds 200 KiB.
        setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20)).expect("a buffer");
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
        socket
    });
    let target: SocketAddr = receiver.local_addr().expect("an address");
    let sender = from.enter(|| {
        let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).expect("a socket");
        socket.connect(target).expect("a route");
        socket
    });
    let done = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&done);
    let receiving = std::thread::spawn(move || {
        let (mut seen, mut repeated) = (Vec::<bool>::new(), 0u64);
        let mut buffer = [0; 2048];
        loop {
            match receiver.recv(&mut buffer) {
                Ok(n) if n >= 8 => {
                    let number = u64::from_be_bytes(buffer[..8].try_into().expect("8 bytes")) as usize;
                    if number >= seen.len() {
                        seen.resize(number + 1, false);
                    }
                    repeated += u64::from(std::mem::replace(&mut seen[number], true));
                }
                Ok(_) => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if stop.load(Ordering::Relaxed) {
                        return (seen, repeated);
                    }
                }
                Err(e) => panic!("receiving: {e}"),
            }
        }
    });
    let clock = Clock::new();
    let mut payload = vec![0u8; len.max(8)];
    let (mut sent, mut due, mut elapsed) = (0u64, 0.0, Duration::ZERO);
    let mut last = Duration::ZERO;
    while elapsed < time {
        due += (elapsed - last).as_secs_f64() * rate;
        last = elapsed;
        let now = (due as u64).min(BURST);
        for _ in 0..now {
            payload[..8].copy_from_slice(&sent.to_be_bytes());
            sender.send(&payload).expect("sending");
            sent += 1;
        }
        due = if now == BURST { 0.0 } else { due - now as f64 };
        if due < 1.0 {
            std::thread::sleep(Duration::from_secs_f64((1.0 - due) / rate));
        }
        elapsed = clock.now();
    }
    std::thread::sleep(Duration::from_secs(1));
    done.store(true, Ordering::Relaxed);
    let (seen, repeated) = receiving.join().expect("the receiver");
    let arrived = seen.iter().filter(|s| **s).count() as u64;
    Streamed { rate: sent as f64 / elapsed.as_secs_f64(), sent, lost: sent - arrived, repeated }
}
