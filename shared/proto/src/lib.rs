//! The sans-IO mesh engine: handshake, sessions and their lanes, the layer-2 switch, the node that ties them together.
//!
//! Bytes and a time go in; bytes, events and the next deadline come out. No clock, socket, lock or async is in here, so
//! the simulator plays every race from a seed. The control half is [`Node`]; the data half are [`Sealer`] and
//! [`Opener`], which work on batches by the [`Snapshot`] that the node publishes. [`Endpoint`] drives the node,
//! [`Outbound`] and [`Inbound`] the data half, on threads of their own or all on one.
#![warn(missing_docs)]

pub mod batch;
mod data_half;
mod endpoint;
pub mod frame;
pub mod handshake;
pub mod join;
pub mod lane;
mod mss;
mod node;
mod opener;
mod pull;
pub mod relay_leg;
mod relay_link;
mod rng;
mod sealer;
mod snapshot;
pub mod superframe;
mod table;
mod time;
pub mod window;
mod work;

pub use data_half::{DataHalf, Inbound, Outbound, Up};
pub use endpoint::{Endpoint, OneThread};
pub use node::{
    AdminError, Event, Node, NodeConfig, OwnKeys, PathsStatus, PeerStatus, RelayStatus, SavedLeaf, Timer,
    Tried,
};
pub use opener::{LaneStats, Opener};
pub use relay_link::{LinkEvent, RelayLink};
pub use rng::Rng;
pub use sealer::{Largest, Sealer, Sent};
pub use snapshot::{
    Forward, Guard, Install, LaneId, MeshPrefixes, PeerId, Route, SessionId, Snapshot, THREADS, To,
};
pub use table::Table;
pub use time::Time;
pub use work::{Work, WorkDone};
