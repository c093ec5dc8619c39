//! `make bench-migration`: two machines behind port-restricted NATs, a relay 80 ms away, next to nothing between
//! themselves. Under a numbered flow of 10,000 datagrams a second, in one direction or both, the direct path is cut one way
//! or both: for how long nothing comes. Then it is mended: when they are direct again, and what the move lost, repeated and
//! reordered. Then the same under TCP streams. `RUNS` cuts (100), `RATE`
//! datagrams a second.

use std::time::Duration;

use shadowmesh_netns_tests::{
    Counts, Direction, Flow, Flown, Internet, Machine, Measured, NatKind, iperf3, median, meet, wait_until,
    watch,
};

/// Datagrams a second of each flow, if `RATE` says nothing else.
const RATE: f64 = 10_000.0;
/// The relay, one way; what comes by it is twice so long under way.
const FAR: Duration = Duration::from_millis(40);
/// What was under way for less came directly.
const NEAR: Duration = Duration::from_millis(40);
/// A flow goes on for so long before the cut, and after they are direct again.
const STEADY: Duration = Duration::from_secs(1);
/// A path has carried for so long before it is cut.
const CARRIED: Duration = Duration::from_secs(5);
/// In the second half of that, before the cut: so many pings.
const PINGS: u32 = 10;
/// A validation is one round trip and what two daemons take to read and write: so much of a ping's, whose way also leads
/// through two kernels and devices, is not told from it. A second round trip would be.
const ONE_TRIP: f64 = 1.1;
/// From the cut to the mend.
const CUT: Duration = Duration::from_millis(1500);
/// Within which they have to be direct again.
const BACK: Duration = Duration::from_secs(15);
/// Each combination in its turn: what is cut, and whether datagrams go both ways.
const COMBINATIONS: [(Direction, bool); 6] = [
    (Direction::There, true),
    (Direction::Back, true),
    (Direction::Both, true),
    (Direction::There, false),
    (Direction::Back, false),
    (Direction::Both, false),
];

/// What came of a cut and a mend.
#[derive(Debug)]
struct Run {
    /// Before the cut: what the machine loses without one.
    steady: Counts,
    /// Then, too: round trips by the direct path beside the flows, milliseconds.
    rtt: Vec<f64>,
    /// The longest time without a datagram, between cut and mend.
    gap: Duration,
    fallback: Counts,
    /// From the mend to the first datagram that came directly, where they came by relay before.
    first: Option<Duration>,
    /// From the mend until both said so.
    direct: Option<Duration>,
    moved: Counts,
}

struct Two {
    internet: Internet,
    a: Machine,
    b: Machine,
    addresses: [String; 2],
    rate: f64,
}

fn main() {
    let runs: usize = std::env::var("RUNS").ok().and_then(|n| n.parse().ok()).unwrap_or(100);
    let mut measured = Measured::new("migration");
    let mut two = begin();
    println!(
        "{:<12} {:>8} {:>11} {:>9} {:>14} {:>11} {:>10} {:>6} {:>9}",
        "CUT",
        "TRAFFIC",
        "STEADY lost",
        "GAP ms",
        "FALLBACK lost",
        "DIRECT ms",
        "MOVE lost",
        "TWICE",
        "OVERTAKEN"
    );
    let mut found = vec![];
    for n in 0..runs {
        let combination = COMBINATIONS[n % COMBINATIONS.len()];
        let run = cut_and_mend(&mut two, combination);
        show(combination, &run);
        found.push((combination, run));
    }
    report(&mut measured, &found);
    // Of the runs above: those under TCP wait for a queue.
    let log = [two.a.log(), two.b.log()].concat();
    let rtt = median(found.iter().flat_map(|(_, run)| run.rtt.clone()).collect());
    switches(&mut measured, &log, rtt);
    let streams = runs.div_ceil(20).max(1);
    tcp(&mut measured, &mut two, streams);
}

