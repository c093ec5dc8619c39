//! What was found: the raw form, medians and ranges, and tables that read well as text and as Markdown.

use std::collections::BTreeMap;
use std::iter::once;

use serde_json::{Value, json};

use crate::contender::{Contender, Kind, RELAY, VETH};
use crate::figures::{FIGURES, Figure, Found, Table, figure};
use crate::measure::quantile;
use crate::net::Underlay;

/// One contender in one round.
pub struct Measurement {
    /// Counted from 0.
    pub round: usize,
    /// On what.
    pub underlay: Underlay,
    /// Who.
    pub contender: &'static str,
    /// The numbers.
    pub found: Found,
    /// What went wrong.
    pub errors: Vec<String>,
}

impl Measurement {
    /// For the raw report.
    pub fn json(&self) -> Value {
        json!({
            "round": self.round, "underlay": self.underlay.name(), "contender": self.contender,
            "figures": self.found, "errors": self.errors,
        })
    }
}

/// Median and range over the rounds.
#[derive(Debug, Clone, Copy)]
pub struct Spread {
    /// The middle.
    pub median: f64,
    min: f64,
    max: f64,
}

/// All rounds together.
pub struct Summary<'a> {
    contenders: &'a [Contender],
    spreads: BTreeMap<(Underlay, &'static str, String), Spread>,
}

impl<'a> Summary<'a> {
    /// Of all that was measured.
    pub fn new(contenders: &'a [Contender], measurements: &[Measurement]) -> Summary<'a> {
        let mut values: BTreeMap<_, Vec<f64>> = BTreeMap::new();
        for m in measurements {
            for (key, value) in &m.found {
                values.entry((m.underlay, m.contender, key.clone())).or_default().push(*value);
            }
        }
        let spread =
            |v: &[f64]| Spread { median: quantile(v, 0.5), min: quantile(v, 0.0), max: quantile(v, 1.0) };
        let spreads = values.into_iter().map(|(key, v)| (key, spread(&v))).collect();
        Summary { contenders, spreads }
    }

    fn spread(&self, underlay: Underlay, contender: &'static str, key: &str) -> Option<&Spread> {
        self.spreads.get(&(underlay, contender, key.to_owned()))
    }

    /// A median.
    pub fn median(&self, underlay: Underlay, contender: &'static str, key: &str) -> Option<f64> {
        self.spread(underlay, contender, key).map(|s| s.median)
    }

    /// Who was measured on an underlay.
    pub fn on(&self, underlay: Underlay) -> impl Iterator<Item = &'a Contender> {
        self.contenders
            .iter()
            .filter(move |c| self.spreads.keys().any(|(u, n, _)| (*u, *n) == (underlay, c.name)))
    }

    /// The peer that does best by a figure, and its median.
    pub fn best_peer(&self, underlay: Underlay, figure: &Figure) -> Option<(&'static str, f64)> {
        let peers = self.on(underlay).filter(|c| c.kind == Kind::Peer);
        let medians = peers.filter_map(|c| Some((c.name, self.median(underlay, c.name, figure.key)?)));
        medians.reduce(|best, next| if (next.1 > best.1) == figure.more { next } else { best })
    }

    /// Every table of an underlay, each under a line that says what it shows.
    pub fn tables(&self, underlay: Underlay) -> String {
        let mut text = String::new();
        let medians = "Median (least to most over the rounds)";
        for (table, what) in [
            (Table::Rate, "Rates: more is better."),
            (Table::Delay, "Round-trip times: less is better."),
            (
                Table::Cost,
                "Processor time of the daemons, all together, and memory of the larger one: less is better.",
            ),
        ] {
            let shown: Vec<&Figure> = self.shown(underlay, |f| f.table == table);
            if !shown.is_empty() {
                text += &format!("{what} {medians}.\n\n{}\n", self.medians(underlay, &shown));
            }
        }
        let with_base = |f: &Figure| self.median(underlay, VETH, f.key).is_some_and(|v| v > 0.0);
        let shown = self.shown(underlay, with_base);
        if !shown.is_empty() {
            text += &format!("Ratios to {VETH}, of medians.\n\n{}\n", self.ratios(underlay, &shown));
        }
        if let Some(table) = self.against_peers(underlay) {
            text += &format!("Ratios to the best peer by each figure, of medians.\n\n{table}\n");
        }
        if let Some(table) = self.relay_costs(underlay) {
            text += &format!("Each program of {RELAY}.\n\n{table}\n");
        }
        text
    }

