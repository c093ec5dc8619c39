//! The daemon: opens what only root may, becomes an unprivileged user, runs the networks and answers on the control
//! socket.
//!
//! The order is: configuration and state are read; devices, sockets and the control socket are opened; the directories
//! are handed over; the user is changed; only then do threads start.

mod admin;
mod candidates;
mod control;
mod lan;
mod make;
mod mapping;
mod nat;
pub(crate) mod netcheck;
mod network;
mod status;
mod tcp;
mod upnp;
mod why;

use crate::config::Config;
use crate::engine::{End, Engine, Setup};
use crate::logging;
use crate::paths::Paths;
use crate::state::{self, State};
use lan::Lan;
use mapping::{Mapping, MappingState};
use nat::NatWatch;
use network::{Network, Wanted};
use shadowmesh_control::{Exit, NetworkStatus, Problem, Status, rfc3339};
use shadowmesh_host::clock::Clock;
use shadowmesh_host::memory::forget_text;
use shadowmesh_host::netlink::Netlink;
use shadowmesh_host::privilege::{self, DropOptions};
use shadowmesh_host::service::{Notice, notify, raise_session};
use shadowmesh_host::store;
use shadowmesh_identity::{HostPort, Name};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, Notify, mpsc};
use tracing::{debug, error, info, warn};

/// Addresses are compared with the machine's routes so often, and what does not run is tried again.
const UPKEEP: Duration = Duration::from_secs(5);
/// A network that is up needs no more by then of what starting did.
const SETTLED: Duration = Duration::from_secs(1);

/// The running daemon.
pub struct Daemon {
    state: State,
    paths: Paths,
    config: RwLock<Config>,
    networks: Mutex<BTreeMap<Name, Network>>,
    /// Held while a network is made, joined or left.
    making: Mutex<()>,
    /// Held while a device is opened, so that nobody opens it twice.
    opening: Mutex<()>,
    /// Held while it is looked at what lies between this machine and the others.
    checking: Mutex<()>,
    netlink: Netlink,
    since: String,
    /// Who started it; may change things, too, when that was not root.
    started_by: u32,
    ended: mpsc::UnboundedSender<(Name, End)>,
    stop: Notify,
    /// Where this machine may be reached is to be looked at now.
    look: Arc<Notify>,
}

/// Runs it to its end.
///
/// # Errors
///
/// [`Problem`], with the exit code.
pub fn run(paths: Paths) -> Result<(), Problem> {
    let config = Config::load(&paths.config)?;
    crate::tunnel::configure(config.http_proxy.clone());
    logging::start(&config.log);
    raise_session();
    if let Some(parent) = paths.state.parent() {
        // Before others are shut out: as another user it has to pass through.
        std::fs::create_dir_all(parent).map_err(|e| cannot(parent, "made", &e))?;
    }
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let started_by = nix::unistd::geteuid();
    let allowed_root = std::env::var_os("SHADOWMESH_ALLOW_ROOT").is_some_and(|v| v == "1");
    let become_user = if started_by.is_root() && !allowed_root {
        Some(privilege::lookup(privilege::USER).map_err(|e| {
            Problem::new(Exit::NotPermitted, e.to_string()).fix("Make it:  sudo scripts/install")
        })?)
    } else {
        None
    };
    let state = State::open(&paths.state)?;
    remember_operator(&state, started_by.is_root())?;
    let mut opened = vec![];
    for name in state.network_names()? {
        // State that cannot be read ends the start: a network must not seem to be gone.
        let up = state.network(&name)?.load()?.meta.up;
        let result =
            if up { network::open(&state, &config, &name) } else { Err(Problem::failed("it is down")) };
        match result {
            Ok((network, setup)) => opened.push((network, Some(setup))),
            Err(p) if p.exit == Exit::NotPermitted => return Err(p),
            Err(p) => {
                if up {
                    warn!(network = %name, "{}", p.what);
                }
                opened.push((Network::failed(&state, &config, &name, p)?, None));
            }
        }
    }
    let operator = config.operator_uid().or(state.operator()?);
    let listener = listen(&paths.socket, operator, become_user.map(|u| u.gid))?;
    if let Some(user) = become_user {
        store::hand_over(&paths.state, user).map_err(|e| state::problem(&e))?;
        if let Some(run) = paths.socket.parent() {
            // So that the socket can be taken away at the end.
            chown(run, Some(user.uid), Some(user.gid)).map_err(|e| cannot(run, "handed over", &e))?;
        }
        privilege::drop_to(DropOptions::default())
            .map_err(|e| Problem::new(Exit::NotPermitted, e.to_string()))?;
    }

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Problem::failed(format!("the control plane could not start: {e}")))?;
    runtime.block_on(async move {
        let (ended, endings) = mpsc::unbounded_channel();
        let daemon = Arc::new(Daemon {
            netlink: Netlink::new().map_err(|e| Problem::failed(e.to_string()))?,
            since: rfc3339(Clock::new().unix()),
            networks: Mutex::default(),
            making: Mutex::default(),
            opening: Mutex::default(),
            checking: Mutex::default(),
            config: RwLock::new(config),
            stop: Notify::new(),
            look: Arc::default(),
            started_by: started_by.as_raw(),
            state,
            paths,
            ended,
        });
        for (network, setup) in opened {
            daemon.put(network, setup).await;
        }
        daemon.serve(listener, endings).await
    })
}

