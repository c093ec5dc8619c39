//! `netcheck`: what lies between this machine and the others, asked by STUN of the relays' two ports, and of other servers
//! that the configuration names (RFC 5780); and whether relays are reached by TCP. From sockets of its own, for three seconds
//! at most.
//!
//! Answers are believed when they have the random id of a question and come from where it wants them; others are counted.

mod behaviour;
mod lifetime;
mod words;

pub use behaviour::told;
pub use lifetime::lifetime;
pub use words::report;

use super::candidates::is_private;
use super::mapping::MappingState;
use crate::tunnel::{self, Target};
use behaviour::{Came, Depends, Seen, filtering, mapping, outside};
use shadowmesh_control::Netcheck;
use shadowmesh_crypto::Secret;
use shadowmesh_host::netlink::source_for;
use shadowmesh_identity::{HostPort, NodeId, RelayUrl};
use shadowmesh_proto::RelayStatus;
use shadowmesh_stun::{Change, MAX, Response, parse_response, request};
use shadowmesh_wire::candidate::is_special;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::net::{UdpSocket, lookup_host};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};

/// A question is sent so often, with so long between (RFC 8489 section 6.2.1 has more patience).
const SENDS: u32 = 3;
const AGAIN: Duration = Duration::from_millis(250);
/// When the first has answered, others are waited for no longer than this, where one is enough.
const OTHERS: Duration = Duration::from_millis(200);
/// Names are looked up so long at most; with twice the questions' time, a look takes less than three seconds.
const LOOKUP: Duration = Duration::from_millis(700);
/// A connection by TCP is waited for no longer.
const TCP: Duration = Duration::from_millis(2500);
/// Servers that are asked, and addresses of each in each family.
const MAX_SERVERS: usize = 8;
const MAX_ADDRESSES: usize = 2;

/// Whom to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Name and port.
    pub place: HostPort,
    /// One of the network's relays, not another STUN server: its other address is its own.
    pub relay: Option<NodeId>,
    /// Where it is, if that is known already.
    pub address: Option<SocketAddr>,
}

/// How thoroughly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// How the NAT maps, as soon as that is known.
    Mapping,
    /// All.
    All,
}

/// What was found by one family of addresses.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// The socket that asked, as this machine knows it.
    pub local: Option<SocketAddr>,
    /// What it was told.
    pub seen: Vec<Seen>,
    /// The port outside depends on this.
    pub mapping: Option<Depends>,
    /// And who may come in, on this.
    pub filtering: Option<Depends>,
    /// Two sockets here reach each other by what is outside.
    pub hairpin: Option<bool>,
    /// By server's number: round trip, and whether the second port answered.
    answered: HashMap<usize, (Duration, bool)>,
    forged: u32,
}

impl Found {
    /// Where this machine is seen, beyond a NAT if there is one.
    pub fn mapped(&self) -> Option<SocketAddr> {
        outside(self.local, &self.seen).first().map(|s| s.1)
    }
}

/// What was found.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    pub four: Found,
    pub six: Found,
    /// Why servers were not asked, by their number.
    unknown: HashMap<usize, String>,
    /// How relays were reached by TCP and how long that took, or why not.
    tcp: HashMap<usize, Result<(String, Duration), String>>,
}

impl Findings {
    /// How the NAT maps: that of IPv4, which is where NATs are, if there is an answer.
    pub fn mapping(&self) -> Option<Depends> {
        self.four.mapping.or(if self.four.seen.is_empty() { self.six.mapping } else { None })
    }
}

/// The relays of a network, and the servers of the configuration.
pub fn servers(relays: &[RelayStatus], stun: &[HostPort], extent: Extent) -> Vec<Server> {
    let wanted = |r: &&RelayStatus| extent == Extent::All || !by_tunnel(r);
    let relay = |r: &RelayStatus| {
        let address = r.address.filter(|_| !by_tunnel(r));
        Server { place: r.place.clone(), relay: Some(r.relay), address }
    };
    let other = |place: &HostPort| Server { place: place.clone(), relay: None, address: None };
    relays.iter().filter(wanted).map(relay).chain(stun.iter().map(other)).collect()
}

/// One that is reached by TCP is at the other end of a tunnel: its own address is not known, and its answers are none of UDP.
fn by_tunnel(relay: &RelayStatus) -> bool {
    relay.address.is_some_and(|a| a.ip().is_loopback())
}

