//! New keys for a session, inside it: starting, answering, finishing (PROTOCOL.md, "Session").

use super::Node;
use super::session::{RekeyIn, RekeyOut};
use crate::Time;
use crate::handshake::{Pieces, Rekey, RekeyOpened, Role};
use crate::snapshot::{PeerId, SessionId};
use shadowmesh_identity::Fact;
use shadowmesh_wire::DropReason;
use shadowmesh_wire::control::{CHUNK, Control, Piece};
use shadowmesh_wire::handshake::{Established, RelayGrant, Sid};
use std::time::Duration;

const REKEY_REPEAT: Duration = Duration::from_millis(200);

impl Node {
    /// Every session in use gets new keys: one of them has sealed much.
    pub(super) fn rekey_all(&mut self, now: Time) {
        for p in 0..self.peers.len() {
            if let Some(s) = self.peers[p].current()
                && s.rekey_out.is_none()
                && now.since(s.established) > Duration::from_secs(1)
            {
                let id = s.id;
                self.start_rekey(now, p as PeerId, id);
            }
        }
    }

    pub(super) fn start_rekey(&mut self, now: Time, p: PeerId, id: SessionId) {
        // Should it not come about now, it is tried again soon.
        if let Some(s) = self.peers[p as usize].session_mut(id) {
            s.rekey_after = now.since(s.established) + Duration::from_secs(1);
        }
        let (Some(leaf), Some(credential)) = (self.responder_leaf(now, p), self.credential(now)) else {
            return;
        };
        let (me, network) = (self.id, self.roster.network());
        let sid: Sid = self.rng.bytes();
        let peer = &self.peers[p as usize];
        let Some(s) = peer.session(id) else { return };
        let parent = s.parent(&network.0, &me, &peer.node);
        let Ok((rekey, body)) = Rekey::start(&parent, sid, &leaf, credential) else { return };
        let pieces = pieces(sid, &body, Control::RekeyResponse);
        let rx = self.indexes.fresh(&mut self.rng, self.config.data_threads);
        for piece in &pieces {
            self.send_on(p, id, piece);
        }
        if let Some(s) = self.peers[p as usize].session_mut(id) {
            s.rekey_out = Some(RekeyOut {
                rekey,
                pieces,
                repeat_at: now + REKEY_REPEAT,
                wait: REKEY_REPEAT,
                reply: None,
                rx,
            });
        }
    }

    /// The peer starts a rekey of this session.
    pub(super) fn rekey_asked(
        &mut self,
        now: Time,
        p: PeerId,
        id: SessionId,
        piece: Piece,
    ) -> Result<(), DropReason> {
        let s = self.peers[p as usize].session_mut(id).ok_or(DropReason::NoSession)?;
        if !s.confirmed {
            return Err(DropReason::BadHandshake);
        }
        if s.rekey_in.as_ref().is_none_or(|r| r.sid != piece.sid) {
            s.rekey_in = Some(RekeyIn { sid: piece.sid, pieces: Pieces::new(piece.count), answer: vec![] });
        }
        let r = s.rekey_in.as_mut().ok_or(DropReason::BadHandshake)?;
        if !r.answer.is_empty() {
            // A repeat gets the same bytes, piece for piece.
            let again = r.answer.get(usize::from(piece.index)).cloned();
            if let Some(again) = again {
                self.send_on(p, id, &again);
            }
            return Ok(());
        }
        if r.pieces.count() != usize::from(piece.count) {
            return Err(DropReason::BadHandshake);
        }
        r.pieces.add(piece.index, &piece.bytes);
        let Some(body) = r.pieces.whole() else { return Ok(()) };
        self.answer_rekey(now, p, id, piece.sid, &body)
    }