/// Who made the network with sudo may change things; the first one is remembered.
fn remember_operator(state: &State, root: bool) -> Result<(), Problem> {
    let sudo = std::env::var("SUDO_UID").ok().and_then(|v| v.parse().ok()).filter(|uid| *uid != 0);
    match sudo {
        Some(uid) if root && state.operator()?.is_none() => state.set_operator(uid),
        _ => Ok(()),
    }
}

fn cannot(path: &Path, what: &str, error: &std::io::Error) -> Problem {
    let exit = match error.kind() {
        std::io::ErrorKind::PermissionDenied => Exit::NotPermitted,
        _ => Exit::Failed,
    };
    let p = Problem::new(exit, format!("{} could not be {what}: {error}", path.display()));
    if exit == Exit::NotPermitted { p.fix("Run it as root:  sudo shadowmesh up") } else { p }
}

/// The control socket: its owner is the operator, its group may read, others may not even connect.
fn listen(path: &Path, operator: Option<u32>, group: Option<u32>) -> Result<UnixListener, Problem> {
    if let Some(directory) = path.parent().filter(|d| !d.exists()) {
        std::fs::create_dir_all(directory).map_err(|e| cannot(directory, "made", &e))?;
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(directory, mode).map_err(|e| cannot(directory, "opened to others", &e))?;
    }
    // The state directory is ours alone, so what lies here was left by a daemon that is gone.
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(cannot(path, "replaced", &e)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(|e| cannot(path, "made", &e))?;
    listener.set_nonblocking(true).map_err(|e| cannot(path, "set up", &e))?;
    if nix::unistd::geteuid().is_root() {
        let known = || nix::unistd::Group::from_name(privilege::USER).ok().flatten().map(|g| g.gid.as_raw());
        chown(path, operator, group.or_else(known)).map_err(|e| cannot(path, "given to its group", &e))?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
        .map_err(|e| cannot(path, "set up", &e))?;
    Ok(listener)
}

impl Daemon {
    /// Adds a network, and starts it when it was opened.
    async fn put(self: &Arc<Self>, mut network: Network, setup: Option<Setup>) {
        if let Some(setup) = setup {
            self.start(&mut network, setup).await;
        }
        self.networks.lock().await.insert(network.name.clone(), network);
        self.look.notify_one();
    }

    async fn start(&self, network: &mut Network, setup: Setup) {
        let name = network.name.clone();
        let (ended, of) = (self.ended.clone(), name.clone());
        let (mapped, lan_discovery) = {
            let config = self.config.read().unwrap_or_else(PoisonError::into_inner);
            (config.port_mapping, config.lan_discovery)
        };
        let started = Engine::start(setup, move |why| {
            let _daemon_ended = ended.send((of, why));
        });
        match started {
            Ok(engine) => {
                let engine = Arc::new(engine);
                if network.direct {
                    network.nat = Some(NatWatch::start(name.clone(), &engine, self.stun_servers()));
                }
                if network.direct && lan_discovery {
                    let id = network.genesis.id();
                    network.lan = Some(Lan::start(name.clone(), id, network.node, &engine));
                }
                network.engine = Some(engine);
            }
            Err(e) => {
                network.failure = Some(Problem::failed(format!("its threads could not be started: {e}")));
                return;
            }
        }
        if network.direct && mapped && network.listen.iter().any(SocketAddr::is_ipv4) {
            network.mapping = Some(Mapping::start(name.clone(), self.look.clone()));
        }
        if let Some(engine) = &network.engine {
            network.tcp = Some(tcp::Tcp::start(name.clone(), engine, network.listen.clone()));
        }
        self.keep_addresses(network).await;
        info!(
            network = %name, interface = %network.config.interface, node = %network.node.short(),
            listen = ?network.listen, "network is up"
        );
        tokio::spawn(async {
            tokio::time::sleep(SETTLED).await;
            if let Err(e) = forget_text() {
                debug!("what was needed to start could not be given back: {e}");
            }
        });
    }

    /// Opens a network that is stored, and starts it.
    async fn open(self: &Arc<Self>, name: &Name) -> Result<(), Problem> {
        let _one_at_a_time = self.opening.lock().await;
        if self.networks.lock().await.get(name).is_some_and(|n| n.engine.is_some()) {
            return Ok(());
        }
        let opened = {
            let config = self.config.read().unwrap_or_else(PoisonError::into_inner);
            network::open(&self.state, &config, name)
        };
        match opened {
            Ok((network, setup)) => {
                self.put(network, Some(setup)).await;
                Ok(())
            }
            Err(p) => {
                let failed = {
                    let config = self.config.read().unwrap_or_else(PoisonError::into_inner);
                    Network::failed(&self.state, &config, name, p.clone())?
                };
                self.networks.lock().await.insert(name.clone(), failed);
                Err(p)
            }
        }
    }

    /// Ends a network's packet loop; what is stored stays.
    async fn close(&self, name: &Name, why: &str) {
        let (engine, mapping, tcp) = {
            let mut networks = self.networks.lock().await;
            let Some(network) = networks.get_mut(name) else { return };
            network.failure = Some(Problem::failed(why));
            self.leave_bridge(network).await;
            (network.ipv4, network.warnings, network.nat, network.lan) = (None, vec![], None, None);
            (network.engine.take(), network.mapping.take(), network.tcp.take())
        };
        let unmapped = mapping.map(|m| tokio::spawn(m.end()));
        if let Some(engine) = engine {
            // The loop says goodbye and stores; the last of its holders closes the device.
            let _panicked = tokio::task::spawn_blocking(move || engine.stop()).await;
        }
        // It carried the goodbye.
        drop(tcp);
        if let Some(unmapped) = unmapped {
            let _panicked = unmapped.await;
        }
    }

    /// Makes the device's addresses what they should be.
    async fn keep_addresses(&self, network: &mut Network) {
        let Some(engine) = network.engine.clone() else { return };
        let own =
            engine.call(|i| i.endpoint.node.roster().member(&i.endpoint.node.id()).and_then(|m| m.ipv4));
        let Ok(ipv4) = own.await else { return };
        let wanted = Wanted {
            interface: network.config.interface.clone(),
            bridge: network.config.bridge.clone(),
            subnet: network.genesis.subnet4,
            ipv4,
            ipv6: network.ipv6(),
            router_advertisements: network.config.accept.router_advertisements,
        };
        match network::configure(&self.netlink, &network.name, &wanted).await {
            Ok((ipv4, warnings)) => {
                for w in warnings.iter().filter(|w| !network.warnings.contains(w)) {
                    warn!(network = %network.name, "{w}");
                }
                (network.ipv4, network.warnings) = (ipv4, warnings);
            }
            Err(p) => {
                if !network.warnings.contains(&p.what) {
                    warn!(network = %network.name, "{}", p.what);
                }
                network.warnings = vec![p.what];
            }
        }
    }

    async fn leave_bridge(&self, network: &Network) {
        if let (Some(bridge), Some(_)) = (&network.config.bridge, &network.engine) {
            let addresses = [network.ipv4.map(Into::into), Some(network.ipv6().into())];
            network::leave_bridge(&self.netlink, bridge, addresses).await;
        }
    }

    async fn serve(
        self: Arc<Self>,
        listener: UnixListener,
        mut endings: mpsc::UnboundedReceiver<(Name, End)>,
    ) -> Result<(), Problem> {
        let listener = tokio::net::UnixListener::from_std(listener)
            .map_err(|e| Problem::failed(format!("the control socket could not be served: {e}")))?;
        let server = tokio::spawn(control::serve(self.clone(), listener));
        let looking = tokio::spawn(candidates::follow(self.clone()));
        let on = |kind| signal(kind).map_err(|e| Problem::failed(format!("signals cannot be taken: {e}")));
        let (mut terminate, mut interrupt, mut hangup) =
            (on(SignalKind::terminate())?, on(SignalKind::interrupt())?, on(SignalKind::hangup())?);
        let _nobody_to_tell = notify(Notice::Ready);
        info!(version = env!("CARGO_PKG_VERSION"), socket = %self.paths.socket.display(), "ready");
        let mut upkeep = tokio::time::interval(UPKEEP);
        upkeep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                () = self.stop.notified() => break,
                _ = hangup.recv() => self.reload().await,
                _ = upkeep.tick() => self.keep_up().await,
                Some((name, why)) = endings.recv() => {
                    if let Some(n) = self.networks.lock().await.get_mut(&name) {
                        let failure = match why {
                            End::Broken(why) => Problem::failed(why),
                            End::Revoked => n.why_revoked().unwrap_or_else(|| Problem::failed("it was revoked")),
                        };
                        error!(network = %name, "{}", failure.what);
                        self.leave_bridge(n).await;
                        (n.engine, n.nat, n.lan, n.tcp) = (None, None, None, None);
                        (n.ipv4, n.warnings) = (None, vec![]);
                        // It ends on its own.
                        drop(n.mapping.take());
                        n.failure = Some(failure);
                    }
                }
            }
        }
        let _nobody_to_tell = notify(Notice::Stopping);
        info!("ending");
        server.abort();
        looking.abort();
        let mut networks = std::mem::take(&mut *self.networks.lock().await);
        let mappings = networks.values_mut().filter_map(|n| n.mapping.take());
        futures_util::future::join_all(mappings.map(Mapping::end)).await;
        for network in networks.into_values() {
            self.leave_bridge(&network).await;
            if let Some(engine) = network.engine {
                engine.stop();
            }
        }
        let _gone_with_the_directory = std::fs::remove_file(&self.paths.socket);
        Ok(())
    }

    /// Addresses follow the routes; what should run and does not is tried again.
    async fn keep_up(self: &Arc<Self>) {
        let mut again = vec![];
        for network in self.networks.lock().await.values_mut() {
            if network.engine.is_some() {
                self.keep_addresses(network).await;
            } else if network.meta.up && !network.is_ended() {
                again.push((network.name.clone(), network.failure.as_ref().map(|p| p.what.clone())));
            }
        }
        for (name, before) in again {
            match self.open(&name).await {
                Err(p) if before.as_ref() != Some(&p.what) => warn!(network = %name, "{}", p.what),
                _ => {}
            }
        }
    }

    /// Takes up a changed configuration, as far as that is possible without dropping sessions.
    async fn reload(&self) {
        let _nobody_to_tell = notify(Notice::Reloading);
        match Config::load(&self.paths.config) {
            Ok(new) => {
                let mut old = self.config.write().unwrap_or_else(PoisonError::into_inner);
                for key in old.differences(&new) {
                    if LIVE.contains(&key.as_str()) {
                        info!("`{key}` has changed");
                    } else {
                        warn!(
                            "`{key}` has changed; it is taken when the daemon starts: shadowmesh down, then up"
                        );
                    }
                }
                logging::set_level(new.log.level);
                crate::tunnel::configure(new.http_proxy.clone());
                *old = new;
                info!("configuration read");
            }
            Err(p) => error!("the configuration stays as it was: {}", p.what),
        }
        let _nobody_to_tell = notify(Notice::Ready);
    }

    /// What `status` shows.
    async fn status(&self) -> Status {
        let mut asked = vec![];
        for network in self.networks.lock().await.values() {
            asked.push((network.resting(), network.engine.clone(), network.carried()));
        }
        let mut networks = vec![];
        for (resting, engine, carried) in asked {
            networks.push(show(resting, engine, carried).await);
        }
        Status {
            schema: "shadowmesh/status/1".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            since: self.since.clone(),
            networks,
        }
    }

    /// STUN servers besides the relays.
    fn stun_servers(&self) -> Vec<HostPort> {
        self.config.read().unwrap_or_else(PoisonError::into_inner).stun.clone()
    }

    /// What the router here has opened for a network.
    async fn port_mapping(&self, name: &str) -> MappingState {
        let networks = self.networks.lock().await;
        let network = name.parse::<Name>().ok().and_then(|n| networks.get(&n));
        network.map_or(MappingState::Off, Network::mapping_state)
    }

    /// Which of a network's relays are reached by TCP.
    async fn carried(&self, name: &str) -> Vec<tcp::Carried> {
        let networks = self.networks.lock().await;
        let network = name.parse::<Name>().ok().and_then(|n| networks.get(&n));
        network.map(Network::carried).unwrap_or_default()
    }

    fn operator(&self) -> Option<u32> {
        let configured = self.config.read().unwrap_or_else(PoisonError::into_inner).operator_uid();
        configured.or_else(|| self.state.operator().ok().flatten())
    }
}

/// Keys whose change is taken without a restart.
const LIVE: [&str; 4] = ["name", "operator", "http_proxy", "log.level"];

async fn show(
    resting: NetworkStatus,
    engine: Option<Arc<Engine>>,
    carried: Vec<tcp::Carried>,
) -> NetworkStatus {
    let Some(engine) = engine else { return resting };
    let kept = resting.clone();
    match engine.call(move |inside| status::fill(resting, inside, &carried)).await {
        Ok(status) => status,
        Err(e) => NetworkStatus { problems: vec![e.to_string()], ..kept },
    }
}
