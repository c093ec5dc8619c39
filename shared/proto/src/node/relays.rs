//! The relays of the network: one link each, by pseudonym; up to two are this node's own places.

use super::{Event, Node};
use crate::Time;
use crate::handshake::{Credential, ResponderLeaf};
use crate::relay_leg::RelayLeg;
use crate::relay_link::{LinkEvent, RelayLink};
use crate::snapshot::{Install, PeerId, Route};
use shadowmesh_crypto::secret::Secret;
use shadowmesh_identity::{HostPort, Location, NodeId};
use shadowmesh_wire::DropReason;
use shadowmesh_wire::control::Control;
use shadowmesh_wire::handshake::RelayGrant;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Links kept at once.
const MAX_LINKS: usize = 8;
/// After so long without this node its peers may have ended their sessions with it.
const GIVEN_UP: Duration = Duration::from_secs(8);

/// What the data half is to send by.
struct Legs {
    address: SocketAddr,
    slot: u32,
    up: Secret<32>,
    former: bool,
}

/// A relay link and what the roster says of its relay.
pub(super) struct Link {
    link: RelayLink,
    place: HostPort,
    access: Arc<Secret<32>>,
    down_since: Option<Time>,
    /// It takes the place of another link to the same relay, which carries until this one does.
    follows: bool,
    /// What the data half is to send by, once the relay has been heard.
    coming: Option<Legs>,
    /// What is sent by it goes by a session with a former access secret, which is narrow: guests' frames wait until this
    /// node has been told the current one. [P-FORMER]
    former: bool,
    /// Its wall clock when this node began, as of the last handshake.
    wall_base: Option<i64>,
    /// Where it sees this machine.
    observed: Option<SocketAddr>,
}

impl Link {
    pub fn relay(&self) -> &[u8; 32] {
        self.link.relay()
    }

    pub fn is_up(&self) -> bool {
        self.link.is_up()
    }

    pub fn deadline(&self) -> Option<Time> {
        self.link.deadline()
    }

    pub fn note_activity(&mut self, now: Time) {
        self.link.note_activity(now);
    }

    pub fn wrap(&mut self, handle: u64, packet: &[u8]) -> Result<(SocketAddr, Vec<u8>), DropReason> {
        self.link.wrap(handle, packet)
    }

    /// Where the relay is.
    pub fn address(&self) -> Option<SocketAddr> {
        self.link.address()
    }

    /// Where it sees this machine, while it does. By TCP there is no such address: port 0.
    pub fn observed(&self) -> Option<SocketAddr> {
        self.observed.filter(|a| self.is_up() && a.port() != 0)
    }

    /// This node's place at the relay.
    pub fn location(&self) -> Option<Location> {
        let grant = self.link.grant()?;
        Some(Location { relay: NodeId(*self.relay()), address: self.place.clone(), handle: grant.handle })
    }
}

/// What `status` shows of a relay.
#[derive(Debug, Clone)]
pub struct RelayStatus {
    /// Its NodeId.
    pub relay: NodeId,
    /// Name and port.
    pub place: HostPort,
    /// Does the link stand?
    pub up: bool,
    /// By an access secret that was rotated out: this node waits for a member to tell it the current one.
    pub former: bool,
    /// Last round trip.
    pub rtt: Option<Duration>,
    /// Where it is.
    pub address: Option<SocketAddr>,
    /// Seconds that its clock is ahead of ours.
    pub skew: Option<i64>,
}

impl Node {
    /// Links for the relays that the roster names; a rotated access secret makes a link anew.
    pub(super) fn refresh_relays(&mut self, now: Time) {
        if self.revoked_self {
            return;
        }
        let listed = self.roster.relays().into_iter().take(MAX_LINKS);
        let relays: Vec<_> =
            listed.map(|(id, a)| (id, a.address.clone(), a.tag, a.secret.duplicate())).collect();
        for (relay, place, tag, secret) in relays {
            let known = self.links.iter().position(|l| *l.relay() == relay.0);
            if known.is_some_and(|i| *self.links[i].access == secret) {
                continue;
            }
            let Some((key, fresh)) = self.own.pseudonym(&relay.0) else { continue };
            if fresh {
                self.events.push_back(Event::SaveKeys);
            }
            let mut short = [0; 16];
            short.copy_from_slice(&tag[..16]);
            let access = Arc::new(secret);
            let credential = Credential::Pseudonym { key, tag: short, access: access.clone() };
            let address = place.host().parse().ok().map(|ip| SocketAddr::new(ip, place.port()));
            let link = RelayLink::new(relay.0, address, credential, self.config.suites.clone(), now);
            let number = known.unwrap_or(self.links.len());
            let follows = known.is_some_and(|i| self.links[i].is_up());
            let wall_base = known.and_then(|i| self.links[i].wall_base);
            let former = known.is_some_and(|i| self.links[i].former);
            let (coming, down_since, at) = (None, None, place.clone());
            let observed = known.and_then(|i| self.links[i].observed);
            let link =
                Link { link, place: at, access, down_since, follows, coming, former, wall_base, observed };
            match known {
                Some(i) => self.links[i] = link,
                None => self.links.push(link),
            }
            if address.is_none() {
                self.events.push_back(Event::Resolve {
                    relay: number as u32,
                    host: place.host().to_owned(),
                    port: place.port(),
                });
            }
        }
    }

