//! The page that tells of a whole run, and how to have one.

use std::fs;
use std::process::Command;

use serde_json::Value;
use shadowmesh_netns_tests::Measured;

use crate::contender::{Contender, Kind};
use crate::goals::{self, Outcome};
use crate::net::Underlay;
use crate::report::{Summary, markdown};

/// How the numbers came about.
pub struct Conditions {
    /// Processor and how many of it.
    pub machine: String,
    /// Linux's version.
    pub kernel: String,
    /// Of the beginning, in UTC.
    pub date: String,
    /// Processes that wanted to run before it began, in the minute before.
    pub load: String,
    /// Rounds of the run.
    pub rounds: usize,
    /// Of each stream.
    pub seconds: u64,
}

impl Conditions {
    /// Of this machine, now.
    pub fn new(rounds: usize, seconds: u64) -> Conditions {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpus = read("/proc/cpuinfo");
        let model = cpus.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": "));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let date = Command::new("date").args(["-u", "+%F"]).output();
        let date = date.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default();
        Conditions {
            machine: format!("{cores} cores, {}", model.map_or("processor unknown", |(_, name)| name.trim())),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            date,
            load: read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
            rounds,
            seconds,
        }
    }

    /// In a line.
    pub fn line(&self) -> String {
        let Conditions { machine, kernel, date, load, rounds, seconds } = self;
        format!(
            "{date}; {machine}; Linux {kernel}; rounds: {rounds}, with {seconds} s a stream; load average before: {load}"
        )
    }
}

/// The whole page.
pub fn page(
    conditions: &Conditions,
    summary: &Summary,
    underlays: &[Underlay],
    absent: &[(&'static str, String)],
    outcomes: &[Outcome],
) -> String {
    let mut text = format!(
        "# Benchmarks\n\n\
         Written by `make bench`. {}.\n\n\
         ## How it was measured\n\n\
         Two hosts and a router between them are network namespaces of one machine, MTU 1500, made anew for each \
         measurement; host a measures towards host b by `iperf3` and `ping`. All share the machine's cores: generator, \
         daemons of both hosts, and the kernel's forwarding. So the figures say what a daemon costs beside others, not \
         how fast two machines would be. Contenders take turns, and each round begins with another. The underlay is \
         *gso* (veth as it is: packets that a daemon hands over together cross together) or *wire* (no offloads: every \
         packet is one of at most 1500 bytes). Processor time is that of the daemons, in the kernel too. Idle ping: 200 \
         echoes, 5 ms apart; loaded: 10 ms apart, beside one TCP stream. TCP is controlled by CUBIC, as Linux and Debian \
         have it; a row shows BBR, which some kernels have instead: it paces by what it estimates, on plain veth too.\n\n\
         To repeat it, on Debian as root: `make bench-peers bench`. Newer builds of peers are taken from the directories \
         of `BENCH_PEERS`. A part of it: `target/release/measure-speed --help`.\n\n\
         ## Who was measured\n\n{}",
        conditions.line(),
        who(summary, underlays),
    );
    if !absent.is_empty() {
        let names = absent.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        text += &format!("\nNot installed, so left out: {names}.\n");
    }
    text += &format!("\n## Goals\n\n{}", goals::table(outcomes));
    text += &beside();
    for underlay in underlays {
        text += &format!("\n## Underlay: {}\n\n{}", underlay.name(), summary.tables(*underlay));
    }
    text.trim_end().to_owned() + "\n"
}

/// What other programs of `make bench`, `make soak` and the tests have measured.
const BESIDE: [&str; 6] = ["bench-relay", "bench-loss", "bench-bridge", "path-mtu", "path-mtu-own", "soak"];

/// That, as far as it was run here.
fn beside() -> String {
    let mut rows = vec![["", "value", "goal", "holds"].map(str::to_owned).to_vec()];
    for name in BESIDE {
        let text = fs::read_to_string(Measured::path(name)).unwrap_or_default();
        let lines: Vec<Value> = serde_json::from_str(&text).unwrap_or_default();
        rows.extend(lines.iter().map(|line| {
            let word = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
            let value = format!("{:.2} {}", line["value"].as_f64().unwrap_or(f64::NAN), word("unit"));
            let holds = match (word("goal").is_empty(), line["holds"] == true) {
                (true, _) => "",
                (_, true) => "yes",
                (_, false) => "no",
            };
            vec![word("what"), value.trim_end().to_owned(), word("goal"), holds.to_owned()]
        }));
    }
    if rows.len() == 1 {
        return String::new();
    }
    format!(
        "\n## Relay, loss, bridges, path MTU, an hour\n\nBy `make bench`, `make soak` and `make test`. The relay forwards for \
         one client that sends and one that receives. A lossy link has a delay of 5 ms each way, 200 Mbit/s, and the \
         same seed for both streams of a pair; \"bare\" is the stream beside the daemons.\n\n{}",
        markdown(&rows, 1)
    )
}

fn who(summary: &Summary, underlays: &[Underlay]) -> String {
    let mut rows = vec![["", "version", "configuration"].map(str::to_owned).to_vec()];
    let mut seen: Vec<&Contender> = vec![];
    for contender in underlays.iter().flat_map(|u| summary.on(*u)) {
        if !seen.iter().any(|c| c.name == contender.name) {
            seen.push(contender);
        }
    }
    rows.extend(seen.iter().map(|c| {
        let version = if c.kind == Kind::Base { "-" } else { &c.version };
        vec![c.name.to_owned(), version.to_owned(), c.about.to_owned()]
    }));
    markdown(&rows, 3)
}