/// What a relay alone tells, without a network and without a daemon.
pub async fn by_relay(url: &RelayUrl, stun: &[HostPort]) -> Netcheck {
    let mut servers = vec![Server { place: url.address.clone(), relay: Some(url.relay), address: None }];
    servers.extend(self::servers(&[], stun, Extent::All));
    let findings = look(&servers, Extent::All).await;
    report(&findings, &servers, &[], &MappingState::Off)
}

/// Asks all of them.
pub async fn look(servers: &[Server], extent: Extent) -> Findings {
    let servers = &servers[..servers.len().min(MAX_SERVERS)];
    let mut findings = Findings::default();
    let (mut four, mut six) = (vec![], vec![]);
    let resolved = futures_util::future::join_all(servers.iter().map(|s| addresses(s, extent))).await;
    for (number, addresses) in resolved.into_iter().enumerate() {
        match addresses {
            Ok(all) => {
                let of = |v4: bool| all.iter().filter(move |a| a.is_ipv4() == v4).take(MAX_ADDRESSES);
                four.extend(of(true).map(|a| (number, *a)));
                six.extend(of(false).map(|a| (number, *a)));
            }
            Err(why) => {
                findings.unknown.insert(number, why);
            }
        }
    }
    let relays: Vec<bool> = servers.iter().map(|s| s.relay.is_some()).collect();
    let all = if extent == Extent::All { servers } else { &[] };
    (findings.four, findings.six, findings.tcp) =
        tokio::join!(family(&four, &relays, extent), family(&six, &relays, extent), by_tcp(all));
    findings
}

/// Connects to relays as far as their word for their certificate, as the daemon would where UDP is blocked.
async fn by_tcp(servers: &[Server]) -> HashMap<usize, Result<(String, Duration), String>> {
    let each = servers.iter().enumerate().filter_map(|(number, s)| {
        let target = Target { relay: s.relay?, place: s.place.clone(), address: s.address };
        Some(async move {
            let (done, receiver) = oneshot::channel();
            let began = Instant::now();
            let connect = move || {
                let connected = tunnel::connect(&target).map(|c| c.by);
                // Who does not wait any more has said that it took too long.
                let _nobody_waits = done.send(connected);
            };
            // It blocks, and goes on for a while when it is not waited for any more.
            let thread = std::thread::Builder::new().name("sm-netcheck".into()).spawn(connect);
            let connected = match thread {
                Ok(_) => match timeout(TCP, receiver).await {
                    Ok(Ok(connected)) => connected,
                    _ => Err(format!("no connection within {} s", TCP.as_secs_f64())),
                },
                Err(e) => Err(e.to_string()),
            };
            (number, connected.map(|by| (by, began.elapsed())))
        })
    });
    futures_util::future::join_all(each).await.into_iter().collect()
}

/// A server's addresses, the one in use first.
async fn addresses(server: &Server, extent: Extent) -> Result<Vec<SocketAddr>, String> {
    let mut all: Vec<SocketAddr> = server.address.into_iter().collect();
    if extent == Extent::Mapping && all.iter().any(SocketAddr::is_ipv4) {
        return Ok(all);
    }
    let named = timeout(LOOKUP, lookup_host((server.place.host(), server.place.port()))).await;
    match named {
        Ok(Ok(found)) => all.extend(found.filter(|a| Some(*a) != server.address)),
        Ok(Err(e)) if all.is_empty() => return Err(format!("its name has no address: {e}")),
        Err(_) if all.is_empty() => return Err("its name is not answered for".into()),
        _ => {}
    }
    Ok(all)
}

/// A question.
#[derive(Debug, Clone, Copy)]
struct Question {
    to: SocketAddr,
    /// From where the answer has to come.
    from: SocketAddr,
    change: Change,
}

impl Question {
    fn plain(to: SocketAddr) -> Self {
        Question { to, from: to, change: Change::default() }
    }
}

/// A server that has answered.
struct Known {
    server: usize,
    main: SocketAddr,
    /// The same address, another port.
    port: Option<SocketAddr>,
    /// Another address, and a port there: the other one.
    address: Option<SocketAddr>,
}

