//! What went wrong, for people: what failed and why, then what to do.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Exit codes of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Exit {
    /// It did not work.
    Failed = 1,
    /// The command was written wrongly.
    Usage = 2,
    /// The daemon is not running.
    NotRunning = 3,
    /// Not permitted here.
    NotPermitted = 4,
    /// Nobody answered in time.
    NoAnswer = 5,
    /// Refused for who this node is.
    Refused = 6,
    /// The configuration is wrong.
    Config = 7,
}

/// An error in three parts: what failed, why, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What kind: the exit code.
    pub exit: Exit,
    /// What failed and why, a sentence.
    pub what: String,
    /// What to do, a line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fix: Vec<String>,
}

impl Problem {
    /// A problem nobody knows a remedy for (yet).
    pub fn new(exit: Exit, what: impl Into<String>) -> Self {
        Problem { exit, what: what.into(), fix: vec![] }
    }

    /// The usual kind.
    pub fn failed(what: impl Into<String>) -> Self {
        Problem::new(Exit::Failed, what)
    }

    /// Adds a line that says what to do.
    #[must_use]
    pub fn fix(mut self, line: impl Into<String>) -> Self {
        self.fix.push(line.into());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        // A sentence ends with a full stop, whoever wrote it.
        if !self.what.ends_with(['.', '!', '?', ')']) {
            f.write_str(".")?;
        }
        for line in &self.fix {
            write!(f, "\n  {line}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problem {}
