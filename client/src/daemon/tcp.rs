//! Relays by TCP where UDP is blocked: each network has a task that looks at its relays, tries a tunnel beside a link that
//! does not come to stand by UDP, and goes back when UDP does.
//!
//! ```text
//!   by UDP --- not up for 300 ms ---> a tunnel stands ---> by TCP --- a HELLO by UDP is answered ---> by UDP
//! ```

use crate::engine::Engine;
use crate::tunnel::{self, Connected, Target, Tunnel};
use shadowmesh_crypto::Secret;
use shadowmesh_crypto::aead::Suite;
use shadowmesh_host::clock::Clock;
use shadowmesh_identity::{HostPort, Name, NodeId};
use shadowmesh_proto::handshake::{Contact, Credential, Initiator, InitiatorConfig};
use shadowmesh_proto::{RelayStatus, Rng, Time};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::net::{UdpSocket, lookup_host};
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::{debug, info};

/// A link that does not stand by UDP after so long is tried by TCP, too.
const BESIDE: Duration = Duration::from_millis(300);
/// One that does not stand by TCP either goes back to UDP.
const SILENT: Duration = Duration::from_secs(5);
/// Between looks, while all is well and while it is not.
const CALM: Duration = Duration::from_secs(1);
const BUSY: Duration = Duration::from_millis(100);
/// Between questions by UDP while TCP is used; longer each time that UDP was good for the question alone.
const PROBE: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_secs(60);
/// A question is sent again after this, and given up after twice this.
const REPEAT: Duration = Duration::from_millis(400);
/// The same while the link does not stand: who is further away is reached by UDP a little later.
const QUICK: Duration = Duration::from_millis(150);
/// A tunnel stays for so long after UDP took over: what is under way in it arrives, and it is there to go back to.
const KEPT: Duration = Duration::from_secs(10);

/// A relay that is reached by TCP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried {
    /// What its link's address is.
    pub local: SocketAddr,
    /// How it is reached, in words: `tcp 203.0.113.2:443`.
    pub by: String,
}

/// A network's ways by TCP, and the task that keeps them.
pub struct Tcp {
    carried: watch::Receiver<Vec<Carried>>,
    task: JoinHandle<()>,
}

impl Tcp {
    /// Starts the task; it ends with the engine. `listen`: where the network's UDP is.
    pub fn start(network: Name, engine: &Arc<Engine>, listen: Vec<SocketAddr>) -> Tcp {
        let (tell, carried) = watch::channel(vec![]);
        let keeper = Keeper {
            network,
            engine: Arc::downgrade(engine),
            listen,
            clock: Clock::new(),
            ways: BTreeMap::new(),
            tell,
            woken: Arc::default(),
        };
        Tcp { carried, task: tokio::spawn(keeper.run()) }
    }

