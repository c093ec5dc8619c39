//! Invites that this node gave, and the joiners that come with them; revoking.

use super::aside::Aside;
use super::renewal::CERTIFICATE_LIFETIME;
use super::{Event, Node};
use crate::Time;
use crate::batch::Plain;
use crate::handshake::{Contact, Opened};
use crate::pull::{Offered, Puller, blob_hash, serve};
use crate::snapshot::SessionId;
use crate::work::Job;
use shadowmesh_crypto::Hash;
use shadowmesh_identity::book::{InviteBook, Redeem, Terms};
use shadowmesh_identity::fact::{Body, Reason};
use shadowmesh_identity::invite::{InviteSecret, Meeting};
use shadowmesh_identity::{Certificate, Claim, DAY, Fact, Invite, Name, NodeId, Tombstone};
use shadowmesh_wire::DropReason;
use shadowmesh_wire::control::{CHUNK, Control, MAX_CHUNKS, Status};
use shadowmesh_wire::data::{Kind, Ping};
use std::time::Duration;

/// Joiners served at once.
const MAX_GUESTS: usize = 16;
/// And for how long.
const GUEST_LIFETIME: Duration = Duration::from_secs(60);
/// One that has said nothing for so long makes room for another: who lacks something asks each 400 ms.
const GUEST_SILENT: Duration = Duration::from_millis(1500);
/// A locator is kept open at the relay for so long, and renewed before.
const LOCATOR_LIFETIME: u32 = 3600;
const LOCATOR_RENEW: Duration = Duration::from_secs(1800);
const LOCATOR_REPEAT: Duration = Duration::from_millis(500);
/// A relay that has no room is asked again after so long.
const LOCATOR_BUSY: Duration = Duration::from_secs(30);

/// An invite that can be used now.
pub(super) struct OpenInvite {
    pub locator: Hash,
    pub contact: Contact,
    /// By link: when to say OPEN_LOCATOR (again).
    pub due: Vec<(u32, Time)>,
}

/// A joiner.
pub(super) struct Guest {
    aside: Aside,
    locator: Hash,
    puller: Puller,
    offered: Offered,
    claim: Option<Hash>,
    /// Being verified, or answered.
    reply: Option<Control>,
    verifying: bool,
    heard: Time,
}

/// Why an invite could not be made, or a member not be revoked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// Only admins may.
    #[error("only an admin of the network may do this, and this machine is none")]
    NotAdmin,
    /// An invite needs a relay to meet at.
    #[error("the network has no relay to meet the new machine at")]
    NoRelay,
    /// Nobody of that name.
    #[error("no such member")]
    Unknown,
    /// It was done before.
    #[error("it was revoked already")]
    Already,
    /// Only the root revokes admins.
    #[error("it is an admin, and only the network's root can revoke one")]
    NeedsRoot,
    /// The book of invites says no.
    #[error("{0}")]
    Invite(#[from] shadowmesh_identity::book::InviteError),
    /// A signature could not be made.
    #[error("the signature could not be made")]
    Signing,
}

impl Node {
    /// Makes an invite; it is good once [`Event::SaveInvites`] is done.
    ///
    /// # Errors
    /// [`AdminError`].
    pub fn create_invite(&mut self, now: Time, terms: Terms) -> Result<Invite, AdminError> {
        if !self.roster.is_admin(&self.id, self.unix(now)) {
            return Err(AdminError::NotAdmin);
        }
        let relays: Vec<Meeting> = self
            .roster
            .relays()
            .into_iter()
            .map(|(relay, a)| Meeting { relay, address: a.address.clone() })
            .take(2)
            .collect();
        if relays.is_empty() {
            return Err(AdminError::NoRelay);
        }
        let (network, name) = (self.roster.network(), self.config.genesis.name.clone());
        let invite = self.book.create(network, name, relays, self.roster.version(), terms)?;
        self.events.push_back(Event::SaveInvites);
        self.refresh_invites(now);
        Ok(invite)
    }

    /// The invites.
    pub fn invites(&self) -> &InviteBook {
        &self.book
    }

    /// Takes an invite back.
    ///
    /// # Errors
    /// It is unknown.
    pub fn cancel_invite(&mut self, now: Time, locator: &Hash) -> Result<(), AdminError> {
        self.book.cancel(locator)?;
        self.events.push_back(Event::SaveInvites);
        for i in 0..self.links.len() {
            self.link_control(i, &Control::OpenLocator { locator: *locator, lifetime: 0 });
        }
        self.refresh_invites(now);
        Ok(())
    }

