//! Inside the sessions with clients: the first packet, keepalive, moving, registration, locators, rendezvous.

use crate::FourTuple;
use crate::client::{Client, Scope};
use crate::durable::Network;
use crate::opening::ANONYMOUS_LIFETIME;
use crate::relay::{Event, Net, Relay, short};
use shadowmesh_crypto::kdf::{Label, ct_eq, hash};
use shadowmesh_crypto::secret::Secret;
use shadowmesh_proto::Time;
use shadowmesh_wire::DropReason;
use shadowmesh_wire::control::{Control, Hash, Status};
use shadowmesh_wire::data::{DataHeader, Kind, Ping};
use shadowmesh_wire::relay::{RELAY_HEADER, RelayHeader, TO_RELAY};
use std::net::SocketAddr;
use std::time::Duration;

/// Longest life of a locator.
const LOCATOR_LIFETIME: u64 = 7 * 86_400;
/// How long the two ends of a rendezvous may speak, seconds.
const RENDEZVOUS: u32 = 600;
/// Registrations that change something, and rendezvous with different owners, in one session.
const MAX_ASKED: u32 = 16;

/// Who waits at a locator.
pub(crate) struct Locator {
    owner: u64,
    network: u32,
    ends: Time,
}

impl Relay {
    /// A packet to the relay itself, behind its header.
    pub(crate) fn on_session(
        &mut self,
        now: Time,
        from: FourTuple,
        header: &RelayHeader,
        datagram: &mut [u8],
    ) -> Result<(), DropReason> {
        let client = self.clients.get_mut(&header.slot).ok_or(DropReason::UnknownSlot)?;
        client.admit(now, header)?;
        let asked = datagram.len();
        let packet = datagram.get_mut(RELAY_HEADER..).ok_or(DropReason::Truncated)?;
        if DataHeader::parse(packet)?.index != client.index {
            return Err(DropReason::UnknownIndex);
        }
        let (kind, body) = client.rx.open_in_place(now, packet)?;
        let body = packet.get(body).ok_or(DropReason::Truncated)?;
        let (slot, confirmed, moved) = (header.slot, client.confirmed, client.path != from);
        let was_moved = client.moved && !moved;
        if !confirmed {
            self.confirm(now, slot)?;
        }
        let challenged = moved && self.challenge(now, slot, from, asked);
        // Answers go where the question came from, and are no larger than it. Who may not be there gets one: it asks
        // again. [P-AMPLIFY]
        match kind {
            Kind::Ping => {
                Ping::parse(body)?;
                if !challenged {
                    self.send(slot, from, Kind::Pong, body);
                }
                if was_moved {
                    // When it was told so, that may have been lost.
                    self.send_control(slot, from, &Control::Observed(from.remote));
                }
                Ok(())
            }
            Kind::Pong => Ok(()),
            Kind::Control => match Control::parse(body)? {
                c if challenged && !matches!(c, Control::PathResponse(_) | Control::Bye) => Ok(()),
                c => self.on_control(now, from, slot, c),
            },
            _ => Err(DropReason::Malformed),
        }
    }

    /// The first packet of a session opened: its handle is bound to it. [P-CONFIRM]
    fn confirm(&mut self, now: Time, slot: u32) -> Result<(), DropReason> {
        let client = self.clients.get(&slot).ok_or(DropReason::UnknownSlot)?;
        let (handle, born, scope) = (client.handle, client.born, client.scope);
        let mut locators = vec![];
        if let Some(old) = self.handles.get(&handle).copied() {
            // Of two sessions of one pseudonym the later one counts, in whatever order their packets come.
            if self.clients.get(&old).is_some_and(|o| o.born > born) {
                self.remove(slot);
                return Err(DropReason::UnknownSlot);
            }
            if let (Some(o), true) = (self.clients.get_mut(&old), scope.is_current()) {
                locators = std::mem::take(&mut o.locators);
            }
            self.replace(now, old);
        }
        if let Scope::Network(n) = scope {
            let most = self.config.max_clients_per_network;
            let net = self.nets.get_mut(n as usize).ok_or(DropReason::NotMember)?;
            if net.clients >= most {
                self.remove(slot);
                return Err(DropReason::OverLimit);
            }
            net.clients += 1;
        }
        self.handles.insert(handle, slot);
        self.unconfirmed = self.unconfirmed.saturating_sub(1);
        if let Some(client) = self.clients.get_mut(&slot) {
            client.confirmed = true;
            client.locators = locators;
        }
        Ok(())
    }

