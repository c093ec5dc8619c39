//! `run`: sockets, privileges, and the loop around the relay. One plain thread.

use crate::acme::Acme;
use crate::args::Run;
use crate::config::{self, Authority, Config, StunPort};
use crate::http::{self, Desk};
use crate::metrics::Report;
use crate::paths::Paths;
use crate::streams::{self, Streams};
use crate::tls::Showing;
use crate::{acme, init, logging, print, state, tcp, tls};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::geteuid;
use shadowmesh_control::{Exit, Problem};
use shadowmesh_host::clock::Clock;
use shadowmesh_host::privilege::{self, DropOptions, PrivilegeError};
use shadowmesh_host::ration::Ration;
use shadowmesh_host::service::{Notice, notify, raise_session};
use shadowmesh_host::store::{self, Dir};
use shadowmesh_host::udp::{BATCH, JOINED, Queue, RecvBatch, SendStop, Udp, several_addresses};
use shadowmesh_host::wake::{Interest, Poller, Waker};
use shadowmesh_identity::HostPort;
use shadowmesh_proto::Time;
use shadowmesh_relay_core::{Event, FourTuple, Relay};
use shadowmesh_wire::stream;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;
use tracing::{debug, error, info, warn};
use zeroize::Zeroizing;

/// Largest datagram of a stranger: a jumbo frame's, with our headers.
const SLOT: usize = 9344;
/// Bytes of the receive queues. A relay is seldom what is slow, so that little waits in them; but bursts of all clients meet
/// here, and what is lost of one is a client's TCP at half its rate for seconds. Decision 0009.
const QUEUE: usize = 4 << 20;
/// Batches received before timers and questions are looked at.
const ROUNDS: usize = 16;
/// After so few datagrams there are no more, most likely, and if there are, the sockets say so: it is not asked in vain.
const FEW: usize = 8;
/// Strangers may cost one part in so many of the time: enough for 1,000 handshakes a second, and the clients have the rest.
const STRANGERS: u32 = 2;
/// And so many datagrams of theirs are looked at, before clients are again.
const STRANGERS_BATCH: usize = BATCH / 4;
/// How long a full socket is waited for before the rest of a batch is dropped.
const BUSY: Duration = Duration::from_millis(20);
/// Between tries to save a state that could not be saved.
const SAVE_AGAIN: Duration = Duration::from_secs(1);
/// Between looks at the wall clock, and at this machine's addresses.
const CLOCK_EVERY: Duration = Duration::from_secs(60);

