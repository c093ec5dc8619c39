//! `lossy-link NS_A IF_A NS_B IF_B PROFILE`: an Ethernet between two namespaces that behaves badly on
//! purpose. It makes a TAP in each, carries frames between them by the profile, takes new profiles as lines
//! on its input, and ends when its input does, so that it never outlives the test that started it.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, BufRead};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use shadowmesh_host::clock::Clock;
use shadowmesh_host::tap::{self, Tap, TapOptions, VNET_HEADER};
use shadowmesh_host::wake::{Interest, Poller, Waker};
use shadowmesh_netns_tests::Profile;

/// Chance that can be repeated (SplitMix64).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Evenly from 0 to 1, without 1.
    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// One direction: the frames under way by when they are due.
struct Direction {
    chance: Chance,
    under_way: BTreeMap<(Duration, u64), Vec<u8>>,
    count: u64,
    /// When the bottleneck has sent what it was given.
    free_at: Duration,
    /// Due frames that the device did not take.
    stuck: VecDeque<Vec<u8>>,
}

impl Direction {
    fn new(seed: u64) -> Direction {
        Direction {
            chance: Chance(seed),
            under_way: BTreeMap::new(),
            count: 0,
            free_at: Duration::ZERO,
            stuck: VecDeque::new(),
        }
    }

    fn take(&mut self, now: Duration, profile: &Profile, frame: &[u8]) {
        // Always the same number of draws a frame, so that one setting does not change another's chance.
        let [lost, twice, held, late] = std::array::from_fn(|_| self.chance.share());
        if lost < profile.loss || self.under_way.len() >= profile.limit {
            return;
        }
        let mut due = now;
        if let Some(takes) = (frame.len() as u64 * 8_000).checked_div(profile.kbit) {
            self.free_at = self.free_at.max(now) + Duration::from_micros(takes);
            due = self.free_at;
        }
        due += profile.delay + profile.jitter.mul_f64(late);
        if held < profile.reorder {
            due += profile.reorder_by;
        }
        for _ in 0..1 + usize::from(twice < profile.duplicate) {
            self.under_way.insert((due, self.count), frame.to_vec());
            self.count += 1;
        }
    }

    fn due(&self) -> Option<Duration> {
        self.under_way.first_key_value().map(|((due, _), _)| *due)
    }

    /// Delivers what is due. Returns false when the device takes no more.
    fn deliver(&mut self, now: Duration, to: &Tap) -> io::Result<bool> {
        while self.due().is_some_and(|due| due <= now) {
            if let Some((_, frame)) = self.under_way.pop_first() {
                self.stuck.push_back(frame);
            }
        }
        while let Some(frame) = self.stuck.front() {
            match to.send(&[io::IoSlice::new(frame)]) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                // A cable into a machine that has its port off.
                Err(e) if tap::is_down(&e) => {}
                Err(e) => return Err(e),
                Ok(_) => {}
            }
            self.stuck.pop_front();
        }
        Ok(true)
    }
}

fn open(namespace: &str, interface: &str) -> Result<Tap, String> {
    let path = Path::new("/run/netns").join(namespace);
    let file = File::open(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    setns(file, CloneFlags::CLONE_NEWNET).map_err(|e| format!("{namespace}: {e}"))?;
    // Any address that differs from the other end's and from other links' ends.
    let hash = [namespace, interface]
        .concat()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let [a, b, c, d, ..] = hash.to_be_bytes();
    let mac = [0x02, 0x11, a, b, c, d];
    let options = TapOptions { mtu: 1500, mac, vnet: false, queues: 1, txqueuelen: 10_000 };
    Tap::open(interface, options).map_err(|e| e.to_string())
}

/// Lines of the input, which is read on a thread of its own; the waker tells when there is one.
fn input(waker: &Waker) -> Receiver<String> {
    let (sender, receiver) = channel();
    let waker = waker.clone();
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
            waker.wake();
        }
        drop(sender);
        waker.wake();
    });
    receiver
}

fn run() -> Result<(), String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [ns_a, if_a, ns_b, if_b, profile] = &arguments[..] else {
        return Err("usage: lossy-link NS_A IF_A NS_B IF_B PROFILE".into());
    };
    let mut profile: Profile = profile.parse()?;
    let taps = [open(ns_a, if_a)?, open(ns_b, if_b)?];
    // Direction i goes from tap i to the other.
    let mut directions = [Direction::new(profile.seed), Direction::new(profile.seed ^ 0x5bd1_e995)];
    let waker = Waker::new().map_err(|e| e.to_string())?;
    let lines = input(&waker);
    let (clock, mut poller) = (Clock::new(), Poller::new().map_err(|e| e.to_string())?);
    let mut frame = vec![0; 2048];
    let mut interest = [Interest::Read; 2];
    println!("ready");
    loop {
        let due = directions.iter().filter(|d| d.stuck.is_empty()).filter_map(Direction::due).min();
        let timeout = due.map(|due| due.saturating_sub(clock.now()));
        let [a, b] = [(taps[0].as_fd(), interest[0]), (taps[1].as_fd(), interest[1])];
        poller.wait(&[a, b, (waker.as_fd(), Interest::Read)], timeout).map_err(|e| e.to_string())?;
        waker.clear();
        loop {
            match lines.try_recv() {
                Ok(line) => profile = line.parse()?,
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
        }
        for (tap, direction) in taps.iter().zip(&mut directions) {
            // So many at most, so that a flood one way does not delay the other.
            for _ in 0..256 {
                match tap.recv(&mut [0; VNET_HEADER], &mut frame) {
                    Ok(n) => direction.take(clock.now(), &profile, &frame[..n]),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    // The namespace goes before this program when a lab is taken down.
                    Err(e) if tap::vanished(&e) => return Ok(()),
                    Err(e) => return Err(e.to_string()),
                }
            }
        }
        for (i, direction) in directions.iter_mut().enumerate() {
            let to = 1 - i;
            match direction.deliver(clock.now(), &taps[to]) {
                Ok(true) => interest[to] = Interest::Read,
                Ok(false) => interest[to] = Interest::ReadWrite,
                Err(e) if tap::vanished(&e) => return Ok(()),
                Err(e) => return Err(e.to_string()),
            }
        }
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("lossy-link: {e}");
            ExitCode::FAILURE
        }
    }
}