    /// Where a relay's name has resolved to.
    pub fn set_relay_address(&mut self, now: Time, relay: u32, address: SocketAddr) {
        if let Some(l) = self.links.get_mut(relay as usize) {
            l.link.set_address(now, address);
        }
    }

    /// A relay is reached by another way from now on, without another handshake where its link stands.
    pub fn move_link(&mut self, now: Time, relay: u32, address: SocketAddr) {
        let i = relay as usize;
        let Some(l) = self.links.get_mut(i) else { return };
        l.link.move_to(now, address, &mut self.rng);
        if let Some(legs) = &mut l.coming {
            legs.address = address;
        }
        for thread in 0..=self.config.data_threads {
            self.install(Install::RelayMoved { thread, relay, address });
        }
        self.drain_link(now, i);
    }

    /// What `status` shows.
    pub fn relay_status(&self) -> Vec<RelayStatus> {
        let status = |l: &Link| RelayStatus {
            relay: NodeId(*l.relay()),
            place: l.place.clone(),
            up: l.is_up(),
            former: l.former,
            rtt: l.link.rtt(),
            address: l.link.address(),
            skew: l.wall_base.map(|base| base - self.wall_base),
        };
        self.links.iter().map(status).collect()
    }

    pub(super) fn link_timeout(&mut self, now: Time, i: usize) {
        self.links[i].link.handle_timeout(now, &mut self.rng);
        self.drain_link(now, i);
    }

    /// Something came by a relay, whether or not its link stands.
    pub(super) fn nudge_link(&mut self, now: Time, i: usize) {
        if self.links.get(i).is_some_and(|l| !l.is_up()) {
            self.links[i].link.nudge(now, &mut self.rng);
            self.drain_link(now, i);
        }
    }

    /// Asks a relay at once whether it is there.
    pub(super) fn ask_link(&mut self, now: Time, i: usize) {
        self.links[i].link.ask(now, &mut self.rng);
        self.drain_link(now, i);
    }

    /// A typed packet that may be a relay's answer; `false` when it is not.
    pub(super) fn handle_relay_typed(
        &mut self,
        now: Time,
        from: SocketAddr,
        packet: &[u8],
    ) -> Result<bool, DropReason> {
        let link = self.links.iter().position(|l| l.link.address() == Some(from) && l.link.takes(packet));
        let Some(i) = link else { return Ok(false) };
        let result = self.links[i].link.handle_typed(now, packet, &mut self.rng);
        self.drain_link(now, i);
        result.map(|()| true)
    }

    /// What came behind the relay's own header.
    pub(super) fn handle_relay_session(
        &mut self,
        now: Time,
        relay: u32,
        packet: &[u8],
    ) -> Result<(), DropReason> {
        let i = relay as usize;
        let link = self.links.get_mut(i).ok_or(DropReason::UnknownSlot)?;
        let result = link.link.handle_session(now, packet);
        self.drain_link(now, i);
        result
    }

    pub(super) fn relay_leaf_checked(&mut self, now: Time, link: usize, leaf: Option<ResponderLeaf>) {
        if leaf.is_none() {
            self.drops.count(DropReason::BadHandshake);
        }
        if let Some(l) = self.links.get_mut(link) {
            l.link.set_leaf(now, leaf, &mut self.rng);
            self.drain_link(now, link);
        }
    }

    /// Says something to a relay.
    pub(super) fn link_control(&mut self, i: usize, c: &Control) {
        self.links[i].link.send_control(c);
        while let Some(x) = self.links[i].link.poll_transmit() {
            self.out.push_back(x);
        }
    }

