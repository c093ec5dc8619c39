//! Many worlds, on all processors: for the programs.

use crate::plan::Outcome;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

/// Which worlds, and where the line of what came of them goes.
pub struct Wanted {
    /// Their numbers.
    pub from: u64,
    /// How many.
    pub worlds: u64,
    /// File for `scripts/measured`.
    pub report: Option<String>,
    /// After so many failures on a thread, no more.
    pub most: usize,
}

impl Wanted {
    /// From the command line; ends the program when that is wrong.
    pub fn from_args(program: &str) -> Wanted {
        let mut args = std::env::args().skip(1);
        let mut wanted = Wanted { from: 0, worlds: 100, report: None, most: 10 };
        while let Some(a) = args.next() {
            if a == "--stop-at-first" {
                wanted.most = 0;
                continue;
            }
            let value = args.next();
            let number = || value.as_ref().and_then(|v| v.parse().ok());
            match (a.as_str(), number(), &value) {
                ("--from", Some(n), _) => wanted.from = n,
                ("--worlds", Some(n), _) => wanted.worlds = n,
                ("--report", _, Some(f)) => wanted.report = Some(f.clone()),
                _ => {
                    eprintln!("usage: {program} [--from N] [--worlds M] [--report FILE] [--stop-at-first]");
                    std::process::exit(2);
                }
            }
        }
        wanted
    }

    /// Plays them; gives what came of all, and those that failed with their numbers.
    pub fn play(
        &self,
        play: impl Fn(u64) -> Result<Outcome, String> + Sync,
    ) -> (Outcome, Vec<(u64, String)>) {
        std::panic::set_hook(Box::new(|_| {}));
        let next = AtomicU64::new(self.from);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let run = || {
            let (mut sum, mut failures) = (Outcome::default(), vec![]);
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if self.most == 0 && !failures.is_empty() {
                    next.store(u64::MAX / 2, Ordering::Relaxed);
                }
                if seed >= self.from + self.worlds || failures.len() > self.most {
                    return (sum, failures);
                }
                match catch_unwind(AssertUnwindSafe(|| play(seed))) {
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
        (sum, failures)
    }

    /// Writes the line, and ends the program.
    pub fn end(&self, id: &str, what: &str, failed: usize) -> ! {
        if let Some(file) = &self.report {
            let line = format!(
                "[{{\"id\":\"{id}\",\"what\":\"{what} in seeded worlds from {}\",\"value\":{failed},\"unit\":\"of {}\",\"goal\":\"0\",\"holds\":{}}}]\n",
                self.from,
                self.worlds,
                failed == 0
            );
            if let Err(e) = std::fs::write(file, line) {
                eprintln!("error: {file} cannot be written: {e}");
                std::process::exit(1);
            }
        }
        std::process::exit(i32::from(failed > 0));
    }
}