    fn on_control(
        &mut self,
        now: Time,
        from: FourTuple,
        slot: u32,
        control: Control,
    ) -> Result<(), DropReason> {
        match control {
            Control::Confirm { .. } => {
                // Whatever the client hears ends its repeats; a question also measures the way to it.
                let mut body = vec![];
                Ping { id: 0, stamp: now.0 }.emit(&mut body);
                self.send(slot, from, Kind::Ping, &body);
            }
            Control::PathResponse(answer) => self.on_path_response(now, from, slot, &answer)?,
            Control::Register { token, owner, access } => {
                let status = self.register(now, slot, &token, &Secret::new(owner), Secret::new(access));
                self.send_control(slot, from, &Control::RegisterReply(status));
            }
            Control::OpenLocator { locator, lifetime } => {
                let status = self.open_locator(now, slot, locator, lifetime);
                self.send_control(slot, from, &Control::LocatorReply { locator, status });
            }
            Control::Rendezvous(locator) => {
                let reply = self.rendezvous(now, slot, &locator);
                self.send_control(slot, from, &reply);
            }
            Control::Bye => self.remove(slot),
            Control::Locate(handle) => {
                let address = self.locate(slot, handle);
                self.send_control(slot, from, &Control::Located { handle, address });
            }
            _ => return Err(DropReason::NotAllowed),
        }
        Ok(())
    }

    /// Where a client of the same network is: to who is asked for so, many packets may be sent, which no member must be able
    /// to turn on whom it names. Members tell each other anyway. [P-PUNCH]
    fn locate(&self, slot: u32, handle: u64) -> SocketAddr {
        let client = |slot: &u32| self.clients.get(slot);
        let tag = |c: &Client| match c.scope {
            Scope::Network(n) => Some(n),
            Scope::Former(_) | Scope::Anonymous(_) => None,
        };
        let of = client(&slot).and_then(|c| tag(c));
        let found = self.handles.get(&handle).and_then(client).filter(|c| of.is_some() && tag(c) == of);
        found.map_or(SocketAddr::from(([0; 4], 0)), |c| c.path.remote)
    }

    fn on_path_response(
        &mut self,
        now: Time,
        from: FourTuple,
        slot: u32,
        answer: &[u8; 8],
    ) -> Result<(), DropReason> {
        let client = self.clients.get_mut(&slot).ok_or(DropReason::UnknownSlot)?;
        let (before, anonymous) = (client.path, !client.scope.is_current());
        if !client.rebind(now, from, answer) {
            return Err(DropReason::BadHandshake);
        }
        self.count_prefix(&before, anonymous, false);
        self.count_prefix(&from, anonymous, true);
        self.metrics.rebinds += 1;
        // It tells others where it may be reached; it has proved to be there.
        self.send_control(slot, from, &Control::Observed(from.remote));
        Ok(())
    }

    /// The same message gets the same answer: a network that is there already with this access secret is in order.
    fn register(
        &mut self,
        now: Time,
        slot: u32,
        token: &[u8; 16],
        owner: &Secret<32>,
        access: Secret<32>,
    ) -> Status {
        let Some(client) = self.clients.get(&slot) else { return Status::Refused };
        if !matches!(client.scope, Scope::Anonymous(_)) {
            return Status::Refused;
        }
        if self.held {
            return Status::Pending;
        }
        let unix = self.unix(now);
        let until = unix + self.config.former_lifetime.as_secs();
        let asked = client.asked;
        // Nobody can register another's tag: it is the hash of what only the owner knows. [P-REGISTER]
        let tag = hash(Label::OwnerTag, &[owner.expose()]);
        if let Some(n) = self.by_tag.get(&short(&tag)).map(|n| *n as usize) {
            let (Some(network), Some(net)) = (self.durable.networks.get_mut(n), self.nets.get_mut(n)) else {
                return Status::Refused;
            };
            if !ct_eq(&network.tag, &tag) {
                return Status::Refused;
            }
            if network.access != access {
                if asked >= MAX_ASKED {
                    return Status::Busy;
                }
                network.rotate(access, unix, until);
                net.generation += 1;
                net.rotated = now;
                self.metrics.rotations += 1;
                self.count_asked(slot);
                self.save(true);
                self.events.push_back(Event::Rotated(tag));
            }
            return Status::Ok;
        }
        let number = self.durable.token_number(token);
        match number {
            Some(n) if self.durable.spent.contains(&n) => return Status::Used,
            None if !self.config.open => {
                return if *token == [0; 16] { Status::Unknown } else { Status::Refused };
            }
            _ => {}
        }
        if self.nets.len() >= self.config.max_networks || asked >= MAX_ASKED {
            return Status::Busy;
        }
        self.count_asked(slot);
        self.durable.spent.extend(number);
        self.by_tag.insert(short(&tag), self.nets.len() as u32);
        self.nets.push(Net::new(now, &self.config));
        self.durable.networks.push(Network { tag, access, former: vec![] });
        self.metrics.registrations += 1;
        self.save(false);
        self.events.push_back(Event::Registered(tag));
        Status::Ok
    }