    /// Relays that are reached so now.
    pub fn carried(&self) -> Vec<Carried> {
        self.carried.borrow().clone()
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How one relay is reached.
#[derive(Default)]
struct Way {
    /// Where it is by UDP, once that is known.
    udp: Option<SocketAddr>,
    /// Since when its link does not stand.
    down: Option<Duration>,
    connecting: Option<oneshot::Receiver<Result<Connected, String>>>,
    /// No tunnel is tried before.
    retry: Duration,
    /// How long that was last.
    wait: Duration,
    tunnel: Option<Tunnel>,
    /// The address of the tunnel that was used last.
    local: Option<SocketAddr>,
    /// Its link goes by the tunnel.
    used: bool,
    /// The answer to a question by UDP: from where.
    probe: Option<oneshot::Receiver<Option<SocketAddr>>>,
    /// UDP has just answered, or it is still waited for: no tunnel is used then.
    asked: bool,
    probe_at: Duration,
    probe_wait: Duration,
    /// When UDP took over last.
    left: Option<Duration>,
}

struct Keeper {
    network: Name,
    engine: Weak<Engine>,
    listen: Vec<SocketAddr>,
    clock: Clock,
    ways: BTreeMap<NodeId, Way>,
    tell: watch::Sender<Vec<Carried>>,
    /// Something has come of what was begun.
    woken: Arc<Notify>,
}

impl Keeper {
    async fn run(mut self) {
        loop {
            let Some(engine) = self.engine.upgrade() else { return };
            let asked = engine.call(|inside| inside.endpoint.node.relay_status()).await;
            if let Ok(relays) = asked {
                let here: Vec<NodeId> = relays.iter().map(|r| r.relay).collect();
                self.ways.retain(|relay, _| here.contains(relay));
                for (number, relay) in relays.iter().enumerate() {
                    if let Some(address) = self.look(relay) {
                        let number = number as u32;
                        let moved = engine
                            .call(move |inside| inside.endpoint.node.move_link(inside.now, number, address));
                        let _ended = moved.await;
                    }
                }
                let carried = self.carried();
                self.tell.send_if_modified(|before| {
                    let changed = *before != carried;
                    *before = carried;
                    changed
                });
            }
            // The last holder closes the device: not this task, in its sleep.
            drop(engine);
            let calm = self.ways.values().all(|w| w.down.is_none() && w.probe.is_none());
            let _either = timeout(if calm { CALM } else { BUSY }, self.woken.notified()).await;
        }
    }

    fn carried(&self) -> Vec<Carried> {
        let used = self.ways.values().filter(|w| w.used);
        let tunnels = used.filter_map(|w| w.tunnel.as_ref());
        tunnels.map(|t| Carried { local: t.local(), by: t.by().to_owned() }).collect()
    }

    /// Looks at one relay; gives the address that its link is to go by from now on, if that is another.
    fn look(&mut self, relay: &RelayStatus) -> Option<SocketAddr> {
        let now = self.clock.now();
        let mut way = self.ways.remove(&relay.relay).unwrap_or_default();
        let to = self.step(now, &mut way, relay);
        self.ways.insert(relay.relay, way);
        to
    }

    fn step(&self, now: Duration, way: &mut Way, relay: &RelayStatus) -> Option<SocketAddr> {
        let network = &self.network;
        if relay.address.is_some() && relay.address != way.local {
            way.udp = relay.address;
        }
        way.down = if relay.up { None } else { way.down.or(Some(now)) };
        let down = way.down.map(|since| now - since);
        if way.tunnel.as_ref().is_some_and(|t| !t.stands()) {
            way.tunnel = None;
            if std::mem::take(&mut way.used) {
                info!(%network, relay = %relay.place, "the connection by tcp was lost");
                way.begin(self, relay);
                return way.udp;
            }
        }
        match way.connecting.as_mut().map(oneshot::Receiver::try_recv) {
            None | Some(Err(oneshot::error::TryRecvError::Empty)) => {}
            Some(answer) => {
                way.connecting = None;
                let answer = answer.unwrap_or_else(|_| Err("its thread has ended".into()));
                match answer.and_then(|c| self.open(c).map_err(|e| e.to_string())) {
                    Ok(tunnel) => way.tunnel = Some(tunnel),
                    Err(why) => {
                        debug!(%network, relay = %relay.place, why, "the relay is not reached by tcp");
                        way.later(now);
                    }
                }
            }
        }
        if way.used { way.by_tcp(now, down, self, relay) } else { way.by_udp(now, down, self, relay) }
    }

    fn open(&self, connected: Connected) -> std::io::Result<Tunnel> {
        let woken = self.woken.clone();
        Tunnel::start(connected, &self.listen, move || woken.notify_one())
    }
}

impl Way {
    /// No tunnel for a while.
    fn later(&mut self, now: Duration) {
        self.wait = (self.wait * 2).clamp(PROBE, LONGEST / 2);
        self.retry = now + self.wait;
    }

    /// Begins to connect.
    fn begin(&mut self, keeper: &Keeper, relay: &RelayStatus) {
        let target = Target { relay: relay.relay, place: relay.place.clone(), address: self.udp };
        let (done, woken) = (oneshot::channel(), keeper.woken.clone());
        let thread = std::thread::Builder::new().name("sm-tcp".into()).spawn(move || {
            let _nobody_waits_any_more = done.0.send(tunnel::connect(&target));
            woken.notify_one();
        });
        self.connecting = thread.ok().map(|_| done.1);
    }

    /// Asks by UDP.
    fn ask(&mut self, keeper: &Keeper, relay: &RelayStatus, repeat: Duration) {
        let (done, receiver) = oneshot::channel();
        let (id, place, to, woken) = (relay.relay, relay.place.clone(), self.udp, keeper.woken.clone());
        tokio::spawn(async move {
            let _nobody_waits_any_more = done.send(answers(id, &place, to, repeat).await);
            woken.notify_one();
        });
        self.probe = Some(receiver);
    }

    /// Whether UDP seems to lead to the relay: it was asked when the tunnel was begun. A relay that has just come back is
    /// reached by both.
    fn udp_answers(&mut self) -> Option<bool> {
        if !std::mem::take(&mut self.asked) {
            return Some(false);
        }
        match self.probe.as_mut().map(oneshot::Receiver::try_recv) {
            Some(Err(oneshot::error::TryRecvError::Empty)) => {
                self.asked = true;
                None
            }
            answered => {
                self.probe = None;
                Some(matches!(answered, Some(Ok(Some(_)))))
            }
        }
    }

    fn by_udp(
        &mut self,
        now: Duration,
        down: Option<Duration>,
        keeper: &Keeper,
        relay: &RelayStatus,
    ) -> Option<SocketAddr> {
        let Some(down) = down else {
            (self.probe, self.asked) = (None, false);
            if self.left.is_none_or(|at| now - at > KEPT) {
                (self.tunnel, self.left, self.wait) = (None, None, Duration::ZERO);
                self.probe_wait = PROBE;
            }
            return None;
        };
        if self.tunnel.is_some() {
            match self.udp_answers() {
                None => return None,
                Some(true) => {
                    // The link is about to stand.
                    self.tunnel = None;
                    self.later(now);
                    return None;
                }
                Some(false) => {}
            }
        }
        if let Some(tunnel) = &self.tunnel {
            (self.used, self.local) = (true, Some(tunnel.local()));
            if self.left.take().is_some() {
                // UDP was good for a question, and no more.
                self.probe_wait = (self.probe_wait * 2).clamp(PROBE, LONGEST);
            }
            self.probe_wait = self.probe_wait.max(PROBE);
            self.probe_at = now + self.probe_wait;
            // It has its time to come to stand from now on.
            self.down = Some(now);
            info!(
                network = %keeper.network, relay = %relay.place, by = tunnel.by(),
                "the relay is reached by tcp: UDP seems blocked here"
            );
            tunnel::note_needed(relay.relay, tunnel.by_proxy());
            return Some(tunnel.local());
        }
        let known = tunnel::was_needed(&relay.relay).is_some();
        if (known || down >= BESIDE) && self.connecting.is_none() && now >= self.retry {
            self.begin(keeper, relay);
            if !known && self.udp.is_some() && down < SILENT {
                self.asked = true;
                self.ask(keeper, relay, QUICK);
            }
        }
        None
    }

    fn by_tcp(
        &mut self,
        now: Duration,
        down: Option<Duration>,
        keeper: &Keeper,
        relay: &RelayStatus,
    ) -> Option<SocketAddr> {
        let local = self.tunnel.as_ref().map(Tunnel::local);
        if down.is_some_and(|d| d >= SILENT) {
            info!(network = %keeper.network, relay = %relay.place, "the relay is silent by tcp, too");
            (self.tunnel, self.used, self.probe, self.down) = (None, false, None, Some(now));
            self.later(now);
            return self.udp;
        }
        if let Some(answered) = self.probe.as_mut().map(oneshot::Receiver::try_recv) {
            match answered {
                Ok(Some(from)) => {
                    info!(network = %keeper.network, relay = %relay.place, "UDP is back; the relay is reached by it");
                    (self.used, self.left, self.probe, self.udp) = (false, Some(now), None, Some(from));
                    return self.udp;
                }
                Err(oneshot::error::TryRecvError::Empty) => {}
                _ => (self.probe, self.probe_at) = (None, now + self.probe_wait),
            }
        }
        if self.probe.is_none() && now >= self.probe_at {
            self.ask(keeper, relay, REPEAT);
        }
        // A name that was resolved anew, or a link that was made anew.
        local.filter(|l| relay.address != Some(*l))
    }
}

/// From where the relay answers by UDP, if it does. It is asked with a HELLO, which it answers without keeping anything,
/// and whose answer nobody makes who does not know the relay.
async fn answers(
    relay: NodeId,
    place: &HostPort,
    to: Option<SocketAddr>,
    repeat: Duration,
) -> Option<SocketAddr> {
    let to = match to {
        Some(to) => to,
        None => lookup_host((place.host(), place.port())).await.ok()?.next()?,
    };
    let clock = Clock::new();
    let now = || Time(0) + clock.now();
    let config = InitiatorConfig {
        contact: Contact::relay(&relay.0),
        leaf: None,
        credential: Credential::Anonymous,
        suites: vec![Suite::Aes256Gcm, Suite::ChaCha20Poly1305],
    };
    let mut rng = Rng::from_seed(*Secret::<32>::random().expose());
    let mut initiator = Initiator::new(config, now(), &mut rng);
    let hello = initiator.poll_transmit()?;
    let any = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await.ok()?;
    socket.connect(to).await.ok()?;
    let mut buffer = [0; 2048];
    for _ in 0..2 {
        let _lost = socket.send(&hello).await;
        if let Ok(Ok(n)) = timeout(repeat, socket.recv(&mut buffer)).await
            && initiator.handle(now(), buffer.get(..n).unwrap_or_default(), &mut rng).is_ok()
        {
            return Some(to);
        }
    }
    None
}