    /// Ends a member: a tombstone, pushed to everyone who can be reached.
    ///
    /// # Errors
    /// [`AdminError`].
    pub fn revoke(&mut self, now: Time, node: &NodeId, reason: Reason) -> Result<(), AdminError> {
        let unix = self.unix(now);
        let member = self.roster.member(node).ok_or(AdminError::Unknown)?;
        if member.revoked.is_some() {
            return Err(AdminError::Already);
        }
        let admin = member.roles().contains(shadowmesh_identity::Roles::ADMIN);
        let key = if admin {
            self.config.root.clone().ok_or(AdminError::NeedsRoot)?
        } else if self.roster.is_admin(&self.id, unix) {
            self.config.identity.clone()
        } else {
            return Err(AdminError::NotAdmin);
        };
        let body = Body::Tombstone(Tombstone { reason, void_after: None });
        let seq = self.roster.next_seq();
        let fact = Fact::sign(&key, self.roster.network(), *node, seq, unix, &body)
            .map_err(|_| AdminError::Signing)?;
        self.merge(now, fact, None);
        self.publish();
        Ok(())
    }

    /// Brings the invites that can be used in line with the book.
    pub(super) fn refresh_invites(&mut self, now: Time) {
        let unix = self.unix(now);
        if self.book.prune(unix) {
            self.events.push_back(Event::SaveInvites);
        }
        let open: Vec<Hash> = self.book.open(unix).collect();
        self.invites.retain(|i| open.contains(&i.locator));
        for locator in open {
            if self.invites.iter().any(|i| i.locator == locator) {
                continue;
            }
            let Some(record) = self.book.get(&locator) else { continue };
            let s = &record.secret;
            let network = self.roster.network();
            let contact = Contact::invite(
                &network.0,
                s.hello_mac_key(),
                s.challenge_seal_key(),
                s.leaf_seal_key(),
                s.mix_key(),
            );
            self.invites.push(OpenInvite { locator, contact, due: vec![] });
        }
        self.open_locators(now);
    }

    /// Says OPEN_LOCATOR where it is due.
    pub(super) fn open_locators(&mut self, now: Time) {
        let mut say = vec![];
        for invite in &mut self.invites {
            for (i, link) in self.links.iter().enumerate().filter(|(_, l)| l.is_up()) {
                let i = i as u32;
                match invite.due.iter_mut().find(|(l, _)| *l == i) {
                    Some((_, at)) if now < *at => continue,
                    Some((_, at)) => *at = now + LOCATOR_REPEAT,
                    None => invite.due.push((i, now + LOCATOR_REPEAT)),
                }
                let _ = link;
                say.push((i as usize, invite.locator));
            }
        }
        for (i, locator) in say {
            self.link_control(i, &Control::OpenLocator { locator, lifetime: LOCATOR_LIFETIME });
        }
    }

    /// When [`Node::open_locators`] is due.
    pub(super) fn locators_due(&self) -> Option<Time> {
        let up = |l: u32| self.links.get(l as usize).is_some_and(super::relays::Link::is_up);
        self.invites.iter().flat_map(|i| &i.due).filter(|(l, _)| up(*l)).map(|(_, at)| *at).min()
    }

    /// A relay's answer to OPEN_LOCATOR.
    pub(super) fn locator_opened(&mut self, now: Time, link: u32, locator: &Hash, status: Status) {
        let again = match status {
            Status::Ok => LOCATOR_RENEW,
            Status::Busy => LOCATOR_BUSY,
            _ => return,
        };
        if let Some(i) = self.invites.iter_mut().find(|i| i.locator == *locator)
            && let Some((_, at)) = i.due.iter_mut().find(|(l, _)| *l == link)
        {
            *at = now + again;
        }
    }

    /// A relay link is new: it knows no locator.
    pub(super) fn forget_locators(&mut self, link: u32) {
        for i in &mut self.invites {
            i.due.retain(|(l, _)| *l != link);
        }
    }

