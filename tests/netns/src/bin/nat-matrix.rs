//! `make nat-matrix`: two machines behind each pair of NATs. They talk by relay at once; how soon they talk directly, or
//! that they rightly do not. `RUNS` of each pair (5), `PAIRS` only those: `symmetric/open,same-lan`, or a kind for all of
//! its pairs.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Duration;

use shadowmesh_netns_tests::{
    Internet, Machine, Measured, Met, NatKind, PathTo, median, meet, meet_again, watch,
};

/// The first frame is answered by then, by whatever path.
const FIRST: f64 = 1000.0;
/// Directly: the middle of the runs, and the worst.
const DIRECT: [f64; 2] = [1000.0, 2000.0];
/// Of the pairs whose ports have to be guessed: that share of the runs, by then.
const MOSTLY: (f64, f64) = (0.9, 10_000.0);
/// Runs of those, for each of the others: 30 for 5.
const MORE: usize = 6;
/// After so long a path by relay is there to stay.
const STAYS: Duration = Duration::from_secs(10);
/// In the runs after the first it is not waited for so long.
const LOOKS: Duration = Duration::from_secs(2);

/// What is promised of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Direct,
    Mostly,
    Relay,
}

/// Where the two are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pair {
    Apart(NatKind, NatKind),
    SameLan,
}

impl Pair {
    fn all() -> Vec<Pair> {
        let of = |(i, a): (usize, &NatKind)| {
            NatKind::ALL[i..].iter().map(|b| Pair::Apart(*a, *b)).collect::<Vec<_>>()
        };
        NatKind::ALL.iter().enumerate().flat_map(of).chain([Pair::SameLan]).collect()
    }

    fn name(self) -> String {
        match self {
            Pair::Apart(a, b) => format!("{a}/{b}"),
            Pair::SameLan => "same-lan".into(),
        }
    }

    fn is(self, kind: NatKind) -> bool {
        matches!(self, Pair::Apart(a, b) if a == kind || b == kind)
    }

    /// Whether a word of `PAIRS` means it.
    fn meant_by(self, word: &str) -> bool {
        let turned = word.split_once('/').map(|(a, b)| format!("{b}/{a}"));
        word == self.name()
            || turned == Some(self.name())
            || word.parse().is_ok_and(|kind: NatKind| self.is(kind))
    }

    fn expected(self) -> Expected {
        use NatKind::*;
        let Pair::Apart(a, b) = self else { return Expected::Direct };
        if self.is(UdpBlocked) {
            return Expected::Relay;
        }
        let other = if a == Symmetric { b } else { a };
        match (self.is(V6Only), self.is(Symmetric)) {
            (true, _) if a == b => Expected::Direct,
            (true, _) => Expected::Relay,
            (_, false) => Expected::Direct,
            _ => match other {
                Open | FullCone | AddressRestricted | PortMapping => Expected::Direct,
                PortRestricted | Firewall | DoubleNat => Expected::Mostly,
                _ => Expected::Relay,
            },
        }
    }
}

/// What came of a pair.
#[derive(Debug)]
struct Row {
    pair: Pair,
    runs: Vec<Met>,
    /// What is wrong; nothing when all that was promised was seen.
    trouble: Option<String>,
}

impl Row {
    /// Milliseconds to the first answer, and to the direct path, of those runs that had one.
    fn times(&self, of: impl Fn(&Met) -> Option<Duration>) -> Vec<f64> {
        self.runs.iter().filter_map(|m| Some(of(m)?.as_secs_f64() * 1000.0)).collect()
    }

    fn first(&self) -> Vec<f64> {
        self.times(|m| m.first)
    }

    fn direct(&self) -> Vec<f64> {
        self.times(|m| m.direct)
    }

    /// Holds the runs against what is promised.
    fn judge(&self) -> Option<String> {
        let (all, first, direct) = (self.runs.len(), self.first(), self.direct());
        if all == 0 {
            return Some("no run".into());
        }
        if first.len() < all || worst(&first) >= FIRST {
            return Some(format!(
                "{} of {all} first frames came, the last after {:.0} ms",
                first.len(),
                worst(&first)
            ));
        }
        match self.pair.expected() {
            Expected::Direct if direct.len() < all => Some(format!("direct in {} of {all}", direct.len())),
            Expected::Direct if median(direct.clone()) > DIRECT[0] || worst(&direct) > DIRECT[1] => {
                Some("late".into())
            }
            Expected::Mostly if share(&direct, all) < MOSTLY.0 => {
                Some(format!("direct in {:.0} % of {all}", 100.0 * share(&direct, all)))
            }
            Expected::Relay => {
                let by = |p: &Option<PathTo>| p.as_ref().is_some_and(|p| p.path == "relay");
                let off = self.runs.iter().find(|m| !m.paths.iter().all(by));
                off.map(|m| format!("not by relay: {:?}", m.paths))
            }
            _ => None,
        }
    }

    fn show(&self) {
        let (first, direct) = (self.first(), self.direct());
        let direct = match direct.len() {
            0 => "-".into(),
            n if n == self.runs.len() => format!("{:.0} / {:.0}", median(direct.clone()), worst(&direct)),
            n => format!("{:.0} / {:.0}, {n} of {}", median(direct.clone()), worst(&direct), self.runs.len()),
        };
        let first = if first.is_empty() {
            "-".into()
        } else {
            format!("{:.0} / {:.0}", median(first.clone()), worst(&first))
        };
        let verdict = self.trouble.as_deref().map_or("ok".into(), |t| format!("FAILED: {}", one_line(t)));
        line(
            &self.pair.name(),
            word(self.pair.expected()),
            &self.runs.len().to_string(),
            &first,
            &direct,
            &verdict,
        );
    }

