//! Sessions with those who are no peers: joiners, and members that were revoked and hear so. No frame goes in or out:
//! no peer has their number.

use super::Node;
use crate::Time;
use crate::handshake::{Opened, SessionKeys, Source};
use crate::lane::{RxLane, TxLane};
use crate::snapshot::{Install, PeerId, SessionId};
use shadowmesh_crypto::Hash;
use shadowmesh_crypto::kem;
use shadowmesh_wire::DropReason;
use shadowmesh_wire::control::Control;
use shadowmesh_wire::data::Kind;
use shadowmesh_wire::handshake::{Established, LANES, RelayGrant};

/// Their place in the openers.
const ASIDE: PeerId = PeerId::MAX;

/// A session beside those with peers.
pub(super) struct Aside {
    pub session: SessionId,
    pub source: Source,
    pub since: Time,
    pub h2: Hash,
    /// Until the initiator has confirmed: nothing is sent before. [P-CONFIRM]
    keys: Option<SessionKeys>,
    sid_r: [u8; 8],
    rx: [u32; LANES],
    tx: Option<TxLane>,
}

impl Aside {
    /// The initiator's first packet.
    pub fn confirmed(&mut self, sid_r: [u8; 8], lanes: &[u32; LANES]) -> Result<(), DropReason> {
        if sid_r != self.sid_r {
            return Err(DropReason::BadHandshake);
        }
        if let Some(keys) = self.keys.take() {
            self.tx = Some(TxLane::new(lanes[0], keys.send_lane(0)));
        }
        Ok(())
    }

    /// A packet for it; `None` before its confirmation.
    pub fn seal(&mut self, c: &Control) -> Option<Vec<u8>> {
        let mut body = vec![];
        c.emit(&mut body);
        self.tx.as_mut()?.seal(Kind::Control, &body).ok()
    }
}

impl Node {
    /// Answers an opening with a session of this kind. `key` and `identity` are the initiator's, as
    /// [`crate::handshake::Responder::finish`] takes them.
    pub(super) fn open_aside(
        &mut self,
        now: Time,
        opened: Box<Opened>,
        key: Option<&kem::PublicKey>,
        identity: &[&[u8]],
    ) -> Result<Aside, DropReason> {
        let source = opened.source;
        let rx = self.indexes.fresh(&mut self.rng, self.config.data_threads);
        let established = Established {
            sid_r: self.rng.bytes(),
            generation: 0,
            lanes: rx,
            observed: source.observed(),
            mtu: self.config.datagram,
            wall: self.clock(now),
            relay: RelayGrant::default(),
        };
        let finished = self.responder.finish(now, opened, key, identity, &established);
        let (packets, keys) = finished.inspect_err(|_| self.indexes.free(&rx))?;
        let session = self.next_session;
        self.next_session += 1;
        for (lane, index) in rx.iter().enumerate() {
            let keys = RxLane::new(keys.receive_lane(lane as u8));
            self.install(Install::Rx { index: *index, lane: lane as u8, session, peer: ASIDE, keys });
        }
        for packet in packets {
            self.send_typed(&source, packet);
        }
        let sid_r = established.sid_r;
        Ok(Aside { session, source, since: now, h2: keys.h2, keys: Some(keys), sid_r, rx, tx: None })
    }

    /// Its end.
    pub(super) fn close_aside(&mut self, aside: &Aside) {
        self.indexes.free(&aside.rx);
        for index in aside.rx {
            self.install(Install::RetireRx { index });
        }
    }
}
