//! Log lines: plain, in colour on a terminal, or JSON; without a time where the journal keeps it.

use crate::config::{Log, LogFormat};
use std::io::IsTerminal;
use std::sync::OnceLock;
use tracing::Level;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

static LEVEL: OnceLock<reload::Handle<LevelFilter, Registry>> = OnceLock::new();

/// Begins logging to the standard error; once a process.
pub fn start(log: &Log) {
    let (filter, handle) = reload::Layer::new(LevelFilter::from_level(log.level));
    let lines = fmt::layer().with_writer(std::io::stderr).with_target(false);
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let colour = log.format == LogFormat::Auto
        && std::io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let layer = match log.format {
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
        _ if journal => lines.with_ansi(false).without_time().boxed(),
        _ => lines.with_ansi(colour).boxed(),
    };
    if tracing_subscriber::registry().with(filter).with(layer).try_init().is_ok() {
        let _only_once = LEVEL.set(handle);
    }
}

/// Changes what is logged.
pub fn set_level(level: Level) {
    if let Some(handle) = LEVEL.get() {
        let _gone = handle.reload(LevelFilter::from_level(level));
    }
}
