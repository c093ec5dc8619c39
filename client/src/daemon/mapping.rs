//! Port mappings: the router is asked to let strangers in to a network's UDP port, by PCP (RFC 6887), NAT-PMP (RFC 6886)
//! or UPnP (`upnp.rs`).
//!
//! Each network has a task of its own for it, so that nothing waits for a router. It is told by what to ask
//! ([`Basis`]), holds at most one mapping, renews it, and removes it at its end.

use super::upnp::{self, Service};
use crab_nat::{
    GatewayAddress, InternetProtocol, PortMappingOptions, PortMappingType, TimeoutConfig, natpmp, pcp,
};
use shadowmesh_identity::Name;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::num::NonZeroU16;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::{debug, info};

/// What is asked for (RFC 6886 section 3.3).
const LIFETIME: Duration = Duration::from_secs(7200);
/// What a router may grant.
const SHORTEST: Duration = Duration::from_secs(120);
const LONGEST: Duration = Duration::from_secs(86_400);
/// A router that maps nothing is asked again after that, or when the network has changed.
const RETRY: Duration = Duration::from_secs(300);
/// PCP is waited for that long when UPnP is there already.
const PREFERENCE: Duration = Duration::from_millis(300);
/// Removing a mapping may take that long.
const REMOVAL: Duration = Duration::from_secs(1);
/// A request is sent three times: at once, after this, and after twice this.
const TIMING: TimeoutConfig =
    TimeoutConfig { initial_timeout: Duration::from_millis(250), max_retries: 2, max_retry_timeout: None };

/// How a network's port mapping is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MappingState {
    /// Not looked for: the configuration says so, or there is no IPv4 socket.
    Off,
    /// The router is being asked.
    Looking,
    /// There is none.
    None {
        /// Why.
        why: String,
    },
    /// There is one.
    Open {
        /// `PCP`, `NAT-PMP` or `UPnP`.
        by: &'static str,
        /// Where strangers reach this machine.
        external: SocketAddr,
        /// Who maps it.
        router: IpAddr,
    },
}

/// What a mapping is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Basis {
    /// The router.
    pub router: Ipv4Addr,
    /// This machine's address, as the router sees it.
    pub address: Ipv4Addr,
    /// The port to be reached.
    pub port: NonZeroU16,
    /// Subnets of this machine's networks: nothing outside can be in one.
    pub subnets: Vec<(Ipv4Addr, u8)>,
}

/// What the task is told.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    /// By what to ask, or why not; none before the network was looked at.
    basis: Option<Result<Basis, &'static str>>,
    /// Counts changes of the network.
    change: u64,
}

/// A network's port mapping, and the task that keeps it.
pub struct Mapping {
    wanted: watch::Sender<Wanted>,
    state: watch::Receiver<MappingState>,
    task: JoinHandle<()>,
}

impl Mapping {
    /// Starts the task; it does nothing before it is told a basis. `changed` is told when the state is another.
    pub fn start(network: Name, changed: Arc<Notify>) -> Mapping {
        let (wanted, told) = watch::channel(Wanted { basis: None, change: 0 });
        let (tell, state) = watch::channel(MappingState::Looking);
        let task = tokio::spawn(Keeper { network, told, tell, changed }.run());
        Mapping { wanted, state, task }
    }

    /// Says by what to ask, or why not; and whether addresses or routes have changed.
    pub fn follow(&self, basis: Result<Basis, &'static str>, changed: bool) {
        self.wanted.send_if_modified(|wanted| {
            let basis = Some(basis);
            if wanted.basis == basis && !changed {
                return false;
            }
            *wanted = Wanted { basis, change: wanted.change + u64::from(changed) };
            true
        });
    }

    /// How it is.
    pub fn state(&self) -> MappingState {
        self.state.borrow().clone()
    }

    /// Removes the mapping; waits for that, but not long.
    pub async fn end(self) {
        let Mapping { wanted, mut task, .. } = self;
        drop(wanted);
        if timeout(REMOVAL, &mut task).await.is_err() {
            task.abort();
        }
    }
}