    fn open_locator(&mut self, now: Time, slot: u32, locator: Hash, lifetime: u32) -> Status {
        let Some(client) = self.clients.get(&slot) else { return Status::Refused };
        let Scope::Network(network) = client.scope else { return Status::Refused };
        let handle = client.handle;
        let known = self.locators.get(&locator).map(|l| (l.owner, now < l.ends));
        match known {
            Some((owner, true)) if owner != handle => return Status::Busy,
            // Its end has come, whoever's it was.
            Some((owner, false)) if owner != handle => self.drop_locator(&locator),
            _ => {}
        }
        let (Some(client), Some(net)) = (self.clients.get_mut(&slot), self.nets.get_mut(network as usize))
        else {
            return Status::Refused;
        };
        let mine = client.locators.contains(&locator);
        if lifetime == 0 {
            if mine {
                self.drop_locator(&locator);
            }
            return Status::Ok;
        }
        if !mine {
            if client.locators.len() >= self.config.max_locators_per_client
                || net.locators >= self.config.max_locators_per_network
            {
                return Status::Busy;
            }
            client.locators.push(locator);
            net.locators += 1;
        }
        let ends = now + Duration::from_secs(u64::from(lifetime).min(LOCATOR_LIFETIME));
        self.locators.insert(locator, Locator { owner: handle, network, ends });
        Status::Ok
    }

    /// Takes a locator out, its owner's list and its network's count included.
    pub(crate) fn drop_locator(&mut self, locator: &Hash) {
        let Some(l) = self.locators.remove(locator) else { return };
        if let Some(net) = self.nets.get_mut(l.network as usize) {
            net.locators = net.locators.saturating_sub(1);
        }
        let owner = self.handles.get(&l.owner).and_then(|slot| self.clients.get_mut(slot));
        if let Some(owner) = owner {
            owner.locators.retain(|x| x != locator);
        }
    }

    pub(crate) fn expire_locators(&mut self, now: Time) {
        let over: Vec<Hash> =
            self.locators.iter().filter(|(_, l)| now >= l.ends).map(|(locator, _)| *locator).collect();
        for locator in over {
            self.drop_locator(&locator);
        }
    }

    /// Lets an anonymous client and the owner of a locator exchange packets for a while; nobody else. [P-RELAY-NET]
    fn rendezvous(&mut self, now: Time, slot: u32, locator: &Hash) -> Control {
        let no = |status| Control::RendezvousReply { status, owner: 0, lifetime: 0 };
        let owner = self.locators.get(locator).filter(|l| now < l.ends).map(|l| l.owner);
        let owner = owner.filter(|o| self.handles.contains_key(o));
        let Some(client) = self.clients.get_mut(&slot) else { return no(Status::Refused) };
        let Scope::Anonymous(pair) = client.scope else { return no(Status::Refused) };
        let Some(owner) = owner else { return no(Status::Unknown) };
        // Asked again, or with another, it lasts no longer; the session ends with it.
        let until = match pair {
            Some((_, until)) => until,
            None => {
                let until = now + ANONYMOUS_LIFETIME;
                client.ends = Some(until);
                until
            }
        };
        if pair.is_none_or(|(with, _)| with != owner) {
            if client.asked >= MAX_ASKED {
                return no(Status::Busy);
            }
            client.asked += 1;
            self.metrics.rendezvous += 1;
        }
        client.scope = Scope::Anonymous(Some((owner, until)));
        let left = until.since(now).as_secs().min(u64::from(RENDEZVOUS)) as u32;
        Control::RendezvousReply { status: Status::Ok, owner, lifetime: left }
    }

    fn count_asked(&mut self, slot: u32) {
        if let Some(client) = self.clients.get_mut(&slot) {
            client.asked += 1;
        }
    }

    pub(crate) fn send_control(&mut self, slot: u32, to: FourTuple, control: &Control) {
        let mut body = vec![];
        control.emit(&mut body);
        self.send(slot, to, Kind::Control, &body);
    }

    fn send(&mut self, slot: u32, to: FourTuple, kind: Kind, body: &[u8]) {
        let Some(client) = self.clients.get_mut(&slot) else { return };
        let Ok(packet) = client.tx.seal(kind, body) else { return };
        let mut datagram = client.header(TO_RELAY).to_vec();
        datagram.extend_from_slice(&packet);
        self.out.push_back((to, datagram));
    }
}
