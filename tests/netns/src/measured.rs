//! Measured promises: what a test found, in the form that `scripts/measured` reads.

use std::path::PathBuf;

use serde_json::{Value, json};

/// Lines of one `target/measured/<name>.json`, written when dropped.
#[derive(Debug)]
pub struct Measured {
    name: String,
    lines: Vec<Value>,
}

impl Measured {
    /// Begins anew.
    pub fn new(name: &str) -> Measured {
        Measured { name: name.into(), lines: Vec::new() }
    }

    /// Adds a line: `goal` in words (`>= 1.0`), and whether it holds.
    pub fn line(&mut self, id: &str, what: &str, value: f64, unit: &str, goal: &str, holds: bool) {
        self.lines.push(
            json!({"id": id, "what": what, "value": value, "unit": unit, "goal": goal, "holds": holds}),
        );
    }

    /// Where a file of that name goes: under `CARGO_TARGET_DIR`, or the workspace's `target`.
    pub fn path(name: &str) -> PathBuf {
        let workspace = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| PathBuf::from(workspace).join("target"), PathBuf::from);
        target.join("measured").join(format!("{name}.json"))
    }
}

/// The middle of what was measured, the greater of two; NaN of nothing.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Drop for Measured {
    fn drop(&mut self) {
        let path = Measured::path(&self.name);
        let text = serde_json::to_string_pretty(&self.lines).unwrap_or_default();
        let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        if let Err(e) = made.and_then(|()| std::fs::write(&path, text + "\n")) {
            eprintln!("{}: {e}", path.display());
        }
    }
}
