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
    /// And so many columns wide.
    pub columns: Option<usize>,
    /// Colours are wanted.
    pub colour: bool,
}

impl Printer {
    pub fn new(json: bool) -> Self {
        let terminal = stdout().is_terminal();
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let columns = shadowmesh_host::terminal::columns(stdout());
        Printer { json, terminal, columns, colour: terminal && !no_colour }
    }

    /// One line. A pipe that was closed is no error.
    pub fn line(&self, text: impl AsRef<str>) {
        let mut out = stdout().lock();
        let _closed = writeln!(out, "{}", text.as_ref()).and_then(|()| out.flush());
    }

    /// Rows under a head, as wide as the terminal at most.
    pub fn table(&self, head: &[&str], rows: &[Vec<String>]) {
        for line in table(head, rows, self.columns) {
            self.line(line);
        }
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

/// What goes on a further line stands so far in.
const INSET: usize = 2;

/// Columns as wide as what stands in them; the last one ends the line. Columns for which a terminal has no room go to
/// further lines of each row.
pub fn table(head: &[&str], rows: &[Vec<String>], room: Option<usize>) -> Vec<String> {
    let width = |i: usize| {
        let cells = rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count());
        cells.chain(head.get(i).map(|h| h.chars().count())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    // Which column begins a further line.
    let (mut begins, mut used) = (vec![false; head.len()], 0);
    for (i, w) in widths.iter().enumerate().skip(1) {
        used += 2 + widths[i - 1];
        if room.is_some_and(|room| used + w > room) {
            begins[i] = true;
            used = INSET;
        }
    }
    let put = |cells: Vec<&str>| {
        let mut lines = vec![String::new()];
        for (i, cell) in cells.iter().enumerate() {
            if begins[i] {
                lines.push(" ".repeat(INSET));
            }
            let last = lines.len() - 1;
            lines[last].push_str(&format!("{cell:<0$}  ", widths[i]));
        }
        lines.into_iter().map(|l| l.trim_end().to_owned())
    };
    let mut lines: Vec<String> = put(head.to_vec()).collect();
    lines.extend(rows.iter().flat_map(|r| put(r.iter().map(String::as_str).collect())));
    lines
}

/// Parts of a line; those for which a terminal has no room go to further lines, set in.
pub fn parts(parts: &[&str], inset: usize, room: Option<usize>) -> Vec<String> {
    let mut lines: Vec<String> = vec![];
    for part in parts {
        match lines.last_mut() {
            Some(l) if room.is_none_or(|room| l.chars().count() + 2 + part.chars().count() <= room) => {
                l.push_str("  ");
                l.push_str(part);
            }
            Some(_) => lines.push(format!("{:inset$}{part}", "")),
            None => lines.push((*part).to_owned()),
        }
    }
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
        let all = ["PEER  ADDRESS", "pi    10.83.112.9", "—     x"];
        assert_eq!(table(&["PEER", "ADDRESS"], &rows, None), all);
        assert_eq!(table(&["PEER", "ADDRESS"], &rows, Some(17)), all);
        let narrow = ["PEER", "  ADDRESS", "pi", "  10.83.112.9", "—", "  x"];
        assert_eq!(table(&["PEER", "ADDRESS"], &rows, Some(16)), narrow);
        assert_eq!(table(&["PEER", "ADDRESS"], &rows, Some(1)), narrow);
    }

    #[test]
    fn parts_go_below() {
        let all = ["home  10.83.0.1", "fd00::1", "up"];
        assert_eq!(parts(&all, 4, None), ["home  10.83.0.1  fd00::1  up"]);
        assert_eq!(parts(&all, 4, Some(28)), ["home  10.83.0.1  fd00::1  up"]);
        assert_eq!(parts(&all, 4, Some(27)), ["home  10.83.0.1  fd00::1", "    up"]);
        assert_eq!(parts(&all, 4, Some(20)), ["home  10.83.0.1", "    fd00::1  up"]);
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
