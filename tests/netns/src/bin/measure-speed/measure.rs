//! The measurements of one contender that runs: iperf3 and ping from host a to host b, and what its programs take
//! meanwhile.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use serde_json::Value;
use shadowmesh_netns_tests::{has_congestion_control, iperf3, received_mbit, rss};

use crate::contender::Overlay;
use crate::figures::{Found, Test};
use crate::net::Net;

/// Packets a second that a daemon is asked to carry while its processor time is read.
const OFFERED: u64 = 50_000;
/// Payload of an IPv4 packet of 1400 bytes.
const LARGE: u64 = 1372;
/// For each rate that is tried.
const PROBE: Duration = Duration::from_secs(1);
/// Rates tried at most.
const PROBES: usize = 8;
/// The kernel tells times of processes in hundredths of a second on every architecture (`USER_HZ`).
const TICKS: f64 = 100.0;

/// Runs `function`; what it panics with is the error.
pub fn attempt<R>(function: impl FnOnce() -> R) -> Result<R, String> {
    let text = |panic: Box<dyn Any + Send>| match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => (*panic.downcast::<&str>().unwrap_or_else(|_| Box::new("a panic"))).to_owned(),
    };
    catch_unwind(AssertUnwindSafe(function)).map_err(text)
}

/// A contender that runs, and how it is measured.
pub struct Bench<'a> {
    net: &'a Net,
    overlay: &'a Overlay,
    time: Duration,
}

/// What came of a UDP stream.
struct Udp {
    /// Packets a second that were sent.
    sent: f64,
    /// Packets a second that arrived.
    arrived: f64,
    /// The share of those sent that is missing among those numbered so far.
    loss: f64,
    /// From the first packet sent to the last that arrived.
    seconds: f64,
}