    /// A joiner's RESPONSE has opened under an invite's keys.
    pub(super) fn admit(&mut self, now: Time, opened: Box<Opened>) -> Result<(), DropReason> {
        self.guests_expire(now);
        let locator =
            self.invites.get(opened.local - 1).map(|i| i.locator).ok_or(DropReason::BadHandshake)?;
        if self.guests.len() >= MAX_GUESTS {
            let silent = |g: &Guest| now.since(g.heard) >= GUEST_SILENT && !g.verifying;
            let guests = self.guests.iter().enumerate().filter(|(_, g)| silent(g));
            let (longest, _) = guests.min_by_key(|(_, g)| g.heard).ok_or(DropReason::OverLimit)?;
            let guest = self.guests.swap_remove(longest);
            self.close_aside(&guest.aside);
        }
        let aside = self.open_aside(now, opened, None, &[])?;
        self.guests.push(Guest {
            aside,
            locator,
            puller: Puller::default(),
            offered: Offered::default(),
            claim: None,
            reply: None,
            verifying: false,
            heard: now,
        });
        Ok(())
    }

    pub(super) fn guests_expire(&mut self, now: Time) {
        while let Some(g) = self.guests.iter().position(|g| now.since(g.aside.since) >= GUEST_LIFETIME) {
            let guest = self.guests.swap_remove(g);
            self.close_aside(&guest.aside);
        }
    }

    fn guest_send(&mut self, g: usize, c: &Control) {
        let source = self.guests[g].aside.source;
        if let Some(packet) = self.guests[g].aside.seal(c) {
            self.send_typed(&source, packet);
        }
    }

    /// What a joiner says; `None` when the session is no joiner's.
    pub(super) fn handle_guest(&mut self, now: Time, plain: &Plain) -> Option<Result<(), DropReason>> {
        let g = self.guests.iter().position(|g| g.aside.session == plain.session)?;
        self.guests[g].heard = now;
        if plain.kind != Kind::Control {
            return Some(Ping::parse(&plain.body).map(|_| ()).map_err(DropReason::from));
        }
        Some(match Control::parse(&plain.body) {
            Ok(c) => self.guest_control(now, g, c),
            Err(e) => Err(e.into()),
        })
    }

    fn guest_control(&mut self, now: Time, g: usize, c: Control) -> Result<(), DropReason> {
        let guest = &mut self.guests[g];
        match c {
            Control::Confirm { sid_r, lanes, .. } => guest.aside.confirmed(sid_r, &lanes)?,
            Control::Claim(hash) => {
                if let Some(reply) = guest.reply.clone() {
                    self.guest_send(g, &reply);
                } else if guest.claim.is_none_or(|c| c == hash) && !guest.verifying {
                    guest.claim = Some(hash);
                    // Its repeats are the clock of this pull: who wants in asks.
                    let mut asks = guest.puller.want(now, hash);
                    if asks.is_empty() {
                        asks = guest.puller.handle_timeout(now).0;
                    }
                    for ask in asks {
                        self.guest_send(g, &ask);
                    }
                }
            }
            Control::Chunk { hash, chunk, count, bytes } => {
                if usize::from(count) * CHUNK > Claim::MAX_LEN + CHUNK {
                    return Err(DropReason::TooLong);
                }
                let (blob, more) = guest.puller.chunk(now, &hash, chunk, count, bytes);
                let (claim, session, h2) = (guest.claim, guest.aside.session, guest.aside.h2);
                for ask in more {
                    self.guest_send(g, &ask);
                }
                if let Some(bytes) = blob.filter(|b| Some(blob_hash(b)) == claim) {
                    self.guests[g].verifying = true;
                    let network = self.roster.network();
                    self.submit(super::sync::Pending::Claim(session), Job::Claim { bytes, network, h2 });
                }
            }
            Control::Pull { hash, chunk } => {
                let reply = serve(guest.offered.get(&hash), hash, chunk);
                self.guest_send(g, &reply);
            }
            _ => return Err(DropReason::Malformed),
        }
        Ok(())
    }

    /// The claim is checked: redeem the invite, sign the certificate, commit both, then answer. [P-SINGLE-USE]
    pub(super) fn claim_checked(&mut self, now: Time, session: SessionId, claim: Option<Box<Claim>>) {
        let Some(g) = self.guests.iter().position(|g| g.aside.session == session) else { return };
        let refuse = |status, text: String| Control::JoinReply { status, text, bundle: [0; 32] };
        let reply = match claim {
            None => refuse(Status::Refused, "the claim's signature does not hold".into()),
            Some(claim) => match self.redeem(now, &self.guests[g].locator.clone(), &claim) {
                Ok(bundle) => {
                    let bundle = self.guests[g].offered.add(bundle);
                    Control::JoinReply { status: Status::Ok, text: String::new(), bundle }
                }
                Err((status, text)) => refuse(status, text),
            },
        };
        self.guest_send(g, &reply);
        (self.guests[g].reply, self.guests[g].verifying, self.guests[g].heard) = (Some(reply), false, now);
    }