/// Runs the relay until it is told to stop.
pub fn run(paths: &Paths, args: &Run, json: bool) -> Result<(), Problem> {
    let config = config::read(paths, args.config.as_deref())?;
    logging::start(config.level, config.format);
    raise_session();
    // Blocked for all threads to come, and read as packets are.
    let signals = signals().map_err(|e| Problem::failed(format!("signals cannot be received: {e}")))?;
    let loaded = state::load(paths)?;
    let listen = [&args.listen, config.listen.as_ref().unwrap_or(&loaded.listen)]
        .into_iter()
        .find(|l| !l.is_empty())
        .cloned()
        .unwrap_or_else(|| init::everywhere(loaded.public.port()));
    let mut udp = Udp::bind(&listen).map_err(|e| init::taken(&e))?;
    udp.use_offloads();
    udp.hold(QUEUE);
    let stun = bind_stun(&udp.local_addrs(), args.stun_port.unwrap_or(config.stun))?;
    let tcp = bind_tcp(args, &config, &udp.local_addrs())?;
    let certificate = config.tls.as_ref().filter(|_| !tcp.is_empty()).map(tls::read).transpose()?;
    let http = args.http.or(config.http).map(bind_http).transpose()?;
    let authority =
        config.authority.clone().map(|a| callable(a, &loaded.public, !tcp.is_empty())).transpose()?;

    become_user(paths, args)?;
    // Only now: what is read and written from here on belongs to the user that stays.
    let dir = Dir::open(&paths.state).map_err(|e| state::stored(&e))?;
    let loaded = state::load(paths)?;
    let unusable =
        |e: &dyn std::fmt::Display| Problem::failed(format!("the relay's key cannot be used: {e}"));
    let identity = loaded.seed.relay_identity().map_err(|e| unusable(&e))?;

    let certificate = match certificate {
        Some(certificate) => certificate,
        None => tls::self_signed(loaded.public.host())?,
    };
    let signs = loaded.seed.relay_identity().map_err(|e| unusable(&e))?;
    let showing = Arc::new(Showing::new(certificate, signs)?);
    if let Some(authority) = authority {
        let (name, dir) =
            (loaded.public.host().to_owned(), dir.sub(acme::DIRECTORY).map_err(|e| state::stored(&e))?);
        Acme { authority, name, dir, showing: showing.clone() }
            .start()
            .map_err(|e| Problem::failed(format!("no certificate can be asked for: {e}")))?;
    }
    let clock = Clock::new();
    let limits = config.limits.clone();
    let bounds = tcp::Bounds {
        connections: config.tcp_connections.0,
        each: config.tcp_connections.1,
        rate: limits.handshake_rate,
    };
    let mut relay = Relay::new(limits, identity, loaded.durable, time(&clock), clock.unix(), init::rng())
        .map_err(|e| Problem::failed(e.to_string()))?;
    relay.set_ports(udp.local_addrs(), stun.as_ref().map(Udp::local_addrs).unwrap_or_default());
    let waker = Waker::new().map_err(|e| Problem::failed(format!("the loop cannot be woken: {e}")))?;
    let desk = Desk::new(waker.clone());
    let http_address = http.as_ref().and_then(|l| l.local_addr().ok());
    if let Some(listener) = http {
        http::serve(listener, desk.clone())
            .map_err(|e| Problem::failed(format!("the metrics server cannot run: {e}")))?;
    }
    let (streams, hub) = streams::pair(waker.clone());
    let mut listening: Vec<String> = udp.local_addrs().iter().map(|a| format!("udp {a}")).collect();
    listening.extend(tcp.iter().filter_map(|l| Some(format!("tcp {}", l.local_addr().ok()?))));
    if !tcp.is_empty() {
        tcp::serve(tcp, showing, shadowmesh_identity::stream::path(&loaded.id), bounds, hub)
            .map_err(|e| Problem::failed(format!("TCP cannot be served: {e}")))?;
    }
    let mut looped = Loop {
        udp: Arc::new(udp),
        stun: stun.map(Arc::new),
        streams,
        dir,
        clock,
        relay,
        desk,
        waker,
        signals,
        unsaved: None,
        save_at: Time(0),
        clock_at: time(&clock) + CLOCK_EVERY,
        not_sent: 0,
    };
    looped.answer_where_asked();
    // The new epoch must be on disk before the first slot is given out.
    if !looped.drain_events(time(&clock)) {
        return Err(Problem::failed("the relay's state cannot be written, so it cannot run").fix(
            "See the line above; make room or give the directory to the relay's user, then try again.",
        ));
    }
    let stun = looped.stun.as_ref().map(|s| s.local_addrs()).unwrap_or_default();
    announce(&looped.udp.local_addrs(), &stun, &listening, http_address, json);
    let _nobody = notify(Notice::Ready);
    let result = looped.run(paths, args);
    let _nobody = notify(Notice::Stopping);
    result
}

fn announce(udp: &[SocketAddr], stun: &[SocketAddr], all: &[String], http: Option<SocketAddr>, json: bool) {
    if json {
        let tcp: Vec<_> = all.iter().filter_map(|a| a.strip_prefix("tcp ")).collect();
        let object = serde_json::json!({
            "schema": "shadowmesh/relay-run/1", "listen": udp, "stun": stun, "tcp": tcp, "http": http,
        });
        print(&object.to_string());
    } else {
        for address in all {
            print(&format!("listening  {address}"));
        }
        for address in stun {
            print(&format!("stun       udp {address}"));
        }
        if let Some(address) = http {
            print(&format!("metrics    http://{address}/metrics"));
        }
    }
}

/// The second port, on the addresses of the first.
fn bind_stun(main: &[SocketAddr], wanted: StunPort) -> Result<Option<Udp>, Problem> {
    let on = |port| Udp::bind(&main.iter().map(|a| SocketAddr::new(a.ip(), port)).collect::<Vec<_>>());
    let bound = match wanted {
        StunPort::Off => return Ok(None),
        StunPort::Port(port) => on(port),
        StunPort::Auto => {
            let next = main.first().and_then(|a| a.port().checked_add(1));
            on(next.unwrap_or(0)).or_else(|_| on(0))
        }
    };
    bound.map(Some).map_err(|e| {
        Problem::failed(format!("the second port, for STUN: {e}"))
            .fix("Choose another:  --stun-port PORT, or off")
    })
}

fn time(clock: &Clock) -> Time {
    Time(0) + clock.now()
}

