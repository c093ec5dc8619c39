//! The daemon and the command line of ShadowMesh, as a library for its own tests and tools.

pub mod cli;
pub mod config;
pub mod daemon;
pub mod engine;
pub mod errand;
mod lan;
pub mod logging;
pub mod paths;
pub mod state;
pub mod tunnel;
mod upnp;
