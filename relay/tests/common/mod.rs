//! The shipped binary in a process of its own, and clients with real sockets: the real client's side of the protocol.
#![allow(dead_code, clippy::unwrap_used)]

use shadowmesh_crypto::aead::Suite;
use shadowmesh_crypto::secret::Secret;
use shadowmesh_crypto::sign;
use shadowmesh_host::clock::Clock;
use shadowmesh_identity::chain::verify_relay_leaf;
use shadowmesh_identity::{NodeId, RelayUrl};
use shadowmesh_proto::handshake::{Credential, ResponderLeaf};
use shadowmesh_proto::relay_leg::{RelayLeg, check_down};
use shadowmesh_proto::{LinkEvent, RelayLink, Rng, Time};
use shadowmesh_wire::control::Control;
use shadowmesh_wire::handshake::RelayGrant;
use shadowmesh_wire::relay::{RelayHeader, TO_RELAY};
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A state directory of its own, removed at the end.
pub struct Dir(pub PathBuf);

impl Dir {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("sm-relay-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Dir(dir)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_shadowmesh-relay"));
        c.args(arguments).env("SHADOWMESH_DIR", &self.0).stdin(Stdio::null());
        c
    }

    pub fn call(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Standard output of a command that must succeed.
    pub fn say(&self, arguments: &[&str]) -> String {
        let o = self.call(arguments);
        assert!(o.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&o.stderr));
        String::from_utf8(o.stdout).unwrap()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _left = std::fs::remove_dir_all(&self.0);
    }
}

/// A running relay; killed when it is dropped.
pub struct Process {
    pub child: Child,
    pub udp: SocketAddr,
    pub http: SocketAddr,
}

impl Process {
    pub fn start(dir: &Dir, listen: &str) -> Self {
        Self::start_as(dir, listen, &["--allow-root"])
    }

    pub fn start_as(dir: &Dir, listen: &str, who: &[&str]) -> Self {
        let listen = format!("udp://{listen}");
        let mut arguments = vec!["--json", "run", "--http", "127.0.0.1:0", "--listen", &listen];
        arguments.extend(who);
        let mut child = dir.command(&arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said: serde_json::Value = serde_json::from_str(&line).unwrap();
        let address = |v: &serde_json::Value| v.as_str().unwrap().parse().unwrap();
        Process { child, udp: address(&said["listen"][0]), http: address(&said["http"]) }
    }

    pub fn get(&self, path: &str) -> (u16, String) {
        use std::io::{Read, Write};
        let mut s = std::net::TcpStream::connect(self.http).unwrap();
        write!(s, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        s.read_to_string(&mut text).unwrap();
        (text[9..12].parse().unwrap(), text)
    }

    /// One number out of /metrics.
    pub fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.get("/metrics");
        let line = text.lines().find(|l| l.starts_with(&format!("shadowmesh_relay_{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).rsplit(' ').next().unwrap().parse().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

pub struct Client {
    socket: UdpSocket,
    pub link: RelayLink,
    pub leg: Option<RelayLeg>,
    pub down: Option<Secret<32>>,
    pub grant: Option<RelayGrant>,
    pub got: Vec<(u64, Vec<u8>)>,
    pub controls: Vec<Control>,
    pub ups: u32,
    pub resets: u32,
}

/// Clients of one relay, and the clock they live by.
pub struct Clients {
    pub clock: Clock,
    relay: NodeId,
    address: SocketAddr,
    rng: Rng,
    pub all: Vec<Client>,
}

impl Clients {
    pub fn new(url: &RelayUrl, address: SocketAddr) -> Self {
        let rng = Rng::from_seed(*Secret::<32>::random().expose());
        Clients { clock: Clock::new(), relay: url.relay, address, rng, all: vec![] }
    }

    pub fn now(&self) -> Time {
        Time(self.clock.now().as_nanos() as u64)
    }

    pub fn add(&mut self, credential: Credential) -> usize {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let suites = Suite::ALL.to_vec();
        let link = RelayLink::new(self.relay.0, Some(self.address), credential, suites, 7, self.now());
        let (leg, down, grant) = (None, None, None);
        let (got, controls) = (vec![], vec![]);
        self.all.push(Client { socket, link, leg, down, grant, got, controls, ups: 0, resets: 0 });
        self.all.len() - 1
    }

    pub fn send(&mut self, from: usize, to: u64, payload: &[u8]) {
        let c = &mut self.all[from];
        let packet = c.leg.as_mut().unwrap().wrap(to, payload);
        c.socket.send_to(&packet, self.address).unwrap();
    }

    /// Lets the clients live until `done`, at most so long.
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&[Client]) -> bool) {
        let end = self.now() + Duration::from_secs(20);
        while !done(&self.all) {
            assert!(self.now() < end, "{what}: not in time");
            let mut quiet = true;
            for i in 0..self.all.len() {
                let now = self.now();
                let mut buffer = [0; 2048];
                while let Ok((n, from)) = self.all[i].socket.recv_from(&mut buffer) {
                    assert_eq!(from, self.address);
                    self.take(i, &buffer[..n]);
                    quiet = false;
                }
                let c = &mut self.all[i];
                if c.link.deadline().is_some_and(|d| d <= now) {
                    c.link.handle_timeout(now, &mut self.rng);
                }
                self.events(i);
                let c = &mut self.all[i];
                while let Some((to, packet)) = c.link.poll_transmit() {
                    c.socket.send_to(&packet, to).unwrap();
                    quiet = false;
                }
            }
            if quiet {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    fn take(&mut self, i: usize, datagram: &[u8]) {
        let (now, c) = (self.now(), &mut self.all[i]);
        if datagram[0] == shadowmesh_wire::BY_RELAY {
            let (header, body) = RelayHeader::parse(datagram).unwrap();
            assert_eq!(header.slot, c.grant.unwrap().slot);
            assert!(check_down(c.down.as_ref().unwrap(), &header).is_ok());
            if header.handle == TO_RELAY {
                let _ = c.link.handle_session(now, body);
            } else {
                c.got.push((header.handle, body.to_vec()));
            }
        } else if c.link.takes(datagram) {
            let _ = c.link.handle_typed(now, datagram, &mut self.rng);
        }
        self.events(i);
    }

    fn events(&mut self, i: usize) {
        let (now, unix, id) = (self.now(), self.clock.unix(), self.relay);
        let c = &mut self.all[i];
        while let Some(e) = c.link.poll_event() {
            match e {
                LinkEvent::Verify(bundle) => {
                    let (key, leaf) = bundle.split_at(sign::PUBLIC_KEY_LEN);
                    let fact = verify_relay_leaf(&id, key, leaf, unix).unwrap().fact().clone();
                    let key = (*fact.leaf().unwrap().key).clone();
                    let leaf = ResponderLeaf { node: id.0, hash: fact.id(), key };
                    c.link.set_leaf(now, Some(leaf), &mut self.rng);
                }
                LinkEvent::Up { grant, address, up, down, .. } => {
                    c.ups += 1;
                    c.leg = Some(RelayLeg::new(address, grant.slot, 1, up));
                    c.down = Some(down);
                    c.grant = Some(grant);
                }
                LinkEvent::Down(by_reset) => c.resets += u32::from(by_reset),
                LinkEvent::Control(control) => c.controls.push(control),
                LinkEvent::Failed | LinkEvent::Heard | LinkEvent::Back => {}
            }
        }
    }
}
