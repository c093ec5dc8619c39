//! Openings by others: members that come to this node.

use super::Node;
use super::session::{Rank, Session};
use crate::Time;
use crate::handshake::{Incoming, Local, Opened, Role, Source};
use shadowmesh_identity::chain::Chain;
use shadowmesh_identity::{Fact, NodeId};
use shadowmesh_wire::DropReason;
use shadowmesh_wire::PacketType;
use shadowmesh_wire::handshake::{CredentialKind, Established, RelayGrant, Sid};

/// Sessions of one peer that were answered and not confirmed, those of rekeys not counted.
const MAX_UNPROVED: usize = 3;

impl Node {
    /// A handshake packet or RESET.
    pub(super) fn handle_typed(
        &mut self,
        now: Time,
        source: Source,
        packet: &[u8],
    ) -> Result<(), DropReason> {
        let packet_type =
            packet.first().and_then(|b| PacketType::from_byte(*b)).ok_or(DropReason::Malformed)?;
        match packet_type {
            PacketType::Challenge
            | PacketType::Established
            | PacketType::NeedCert
            | PacketType::LeafReply
            | PacketType::Reset => {
                if let Source::Udp(from) = source
                    && self.handle_relay_typed(now, from, packet)?
                {
                    return Ok(());
                }
                if self.handle_opening(now, packet)? {
                    return Ok(());
                }
                Err(DropReason::UnknownHandshake)
            }
            PacketType::Hello | PacketType::Response | PacketType::Cert | PacketType::LeafRequest => {
                self.answer(now, source, packet)
            }
        }
    }

    fn answer(&mut self, now: Time, source: Source, packet: &[u8]) -> Result<(), DropReason> {
        if self.revoked_self {
            return Err(DropReason::NotMember);
        }
        let leaves = self.own.keys();
        let local =
            |contact, bundle, kinds| Local { contact, node: self.id.0, leaves: &leaves, bundle, kinds };
        let mut locals = vec![local(&self.contact, &self.bundle[..], &[CredentialKind::Member][..])];
        for invite in &self.invites {
            locals.push(local(&invite.contact, &self.invite_bundle, &[CredentialKind::Anonymous]));
        }
        let incoming = self.responder.handle(now, source, packet, &locals, &mut self.rng)?;
        match incoming {
            Incoming::Pending => {}
            Incoming::Reply(packets) => {
                for p in packets {
                    self.send_typed(&source, p);
                }
            }
            Incoming::Opened(opened) if opened.local > 0 => self.admit(now, opened)?,
            Incoming::Opened(opened) => self.answer_member(now, opened)?,
            Incoming::Certificates(asked) => self.verify_certificates(now, asked),
        }
        Ok(())
    }

    /// What a member's own LEAF bundle is: its chain.
    pub(super) fn refresh_bundle(&mut self, now: Time) {
        let chain = self.roster.chain(&self.id, self.unix(now)).unwrap_or_default();
        self.bundle = chain.iter().flat_map(|f| f.bytes().iter().copied()).collect();
        // A joiner knows only the hash of the genesis.
        self.invite_bundle = vec![];
        shadowmesh_wire::Writer(&mut self.invite_bundle)
            .blob(&self.config.genesis.encode())
            .bytes(&self.bundle);
    }

    /// A RESPONSE that opened: known certificate and leaf go on, others are asked for.
    fn answer_member(&mut self, now: Time, opened: Box<Opened>) -> Result<(), DropReason> {
        let (certificate, leaf) = opened.credential.split_at(32);
        let (Some(certificate), Some(leaf)) = (Self::parse_hash(certificate), Self::parse_hash(leaf)) else {
            return Err(DropReason::Malformed);
        };
        let node = self.roster.get(&certificate).filter(|f| f.certificate().is_some()).map(Fact::subject);
        let own_leaf = |n: NodeId| self.roster.get(&leaf).filter(|l| l.subject() == n && l.leaf().is_some());
        let ended = node.and_then(|n| Some((n, self.roster.ending(&n)?.clone(), own_leaf(n)?.clone())));
        if let Some((node, tombstone, leaf)) = ended {
            return self.bid_farewell(now, opened, node, tombstone, &leaf);
        }
        let known = node.filter(|_| self.roster.get(&leaf).is_some_and(|l| l.leaf().is_some()));
        match known {
            Some(node) => self.establish(now, opened, node, certificate, leaf),
            None => {
                let source = opened.source;
                let packet = self.responder.ask(now, opened)?;
                self.send_typed(&source, packet);
                Ok(())
            }
        }
    }

