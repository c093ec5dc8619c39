//! The control API of the daemon: what is said over its Unix socket, and a client for it.
//!
//! HTTP/1.1 with JSON. Reading asks `GET`; what changes something is `POST` or `DELETE`. An answer that takes its time is
//! a stream of lines, each one JSON object ([`Line`]); the last is `done` or `problem`. Times are RFC 3339, durations are
//! seconds, sizes are bytes.
#![warn(missing_docs)]

mod client;
mod problem;
mod time;
mod types;

pub use client::Client;
pub use problem::{Exit, Problem};
pub use time::{date, rfc3339, with_dates};
pub use types::*;

/// What stands in the `Host` header of every request. A browser can be talked into a request to a local socket's proxy,
/// but not into this header without also sending `Origin`.
pub const HOST: &str = "shadowmesh";
