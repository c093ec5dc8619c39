//! How things are printed: tables, steps, errors; colour on a terminal only, and never alone to carry a meaning.

use serde::Serialize;
use shadowmesh_control::{Exit, Problem, Step};
use std::io::{IsTerminal, Write, stderr, stdout};
use std::process::ExitCode;

/// Where and how to print.
pub struct Printer {
    /// JSON in place of text.
    pub json: bool,
    /// The output is a terminal.
    pub terminal: bool,
    /// Colours are wanted.
    pub colour: bool,
}

impl Printer {
    pub fn new(json: bool) -> Self {
        let terminal = stdout().is_terminal();
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        Printer { json, terminal, colour: terminal && !no_colour }
    }

    /// One line. A pipe that was closed is no error.
    pub fn line(&self, text: impl AsRef<str>) {
        let mut out = stdout().lock();
        let _closed = writeln!(out, "{}", text.as_ref()).and_then(|()| out.flush());
    }

    /// An object for programs.
    pub fn object(&self, value: &impl Serialize) {
        match serde_json::to_string_pretty(value) {
            Ok(text) => self.line(text),
            Err(e) => self.line(format!("{{\"problem\": \"{e}\"}}")),
        }
    }

    /// A step that was checked; for programs nothing, they get the end.
    pub fn step(&self, what: &str, detail: &str) {
        if self.json {
            return;
        }
        self.clear_waiting();
        let tick = if self.colour { "\x1b[32m✓\x1b[0m" } else { "✓" };
        self.line(format!("{tick} {what:<12}  {detail}"));
    }

    /// The same, from the daemon.
    pub fn checked(&self, step: &Step) {
        self.step(&step.what, &step.detail);
    }

    /// What is waited for: shown on a terminal only, and replaced by what comes.
    pub fn waiting(&self, what: &str) {
        if self.terminal && !self.json {
            let mut out = stdout().lock();
            let _closed = write!(out, "\r\x1b[K… {what}").and_then(|()| out.flush());
        }
    }

    /// Takes the waiting line away.
    pub fn clear_waiting(&self) {
        if self.terminal && !self.json {
            let mut out = stdout().lock();
            let _closed = write!(out, "\r\x1b[K").and_then(|()| out.flush());
        }
    }

    /// A warning, on the error output.
    pub fn warning(&self, text: &str) {
        self.clear_waiting();
        let colour = self.colour && stderr().is_terminal();
        let word = if colour { "\x1b[33mwarning:\x1b[0m" } else { "warning:" };
        let _closed = writeln!(stderr(), "{word} {text}");
    }
}

/// Prints a problem and gives its exit code.
pub fn fail(printer: &Printer, problem: &Problem) -> ExitCode {
    printer.clear_waiting();
    if printer.json {
        printer.object(&serde_json::json!({ "schema": "shadowmesh/error/1", "error": problem }));
    } else {
        let colour = printer.colour && stderr().is_terminal();
        let word = if colour { "\x1b[31merror:\x1b[0m" } else { "error:" };
        let _closed = writeln!(stderr(), "{word} {problem}");
    }
    ExitCode::from(problem.exit as u8)
}

/// A usage problem.
pub fn usage(what: impl Into<String>) -> Problem {
    Problem::new(Exit::Usage, what)
}

/// Columns as wide as what stands in them; the last one ends the line.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let width = |i: usize| {
        let cells = rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count());
        cells.chain(head.get(i).map(|h| h.chars().count())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded: Vec<String> = cells
            .iter()
            .zip(&widths)
            .map(|(c, w)| format!("{c}{}", " ".repeat(w - c.chars().count().min(*w))))
            .collect();
        padded.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(head.to_vec())];
    lines.extend(rows.iter().map(|r| line(r.iter().map(String::as_str).collect())));
    lines
}

/// `2 ms`, `1.2 s`: rounded for people.
pub fn rtt(seconds: f64) -> String {
    let ms = seconds * 1000.0;
    if ms < 1.0 {
        format!("{ms:.1} ms")
    } else if ms < 1000.0 {
        format!("{ms:.0} ms")
    } else {
        format!("{seconds:.1} s")
    }
}

/// `41 s`, `12 min`, `3 h`, `5 days`.
pub fn age(seconds: f64) -> String {
    let s = seconds.max(0.0) as u64;
    match s {
        0..120 => format!("{s} s"),
        120..7200 => format!("{} min", s / 60),
        7200..172_800 => format!("{} h", s / 3600),
        _ => format!("{} days", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_fit_what_is_in_them() {
        let rows =
            vec![vec!["pi".to_owned(), "10.83.112.9".to_owned()], vec!["—".to_owned(), "x".to_owned()]];
        assert_eq!(table(&["PEER", "ADDRESS"], &rows), ["PEER  ADDRESS", "pi    10.83.112.9", "—     x"]);
    }

    #[test]
    fn times_are_rounded_for_people() {
        assert_eq!((rtt(0.0004), rtt(0.0021), rtt(1.24)), ("0.4 ms".into(), "2 ms".into(), "1.2 s".into()));
        assert_eq!(
            (age(41.7), age(721.0), age(86_400.0 * 3.2)),
            ("41 s".into(), "12 min".into(), "3 days".into())
        );
    }
}