    /// The initiator's certificates are good; their hashes must be those in RESPONSE.
    pub(super) fn certificates_checked(&mut self, now: Time, source: Source, sid: Sid, chain: Chain) {
        let Some(opened) = self.responder.resume(source, sid) else { return };
        let (certificate, leaf) = opened.credential.split_at(32);
        let shown = (Some(chain.certificate.fact().id()), chain.leaf.as_ref().map(|l| l.fact().id()));
        if shown != (Self::parse_hash(certificate), Self::parse_hash(leaf)) {
            self.drops.count(DropReason::BadHandshake);
            return;
        }
        let node = chain.subject();
        if let Some(tombstone) = self.roster.ending(&node).cloned() {
            // It is told; what it has signed since enters no roster.
            let Some(leaf) = chain.leaf.as_ref().map(|l| l.fact().clone()) else { return };
            if let Err(reason) = self.bid_farewell(now, opened, node, tombstone, &leaf) {
                self.drops.count(reason);
            }
            return;
        }
        for fact in chain.into_facts() {
            self.merge(now, fact, None);
        }
        if let (Some(certificate), Some(leaf)) = shown
            && let Err(reason) = self.establish(now, opened, node, certificate, leaf)
        {
            self.drops.count(reason);
        }
    }

    /// Answers a member: the session receives, and sends nothing before the initiator confirms.
    fn establish(
        &mut self,
        now: Time,
        opened: Box<Opened>,
        node: NodeId,
        certificate: [u8; 32],
        leaf_hash: [u8; 32],
    ) -> Result<(), DropReason> {
        let unix = self.unix(now);
        let member = self.roster.member(&node).ok_or(DropReason::NotMember)?;
        let valid = node != self.id && self.roster.is_valid(&node, unix).is_ok();
        // Its certificate is one of its own, and another may have followed that it has not heard of: what counts is said
        // by the roster. The leaf is one of those that count.
        let leaf = member.leaves().find(|l| l.id() == leaf_hash).and_then(Fact::leaf);
        let leaf = leaf.filter(|l| l.not_after > unix).ok_or(DropReason::NotMember)?;
        if !valid {
            return Err(DropReason::NotMember);
        }
        let key = (*leaf.key).clone();
        let p = self.peer_of(&node).ok_or(DropReason::OverLimit)?;
        // What an initiator makes us hold before it has confirmed is bounded. The oldest goes: its initiator has begun
        // anew, and whoever only says that it is this member must not keep the member out. [P-CONFIRM]
        let unproved = |s: &&Session| !s.confirmed && s.rank.depth == 0;
        let mut held = self.peers[p as usize].sessions.iter().filter(unproved).map(|s| s.id);
        if let Some(oldest) = held.next()
            && held.count() + 1 >= MAX_UNPROVED
        {
            self.remove_session(p, oldest);
        }
        let rx = self.indexes.fresh(&mut self.rng, self.config.data_threads);
        let established = Established {
            sid_r: self.rng.bytes(),
            generation: self.peers[p as usize].generation,
            lanes: rx,
            observed: opened.source.observed(),
            mtu: self.config.datagram,
            wall: self.clock(now),
            relay: RelayGrant::default(),
        };
        let source = opened.source;
        let finished =
            self.responder.finish(now, opened, Some(&key), &[&certificate, &leaf_hash], &established);
        let (packets, keys) = finished.inspect_err(|_| self.indexes.free(&rx))?;
        // CONFIRM will tell its rank.
        let id = self.add_session(now, p, Role::Responder, Rank::default(), keys, rx, established.sid_r);
        if let Some(s) = self.peers[p as usize].session_mut(id) {
            // Its cookie came from there and back.
            s.way = Some(source.route());
        }
        for packet in packets {
            self.send_typed(&source, packet);
        }
        Ok(())
    }
}