    fn shown(&self, underlay: Underlay, wanted: impl Fn(&Figure) -> bool) -> Vec<&'static Figure> {
        let any = |f: &&Figure| self.spreads.keys().any(|(u, _, k)| *u == underlay && k == f.key);
        FIGURES.iter().filter(|f| wanted(f)).filter(any).collect()
    }

    fn medians(&self, underlay: Underlay, figures: &[&Figure]) -> String {
        let cell = |c: &Contender, f: &&Figure| {
            let Some(Spread { median, min, max }) = self.spread(underlay, c.name, f.key) else {
                return dash();
            };
            let n = f.decimals;
            if min < max { format!("{median:.n$} ({min:.n$}..{max:.n$})") } else { format!("{median:.n$}") }
        };
        self.by_contender(underlay, figures, cell)
    }

    fn ratios(&self, underlay: Underlay, figures: &[&Figure]) -> String {
        let cell = |c: &Contender, f: &&Figure| {
            let median = |name| self.median(underlay, name, f.key);
            median(c.name).zip(median(VETH)).map_or_else(dash, |(value, base)| format!("{:.3}", value / base))
        };
        self.by_contender(underlay, figures, cell)
    }

    fn by_contender(
        &self,
        underlay: Underlay,
        figures: &[&Figure],
        cell: impl Fn(&Contender, &&Figure) -> String,
    ) -> String {
        let head = once(String::new()).chain(figures.iter().map(|f| f.title.to_owned())).collect();
        let row = |c: &Contender| once(c.name.to_owned()).chain(figures.iter().map(|f| cell(c, f))).collect();
        markdown(&once(head).chain(self.on(underlay).map(row)).collect::<Vec<_>>(), 1)
    }

    /// The product beside the best peer, a figure a line.
    fn against_peers(&self, underlay: Underlay) -> Option<String> {
        let ours: Vec<&Contender> = self.on(underlay).filter(|c| c.kind == Kind::Ours).collect();
        let mut rows = vec![];
        for figure in self.shown(underlay, |_| true) {
            let Some((name, best)) = self.best_peer(underlay, figure).filter(|(_, best)| *best > 0.0) else {
                continue;
            };
            let mut row = vec![figure.title.to_owned(), format!("{name}, {best:.n$}", n = figure.decimals)];
            row.extend(ours.iter().map(|c| {
                let median = self.median(underlay, c.name, figure.key);
                median.map_or_else(dash, |m| format!("{:.2}", m / best))
            }));
            rows.push(row);
        }
        let head =
            [String::new(), "best peer".to_owned()].into_iter().chain(ours.iter().map(|c| c.name.to_owned()));
        (!rows.is_empty() && !ours.is_empty())
            .then(|| markdown(&once(head.collect()).chain(rows).collect::<Vec<_>>(), 2))
    }

    fn relay_costs(&self, underlay: Underlay) -> Option<String> {
        let roles = ["a", "relay", "b"];
        let row = |test: &&str| -> Option<Vec<String>> {
            let of = |role: &str| self.median(underlay, RELAY, &format!("{test}_cpu_{role}"));
            let cells: Option<Vec<String>> = roles.iter().map(|r| of(r).map(|v| format!("{v:.2}"))).collect();
            let title = figure(&format!("{test}_cpu"))?.title;
            Some(once(title.to_owned()).chain(cells?).collect())
        };
        let rows: Vec<Vec<String>> = ["tcp1", "tcp1r", "tcp4"].iter().filter_map(row).collect();
        let head = ["", "host a", "relay", "host b"].map(str::to_owned).to_vec();
        (!rows.is_empty()).then(|| markdown(&once(head).chain(rows).collect::<Vec<_>>(), 1))
    }

    /// The main figures of a measurement, for a line while it goes on.
    pub fn line(found: &Found) -> String {
        let main = [
            "tcp1",
            "tcp1r",
            "tcp4",
            "tcp1_cpu",
            "ping_median",
            "loadping_median",
            "udp64",
            "udp50k_us",
            "udp1400",
        ];
        let shown = main.iter().filter_map(|key| {
            let n = figure(key)?.decimals;
            Some(format!("{key} {:.n$}", found.get(*key)?))
        });
        shown.collect::<Vec<_>>().join("  ")
    }
}

fn dash() -> String {
    "-".to_owned()
}

/// A table whose columns are aligned in its source too, the first `words` of them to the left and numbers to the right; the
/// first line is the head.
pub fn markdown(rows: &[Vec<String>], words: usize) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |i: usize| rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cell = |(i, (cell, w)): (usize, (&String, &usize))| match i < words {
            true => format!(" {cell:<w$} "),
            false => format!(" {cell:>w$} "),
        };
        format!("|{}|\n", row.iter().zip(&widths).enumerate().map(cell).collect::<Vec<_>>().join("|"))
    };
    let rule =
        |(i, w): (usize, &usize)| format!("{}{}", "-".repeat(w + 1), if i < words { "-" } else { ":" });
    let rules = widths.iter().enumerate().map(rule).collect::<Vec<_>>().join("|");
    let mut lines = rows.iter().map(line);
    lines.next().into_iter().chain(once(format!("|{rules}|\n"))).chain(lines).collect()
}