/// The task.
struct Keeper {
    network: Name,
    told: watch::Receiver<Wanted>,
    tell: watch::Sender<MappingState>,
    changed: Arc<Notify>,
}

/// Nobody wants a mapping any more.
struct Ended;

impl Keeper {
    async fn run(mut self) {
        while self.keep().await.is_ok() {}
    }

    /// Asks once; holds what came of it as long as it lasts, or waits before it is asked again.
    async fn keep(&mut self) -> Result<(), Ended> {
        let wanted = self.told.borrow_and_update().basis.clone();
        let basis = match wanted {
            Some(Ok(basis)) => basis,
            none => {
                if let Some(Err(why)) = none {
                    self.say(MappingState::None { why: why.into() });
                }
                return self.told.changed().await.map_err(|_| Ended);
            }
        };
        self.say(MappingState::Looking);
        let mut asked = pin!(open(&basis));
        let asked = tokio::select! {
            asked = &mut asked => asked,
            told = self.told.changed() => match told {
                Ok(()) => return Ok(()),
                // What is on its way comes first, so that it can be removed.
                Err(_) => asked.await,
            },
        };
        match asked {
            Ok(open) => self.hold(open, &basis).await,
            Err(why) => {
                self.say(MappingState::None { why });
                tokio::select! {
                    () = sleep(RETRY) => Ok(()),
                    told = self.told.changed() => told.map_err(|_| Ended),
                }
            }
        }
    }