fn signals() -> nix::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        set.add(signal);
    }
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

fn bind_http(address: SocketAddr) -> Result<TcpListener, Problem> {
    TcpListener::bind(address).map_err(|e| {
        Problem::failed(format!("listening on tcp {address} for metrics did not work: {e}"))
            .fix("Choose another address:  --http ADDRESS:PORT")
    })
}

/// Where UDP is listened, TCP is too. Another program may have that port, a web server: then it is left to it, unless it was
/// asked for.
fn bind_tcp(args: &Run, config: &Config, udp: &[SocketAddr]) -> Result<Vec<TcpListener>, Problem> {
    let asked: Vec<SocketAddr> = args.tcp.iter().flatten().copied().collect();
    let asked = if args.tcp.is_empty() { config.tcp.clone() } else { Some(asked) };
    let by_default = asked.is_none();
    tcp::bind(&asked.unwrap_or_else(|| udp.to_vec())).or_else(|(address, e)| {
        let what = format!("listening on tcp {address} did not work: {e}");
        if by_default {
            warn!(
                "{what}; clients whose UDP is blocked cannot come. Choose another address: --tcp, or `tcp`"
            );
            return Ok(vec![]);
        }
        Err(Problem::failed(what).fix("Choose another address:  --tcp tcp://ADDRESS:PORT, or --tcp off"))
    })
}

/// An authority calls by name, on TCP.
fn callable(authority: Authority, public: &HostPort, tcp: bool) -> Result<Authority, Problem> {
    let host = public.host();
    let wrong = |what: String| Err(Problem::new(Exit::Config, what));
    if !tcp {
        return wrong("`tls.acme` is set, and TCP is not listened on, where the authority would call".into());
    }
    if host.parse::<IpAddr>().is_ok() || !host.contains('.') {
        return wrong(format!(
            "`tls.acme` is set, and this relay is known as {host}: no authority certifies that"
        ));
    }
    Ok(authority)
}

/// Root becomes an unprivileged user, to whom the state then belongs.
fn become_user(paths: &Paths, args: &Run) -> Result<(), Problem> {
    let problem = |e: &PrivilegeError| {
        let p = Problem::new(Exit::NotPermitted, e.to_string());
        match e {
            PrivilegeError::NoUser(_) => {
                p.fix("Make it:  scripts/install").fix("Or name another:  --user NAME")
            }
            _ => p,
        }
    };
    if !geteuid().is_root() || args.allow_root {
        if args.allow_root && geteuid().is_root() {
            warn!("staying root, as --allow-root says");
        }
        return match args.allow_core {
            true => Ok(()),
            false => privilege::forbid_core_dumps().map_err(|e| problem(&e)),
        };
    }
    let user = args.user.as_deref().unwrap_or(privilege::USER);
    let ids = privilege::lookup(user).map_err(|e| problem(&e))?;
    store::hand_over(&paths.state, ids).map_err(|e| state::stored(&e))?;
    let options = DropOptions { user, keep_net_admin: false, no_core_dumps: !args.allow_core };
    privilege::drop_to(options).map_err(|e| problem(&e))?;
    info!(user, "privileges dropped");
    Ok(())
}

/// A [`FourTuple`], as sockets take and give it.
type Way = (SocketAddr, Option<IpAddr>);

fn way(path: FourTuple) -> Way {
    (path.remote, path.local)
}

struct Loop {
    udp: Arc<Udp>,
    /// The second port.
    stun: Option<Arc<Udp>>,
    streams: Streams,
    dir: Dir,
    clock: Clock,
    relay: Relay,
    desk: Desk,
    waker: Waker,
    signals: SignalFd,
    /// A state that is not on disk yet. While there is one, the relay answers nothing that rests on it.
    unsaved: Option<(Zeroizing<Vec<u8>>, bool)>,
    save_at: Time,
    clock_at: Time,
    not_sent: u64,
}

