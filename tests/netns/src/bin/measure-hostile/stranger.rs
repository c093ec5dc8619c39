//! Who sends it, as fast as one core can, and looks at what comes back.

use crate::deck::{Deck, parse, tap};
use crate::{SPARE_CORE, on_core};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, MultiHeaders, SockFlag, SockType, bind, recv, sendmmsg, setsockopt,
    socket, sockopt,
};
use shadowmesh_host::clock::Clock;
use shadowmesh_netns_tests::Host;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Frames of one system call.
const BATCH: usize = 64;

/// A stranger with a wire.
pub struct Stranger {
    out: OwnedFd,
    replies: OwnedFd,
    clock: Clock,
}

/// What it saw come back.
#[derive(Default)]
pub struct Replies {
    /// Datagrams to sources that it had used.
    pub seen: u64,
    /// Of them, larger than what they answer.
    pub larger: u64,
    /// More replies to a source than there were requests from it.
    pub more: u64,
    /// To nobody's source.
    pub stray: u64,
    /// Largest, bytes.
    pub largest: usize,
}

impl Stranger {
    /// On this host, by this interface.
    pub fn new(host: &Host, interface: &str) -> Stranger {
        let out = host.enter(|| {
            let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None);
            let fd = fd.expect("a packet socket");
            setsockopt(&fd, sockopt::SndBufForce, &(8 << 20)).expect("room for packets");
            let mut all = getifaddrs().expect("the interfaces");
            let link = all.find_map(|i| {
                let address: Option<LinkAddr> = i.address.and_then(|a| a.as_link_addr().copied());
                address.filter(|_| i.interface_name == interface)
            });
            bind(fd.as_raw_fd(), &link.expect("the interface")).expect("the interface");
            fd
        });
        Stranger { out, replies: tap(host), clock: Clock::new() }
    }

    /// Keeps its core busy and sends nothing.
    pub fn spin(&self, during: Duration) {
        on_core(SPARE_CORE, true);
        let end = self.clock.now() + during;
        while self.clock.now() < end {
            std::hint::spin_loop();
        }
    }

    /// Sends the deck over and over. Gives how many datagrams, how long that took, and what came back.
    pub fn flood(&self, deck: &Deck, during: Duration) -> (u64, Duration, Replies) {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                on_core(SPARE_CORE, false);
                self.watch(deck, &done)
            });
            let sender = scope.spawn(|| {
                on_core(SPARE_CORE, true);
                self.send(deck, during)
            });
            let (sent, took) = sender.join().expect("the stranger");
            std::thread::sleep(Duration::from_millis(500));
            done.store(true, Ordering::Relaxed);
            let (counts, mut replies) = watcher.join().expect("the watcher");
            let rounds = |i: usize| {
                sent / deck.frames.len() as u64 + u64::from((i as u64) < sent % deck.frames.len() as u64)
            };
            replies.more = counts.iter().enumerate().map(|(i, n)| n.saturating_sub(rounds(i))).sum();
            (sent, took, replies)
        })
    }

    fn send(&self, deck: &Deck, during: Duration) -> (u64, Duration) {
        let slices: Vec<[IoSlice<'_>; 1]> = deck.frames.iter().map(|f| [IoSlice::new(f)]).collect();
        let mut headers = MultiHeaders::<LinkAddr>::preallocate(BATCH, None);
        let nowhere: [Option<LinkAddr>; BATCH] = [None; BATCH];
        let (began, mut sent, mut at) = (self.clock.now(), 0, 0);
        loop {
            let took = self.clock.now() - began;
            if took >= during {
                return (sent, took);
            }
            let some = &slices[at..(at + BATCH).min(slices.len())];
            let result = sendmmsg(self.out.as_raw_fd(), &mut headers, some, nowhere, [], MsgFlags::empty());
            match result.map(Iterator::count) {
                Ok(n) => {
                    sent += n as u64;
                    at = (at + n) % slices.len();
                }
                Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::EINTR) => {}
                Err(e) => panic!("the stranger cannot send: {e}"),
            }
        }
    }

    /// Replies by card, and all of them.
    fn watch(&self, deck: &Deck, done: &AtomicBool) -> (Vec<u64>, Replies) {
        let (mut counts, mut replies) = (vec![0; deck.frames.len()], Replies::default());
        let mut frame = [0; 64];
        while !done.load(Ordering::Relaxed) {
            let Ok(n) = recv(self.replies.as_raw_fd(), &mut frame, MsgFlags::empty()) else { continue };
            let Some((_, to, _, len)) = parse(&frame[..n.min(frame.len())]) else { continue };
            let Some(card) = deck.by_source.get(&to) else {
                replies.stray += 1;
                continue;
            };
            counts[*card] += 1;
            replies.seen += 1;
            replies.larger += u64::from(len > deck.payload(*card));
            replies.largest = replies.largest.max(len);
        }
        (counts, replies)
    }
}
