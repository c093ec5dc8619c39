//! The only crate of ShadowMesh that touches the operating system (Linux).
//!
//! Everything else is a machine without clock, sockets or files; this crate gives those machines a world:
//!
//! | module | gives |
//! |---|---|
//! | [`clock`] | monotonic and wall time |
//! | [`tap`] | the virtual Ethernet device |
//! | [`udp`] | UDP sockets, many datagrams a system call |
//! | [`ration`] | a part of the time for work that strangers cause |
//! | [`wake`] | waiting on descriptors, and waking who waits |
//! | [`netlink`] | addresses, MTU, routes of interfaces |
//! | [`privilege`] | becoming an unprivileged user |
//! | [`store`] | files that survive a crash at any moment |
//! | [`peercred`] | who is at the other end of a Unix socket |
//! | [`service`] | telling the service manager |
//! | [`terminal`] | how wide it is |
//! | [`memory`] | giving back what was needed only to start |
//!
//! `clock`, `tap`, `udp` and `wake` are for the packet loop, a plain thread, and never block except in
//! [`wake::Poller::wait`]; `netlink` is for the control plane, on tokio.

pub mod clock;
pub mod memory;
pub mod netlink;
pub mod peercred;
pub mod privilege;
pub mod ration;
pub mod service;
pub mod store;
pub mod tap;
pub mod terminal;
pub mod udp;
pub mod wake;
