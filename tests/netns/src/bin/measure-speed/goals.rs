//! What is promised of the product's speed, and whether it holds: lines for `scripts/measured`.

use shadowmesh_netns_tests::Measured;

use crate::contender::{CHACHA, DIRECT, RELAY, VETH};
use crate::figures::figure;
use crate::net::Underlay::{self, Gso, Wire};
use crate::report::{Summary, markdown};

/// What a figure is divided by.
#[derive(Clone, Copy)]
enum Over {
    /// The same figure of the peer that does best by it.
    BestPeer,
    /// The same figure of somebody else.
    Contender(&'static str),
    /// Nothing: it is the figure that is promised, in this unit.
    Nothing(&'static str),
}

#[derive(Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
    Below(f64),
}

struct Goal {
    id: String,
    underlay: Underlay,
    contender: &'static str,
    key: &'static str,
    over: Over,
    bound: Bound,
}

/// A goal, and what came of it.
pub struct Outcome {
    id: String,
    what: String,
    value: f64,
    unit: &'static str,
    goal: String,
    holds: bool,
}

fn goals() -> Vec<Goal> {
    use Bound::{AtLeast, AtMost, Below};
    use Over::{BestPeer, Contender, Nothing};
    let goal = |line: u8, underlay: Underlay, contender, key, over, bound| Goal {
        id: format!("{line}-{key}{}", if underlay == Wire { "-wire" } else { "" }),
        underlay,
        contender,
        key,
        over,
        bound,
    };
    let tcp = ["tcp1", "tcp1r", "tcp4"];
    let rates = tcp.iter().flat_map(|key| {
        [
            goal(1, Gso, DIRECT, key, BestPeer, AtLeast(3.5)),
            goal(1, Gso, DIRECT, key, Contender(VETH), AtLeast(0.30)),
            goal(1, Gso, CHACHA, key, Contender(VETH), AtLeast(0.15)),
            goal(1, Wire, DIRECT, key, BestPeer, AtLeast(2.0)),
        ]
    });
    let others = [
        goal(2, Gso, DIRECT, "udp64", BestPeer, AtLeast(1.1)),
        goal(2, Gso, DIRECT, "udp50k_us", BestPeer, AtMost(0.5)),
        goal(2, Gso, DIRECT, "udp1400", BestPeer, AtLeast(1.0)),
        goal(3, Gso, DIRECT, "ping_median", BestPeer, AtMost(1.0)),
        goal(3, Gso, DIRECT, "loadping_median", BestPeer, AtMost(1.0)),
        goal(3, Gso, DIRECT, "loadping_p99", BestPeer, AtMost(1.0)),
        goal(4, Gso, DIRECT, "tcp1_cpu", BestPeer, AtMost(0.25)),
        goal(4, Gso, CHACHA, "tcp1_cpu", BestPeer, Below(1.0)),
        goal(4, Gso, DIRECT, "rss_idle", Nothing("MiB"), AtMost(12.0)),
        goal(4, Gso, DIRECT, "rss_load", Nothing("MiB"), AtMost(32.0)),
    ];
    let relayed = tcp.iter().flat_map(|key| {
        [
            goal(5, Gso, RELAY, key, Contender(DIRECT), AtLeast(0.6)),
            goal(5, Wire, RELAY, key, Contender(DIRECT), AtLeast(0.45)),
        ]
    });
    let share = goal(5, Gso, RELAY, "tcp1_relay_share", Nothing("x"), Below(1.0));
    rates.chain(others).chain(relayed).chain([share]).collect()
}

impl Goal {
    /// What came of it; nothing if that was not measured, or there is nobody to compare with.
    fn outcome(&self, summary: &Summary) -> Option<Outcome> {
        let ours = summary.median(self.underlay, self.contender, self.key)?;
        let (over, base, unit) = match self.over {
            Over::Nothing(unit) => (String::new(), 1.0, unit),
            Over::Contender(name) => {
                (format!(", over {name}"), summary.median(self.underlay, name, self.key)?, "x")
            }
            Over::BestPeer => {
                let (name, best) = summary.best_peer(self.underlay, figure(self.key)?)?;
                (format!(", over {name}"), best, "x")
            }
        };
        let title = figure(self.key)
            .map_or("CPU of the relay over that of the lesser client, TCP one stream a>b", |f| f.title);
        let value = ours / base;
        let (goal, holds) = match self.bound {
            Bound::AtLeast(n) => (format!(">= {n}"), value >= n),
            Bound::AtMost(n) => (format!("<= {n}"), value <= n),
            Bound::Below(n) => (format!("< {n}"), value < n),
        };
        let what = format!("{}, {}: {title}{over}", self.contender, self.underlay.name());
        // A base of 0 has no ratio, and JSON has no number for it.
        let value = if value.is_finite() { value } else { 0.0 };
        Some(Outcome { id: self.id.clone(), what, value, unit, goal, holds: holds && base > 0.0 })
    }
}

/// What came of every goal about which something was measured.
pub fn outcomes(summary: &Summary) -> Vec<Outcome> {
    goals().iter().filter_map(|g| g.outcome(summary)).collect()
}

/// For `scripts/measured`.
pub fn write(outcomes: &[Outcome]) {
    let mut measured = Measured::new("bench-speed");
    for o in outcomes {
        measured.line(&o.id, &o.what, o.value, o.unit, &o.goal, o.holds);
    }
}

/// For people.
pub fn table(outcomes: &[Outcome]) -> String {
    let head = ["", "value", "goal", "holds"].map(str::to_owned).to_vec();
    let row = |o: &Outcome| {
        let holds = if o.holds { "yes" } else { "no" };
        vec![o.what.clone(), format!("{:.2} {}", o.value, o.unit), o.goal.clone(), holds.to_owned()]
    };
    markdown(&std::iter::once(head).chain(outcomes.iter().map(row)).collect::<Vec<_>>())
}
