//! The relay as a sans-IO machine: it knows pseudonyms and addresses, and forwards what it cannot read.
//!
//! Bytes and a time go in; datagrams, events and the next deadline come out. No clock, socket or file is in here.
//! [`Relay`] has the verbs; [`Durable`] is what survives a restart; [`Config`] bounds everything that a stranger can
//! make it hold.
//!
//! What it keeps of a client: slot, handle, network, address, the session's keys, counters. Nothing of what is
//! forwarded is looked at, and nothing is written but [`Durable`].
#![warn(missing_docs)]

mod client;
mod config;
mod durable;
mod forward;
mod leaf;
mod metrics;
mod opening;
mod relay;
mod session;
mod slots;
mod stun;
mod tuple;

pub use client::prefix;
pub use config::Config;
pub use durable::{BadState, Durable};
pub use metrics::Metrics;
pub use relay::{Event, Relay, RelayError};
pub use tuple::FourTuple;