/// All of one family.
async fn family(servers: &[(usize, SocketAddr)], relays: &[bool], extent: Extent) -> Found {
    let mut found = Found::default();
    let Some((_, first)) = servers.first() else { return found };
    let Ok(socket) = bind(first).await else { return found };
    let port = socket.local_addr().map_or(0, |a| a.port());
    found.local = source_for(first.ip()).ok().map(|ip| SocketAddr::new(ip, port));
    let questions: Vec<_> = servers.iter().map(|(_, a)| Question::plain(*a)).collect();
    let enough = (extent == Extent::Mapping).then_some(OTHERS);
    let mut known = vec![];
    for ((server, main), answer) in
        servers.iter().zip(ask(&socket, &questions, enough, &mut found.forged).await)
    {
        let Some((response, rtt)) = answer else { continue };
        found.seen.push((*main, response.mapped));
        let entry = found.answered.entry(*server).or_insert((rtt, false));
        entry.0 = entry.0.min(rtt);
        let relay = relays.get(*server).copied().unwrap_or(true);
        known.push(Known {
            server: *server,
            main: *main,
            port: response
                .other
                .filter(|o| o.port() != 0 && o.port() != main.port())
                .map(|o| at(*main, o.port())),
            address: response.other.filter(|o| !relay && is_another(*main, *o)),
        });
    }
    if extent == Extent::Mapping {
        second_ports(&socket, &known, enough, &mut found).await;
        found.mapping = mapping(found.local, &found.seen);
        return found;
    }
    let (mut by_filter, mut by_hairpin) = (0, 0);
    let nat = outside(found.local, &found.seen).first().is_some_and(|s| Some(s.1) != found.local);
    let (_, came, hairpin) = tokio::join!(
        second_ports(&socket, &known, None, &mut found),
        what_comes_in(&known, &mut by_filter),
        async {
            match known.first() {
                Some(server) if nat => turns_back(server.main, &mut by_hairpin).await,
                _ => None,
            }
        }
    );
    found.forged += by_filter + by_hairpin;
    found.hairpin = hairpin;
    found.mapping = mapping(found.local, &found.seen);
    // That nothing came from a port says something only of ports that answer.
    let answers = |k: &Known| found.answered.get(&k.server).is_some_and(|a| a.1);
    let came: Vec<Came> = known
        .iter()
        .zip(came)
        .map(|(k, c)| Came { from_port: c.from_port.filter(|came| *came || answers(k)), ..c })
        .collect();
    found.filtering = filtering(&came);
    found
}

async fn bind(like: &SocketAddr) -> std::io::Result<UdpSocket> {
    let any: IpAddr =
        if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    UdpSocket::bind((any, 0)).await
}

fn at(server: SocketAddr, port: u16) -> SocketAddr {
    SocketAddr::new(server.ip(), port)
}

/// A second address that a server may have: who names one of this machine, of its LAN or of many is not heard, so that
/// nobody is made to send where he could not himself.
fn is_another(main: SocketAddr, other: SocketAddr) -> bool {
    let private = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => is_private(ip),
        IpAddr::V6(ip) => ip.is_unique_local(),
    };
    let local = main.ip().is_loopback() && other.ip().is_loopback();
    let same_family = main.is_ipv4() == other.is_ipv4();
    let inside = private(other.ip()) && !private(main.ip());
    same_family
        && other.ip() != main.ip()
        && other.port() != 0
        && (!is_special(other.ip()) || local)
        && !inside
}

/// Asks the other ports and addresses of who has answered, by the socket that he has seen.
async fn second_ports(socket: &UdpSocket, known: &[Known], enough: Option<Duration>, found: &mut Found) {
    let mut questions = vec![];
    for k in known {
        let more = [k.port, k.address.map(|a| at(a, k.main.port())), k.address];
        questions.extend(more.into_iter().flatten().map(|to| (k.server, Question::plain(to))));
    }
    let plain: Vec<_> = questions.iter().map(|(_, q)| *q).collect();
    let answers = ask(socket, &plain, enough, &mut found.forged).await;
    for ((server, question), answer) in questions.iter().zip(answers) {
        let Some((response, _)) = answer else { continue };
        found.seen.push((question.to, response.mapped));
        let second = known.iter().any(|k| k.server == *server && k.port == Some(question.to));
        if let Some(entry) = found.answered.get_mut(server).filter(|_| second) {
            entry.1 = true;
        }
    }
}

/// Has each server answer from elsewhere, each time to a socket that has sent nothing else.
async fn what_comes_in(known: &[Known], forged: &mut u32) -> Vec<Came> {
    let each = known.iter().map(|k| async {
        let (mut a, mut b) = (0, 0);
        let (from_port, from_address) =
            tokio::join!(comes(k.main, k.port, false, &mut a), comes(k.main, k.address, true, &mut b));
        (Came { from_port, from_address }, a + b)
    });
    let all = futures_util::future::join_all(each).await;
    *forged += all.iter().map(|(_, n)| n).sum::<u32>();
    all.into_iter().map(|(came, _)| came).collect()
}