impl Loop {
    fn run(&mut self, paths: &Paths, args: &Run) -> Result<(), Problem> {
        let broken = |e: std::io::Error| Problem::failed(format!("the relay's sockets do not work: {e}"));
        let (waker, udp, stun) = (self.waker.clone(), self.udp.clone(), self.stun.clone());
        let signals = self.signals.as_fd().try_clone_to_owned().map_err(broken)?;
        let mut poller = Poller::new().map_err(broken)?;
        let told = poller.watch([signals.as_fd()], Some(Interest::Read)).map_err(broken)?;
        let wakes = poller.watch([waker.as_fd()], Some(Interest::Read)).map_err(broken)?;
        poller.watch(udp.fds(Queue::Sessions), Some(Interest::Read)).map_err(broken)?;
        let unknown = udp.fds(Queue::Strangers).chain(stun.iter().flat_map(|s| s.fds(Queue::Both)));
        let unknown = poller.watch(unknown, None).map_err(broken)?;
        let mut batch: RecvBatch<Way> = RecvBatch::new(BATCH, JOINED);
        let mut strangers = (RecvBatch::new(STRANGERS_BATCH, SLOT), Ration::one_of(STRANGERS));
        loop {
            let now = time(&self.clock);
            let mut deadline = self.relay.poll_timeout();
            if self.unsaved.is_some() {
                deadline = deadline.into_iter().chain([self.save_at]).min();
            }
            let mut timeout = deadline.map(|t| t.since(now));
            let wait = strangers.1.next().saturating_sub(self.clock.now());
            poller.change(&unknown, wait.is_zero().then_some(Interest::Read)).map_err(broken)?;
            if !wait.is_zero() {
                timeout = timeout.into_iter().chain([wait]).min();
            }
            let ready = poller.wait(&[], timeout).map_err(broken)?;
            if ready.readable_of(&told) > 0 && self.on_signals(paths, args) {
                info!("stopping");
                return Ok(());
            }
            for _ in 0..ROUNDS {
                let came = self.udp.recv_batch(&mut batch, Queue::Sessions).map_err(broken)?;
                if came > 0 {
                    self.turn(&mut batch);
                }
                if came < FEW {
                    break;
                }
            }
            if ready.readable_of(&unknown) > 0 {
                let began = self.clock.now();
                self.udp.recv_batch(&mut strangers.0, Queue::Strangers).map_err(broken)?;
                self.turn(&mut strangers.0);
                if let Some(stun) = &self.stun {
                    stun.recv_batch(&mut strangers.0, Queue::Both).map_err(broken)?;
                    self.stun_turn(&strangers.0);
                }
                strangers.1.spent(began, self.clock.now());
            }
            let now = time(&self.clock);
            if now >= self.clock_at {
                self.clock_at = now + CLOCK_EVERY;
                self.relay.set_clock(now, self.clock.unix());
                self.answer_where_asked();
            }
            if self.relay.poll_timeout().is_some_and(|t| t <= now) {
                self.relay.handle_timeout(now);
            }
            self.say(now);
            if ready.readable_of(&wakes) > 0 && self.waker.clear() {
                let uptime = self.clock.now().as_secs_f64();
                let report = || {
                    Report::new(
                        &self.relay,
                        self.unsaved.is_none(),
                        self.not_sent,
                        (self.streams.open(), self.streams.dropped()),
                        uptime,
                    )
                };
                self.desk.answer(report);
            }
            self.hear_streams();
        }
    }

    /// Answers leave by the address that was asked. Addresses come and go while it runs.
    fn answer_where_asked(&self) {
        let several = several_addresses();
        for udp in [&self.udp].into_iter().chain(&self.stun) {
            udp.tell_local(several);
        }
    }

    /// One batch: forwarded in place, then events, then what the relay says itself.
    fn turn(&mut self, batch: &mut RecvBatch<Way>) {
        let now = time(&self.clock);
        let mut list: Vec<(Way, &[u8])> = Vec::with_capacity(batch.len());
        for ((remote, local), datagram) in batch.iter_mut() {
            if streams::is_stream(&remote) {
                // Nobody has that address: a forged one.
                continue;
            }
            if let Some(to) = self.relay.handle_in_place(now, FourTuple { remote, local }, datagram) {
                list.push((way(to), datagram));
            }
        }
        self.send(&list);
        self.say(now);
    }

    /// What came by the second port: questions of strangers alone.
    fn stun_turn(&mut self, batch: &RecvBatch<Way>) {
        let now = time(&self.clock);
        for ((remote, local), datagram) in batch.iter() {
            self.relay.handle_stun(now, FourTuple { remote, local }, datagram);
        }
        self.say(now);
    }

    /// What came over TCP, a few messages.
    fn hear_streams(&mut self) {
        let now = time(&self.clock);
        for round in 0..=ROUNDS {
            if round == ROUNDS {
                self.streams.come_again();
                break;
            }
            let Some(mut message) = self.streams.next() else { break };
            let (from, mut list) = (message.from, vec![]);
            let _what_stands_before_garbage_counts = stream::datagrams(&mut message.bytes, |datagram| {
                if let Some(to) = self.relay.handle_in_place(now, from, datagram) {
                    list.push((way(to), &*datagram));
                }
            });
            self.send(&list);
            self.say(now);
        }
    }