fn begin() -> Two {
    let mut internet = Internet::new("migration");
    internet.delay_relay(FAR);
    let [a, b] = ["a", "b"].map(|name| internet.machine(name, NatKind::PortRestricted));
    for m in [&a, &b] {
        // What a line of this length takes of both ends, whatever is in between.
        m.host.sysctl("net/ipv4/tcp_wmem", "4096 16384 67108864");
        m.host.sysctl("net/ipv4/tcp_rmem", "4096 131072 67108864");
        std::fs::create_dir_all(&m.directory).expect("a directory");
        std::fs::write(m.directory.join("config.yaml"), "log: {level: debug}\n").expect("a configuration");
    }
    meet(&internet, &a, &b).unwrap_or_else(|e| panic!("{e}"));
    let met = watch(&a, &b, BACK);
    println!("first frame after {:?}, direct after {:?}", met.first, met.direct);
    assert!(met.direct.is_some(), "no direct path: {:?}", met.paths);
    let addresses = [a.overlay(), b.overlay()];
    let rate = std::env::var("RATE").ok().and_then(|n| n.parse().ok()).unwrap_or(RATE);
    Two { internet, a, b, addresses, rate }
}

fn cut_and_mend(two: &mut Two, (direction, both): (Direction, bool)) -> Run {
    // One that is lost sooner is one that comes and goes, and is trusted ever later.
    std::thread::sleep(CARRIED);
    let (a, b, [to_a, to_b]) = (&two.a, &two.b, &two.addresses);
    let mut flows = vec![Flow::start(&a.host, &b.host, to_b, two.rate)];
    flows.extend(both.then(|| Flow::start(&b.host, &a.host, to_a, two.rate)));
    std::thread::sleep(STEADY / 2);
    let rtt = a.host.ping_every(to_b, PINGS, STEADY / (2 * PINGS)).rtt_ms;
    // Each flow has a clock of its own.
    let times = |flows: &[Flow]| flows.iter().map(Flow::now).collect::<Vec<_>>();
    let cut = times(&flows);
    two.internet.cut(a, b, direction);
    std::thread::sleep(CUT);
    let mended = times(&flows);
    two.internet.mend(a, b);
    let mut direct = None;
    while direct.is_none() && flows[0].now() - mended[0] < BACK {
        std::thread::sleep(Duration::from_millis(5));
        direct = a.both_by(b, "direct").then(|| flows[0].now() - mended[0]);
    }
    std::thread::sleep(STEADY);
    let end = times(&flows);
    let flown: Vec<Flown> = flows.into_iter().map(Flow::stop).collect();
    let mut run = Run {
        steady: Counts::default(),
        rtt,
        gap: Duration::ZERO,
        fallback: Counts::default(),
        first: None,
        direct,
        moved: Counts::default(),
    };
    for (n, f) in flown.iter().enumerate() {
        run.gap = run.gap.max(f.gap(cut[n], mended[n]));
        // What was under way by the relay when the path was mended may meet the move.
        let from = mended[n] - 4 * FAR;
        add(&mut run.steady, f.counts(Duration::ZERO, cut[n].saturating_sub(NEAR)));
        add(&mut run.fallback, f.counts(cut[n], from));
        add(&mut run.moved, f.counts(from, end[n]));
        // What the relay did not carry before has not moved.
        let before = f.first_faster(mended[n] - FAR, NEAR).is_some_and(|came| came < mended[n]);
        if !before {
            let first = f.first_faster(mended[n], NEAR).map(|came| came - mended[n]);
            run.first = run.first.max(first);
        }
    }
    run
}