async fn comes(main: SocketAddr, from: Option<SocketAddr>, ip: bool, forged: &mut u32) -> Option<bool> {
    let question = Question { to: main, from: from?, change: Change { ip, port: true } };
    let socket = bind(&main).await.ok()?;
    let answers = ask(&socket, &[question], None, forged).await;
    Some(answers.first().is_some_and(Option::is_some))
}

/// Two sockets send to each other at where a server sees them.
async fn turns_back(server: SocketAddr, forged: &mut u32) -> Option<bool> {
    let (a, b) = (bind(&server).await.ok()?, bind(&server).await.ok()?);
    let (mut of_a, mut of_b) = (0, 0);
    let plain = [Question::plain(server)];
    let (seen_a, seen_b) = tokio::join!(ask(&a, &plain, None, &mut of_a), ask(&b, &plain, None, &mut of_b));
    *forged += of_a + of_b;
    let mapped = |seen: Vec<Option<(Response, Duration)>>| Some(seen.into_iter().next()??.0.mapped);
    let (to_a, to_b) = (mapped(seen_a)?, mapped(seen_b)?);
    let word = request(id(), Change::default());
    let (mut one, mut two) = ([0; MAX], [0; MAX]);
    for _ in 0..SENDS {
        // What cannot be sent will not arrive.
        let _unsent = (a.send_to(&word, to_b).await, b.send_to(&word, to_a).await);
        let came = async {
            loop {
                let came = tokio::select! {
                    r = a.recv_from(&mut one) => r.is_ok_and(|(n, _)| one.get(..n) == Some(&word[..])),
                    r = b.recv_from(&mut two) => r.is_ok_and(|(n, _)| two.get(..n) == Some(&word[..])),
                };
                if came {
                    return;
                }
            }
        };
        if timeout(AGAIN, came).await.is_ok() {
            return Some(true);
        }
    }
    Some(false)
}

fn id() -> [u8; 12] {
    *Secret::<12>::random().expose()
}

/// Asks, three times; ends when all have answered, or `enough` after the first did.
async fn ask(
    socket: &UdpSocket,
    questions: &[Question],
    enough: Option<Duration>,
    forged: &mut u32,
) -> Vec<Option<(Response, Duration)>> {
    let mut answers: Vec<Option<(Response, Duration)>> = vec![None; questions.len()];
    // Each sending has an id of its own, which tells how long its answer took.
    let mut sent: Vec<([u8; 12], usize, Instant)> = vec![];
    let mut end: Option<Instant> = None;
    // One more than is read, so that what is too long is not taken for what is not.
    let mut buffer = [0; MAX + 1];
    for _ in 0..SENDS {
        let again = Instant::now() + AGAIN;
        for (i, q) in questions.iter().enumerate().filter(|(i, _)| answers[*i].is_none()) {
            let id = id();
            sent.push((id, i, Instant::now()));
            // No route, or a firewall here: then no answer comes.
            let _unsent = socket.send_to(&request(id, q.change), q.to).await;
        }
        while answers.iter().any(Option::is_none) {
            let until = end.map_or(again, |end| end.min(again));
            let Ok(received) = timeout_at(until, socket.recv_from(&mut buffer)).await else { break };
            // An error that ICMP left.
            let Ok((length, from)) = received else { continue };
            let response = parse_response(&buffer[..length]);
            let of = |r: &Response| sent.iter().find(|s| s.0 == r.id && is_from(from, questions[s.1].from));
            let Some(((_, i, at), response)) = response.and_then(|r| Some((*of(&r)?, r))) else {
                *forged = forged.saturating_add(1);
                continue;
            };
            if answers[i].is_none() {
                answers[i] = Some((response, at.elapsed()));
                end = end.or_else(|| Some(Instant::now() + enough?));
            }
        }
        if answers.iter().all(Option::is_some) || end.is_some_and(|end| Instant::now() >= end) {
            break;
        }
    }
    answers
}

/// Scope and flow of an IPv6 address are no part of who it is.
fn is_from(from: SocketAddr, wanted: SocketAddr) -> bool {
    (from.ip(), from.port()) == (wanted.ip(), wanted.port())
}

#[cfg(test)]
mod tests;
