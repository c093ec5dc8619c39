//! The forwarding path: one MAC to check, one to make, a header rewritten in place. Nothing behind the header is looked
//! at.

use crate::FourTuple;
use crate::client::{Client, Scope};
use crate::relay::Relay;
use shadowmesh_proto::Time;
use shadowmesh_wire::DropReason;
use shadowmesh_wire::control::Control;
use shadowmesh_wire::data::{DATA_HEADER, DATA_TAG};
use shadowmesh_wire::relay::{RELAY_HEADER, RelayHeader};

/// A PATH_CHALLENGE with all its headers: kind and type a byte each, 8 of challenge. Bytes.
const CHALLENGE_LEN: usize = RELAY_HEADER + DATA_HEADER + 1 + 1 + 8 + DATA_TAG;

impl Relay {
    /// Rewrites the relay header of a datagram for its destination, and says where that is. No allocation
    /// but for the first packet of a sending thread, or from another address.
    ///
    /// # Errors
    /// Why it is dropped; the caller counts it.
    pub fn forward(
        &mut self,
        now: Time,
        from: FourTuple,
        datagram: &mut [u8],
    ) -> Result<FourTuple, DropReason> {
        let (header, _) = RelayHeader::parse(datagram)?;
        let source = self.clients.get_mut(&header.slot).ok_or(DropReason::UnknownSlot)?;
        source.admit(now, &header)?;
        if !source.confirmed {
            return Err(DropReason::NoSession);
        }
        source.bucket.take(now, datagram.len())?;
        let (handle, scope, moved) = (source.handle, source.scope, source.path != from);
        if moved {
            self.challenge(now, header.slot, from, datagram.len());
        }
        if let Scope::Network(n) = scope
            && let Some(net) = self.nets.get_mut(n as usize)
        {
            net.bucket.take(now, datagram.len())?;
        }
        let slot = self.handles.get(&header.handle).ok_or(DropReason::UnknownHandle)?;
        let to = self.clients.get_mut(slot).ok_or(DropReason::UnknownHandle)?;
        if !may(now, (handle, scope), to) {
            return Err(DropReason::NotAllowed);
        }
        // What a former client is sent is on its sender's account, and more than it asked for may be on the way.
        if matches!(to.scope, Scope::Anonymous(_)) {
            to.bucket.take(now, datagram.len())?;
        }
        let head = datagram.first_chunk_mut::<RELAY_HEADER>().ok_or(DropReason::Truncated)?;
        *head = to.header(handle);
        let path = to.path;
        self.metrics.forwarded += 1;
        self.metrics.forwarded_bytes += datagram.len() as u64;
        Ok(path)
    }

    /// Asks on the path that a client was heard by, in a packet of `len` bytes, whether it is there; says whether
    /// anything was sent. Nobody may be there, so the question is no larger than the packet: a link's own ping is large
    /// enough. [P-RELAY-MAC, P-AMPLIFY]
    pub(crate) fn challenge(&mut self, now: Time, slot: u32, to: FourTuple, len: usize) -> bool {
        if len < CHALLENGE_LEN {
            return false;
        }
        let fresh = self.rng.bytes();
        let challenge = self.clients.get_mut(&slot).and_then(|c| c.challenge(now, to, fresh));
        if let Some(challenge) = challenge {
            self.send_control(slot, to, &Control::PathChallenge(challenge));
        }
        challenge.is_some()
    }
}

/// May the source (handle, scope) send to this client? Within one network, if one of the two showed its current access
/// secret; or between the two ends of a rendezvous.
/// [P-RELAY-NET]
fn may(now: Time, (handle, scope): (u64, Scope), to: &Client) -> bool {
    let met = |pair: Option<(u64, Time)>, other: u64| pair.is_some_and(|(h, end)| h == other && now < end);
    match (scope, to.scope) {
        (Scope::Network(a), Scope::Network(b) | Scope::Former(b)) | (Scope::Former(a), Scope::Network(b)) => {
            a == b && handle != to.handle
        }
        (Scope::Former(_), _) | (_, Scope::Former(_)) => false,
        (Scope::Anonymous(pair), Scope::Network(_)) => met(pair, to.handle),
        (Scope::Network(_), Scope::Anonymous(pair)) => met(pair, handle),
        (Scope::Anonymous(_), Scope::Anonymous(_)) => false,
    }
}
