//! The client's side of the relay header: wrapping what goes by a relay, checking what comes from one.

use shadowmesh_crypto::kdf::{ct_eq, mac8};
use shadowmesh_crypto::secret::Secret;
use shadowmesh_wire::DropReason;
use shadowmesh_wire::relay::{RELAY_HEADER, RelayHeader};
use std::net::SocketAddr;

/// One sending thread's way to one relay: its own counter, so that threads share none.
pub struct RelayLeg {
    address: SocketAddr,
    slot: u32,
    thread: u8,
    counter: u64,
    key: Secret<32>,
}

impl RelayLeg {
    /// `key` is the session's `relay_up`.
    pub fn new(address: SocketAddr, slot: u32, thread: u8, key: Secret<32>) -> Self {
        RelayLeg { address, slot, thread, counter: 0, key }
    }

    /// Where the relay is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The relay is reached there from now on; the counter goes on.
    pub fn set_address(&mut self, address: SocketAddr) {
        self.address = address;
    }

    /// The header for the next packet to this handle.
    pub fn header(&mut self, handle: u64) -> [u8; RELAY_HEADER] {
        let mut h =
            RelayHeader { thread: self.thread, slot: self.slot, handle, counter: self.counter, mac: [0; 8] };
        h.mac = mac8(&self.key, &h.maced());
        self.counter += 1;
        h.emit()
    }

    /// A packet with its header.
    pub fn wrap(&mut self, handle: u64, packet: &[u8]) -> Vec<u8> {
        let mut v = self.header(handle).to_vec();
        v.extend_from_slice(packet);
        v
    }
}

/// Checks the header of a packet from a relay; gives the source's handle.
///
/// # Errors
/// `BadMac`, or what the parser says.
pub fn check_down(key: &Secret<32>, header: &RelayHeader) -> Result<u64, DropReason> {
    if ct_eq(&mac8(key, &header.maced()), &header.mac) { Ok(header.handle) } else { Err(DropReason::BadMac) }
}
