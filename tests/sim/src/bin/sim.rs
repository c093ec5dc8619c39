//! Plays worlds: `sim [--from N] [--worlds M] [--report FILE] [--stop-at-first]`. A failure prints its number; `--from N --worlds 1` replays it.

use shadowmesh_sim::plan::{Outcome, Plan};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

fn main() {
    let mut args = std::env::args().skip(1);
    let (mut from, mut worlds, mut report) = (0u64, 100u64, None);
    let mut most = 10;
    while let Some(a) = args.next() {
        if a == "--stop-at-first" {
            most = 0;
            continue;
        }
        let value = args.next();
        let number = || value.as_ref().and_then(|v| v.parse().ok());
        match (a.as_str(), number(), &value) {
            ("--from", Some(n), _) => from = n,
            ("--worlds", Some(n), _) => worlds = n,
            ("--report", _, Some(f)) => report = Some(f.clone()),
            _ => {
                eprintln!("usage: sim [--from N] [--worlds M] [--report FILE] [--stop-at-first]");
                std::process::exit(2);
            }
        }
    }
    std::panic::set_hook(Box::new(|_| {}));
    let next = AtomicU64::new(from);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let run = || {
        let (mut sum, mut failures) = (Outcome::default(), vec![]);
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if most == 0 && !failures.is_empty() {
                next.store(u64::MAX / 2, Ordering::Relaxed);
            }
            if seed >= from + worlds || failures.len() > most {
                return (sum, failures);
            }
            match catch_unwind(AssertUnwindSafe(|| Plan::draw(seed).play())) {
                Ok(Ok(o)) => sum.add(&o),
                Ok(Err(broken)) => failures.push((seed, broken)),
                Err(panic) => {
                    let text = panic
                        .downcast_ref::<String>()
                        .cloned()
                        .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
                    failures.push((seed, text.unwrap_or_else(|| "panic".into())));
                }
            }
        }
    };
    let results: Vec<_> = std::thread::scope(|s| {
        let handles: Vec<_> = (0..threads).map(|_| s.spawn(run)).collect();
        handles.into_iter().map(|h| h.join().expect("a thread of worlds")).collect()
    });
    let (mut sum, mut failures) = (Outcome::default(), vec![]);
    for (o, f) in results {
        sum.add(&o);
        failures.extend(f);
    }
    for (seed, broken) in &failures {
        let short: String = if worlds == 1 {
            format!("{broken}\n{:#?}", Plan::draw(*seed))
        } else {
            broken.chars().take(700).collect()
        };
        println!("world {seed}: {short}");
    }
    println!(
        "{worlds} worlds from {from}: {} frames sent, {} delivered ({} superframes joined again), {} datagrams, {} replies to a stranger, {} virtual hours, {} failed",
        sum.sent,
        sum.delivered,
        sum.joined,
        sum.datagrams,
        sum.replies,
        sum.seconds / 3600,
        failures.len()
    );
    if let Some(file) = report {
        let line = format!(
            "[{{\"id\":\"9-worlds\",\"what\":\"seeded worlds from {from}, invariants broken in\",\"value\":{},\"unit\":\"of {worlds}\",\"goal\":\"0\",\"holds\":{}}}]\n",
            failures.len(),
            failures.is_empty()
        );
        if let Err(e) = std::fs::write(&file, line) {
            eprintln!("error: {file} cannot be written: {e}");
            std::process::exit(1);
        }
    }
    std::process::exit(i32::from(!failures.is_empty()));
}