    /// Renews a mapping until it is lost, or is to be another.
    async fn hold(&mut self, mut open: Open, basis: &Basis) -> Result<(), Ended> {
        let mut left = open.lifetime;
        loop {
            self.say(MappingState::Open {
                by: open.by.name(),
                external: open.external.into(),
                router: basis.router.into(),
            });
            let wait = left / 2;
            let told = tokio::select! {
                () = sleep(wait) => None,
                told = self.told.changed() => Some(told),
            };
            match told {
                None => left = left.saturating_sub(wait),
                // The router may be another by the same address: only a renewal tells.
                Some(Ok(())) if matches!(&self.told.borrow_and_update().basis, Some(Ok(b)) if b == basis) => {
                    left = Duration::ZERO
                }
                Some(told) => {
                    let removed = timeout(REMOVAL, open.remove(basis)).await;
                    let removed = removed.unwrap_or_else(|_| Err("no answer".into()));
                    info!(network = %self.network, external = %open.external, ?removed, "port mapping ended");
                    return told.map_err(|_| Ended);
                }
            }
            match open.renew(basis).await {
                Ok(renewed) => (left, open) = (renewed.lifetime, renewed),
                Err(why) => {
                    debug!(network = %self.network, why, "the port mapping could not be renewed");
                    if left < SHORTEST / 2 {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn say(&self, state: MappingState) {
        let network = &self.network;
        let changed = self.tell.send_if_modified(|old| {
            if *old == state {
                return false;
            }
            match &state {
                MappingState::Open { by, external, router } => {
                    info!(%network, by, %external, %router, "port mapped");
                }
                MappingState::None { why } => info!(%network, why, "no port is mapped"),
                MappingState::Off | MappingState::Looking => {}
            }
            *old = state;
            true
        });
        if changed {
            self.changed.notify_one();
        }
    }
}

/// A mapping.
struct Open {
    by: By,
    external: SocketAddrV4,
    lifetime: Duration,
}

/// How it was made.
enum By {
    Pcp(pcp::Nonce),
    NatPmp,
    Upnp(Service),
}

impl By {
    fn name(&self) -> &'static str {
        match self {
            By::Pcp(_) => "PCP",
            By::NatPmp => "NAT-PMP",
            By::Upnp(_) => "UPnP",
        }
    }
}

impl Open {
    /// Asks again for the same.
    async fn renew(&self, basis: &Basis) -> Result<Open, String> {
        match &self.by {
            By::Pcp(nonce) => by_pcp(basis, Some((*nonce, self.external))).await,
            By::NatPmp => by_natpmp(basis, self.external.port()).await,
            By::Upnp(service) => by_upnp(basis, service, self.external.port()).await,
        }
    }

    async fn remove(&self, basis: &Basis) -> Result<(), String> {
        let (router, timing) = (GatewayAddress::IpV4(basis.router), Some(TIMING));
        match &self.by {
            By::Pcp(nonce) => {
                let range = pcp::DropMappingRange::Single {
                    protocol: InternetProtocol::Udp,
                    internal_port: basis.port,
                };
                let removed = pcp::try_drop_mapping(router, basis.address.into(), *nonce, range, timing);
                removed.await.map_err(|e| e.to_string())
            }
            By::NatPmp => {
                let removed =
                    natpmp::try_drop_mapping(router, InternetProtocol::Udp, Some(basis.port), timing);
                removed.await.map_err(|e| e.to_string())
            }
            By::Upnp(service) => service.remove(self.external.port()).await,
        }
    }

    /// Only what may be true: a router says what it likes.
    async fn checked(mut self, basis: &Basis) -> Result<Open, String> {
        self.lifetime = self.lifetime.clamp(SHORTEST, LONGEST);
        if is_plausible(&self.external, &basis.subnets) {
            return Ok(self);
        }
        let _removed_or_it_ends_by_itself = timeout(REMOVAL, self.remove(basis)).await;
        Err(format!("it says that strangers reach it at {}, which cannot be", self.external))
    }
}

/// Whether packets of others could be sent there. An address of a private network could be: that of a provider.
fn is_plausible(external: &SocketAddrV4, subnets: &[(Ipv4Addr, u8)]) -> bool {
    let ip = *external.ip();
    let (first, special) = (ip.octets()[0], ip.is_loopback() || ip.is_link_local() || ip.is_multicast());
    let inside = subnets.iter().any(|s| super::network::overlaps((ip, 32), *s));
    external.port() != 0 && first != 0 && first < 240 && !special && !inside
}

/// Asks the router by all ways at once. The first is taken, PCP and NAT-PMP before UPnP if they are not late; by UPnP the
/// router is only looked for until then: what both had mapped would be one mapping, and removed with the other.
async fn open(basis: &Basis) -> Result<Open, String> {
    let mut pcp = pin!(by_pcp_or_natpmp(basis));
    let mut search = pin!(upnp::find(basis.router, basis.address));
    let (first, found) = tokio::select! {
        first = &mut pcp => match first {
            Ok(open) => return Ok(open),
            Err(why) => (Some(why), search.await),
        },
        found = &mut search => match timeout(PREFERENCE, &mut pcp).await {
            Ok(Ok(open)) => return Ok(open),
            Ok(Err(why)) => (Some(why), found),
            Err(_) => (None, found),
        },
    };
    let second = match found {
        Ok(service) => by_upnp(basis, &service, basis.port.get()).await,
        Err(why) => Err(why),
    };
    let upnp = match second {
        Ok(open) => return Ok(open),
        Err(why) => why,
    };
    let first = match first {
        Some(why) => why,
        None => match pcp.await {
            Ok(open) => return Ok(open),
            Err(why) => why,
        },
    };
    Err(format!("the router {} maps none: {first}; UPnP: {upnp}", basis.router))
}

async fn by_pcp_or_natpmp(basis: &Basis) -> Result<Open, String> {
    match by_pcp(basis, None).await {
        Ok(open) => Ok(open),
        Err(pcp) => {
            let natpmp = by_natpmp(basis, basis.port.get()).await;
            natpmp.map_err(|natpmp| format!("PCP: {pcp}; NAT-PMP: {natpmp}"))
        }
    }
}

fn options(external: u16) -> PortMappingOptions {
    PortMappingOptions {
        external_port: NonZeroU16::new(external),
        lifetime_seconds: Some(LIFETIME.as_secs() as u32),
        timeout_config: Some(TIMING),
    }
}

/// A mapping that was there before is named by its nonce.
async fn by_pcp(basis: &Basis, before: Option<(pcp::Nonce, SocketAddrV4)>) -> Result<Open, String> {
    let request = pcp::BaseMapRequest::new(
        GatewayAddress::IpV4(basis.router),
        basis.address.into(),
        InternetProtocol::Udp,
        basis.port,
    );
    let (nonce, external) = (before.map(|b| b.0), before.map(|b| b.1));
    let port = external.map_or(basis.port.get(), |e| e.port());
    let mapping = pcp::port_mapping(request, nonce, external.map(|e| (*e.ip()).into()), options(port)).await;
    let mapping = mapping.map_err(|e| e.to_string())?;
    let PortMappingType::Pcp { nonce, external_ip, .. } = mapping.mapping_type() else {
        return Err("another protocol".into());
    };
    let IpAddr::V4(ip) = external_ip.to_canonical() else {
        return Err("an IPv6 address for an IPv4 port".into());
    };
    let open = Open {
        by: By::Pcp(nonce),
        external: SocketAddrV4::new(ip, mapping.external_port().get()),
        lifetime: Duration::from_secs(mapping.lifetime().into()),
    };
    open.checked(basis).await
}

async fn by_natpmp(basis: &Basis, external: u16) -> Result<Open, String> {
    let router = GatewayAddress::IpV4(basis.router);
    // First, since a mapping is of no use without it.
    let ip = natpmp::external_address(router, Some(TIMING)).await.map_err(|e| e.to_string())?;
    let mapping = natpmp::port_mapping(router, InternetProtocol::Udp, basis.port, options(external)).await;
    let mapping = mapping.map_err(|e| e.to_string())?;
    let open = Open {
        by: By::NatPmp,
        external: SocketAddrV4::new(ip, mapping.external_port().get()),
        lifetime: Duration::from_secs(mapping.lifetime().into()),
    };
    open.checked(basis).await
}

async fn by_upnp(basis: &Basis, service: &Service, external: u16) -> Result<Open, String> {
    let ip = service.external_address();
    if !is_plausible(&SocketAddrV4::new(ip, external), &basis.subnets) {
        return Err(format!("it says that it is {ip} outside, which cannot be"));
    }
    let (port, lifetime) = service.add(external, basis.port.get(), LIFETIME).await?;
    let open = Open { by: By::Upnp(service.clone()), external: SocketAddrV4::new(ip, port), lifetime };
    open.checked(basis).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_router_says_must_be_possible() {
        let subnets = [(Ipv4Addr::new(10, 83, 0, 0), 16)];
        for (text, plausible) in [
            ("203.0.113.9:41990", true),
            ("192.168.7.1:1", true),
            ("100.64.0.2:5000", true),
            ("10.84.0.1:5000", true),
            ("10.83.4.1:5000", false),
            ("203.0.113.9:0", false),
            ("0.0.0.0:5000", false),
            ("0.1.2.3:5000", false),
            ("127.0.0.1:5000", false),
            ("169.254.1.1:5000", false),
            ("224.0.0.1:5000", false),
            ("240.0.0.1:5000", false),
            ("255.255.255.255:5000", false),
        ] {
            assert_eq!(is_plausible(&text.parse().unwrap(), &subnets), plausible, "{text}");
        }
    }

    /// A router that knows NAT-PMP alone and is `external` outside. Gives how many mappings it holds, when dropped last.
    async fn natpmp_router(router: Ipv4Addr, external: Ipv4Addr, held: Arc<std::sync::Mutex<i32>>) {
        let socket = tokio::net::UdpSocket::bind((router, crab_nat::GATEWAY_PORT)).await.unwrap();
        let mut memory = [0; 1100];
        loop {
            let (n, from) = socket.recv_from(&mut memory).await.unwrap();
            let mut answer = match &memory[..n] {
                [0, 0] => [vec![0, 128, 0, 0, 0, 0, 0, 9], external.octets().to_vec()].concat(),
                [0, 1, _, _, port @ ..] => {
                    let lifetime = &memory[8..12];
                    *held.lock().unwrap() += if lifetime == [0; 4] { -1 } else { 1 };
                    let outside = if lifetime == [0; 4] { [0; 2] } else { [port[2], port[3]] };
                    [&[0, 129, 0, 0, 0, 0, 0, 9, port[0], port[1]], &outside[..], lifetime].concat()
                }
                // "Unsupported version" (RFC 6886 section 3.5).
                _ => vec![0, 128, 0, 1, 0, 0, 0, 9],
            };
            // What it adds is not read.
            answer.truncate(16);
            socket.send_to(&answer, from).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_router_that_knows_natpmp_alone_is_asked_by_that_and_what_cannot_be_is_taken_back() {
        let basis = |router: Ipv4Addr| Basis {
            router,
            address: Ipv4Addr::LOCALHOST,
            port: NonZeroU16::new(41_990).unwrap(),
            subnets: vec![(Ipv4Addr::new(10, 83, 0, 0), 16)],
        };
        let held: Arc<std::sync::Mutex<i32>> = Arc::default();
        let (honest, liar) = (Ipv4Addr::new(127, 0, 83, 1), Ipv4Addr::new(127, 0, 83, 2));
        tokio::spawn(natpmp_router(honest, Ipv4Addr::new(203, 0, 113, 9), held.clone()));
        let asked = by_pcp_or_natpmp(&basis(honest)).await;
        let open = asked.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(open.by.name(), "NAT-PMP");
        assert_eq!((open.external.to_string(), open.lifetime), ("203.0.113.9:41990".into(), LIFETIME));
        let renewed = open.renew(&basis(honest)).await.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(renewed.external, open.external);
        *held.lock().unwrap() = 1;
        open.remove(&basis(honest)).await.unwrap();
        assert_eq!(*held.lock().unwrap(), 0);

        tokio::spawn(natpmp_router(liar, Ipv4Addr::new(10, 83, 4, 1), held.clone()));
        let Err(why) = by_pcp_or_natpmp(&basis(liar)).await else { panic!("believed") };
        assert!(why.contains("10.83.4.1:41990, which cannot be"), "{why}");
        assert_eq!(*held.lock().unwrap(), 0, "what it mapped is taken back");
    }

    #[tokio::test]
    async fn the_task_follows_what_it_is_told_and_ends_at_once() {
        let router = Ipv4Addr::new(127, 0, 83, 3);
        let held: Arc<std::sync::Mutex<i32>> = Arc::default();
        tokio::spawn(natpmp_router(router, Ipv4Addr::new(203, 0, 113, 9), held.clone()));
        let (network, changed) = ("home".parse().unwrap(), Arc::new(Notify::new()));
        let mapping = Mapping::start(network, changed.clone());
        assert_eq!(mapping.state(), MappingState::Looking);
        mapping.follow(Err("no reason"), false);
        changed.notified().await;
        assert_eq!(mapping.state(), MappingState::None { why: "no reason".into() });
        let port = NonZeroU16::new(5000).unwrap();
        let basis = Basis { router, address: Ipv4Addr::LOCALHOST, port, subnets: vec![] };
        mapping.follow(Ok(basis.clone()), false);
        while !matches!(mapping.state(), MappingState::Open { by: "NAT-PMP", .. }) {
            timeout(Duration::from_secs(5), changed.notified()).await.unwrap();
        }
        assert_eq!(*held.lock().unwrap(), 1);
        // The same again is no reason to ask; a change of the network is.
        mapping.follow(Ok(basis.clone()), false);
        sleep(Duration::from_millis(100)).await;
        assert_eq!(*held.lock().unwrap(), 1);
        mapping.follow(Ok(basis), true);
        sleep(Duration::from_millis(300)).await;
        assert_eq!(*held.lock().unwrap(), 2);
        mapping.end().await;
        assert_eq!(*held.lock().unwrap(), 1, "removed");
    }
}