    /// Events first, then what waits to be sent: nothing is answered that is not stored. [P-REGISTER]
    fn say(&mut self, now: Time) {
        let saved = self.drain_events(now);
        while let Some((to, answer)) = self.relay.poll_stun() {
            // Nobody waits for a full socket here: who asks repeats it.
            let sent = self.stun.as_ref().is_some_and(|s| s.send_to(way(to), &answer).is_ok());
            self.not_sent += u64::from(!sent);
        }
        let mut own = vec![];
        while let Some(x) = self.relay.poll_transmit() {
            own.push(x);
        }
        if !saved {
            // It may rest on what is not stored. Clients repeat what is not answered.
            self.not_sent += own.len() as u64;
            return;
        }
        let list: Vec<(Way, &[u8])> = own.iter().map(|(to, d)| (way(*to), d.as_slice())).collect();
        self.send(&list);
    }

    /// `false`: what waits to be sent may rest on a state that could not be stored just now.
    fn drain_events(&mut self, now: Time) -> bool {
        while let Some(event) = self.relay.poll_event() {
            match event {
                Event::Save { state, forget } => {
                    let forget = forget || self.unsaved.as_ref().is_some_and(|(_, f)| *f);
                    self.unsaved = Some((state, forget));
                    self.save_at = now;
                }
                Event::Registered(_) => info!(networks = self.relay.networks(), "a network was registered"),
                Event::Rotated(_) => info!("a network's access secret was rotated"),
                Event::LeafFailed(e) => error!("{e}"),
            }
        }
        if now < self.save_at {
            return true;
        }
        let Some((state, forget)) = &self.unsaved else { return true };
        match state::save(&self.dir, state, *forget) {
            Ok(()) => {
                self.unsaved = None;
                self.relay.hold(false);
                true
            }
            Err(e) => {
                error!("the state could not be saved, so nothing is answered that rests on it: {e}");
                self.save_at = now + SAVE_AGAIN;
                self.relay.hold(true);
                false
            }
        }
    }

    fn send(&mut self, list: &[(Way, &[u8])]) {
        let udp: Vec<(Way, &[u8])>;
        let mut rest = list;
        let by_stream = |((to, _), _): &&(Way, &[u8])| streams::is_stream(to);
        if list.iter().any(|x| by_stream(&x)) {
            self.streams.send(list.iter().filter(by_stream).map(|((to, _), d)| (*to, *d)));
            udp = list.iter().filter(|x| !by_stream(x)).copied().collect();
            rest = &udp;
        }
        let began = self.clock.now();
        let mut not_sent = 0;
        while !rest.is_empty() {
            let sent = self.udp.send_batch(rest, &mut |i, e| {
                not_sent += 1;
                debug!(to = ?rest.get(i).map(|(to, _)| to), "a datagram was not sent: {e:?}");
            });
            rest = rest.get(sent.done..).unwrap_or_default();
            let Some(stop) = sent.stop else { continue };
            if self.clock.now().saturating_sub(began) >= BUSY {
                not_sent += rest.len() as u64;
                break;
            }
            match stop {
                SendStop::WouldBlock => {
                    let fds: Vec<_> = self.udp.fds(Queue::Sessions).map(|fd| (fd, Interest::Write)).collect();
                    let _either_way = Poller::new().map(|mut p| p.wait(&fds, Some(Duration::from_millis(5))));
                }
                SendStop::NoBuffers => std::thread::sleep(Duration::from_micros(500)),
            }
        }
        self.not_sent += not_sent;
    }

    /// Says whether to stop.
    fn on_signals(&mut self, paths: &Paths, args: &Run) -> bool {
        while let Ok(Some(info)) = self.signals.read_signal() {
            if info.ssi_signo != Signal::SIGHUP as u32 {
                return true;
            }
            let _nobody = notify(Notice::Reloading);
            match config::read(paths, args.config.as_deref()) {
                Ok(config) => self.reload(config),
                Err(problem) => error!("the configuration stays as it was: {problem}"),
            }
            let _nobody = notify(Notice::Ready);
        }
        false
    }

    fn reload(&mut self, config: Config) {
        self.relay.set_limits(config.limits);
        info!(
            "limits are as the configuration says now; listen, stun_port, tcp, tls, http and log are read at the start"
        );
    }
}