    fn answer_rekey(
        &mut self,
        now: Time,
        p: PeerId,
        id: SessionId,
        sid: Sid,
        body: &[u8],
    ) -> Result<(), DropReason> {
        let (me, network) = (self.id, self.roster.network());
        let (sid_r, wall) = (self.rng.bytes(), self.clock(now));
        let peer = &self.peers[p as usize];
        let s = peer.session(id).ok_or(DropReason::NoSession)?;
        let parent = s.parent(&network.0, &peer.node, &me);
        let opened = RekeyOpened::open(&parent, &sid, body, |leaf| self.own.leaf_key(leaf))?;
        // The same two NodeIds, or refuse: what is shown must be the peer's own. Its certificate need not be the one that
        // counts here: either side may have missed a renewal, and a session must not end by that. [P-REKEY]
        let own = |f: &Fact| f.subject() == peer.node && f.certificate().is_some();
        if self.roster.get(&opened.certificate).is_some_and(|f| !own(f)) {
            return Err(DropReason::BadHandshake);
        }
        let member = self.roster.member(&peer.node).ok_or(DropReason::NotMember)?;
        let leaf = member.leaves().find(|l| l.id() == opened.leaf);
        let Some(leaf) = leaf.and_then(Fact::leaf) else {
            // A leaf that is not here yet: its repeat will find it.
            if let Some(s) = self.peers[p as usize].session_mut(id) {
                s.rekey_in = None;
            }
            self.pull_fact(now, p, opened.leaf);
            return Ok(());
        };
        let rank = s.rank.of_rekey();
        let rx = self.indexes.fresh(&mut self.rng, self.config.data_threads);
        let established = Established {
            sid_r,
            generation: rank.generation,
            lanes: rx,
            observed: ([0; 16], 0),
            mtu: self.config.datagram,
            wall,
            relay: RelayGrant::default(),
        };
        let finished = opened.finish(&parent, &leaf.key, &established);
        let (body, keys) = finished.inspect_err(|_| self.indexes.free(&rx))?;
        self.add_session(now, p, Role::Responder, rank, keys, rx, sid_r);
        let answer = pieces(sid, &body, Control::RekeyEstablished);
        for piece in &answer {
            self.send_on(p, id, piece);
        }
        if let Some(r) = self.peers[p as usize].session_mut(id).and_then(|s| s.rekey_in.as_mut()) {
            r.answer = answer;
        }
        Ok(())
    }

    /// The answer to our rekey.
    pub(super) fn rekey_answered(
        &mut self,
        now: Time,
        p: PeerId,
        id: SessionId,
        piece: Piece,
    ) -> Result<(), DropReason> {
        let (me, network) = (self.id, self.roster.network());
        let peer = &mut self.peers[p as usize];
        let node = peer.node;
        let s = peer.session_mut(id).ok_or(DropReason::NoSession)?;
        let r =
            s.rekey_out.as_mut().filter(|r| r.rekey.sid == piece.sid).ok_or(DropReason::UnknownHandshake)?;
        let reply = r.reply.get_or_insert_with(|| Pieces::new(piece.count));
        if reply.count() != usize::from(piece.count) {
            return Err(DropReason::BadHandshake);
        }
        reply.add(piece.index, &piece.bytes);
        let Some(body) = reply.whole() else { return Ok(()) };
        let parent = s.parent(&network.0, &me, &node);
        let r = s.rekey_out.as_ref().ok_or(DropReason::UnknownHandshake)?;
        let (keys, e) = r.rekey.finish(&parent, &body)?;
        let (rx, rank) = (r.rx, s.rank.of_rekey());
        s.rekey_out = None;
        peer.path.announced(e.mtu);
        let new = self.add_session(now, p, Role::Initiator, rank, keys, rx, e.sid_r);
        self.confirm_out(now, p, new, &e);
        self.choose(now, p, new);
        Ok(())
    }
}

/// A rekey message in pieces that fit a control message.
fn pieces(sid: Sid, body: &[u8], kind: fn(Piece) -> Control) -> Vec<Control> {
    let chunk = body.len().div_ceil(3).max(1);
    debug_assert!(chunk <= CHUNK + 100);
    let count = body.len().div_ceil(chunk) as u8;
    body.chunks(chunk)
        .enumerate()
        .map(|(i, b)| kind(Piece { sid, index: i as u8, count, bytes: b.to_vec() }))
        .collect()
}
