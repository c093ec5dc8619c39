//! What is done beside the packet loop, on threads that end with their answer: looking names up, and registering a new
//! access secret at a relay.

use super::Loop;
use crate::errand;
use crate::tunnel::Target;
use shadowmesh_crypto::Secret;
use shadowmesh_identity::{HostPort, NodeId};
use shadowmesh_proto::join::Registrar;
use shadowmesh_proto::{Time, WorkDone};
use std::net::{SocketAddr, ToSocketAddrs};
use tracing::{info, warn};

/// Something that another thread found out.
pub(super) enum Found {
    /// A job is done.
    Work(Box<WorkDone>),
    /// What a relay's name stands for.
    Address { relay: u32, host: String, port: u16, address: Option<SocketAddr> },
    /// The data half cannot go on.
    Broken(String),
    /// A relay has taken an access secret, or why not.
    Rotated { relay: NodeId, access: Secret<32>, trouble: Option<String> },
}

impl Loop {
    /// Looks a relay's name up: that may take half a minute.
    pub(super) fn resolve(&mut self, relay: u32, host: String, port: u16) {
        let (found, waker) = (self.found.clone(), self.waker.clone());
        let (v4, v6) = (self.reaches(false), self.reaches(true));
        let asked = (relay, host.clone(), port);
        let thread = std::thread::Builder::new().name("sm-resolve".into()).spawn(move || {
            let addresses = (host.as_str(), port).to_socket_addrs().into_iter().flatten();
            let address = addresses.into_iter().find(|a| if a.is_ipv4() { v4 } else { v6 });
            let _loop_ended = found.send(Found::Address { relay, host, port, address });
            waker.wake();
        });
        if thread.is_err() {
            self.unresolved.push(asked);
        }
    }

    fn reaches(&self, v6: bool) -> bool {
        let any = if v6 { SocketAddr::from(([0u8; 16], 1)) } else { SocketAddr::from(([0u8; 4], 1)) };
        self.udp.reaches(&any)
    }

    /// Has a relay take an access secret, on sockets of its own: the session is anonymous. The node asks again
    /// while it does not.
    pub(super) fn rotate(&mut self, relay: NodeId, place: HostPort, owner: Secret<32>, access: Secret<32>) {
        if self.unsaved() {
            // A crash would forget the tombstone, and with it that secret, which nobody else could make.
            return;
        }
        let (found, waker) = (self.found.clone(), self.waker.clone());
        let suites = self.suites.clone();
        let thread = std::thread::Builder::new().name("sm-rotate".into()).spawn(move || {
            let told = access.duplicate();
            let trouble = errand::resolve(&place)
                .and_then(|address| {
                    let make = |s: errand::Start| {
                        Registrar::rotate(relay, address, (owner, access), suites, s.now, s.unix, s.seed)
                    };
                    let target = Target { relay, place: place.clone(), address: Some(address) };
                    errand::run(vec![target], make, |_| Ok(()))
                })
                .map_or_else(|p| Some(p.what), |outcome| outcome.err().map(|e| e.to_string()));
            let _loop_ended = found.send(Found::Rotated { relay, access: told, trouble });
            waker.wake();
        });
        if let Err(e) = thread {
            self.unrotated.insert(relay, e.to_string());
        }
    }

    pub(super) fn rotated(&mut self, now: Time, relay: &NodeId, access: Secret<32>, trouble: Option<String>) {
        let network = self.files.name();
        match trouble {
            None => {
                info!(%network, relay = %relay.short(), "the relay has taken a new access secret");
                self.unrotated.remove(relay);
                self.endpoint.node.rotated(now, relay, access);
            }
            Some(why) => {
                if self.unrotated.get(relay) != Some(&why) {
                    warn!(%network, relay = %relay.short(), why, "the relay has not taken a new access secret");
                }
                self.unrotated.insert(*relay, why);
            }
        }
    }
}
