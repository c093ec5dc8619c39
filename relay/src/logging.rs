//! Log lines on the standard error: plain, in colour on a terminal, or JSON; without a time where the journal keeps it.
//! No address of a client is logged above DEBUG.

use crate::config::LogFormat;
use std::io::IsTerminal;
use tracing::Level;
use tracing_subscriber::fmt;

/// Begins logging; once a process.
pub fn start(level: Level, format: LogFormat) {
    let colour = format == LogFormat::Auto
        && std::io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let lines = fmt().with_writer(std::io::stderr).with_max_level(level).with_target(false).with_ansi(colour);
    let _only_once = match format {
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
        _ if journal => lines.without_time().try_init(),
        _ => lines.try_init(),
    };
}