    fn redeem(&mut self, now: Time, locator: &Hash, claim: &Claim) -> Result<Vec<u8>, (Status, String)> {
        use shadowmesh_identity::book::InviteError;
        let (unix, node) = (self.unix(now), claim.node());
        if let Some(tombstone) = self.roster.ending(&node) {
            let by = self.roster.name_of(&tombstone.signer());
            let text = format!("this machine's identity was revoked by {by} (change {})", tombstone.seq());
            return Err((Status::Revoked, text));
        }
        let name = self.free_name(&claim.name, &node);
        let redeemed = self.book.redeem(locator, node, &name, unix);
        match redeemed {
            Ok(Redeem::First) => {}
            Ok(Redeem::Again) => return Ok(self.join_bundle(now, &node)),
            Err(e) => {
                let status = match e {
                    InviteError::Used { .. } => Status::Used,
                    InviteError::Expired => Status::Expired,
                    _ => Status::Refused,
                };
                return Err((status, e.to_string()));
            }
        }
        self.events.push_back(Event::SaveInvites);
        let issued = self.issue(now, unix, locator, claim, name.clone());
        if !issued {
            return Err((Status::Refused, "the certificate could not be signed".into()));
        }
        self.refresh_invites(now);
        self.events.push_back(Event::Admitted { node, name: name.to_string() });
        Ok(self.join_bundle(now, &node))
    }

    /// The name asked for, or the first of its like that nobody else has.
    fn free_name(&self, wanted: &Name, node: &NodeId) -> Name {
        let free = |n: &Name| self.roster.by_name(n.as_str()).is_none_or(|m| m.id == *node);
        if free(wanted) {
            return wanted.clone();
        }
        let stem: String = wanted.as_str().chars().take(50).collect();
        (2..10_000u32)
            .filter_map(|i| format!("{stem}-{i}").parse().ok())
            .find(|n: &Name| free(n))
            .unwrap_or_else(|| wanted.clone())
    }

    fn issue(&mut self, now: Time, unix: u64, locator: &Hash, claim: &Claim, name: Name) -> bool {
        let Some(record) = self.book.get(locator) else { return false };
        let node = claim.node();
        let body = Body::Certificate(Certificate {
            key: claim.key.clone(),
            name,
            roles: record.terms.roles,
            tags: record.terms.tags.clone(),
            ipv4: self.roster.free_ipv4(&node),
            not_before: unix.saturating_sub(DAY),
            not_after: unix + CERTIFICATE_LIFETIME,
            serial: record.serial,
            bridge: record.terms.bridge.clone(),
        });
        let seq = self.roster.next_seq();
        let signed = Fact::sign(&self.config.identity, self.roster.network(), node, seq, unix, &body);
        match signed {
            Ok(fact) => {
                self.merge(now, fact, None);
                true
            }
            Err(_) => false,
        }
    }

    /// What a new member needs to begin: who is admin, who was revoked, the relays, how to reach this node, and its own
    /// certificate. The rest comes by the sessions that it then makes.
    fn join_bundle(&self, now: Time, node: &NodeId) -> Vec<u8> {
        let unix = self.unix(now);
        let chains: Vec<Hash> = [self.id, *node]
            .iter()
            .flat_map(|n| self.roster.chain(n, unix).unwrap_or_default())
            .map(|f| f.id())
            .collect();
        let needed = |f: &&Fact| {
            let admin = |c: &Certificate| c.roles.contains(shadowmesh_identity::Roles::ADMIN);
            f.access().is_some()
                || f.tombstone().is_some()
                || f.certificate().is_some_and(admin)
                || chains.contains(&f.id())
        };
        let limit = CHUNK * usize::from(MAX_CHUNKS);
        let mut v = vec![];
        for f in self.roster.facts().filter(needed) {
            let own = chains.contains(&f.id());
            // Far more revocations than fit: they follow by the roster's own way, before any of the revoked is met.
            if own || v.len() + f.bytes().len() + 65_536 < limit {
                v.extend_from_slice(&(f.bytes().len() as u32).to_be_bytes());
                v.extend_from_slice(f.bytes());
            }
        }
        v
    }
}