impl<'a> Bench<'a> {
    /// Each stream takes `time`.
    pub fn new(net: &'a Net, overlay: &'a Overlay, time: Duration) -> Bench<'a> {
        Bench { net, overlay, time }
    }

    /// Memory before anything was sent.
    pub fn idle(&self, found: &mut Found) {
        if !self.overlay.daemons.is_empty() {
            std::thread::sleep(Duration::from_secs(2));
            found.insert("rss_idle".into(), self.rss());
        }
    }

    /// One measurement.
    pub fn run(&self, test: Test, found: &mut Found) {
        match test {
            Test::Ping => self.idle_ping(found),
            Test::Tcp1 => self.tcp("tcp1", &[], found),
            Test::Tcp1r => self.tcp("tcp1r", &["-R"], found),
            Test::Tcp4 => self.tcp("tcp4", &["-P", "4"], found),
            Test::Tcp1bbr if !has_congestion_control("bbr") => {}
            Test::Tcp1bbr => self.tcp("tcp1bbr", &["-C", "bbr"], found),
            Test::Loadping => self.loaded_ping(found),
            Test::Udp64 => _ = found.insert("udp64".into(), self.udp(64, 0, self.time).arrived),
            Test::Udp50k => self.steady(found),
            Test::Udp1400 => _ = found.insert("udp1400".into(), self.lossless()),
        }
    }

    fn idle_ping(&self, found: &mut Found) {
        let interval = Duration::from_millis(5);
        let _warm = self.net.a.host.ping_every(&self.overlay.to, 20, interval);
        let times = self.net.a.host.ping_every(&self.overlay.to, 200, interval).rtt_ms;
        assert!(!times.is_empty(), "no answer to 200 pings");
        for (key, share) in [("ping_min", 0.0), ("ping_median", 0.5), ("ping_p99", 0.99)] {
            found.insert(key.into(), quantile(&times, share));
        }
    }

    fn loaded_ping(&self, found: &mut Found) {
        let head = Duration::from_millis(500);
        let interval = Duration::from_millis(10);
        let count = ((self.time - 2 * head).as_secs_f64() / interval.as_secs_f64()) as u32;
        let mut memory = 0.0;
        let mut ping = None;
        self.iperf(&[], self.time, || {
            std::thread::sleep(head);
            ping = Some(self.net.a.host.ping_every(&self.overlay.to, count, interval));
            memory = self.rss();
        });
        if !self.overlay.daemons.is_empty() {
            found.insert("rss_load".into(), memory);
        }
        let times = ping.map(|p| p.rtt_ms).unwrap_or_default();
        let lost = 1.0 - times.len() as f64 / f64::from(count);
        found.insert("loadping_loss".into(), 100.0 * lost.max(0.0));
        assert!(!times.is_empty(), "no answer to {count} pings under load");
        found.insert("loadping_median".into(), quantile(&times, 0.5));
        found.insert("loadping_p99".into(), quantile(&times, 0.99));
    }

    fn tcp(&self, key: &str, arguments: &[&str], found: &mut Found) {
        let before = self.cpu();
        let said = self.iperf(arguments, self.time, || ());
        let after = self.cpu();
        let received = &said["end"]["sum_received"];
        let gigabytes = number(received, "bytes") / 1e9;
        found.insert(key.into(), received_mbit(&said));
        if self.overlay.daemons.is_empty() {
            return;
        }
        assert!(gigabytes > 0.0, "nothing arrived");
        let mut all = 0.0;
        for ((role, _), (before, after)) in self.overlay.daemons.iter().zip(before.iter().zip(after)) {
            let cost = (after - before) / gigabytes;
            found.insert(format!("{key}_cpu_{role}"), cost);
            all += cost;
        }
        found.insert(format!("{key}_cpu"), all);
        let of = |role: &str| found.get(&format!("{key}_cpu_{role}")).copied();
        if let (Some(relay), Some(a), Some(b)) = (of("relay"), of("a"), of("b")) {
            found.insert(format!("{key}_relay_share"), relay / a.min(b));
        }
    }

    /// What a rate takes that every daemon should be able to carry.
    fn steady(&self, found: &mut Found) {
        let before: f64 = self.cpu().iter().sum();
        let udp = self.udp(64, OFFERED, self.time);
        let used = self.cpu().iter().sum::<f64>() - before;
        found.insert("udp50k_delivered".into(), 100.0 * (udp.arrived / OFFERED as f64).min(1.0));
        if !self.overlay.daemons.is_empty() && udp.arrived > 0.0 {
            let share = used / udp.seconds;
            found.insert("udp50k_cpu".into(), 100.0 * share);
            found.insert("udp50k_us".into(), 1e6 * share / udp.arrived);
        }
    }

    /// The highest rate that was found of which less than a hundredth is lost, in packets a second that arrived: up from
    /// what a flood delivers, then by halves.
    fn lossless(&self) -> f64 {
        let mut best: f64 = 0.0;
        let (mut low, mut high) = (0.0, f64::INFINITY);
        let mut rate = 0.9 * self.udp(LARGE, 0, PROBE).arrived.max(500.0);
        for _ in 0..PROBES {
            let udp = self.udp(LARGE, rate as u64, PROBE);
            if udp.loss < 0.01 {
                best = best.max(udp.arrived);
                low = rate;
                // The sender can do no more.
                if udp.sent < 0.9 * rate {
                    break;
                }
            } else {
                high = rate;
            }
            if high - low < 0.05 * high {
                break;
            }
            rate = if high.is_finite() { f64::midpoint(low, high) } else { 1.5 * rate };
        }
        best
    }

    /// A UDP stream from a to b: bytes of payload, packets a second (0: as fast as it goes).
    fn udp(&self, payload: u64, rate: u64, time: Duration) -> Udp {
        let bits = (rate * payload * 8).to_string();
        let arguments = ["-u", "-l", &payload.to_string(), "-b", &bits, "-w", &window().to_string()];
        let said = &self.iperf(&arguments, time, || ())["end"];
        // What is in queues goes on arriving when all is sent.
        let (sent, received) = (&said["sum_sent"], &said["sum_received"]);
        let (packets, seconds) = (number(sent, "packets"), number(received, "seconds"));
        assert!(packets > 0.0 && seconds > 0.0, "nothing was sent");
        Udp {
            sent: packets / number(sent, "seconds"),
            arrived: number(received, "bytes") / payload as f64 / seconds,
            loss: number(received, "lost_packets") / packets,
            seconds,
        }
    }

    /// Runs iperf3 on a against one on b, and something else meanwhile. Returns what it says.
    fn iperf(&self, arguments: &[&str], time: Duration, meanwhile: impl FnOnce()) -> Value {
        iperf3(&self.net.a.host, &self.net.b.host, &self.overlay.to, arguments, time, meanwhile)
    }

    /// Memory of the larger of the two daemons, in MiB.
    fn rss(&self) -> f64 {
        let hosts = self.overlay.daemons.iter().filter(|(role, _)| ["a", "b"].contains(role));
        hosts.map(|(_, pid)| rss(*pid) / 1024.0).fold(0.0, f64::max)
    }

    /// Seconds of processor time that each program has used.
    fn cpu(&self) -> Vec<f64> {
        self.overlay.daemons.iter().map(|(_, pid)| cpu(*pid)).collect()
    }
}

/// Processor time of a process in seconds, threads that ended included (`utime` and `stime` of proc(5)).
fn cpu(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Only the name before the bracket may hold spaces; the eleventh word after the state is `utime`.
    let Some((_, rest)) = stat.rsplit_once(") ") else { panic!("a daemon ended") };
    rest.split(' ').skip(11).take(2).filter_map(|n| n.parse::<f64>().ok()).sum::<f64>() / TICKS
}

/// The socket buffer that is asked for: iperf3 refuses to run when it is given less than that.
fn window() -> u64 {
    let limit = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/net/core/{name}")).unwrap_or_default();
        text.trim().parse().unwrap_or(128 << 10)
    };
    limit("rmem_max").min(limit("wmem_max")).min(2 << 20)
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_default()
}

/// Where `share` of the values are below, between two of them if need be; of at least one value.
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = share * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    low + (high - low) * place.fract()
}
