//! `make bench`: the speed of the product beside the plain underlay and beside other VPNs that are installed, on the
//! shipped programs, in namespaces.
//!
//! Each measurement has namespaces and daemons of its own. Rounds go through all contenders, and each begins with
//! another one, so that what else the machine does hits all of them. The figures are medians over the rounds; goals are
//! ratios of medians. `measure-speed --help` tells how to have a part of it; `docs/BENCHMARKS.md` is what the whole wrote.
//!
//! - `net` makes the namespaces; `contender` knows who is measured, `product` and `peers` start them
//! - `figures` names what is measured, `measure` does it
//! - `report` makes tables, `goals` compares with what is promised, `page` writes the page

mod contender;
mod figures;
mod goals;
mod measure;
mod net;
mod page;
mod peers;
mod product;
mod report;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use serde_json::json;
use shadowmesh_netns_tests::Measured;

use crate::contender::Contender;
use crate::figures::{Found, Test};
use crate::measure::{Bench, attempt};
use crate::net::{Net, Underlay};
use crate::page::Conditions;
use crate::report::{Measurement, Summary};

/// Measures the product's speed beside the plain underlay and other VPNs.
#[derive(Parser)]
struct Options {
    /// How often everything is measured.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// How long each stream takes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(2..))]
    seconds: u64,
    /// Only these contenders.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only these measurements.
    #[arg(long, value_delimiter = ',')]
    tests: Vec<Test>,
    /// What carries the packets; on `wire` only the product and the peers that have offloads, unless --only says who.
    #[arg(long, value_delimiter = ',', default_value = "gso")]
    underlay: Vec<Underlay>,
    /// Writes a Markdown page about the whole run there.
    #[arg(long, conflicts_with_all = ["only", "tests"])]
    page: Option<PathBuf>,
}

fn main() {
    let options = Options::parse();
    let (mut contenders, absent) = contender::all();
    for (name, why) in &absent {
        println!("left out: {name}: {why}");
    }
    if let Some(name) = options.only.iter().find(|name| contenders.iter().all(|c| c.name != **name)) {
        let names: Vec<&str> = contenders.iter().map(|c| c.name).collect();
        eprintln!("error: --only {name}: there is no such contender here, only {}", names.join(", "));
        std::process::exit(2);
    }
    let only = |name: &str| options.only.is_empty() || options.only.iter().any(|o| o == name);
    contenders.retain(|c| only(c.name));
    let conditions = Conditions::new(usize::from(options.rounds), options.seconds);

    let mut measurements = vec![];
    for round in 0..conditions.rounds {
        for underlay in &options.underlay {
            let belongs = |c: &&Contender| !options.only.is_empty() || c.belongs_on(*underlay);
            let mut turn: Vec<&Contender> = contenders.iter().filter(belongs).collect();
            let first = round * turn.len() / conditions.rounds;
            turn.rotate_left(first);
            for contender in turn {
                measurements.push(measure(contender, *underlay, round, &options));
                write_raw(&conditions, &measurements);
            }
        }
    }

    let summary = Summary::new(&contenders, &measurements);
    let whole = options.only.is_empty() && options.tests.is_empty();
    let outcomes = goals::outcomes(&summary, &options.underlay, whole);
    goals::write(&outcomes);
    match &options.page {
        Some(path) => {
            let page = page::page(&conditions, &summary, &options.underlay, &absent, &outcomes);
            std::fs::write(path, page).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            println!("{} is written", path.display());
        }
        None => {
            println!("\n{}\n", conditions.line());
            for underlay in &options.underlay {
                println!("Underlay: {}\n\n{}", underlay.name(), summary.tables(*underlay));
            }
            if !outcomes.is_empty() {
                println!("Goals\n\n{}", goals::table(&outcomes));
            }
        }
    }
    let failed = measurements.iter().filter(|m| !m.errors.is_empty()).count();
    if failed > 0 {
        println!("{failed} of {} measurements FAILED, in part or whole; see above", measurements.len());
    }
}

/// One contender, once. What fails is left out; a contender that does not start has no figures.
fn measure(contender: &Contender, underlay: Underlay, round: usize, options: &Options) -> Measurement {
    let mut found = Found::new();
    let mut errors = vec![];
    let tests = if options.tests.is_empty() { Test::value_variants() } else { &options.tests };
    let whole = attempt(|| {
        let net = Net::new(contender.name, underlay);
        let overlay = contender.start(&net);
        let bench = Bench::new(&net, &overlay, Duration::from_secs(options.seconds));
        bench.idle(&mut found);
        for test in tests {
            if let Err(error) = attempt(|| bench.run(*test, &mut found)) {
                errors.push(format!("{test:?}: {error}"));
            }
        }
    });
    errors.extend(whole.err());
    let place = format!("round {}/{} {} {}", round + 1, options.rounds, underlay.name(), contender.name);
    println!("{place}: {}", Summary::line(&found));
    for error in &errors {
        println!("{place}: FAILED {}", error.lines().next().unwrap_or_default());
    }
    Measurement { round, underlay, contender: contender.name, found, errors }
}

/// Everything that was measured so far, in a file beside the goals: a run that is cut short leaves what it has.
fn write_raw(conditions: &Conditions, measurements: &[Measurement]) {
    let path = Measured::path("bench-speed-raw");
    let all: Vec<_> = measurements.iter().map(Measurement::json).collect();
    let text = json!({"conditions": conditions.line(), "measurements": all}).to_string();
    let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    if let Err(e) = made.and_then(|()| std::fs::write(&path, text + "\n")) {
        eprintln!("{}: {e}", path.display());
    }
}
