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

/// The one promise about a number that is in no table.
const RELAY_SHARE: &str = "CPU of the relay over that of the lesser client, TCP one stream a>b";

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
        goal(1, Gso, DIRECT, "tcp1bbr", BestPeer, AtLeast(3.5)),
        goal(1, Gso, DIRECT, "tcp1bbr", Contender(VETH), AtLeast(0.30)),
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

impl Bound {
    fn text(self) -> String {
        match self {
            Bound::AtLeast(n) => format!(">= {n}"),
            Bound::AtMost(n) => format!("<= {n}"),
            Bound::Below(n) => format!("< {n}"),
        }
    }

    fn holds(self, value: f64) -> bool {
        match self {
            Bound::AtLeast(n) => value >= n,
            Bound::AtMost(n) => value <= n,
            Bound::Below(n) => value < n,
        }
    }
}

impl Goal {
    /// What came of it; nothing if there is nobody to compare with. Of a whole run, what has no figure does not hold;
    /// of a part of one, it was not asked for.
    fn outcome(&self, summary: &Summary, whole: bool) -> Option<Outcome> {
        let title = figure(self.key).map_or(RELAY_SHARE, |f| f.title);
        let what = format!("{}, {}: {title}", self.contender, self.underlay.name());
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
        let value = summary.median(self.underlay, self.contender, self.key).map(|ours| ours / base);
        if value.is_none() && !whole {
            return None;
        }
        // A base of 0 has no ratio, and JSON no number for it.
        let value = value.filter(|v| v.is_finite());
        let missing = if value.is_none() { ": NO FIGURE" } else { "" };
        Some(Outcome {
            id: self.id.clone(),
            what: format!("{what}{over}{missing}"),
            value: value.unwrap_or(0.0),
            unit,
            goal: self.bound.text(),
            holds: value.is_some_and(|v| self.bound.holds(v)),
        })
    }
}

/// What came of every goal on these underlays about which something was measured; of a whole run, of every goal.
pub fn outcomes(summary: &Summary, underlays: &[Underlay], whole: bool) -> Vec<Outcome> {
    let goals = goals().into_iter().filter(|g| underlays.contains(&g.underlay));
    goals.filter_map(|g| g.outcome(summary, whole)).collect()
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
    markdown(&std::iter::once(head).chain(outcomes.iter().map(row)).collect::<Vec<_>>(), 1)
}
