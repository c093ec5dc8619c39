//! The deterministic simulator: whole networks of the shipped cores in virtual time, from a seed.
//!
//! [`world`] moves datagrams between nodes over links that delay, lose, repeat and reorder; [`guest`] puts numbered frames
//! into each node's device and judges what comes out; [`plan`] draws a world from a number and plays it.
//!
//! # Invariants, held after every delivery
//! - **I1** A frame is delivered at most once, to whom it was sent, unchanged.
//! - **I2** On a network that loses nothing, no frame is lost, rekeys and late snapshots or not.
//! - **I3** Nothing is delivered from a member whose tombstone the receiver holds, nor to it.
//! - **I4** Four seconds after a network has healed, the first frame of every pair of members that stand arrives.
//! - **I5** On the wire: no (index, counter) twice, nothing of a frame's payload in the clear, no reply to a stranger
//!   that is larger than what it answers.
//! - **I6** What a node holds for strangers stays within its bounds.

pub mod cast;
pub mod guest;
pub mod plan;
pub mod world;
