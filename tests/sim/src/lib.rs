//! The deterministic simulator: whole networks of the shipped cores in virtual time, from a seed.
//!
//! [`world`] moves datagrams between nodes over links that delay, lose, repeat and reorder; [`guest`] puts numbered frames
//! into each node's device and judges what comes out; [`nat`] stands between some of them; [`plan`] draws a world from a number and plays it.
//!
//! The invariants that hold after every delivery, I1 to I6, are listed in `docs/ARCHITECTURE.md`.

pub mod cast;
pub mod flood;
pub mod guest;
pub mod many;
pub mod nat;
pub mod plan;
pub mod world;