    fn drain_link(&mut self, now: Time, i: usize) {
        while let Some(event) = self.links[i].link.poll_event() {
            let relay = NodeId(*self.links[i].relay());
            match event {
                LinkEvent::Verify(bundle) => self.verify_relay(now, i, bundle),
                LinkEvent::Up { grant, address, up, down, observed, wall } => {
                    let ip = std::net::Ipv6Addr::from(observed.0).to_canonical();
                    self.links[i].observed = Some(SocketAddr::new(ip, observed.1));
                    self.links[i].wall_base = Some(wall as i64 - (now.0 / 1_000_000_000) as i64);
                    self.relay_up(now, i, grant, address, &up, down);
                    self.refresh_candidates(now);
                    self.events.push_back(Event::RelayUp(relay));
                }
                LinkEvent::Heard => {
                    if let Some(legs) = self.links[i].coming.take() {
                        self.install_legs(now, i, legs);
                    }
                }
                LinkEvent::Back => {
                    // What came meanwhile is lost.
                    for p in self.peers_by(i) {
                        self.peers[p].sync_now(now);
                    }
                }
                LinkEvent::Down(_) => {
                    self.links[i].down_since = Some(now);
                    self.links[i].coming = None;
                    self.dirty = true;
                    self.relay_lost(now, i as u32);
                    self.events.push_back(Event::RelayDown(relay));
                }
                LinkEvent::Failed => {
                    let place = &self.links[i].place;
                    if place.host().parse::<std::net::IpAddr>().is_err() {
                        // Its name may point elsewhere by now.
                        self.events.push_back(Event::Resolve {
                            relay: i as u32,
                            host: place.host().to_owned(),
                            port: place.port(),
                        });
                    }
                }
                LinkEvent::Control(Control::LocatorReply { locator, status }) => {
                    self.locator_opened(now, i as u32, &locator, status);
                }
                LinkEvent::Control(Control::Observed(address)) => {
                    self.links[i].observed = Some(address);
                    self.refresh_candidates(now);
                }
                LinkEvent::Control(Control::Located { handle, address }) => {
                    self.located(now, i, handle, address);
                }
                LinkEvent::Control(_) => {}
            }
        }
        while let Some(x) = self.links[i].link.poll_transmit() {
            self.out.push_back(x);
        }
    }

    fn relay_up(
        &mut self,
        now: Time,
        i: usize,
        grant: RelayGrant,
        address: SocketAddr,
        up: &shadowmesh_crypto::secret::Secret<32>,
        down: shadowmesh_crypto::secret::Secret<32>,
    ) {
        let relay = i as u32;
        let legs = Legs { address, slot: grant.slot, up: up.duplicate(), former: grant.former };
        if std::mem::take(&mut self.links[i].follows) {
            // A frame that overtakes the confirmation would be lost: the link before carries until the relay is heard.
            self.links[i].coming = Some(legs);
        } else {
            self.install_legs(now, i, legs);
        }
        self.install(Install::RelayDown { relay, slot: grant.slot, key: down });
        self.dirty = true;
        self.refresh_own(now);
        self.forget_locators(relay);
        self.open_locators(now);
        let down_since = self.links[i].down_since.take();
        for p in 0..self.peers.len() {
            let peer = &mut self.peers[p];
            peer.next_try = peer.next_try.min(now);
            peer.next_ping = peer.next_ping.min(now);
            peer.unanswered = 0;
        }
        let Some(since) = down_since else { return };
        for p in self.peers_by(i) {
            // Nothing that was said meanwhile has arrived; and whom we were away from for long has given us up, so that
            // an opening is tried beside the session at once, where a session is wanted.
            let wanted = self.wants_session(&self.peers[p]);
            let peer = &mut self.peers[p];
            peer.sync_now(now);
            if wanted && now.since(since) >= GIVEN_UP {
                peer.unanswered = super::alive::SUSPECT;
            }
        }
    }

    /// The data half sends by this link from now on.
    fn install_legs(&mut self, now: Time, i: usize, legs: Legs) {
        // The link itself counts as the relay's thread 0; sealer n is its thread n + 1.
        for thread in 0..=self.config.data_threads {
            let leg = RelayLeg::new(legs.address, legs.slot, thread as u8 + 1, legs.up.duplicate());
            self.install(Install::Relay { thread, relay: i as u32, leg });
        }
        let was = std::mem::replace(&mut self.links[i].former, legs.former);
        self.dirty |= was != legs.former;
        if was && !legs.former {
            self.publish();
            for p in self.peers_by(i) {
                self.flush_queue(now, p as PeerId);
            }
        }
    }

    /// Goes this route by a link with a former access secret?
    pub(super) fn is_former(&self, route: Option<Route>) -> bool {
        let Some(Route::Relay { relay, .. }) = route else { return false };
        self.links.get(relay as usize).is_some_and(|l| l.former)
    }

    /// Peers whose session goes by this relay.
    fn peers_by(&self, link: usize) -> Vec<usize> {
        let by =
            |p: &super::Peer| matches!(p.route, Some(Route::Relay { relay, .. }) if relay as usize == link);
        (0..self.peers.len()).filter(|p| self.peers[*p].sending.is_some() && by(&self.peers[*p])).collect()
    }
}