    fn tell(&self, measured: &mut Measured) {
        let (holds, all) = (self.trouble.is_none(), self.runs.len());
        let what = format!("{}, {} runs", self.pair.name(), all);
        let (first, direct) = (self.first(), self.direct());
        let (what, value, unit, goal) = match self.pair.expected() {
            Expected::Direct => (
                format!("{what}: direct, worst {:.0} ms", worst(&direct)),
                median(direct),
                "ms",
                "<= 1000, worst <= 2000",
            ),
            Expected::Mostly => {
                (format!("{what}: direct within 10 s"), 100.0 * share(&direct, all), "%", ">= 90")
            }
            Expected::Relay => {
                (format!("{what}: by relay, and `why` says so; first frame"), median(first), "ms", "< 1000")
            }
        };
        let what = self.trouble.as_ref().map_or(what.clone(), |t| format!("{what}; {}", one_line(t)));
        // Of nothing there is no median, and JSON has no word for that.
        measured.line("nat", &what, if value.is_nan() { -1.0 } else { value }, unit, goal, holds);
    }
}

fn main() -> ExitCode {
    let runs: usize = std::env::var("RUNS").ok().and_then(|n| n.parse().ok()).unwrap_or(5);
    let filter = std::env::var("PAIRS").unwrap_or_default();
    let words: Vec<&str> = filter.split(',').map(str::trim).filter(|w| !w.is_empty()).collect();
    let meant = |p: &Pair| words.is_empty() || words.iter().any(|w| p.meant_by(w));
    let pairs: Vec<Pair> = Pair::all().into_iter().filter(meant).collect();
    if pairs.is_empty() {
        eprintln!("PAIRS={filter} means no pair; one is {}", Pair::all()[1].name());
        return ExitCode::FAILURE;
    }
    let mut measured = Measured::new("nat-matrix");
    let head = || line("PAIR", "EXPECTED", "RUNS", "FIRST ms", "DIRECT ms", "VERDICT");
    head();
    let mut rows = vec![];
    for pair in pairs {
        let row = try_pair(pair, runs);
        row.show();
        row.tell(&mut measured);
        rows.push(row);
    }
    // Again, without what programs said between.
    println!();
    head();
    rows.iter().for_each(Row::show);
    let first: Vec<f64> = rows.iter().flat_map(Row::first).collect();
    if !first.is_empty() {
        let what = format!("first frame of {} runs of {} pairs, the worst", first.len(), rows.len());
        measured.line("nat-first", &what, worst(&first), "ms", "< 1000", worst(&first) < FIRST);
    }
    let failed = rows.iter().filter(|r| r.trouble.is_some()).count();
    println!("\n{} of {} pairs as expected", rows.len() - failed, rows.len());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// All runs of a pair; one that cannot be had is told, and the next pairs go on.
fn try_pair(pair: Pair, runs: usize) -> Row {
    let mut row = Row { pair, runs: vec![], trouble: None };
    let result = catch_unwind(AssertUnwindSafe(|| play(pair, runs, &mut row.runs)));
    let trouble = match result {
        Ok(Ok(())) => None,
        Ok(Err(said)) => Some(said),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            Some(text.or_else(|| panic.downcast_ref::<&str>().map(|t| (*t).to_owned())).unwrap_or_default())
        }
    };
    row.trouble = trouble.or_else(|| row.judge());
    row
}

fn play(pair: Pair, runs: usize, found: &mut Vec<Met>) -> Result<(), String> {
    let mut internet = Internet::new(&pair.name());
    let (a, b) = match pair {
        Pair::Apart(a, b) => (internet.machine("a", a), internet.machine("b", b)),
        Pair::SameLan => {
            let a = internet.machine("a", NatKind::PortRestricted);
            let b = internet.on_lan_of("b", &a);
            (a, b)
        }
    };
    let expected = pair.expected();
    let runs = if expected == Expected::Mostly { runs * MORE } else { runs };
    for run in 0..runs {
        if run == 0 {
            meet(&internet, &a, &b)?
        } else {
            meet_again(&internet, &a, &b)?
        };
        let patience = if expected == Expected::Relay && run > 0 { LOOKS } else { STAYS };
        let met = watch(&a, &b, patience);
        let direct = met.direct.is_some();
        found.push(met);
        if pair == Pair::SameLan && direct {
            by_lan(&internet, &a, &b)?;
        }
        if expected == Expected::Relay && run == 0 {
            let said = a.quietly(&["why", "b"])?;
            if !said.contains("relay") {
                return Err(format!("`why` does not say so: {said}"));
            }
        }
    }
    Ok(())
}

/// Two of one LAN reach each other by the addresses that they have there.
fn by_lan(internet: &Internet, a: &Machine, b: &Machine) -> Result<(), String> {
    for (me, other) in [(a, b), (b, a)] {
        let via = me.path_to(other).map(|p| p.via).unwrap_or_default();
        if !via.starts_with(&format!("{}:", internet.address(other))) {
            return Err(format!("{} is reached via {via:?}, not in the LAN", other.host.name()));
        }
    }
    Ok(())
}

fn line(pair: &str, expected: &str, runs: &str, first: &str, direct: &str, verdict: &str) {
    println!("{pair:<38} {expected:<8} {runs:>4}  {first:>12}  {direct:>22}  {verdict}");
}

fn word(expected: Expected) -> &'static str {
    match expected {
        Expected::Direct => "direct",
        Expected::Mostly => "mostly",
        Expected::Relay => "relay",
    }
}

fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().take(160).collect()
}

fn worst(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

/// Of so many runs, those that were direct in time.
fn share(direct: &[f64], all: usize) -> f64 {
    direct.iter().filter(|t| **t <= MOSTLY.1).count() as f64 / all.max(1) as f64
}