fn add(sum: &mut Counts, more: Counts) {
    sum.sent += more.sent;
    sum.lost += more.lost;
    sum.repeated += more.repeated;
    sum.overtaken += more.overtaken;
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn words((direction, both): (Direction, bool)) -> (&'static str, &'static str) {
    let cut = match direction {
        Direction::There => "there",
        Direction::Back => "back",
        Direction::Both => "both",
    };
    (cut, if both { "two-way" } else { "one-way" })
}

fn show(combination: (Direction, bool), run: &Run) {
    let (cut, traffic) = words(combination);
    println!(
        "{cut:<12} {traffic:>8} {:>11} {:>9.0} {:>14} {:>11} {:>10} {:>6} {:>9}",
        run.steady.lost,
        ms(run.gap),
        run.fallback.lost,
        run.first.or(run.direct).map_or("-".into(), |t| format!("{:.0}", ms(t))),
        run.moved.lost,
        run.moved.repeated,
        run.moved.overtaken
    );
}

fn report(measured: &mut Measured, found: &[((Direction, bool), Run)]) {
    let runs = found.len();
    for combination in COMBINATIONS {
        let gaps: Vec<f64> =
            found.iter().filter(|(c, _)| *c == combination).map(|(_, r)| ms(r.gap)).collect();
        if gaps.is_empty() {
            continue;
        }
        let (cut, traffic) = words(combination);
        let (middle, most) = (median(gaps.clone()), worst(&gaps));
        let what = format!(
            "cut {cut}, {traffic} traffic: nothing came for, median of {}; worst {most:.0} ms",
            gaps.len()
        );
        measured.line(
            "fallback-gap",
            &what,
            middle,
            "ms",
            "<= 300, worst <= 1000",
            middle <= 300.0 && most <= 1000.0,
        );
    }
    let mut all = [Counts::default(); 3];
    for (_, run) in found {
        add(&mut all[0], run.fallback);
        add(&mut all[1], run.moved);
        add(&mut all[2], run.steady);
    }
    let steady = all[2];
    let what = format!("of {} datagrams before the cuts: lost", steady.sent);
    measured.line("steady-lost", &what, steady.lost as f64, "", "", true);
    let [fallback, moved, _] = all.map(|c| (c.lost as f64, c.repeated as f64, c.overtaken as f64));
    measured.line("fallback-lost", &format!("datagrams lost in {runs} fallbacks"), fallback.0, "", "", true);
    measured.line(
        "fallback-twice",
        &format!("delivered twice in {runs} fallbacks"),
        fallback.1,
        "",
        "0",
        fallback.1 == 0.0,
    );
    let what = format!("of {} datagrams around {runs} moves to the direct path", all[1].sent);
    measured.line("move-lost", &format!("{what}: lost"), moved.0, "", "0", moved.0 == 0.0);
    measured.line("move-twice", &format!("{what}: delivered twice"), moved.1, "", "0", moved.1 == 0.0);
    measured.line(
        "move-overtaken",
        &format!("{what}: overtaken, by a path 80 ms shorter"),
        moved.2,
        "",
        "",
        true,
    );
    let back = found.iter().filter(|(_, r)| r.direct.is_some()).count();
    measured.line(
        "direct-again",
        &format!("of {runs} mends: direct again by itself within 15 s"),
        back as f64,
        "",
        "all",
        back == runs,
    );
    let firsts: Vec<f64> = found.iter().filter_map(|(_, r)| Some(ms(r.first?))).collect();
    if !firsts.is_empty() {
        let what = format!(
            "from the mend to the first direct datagram, median of {}; worst {:.0} ms",
            firsts.len(),
            worst(&firsts)
        );
        measured.line("mend-to-direct", &what, median(firsts), "ms", "", true);
    }
}

/// What the daemons have said of their moves.
fn switches(measured: &mut Measured, log: &str, rtt: f64) {
    let of = |field: &str| -> Vec<f64> {
        // A relay needs no validation.
        let changed = log.lines().filter(|l| l.contains("path changed") && l.contains("path=\"direct"));
        changed.filter_map(|l| number(l, field)).map(|us| us / 1000.0).collect()
    };
    let (validated, moved) = (of("validated_us="), of("moved_us="));
    if validated.is_empty() || moved.is_empty() {
        measured.line(
            "switch",
            "no `path changed` with `validated_us` and `moved_us` in the logs",
            0.0,
            "",
            "one",
            false,
        );
        return;
    }
    let p50 = median(validated.clone());
    let goal = format!("one round trip: {rtt:.3}, give or take a tenth");
    measured.line(
        "validation-p50",
        &format!("a path is validated within, median of {}", validated.len()),
        p50,
        "ms",
        &goal,
        p50 <= rtt * ONE_TRIP,
    );
    measured.line("validation-p99", "the same, of 99 %", percentile(validated, 0.99), "ms", "", true);
    let (p50, p99) = (median(moved.clone()), percentile(moved, 0.99));
    measured.line("switch-p50", "from validated to moved, median", p50, "ms", "< 5", p50 < 5.0);
    measured.line("switch-p99", "the same, of 99 %", p99, "ms", "< 5", p99 < 5.0);
}

/// `field=123` of a line.
fn number(line: &str, field: &str) -> Option<f64> {
    let rest = line.split_once(field)?.1;
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    rest[..end].parse().ok()
}

/// Streams that go by relay, and then directly: at a pace that the line to the relay carries, then as fast as they can.
fn tcp(measured: &mut Measured, two: &mut Two, streams: usize) {
    let paced = moves(two, streams, &["--fq-rate", "500M"]);
    let free = moves(two, streams.div_ceil(2), &[]);
    for (id, what, moved) in [("paced", "at 500 Mbit/s", &paced), ("free", "as fast as it can", &free)] {
        let most = worst(&moved.silent);
        measured.line(
            &format!("tcp-{id}-silent"),
            &format!("TCP {what}, silent around the move, worst of {}", moved.silent.len()),
            most,
            "s",
            "<= 0.3",
            most <= 0.3,
        );
        if moved.direct.is_empty() {
            continue;
        }
        let (before, after) = (median(moved.relayed.clone()), median(moved.direct.clone()));
        let goal = if id == "paced" { ">= 300" } else { "" };
        let by_relay = format!("TCP {what}, by the relay 80 ms away, median of {}", moved.relayed.len());
        measured.line(
            &format!("tcp-{id}-relay"),
            &by_relay,
            before,
            "Mbit/s",
            goal,
            goal.is_empty() || before >= 300.0,
        );
        let directly = format!("TCP {what}, after the move, median");
        measured.line(&format!("tcp-{id}-direct"), &directly, after, "Mbit/s", ">= 300", after >= 300.0);
        let again = format!("TCP {what}, segments sent again in all, median");
        measured.line(&format!("tcp-{id}-again"), &again, median(moved.again.clone()), "", "", true);
    }
}

/// What came of streams: Mbit/s before and after the move, seconds without a byte around it, segments sent again.
#[derive(Default)]
struct Moved {
    relayed: Vec<f64>,
    direct: Vec<f64>,
    silent: Vec<f64>,
    again: Vec<f64>,
}

fn moves(two: &mut Two, streams: usize, pace: &[&str]) -> Moved {
    const LONG: Duration = Duration::from_secs(20);
    let mut found = Moved::default();
    for n in 1..=streams {
        let (a, b) = (&two.a, &two.b);
        two.internet.cut(a, b, Direction::Both);
        wait_until("a path by relay", BACK, || {
            // Who sends nothing need not notice.
            let _lost = a.host.ping(&two.addresses[1], 1);
            a.both_by(b, "relay").then_some(())
        });
        let clock = shadowmesh_host::clock::Clock::new();
        let mut mended = Duration::ZERO;
        let mut moved = None;
        let arguments = [&["-i", "0.1"], pace].concat();
        let said = iperf3(&a.host, &b.host, &two.addresses[1], &arguments, LONG, || {
            // The stream has found its pace by then.
            std::thread::sleep(Duration::from_secs(9));
            mended = clock.now();
            two.internet.mend(a, b);
            while moved.is_none() && clock.now() < mended + Duration::from_secs(8) {
                std::thread::sleep(Duration::from_millis(5));
                moved = a.both_by(b, "direct").then(|| clock.now());
            }
        });
        let intervals = said["intervals"].as_array().cloned().unwrap_or_default();
        let bytes: Vec<f64> = intervals.iter().filter_map(|i| i["sum"]["bytes"].as_f64()).collect();
        let mbit = |range: &[f64]| range.iter().sum::<f64>() * 8.0 / 1e6 / (range.len().max(1) as f64 * 0.1);
        let at = |time: Duration| ((time.as_secs_f64() * 10.0) as usize).min(bytes.len());
        let Some(moved) = moved else {
            println!("stream {n}: not direct within 8 s of the mend");
            found.silent.push(8.0);
            continue;
        };
        // Its own clock begins when it has connected, up to a second later.
        let (before, after) = (&bytes[at(mended) - 40..at(mended) - 10], &bytes[at(moved)..]);
        let around = &bytes[at(mended) - 10..at(moved + Duration::from_secs(1))];
        let longest = around.split(|b| *b > 0.0).map(<[f64]>::len).max().unwrap_or(0) as f64 / 10.0;
        if longest > 0.2 {
            println!(
                "mended at {mended:?}, moved at {moved:?}; bytes in each 0.1 s from a second before the mend:"
            );
            println!("{around:?}");
        }
        println!(
            "stream {n} {pace:?}: by relay {:.0} Mbit/s, direct {:.0} Mbit/s, silent for {longest:.1} s around the move, {} sent again",
            mbit(before),
            mbit(after),
            said["end"]["sum_sent"]["retransmits"]
        );
        found.relayed.push(mbit(before));
        found.direct.push(mbit(after));
        found.silent.push(longest);
        found.again.push(said["end"]["sum_sent"]["retransmits"].as_f64().unwrap_or(f64::NAN));
    }
    found
}

fn worst(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

fn percentile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (values.len() as f64 * share).ceil() as usize;
    values.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}
