//! Who is measured: the plain underlay, the product in its variants, and the peers that are installed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use shadowmesh_netns_tests::{Lab, Process};

use crate::net::{Net, Underlay};
use crate::peers::PEERS;
use crate::product;

/// The base of ratios.
pub const VETH: &str = "veth";
/// The product between two machines that know each other's address, AES-256-GCM.
pub const DIRECT: &str = "shadowmesh";
/// The same with ChaCha20-Poly1305.
pub const CHACHA: &str = "shadowmesh-chacha";
/// The product between two machines that reach only a relay, AES-256-GCM.
pub const RELAY: &str = "shadowmesh-relay";

/// What it is to the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The underlay itself.
    Base,
    /// The product.
    Ours,
    /// Somebody else's program.
    Peer,
}

/// One that is measured.
pub struct Contender {
    /// Short.
    pub name: &'static str,
    /// What it is to the others.
    pub kind: Kind,
    /// What it says of itself.
    pub version: String,
    /// How it is configured.
    pub about: &'static str,
    programs: Vec<PathBuf>,
    start: fn(&Net, &[PathBuf]) -> Overlay,
}

/// A contender that runs.
pub struct Overlay {
    /// Where it takes packets for host b.
    pub to: String,
    /// Its programs: where (`a`, `b`, `relay`) and process id.
    pub daemons: Vec<(&'static str, u32)>,
    /// How long it goes on arranging itself after the first packet came through.
    pub settle: Duration,
    /// What was started here; the rest ends with the lab.
    pub processes: Vec<Process>,
    /// Files outside the lab that it leaves behind.
    pub left: Vec<PathBuf>,
}

impl Overlay {
    /// One without programs.
    pub fn to(address: &str) -> Overlay {
        Overlay {
            to: address.to_owned(),
            daemons: vec![],
            settle: Duration::ZERO,
            processes: vec![],
            left: vec![],
        }
    }

    /// Adds a program.
    pub fn add(&mut self, role: &'static str, process: Process) {
        self.daemons.push((role, process.id()));
        self.processes.push(process);
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        self.processes.clear();
        for file in &self.left {
            let _never_made = std::fs::remove_file(file);
        }
    }
}

impl Contender {
    /// Starts it, and returns when packets pass and it has settled.
    pub fn start(&self, net: &Net) -> Overlay {
        let overlay = (self.start)(net, &self.programs);
        net.a.host.must_reach(&overlay.to, 40);
        std::thread::sleep(overlay.settle);
        overlay
    }

    /// Whether it runs on this underlay when nobody says who shall: without offloads, only those that gain from them.
    pub fn belongs_on(&self, underlay: Underlay) -> bool {
        let gains = ["wireguard-go", "nebula"].iter().any(|p| self.name.starts_with(p));
        underlay == Underlay::Gso || self.kind != Kind::Peer || gains
    }
}

/// All that can run here, and the names of the peers that cannot, with what they lack.
pub fn all() -> (Vec<Contender>, Vec<(&'static str, String)>) {
    let ours = |name, about, start| {
        let programs = vec![Lab::binary("shadowmesh")];
        let version = version(&programs[0], "--version");
        Contender { name, kind: Kind::Ours, version, about, programs, start }
    };
    let mut contenders = vec![
        Contender {
            name: VETH,
            kind: Kind::Base,
            version: String::new(),
            about: "no VPN: the underlay, MTU 1500",
            programs: vec![],
            start: |net, _| Overlay::to(net.b.address),
        },
        ours(DIRECT, "layer 2, AES-256-GCM, MTU 1500, direct", |net, _| product::direct(net, "aes-256-gcm")),
        ours(CHACHA, "layer 2, ChaCha20-Poly1305, MTU 1500, direct", |net, _| {
            product::direct(net, "chacha20-poly1305")
        }),
        ours(RELAY, "layer 2, AES-256-GCM, MTU 1500, all through a relay on r", |net, _| {
            product::relayed(net, "aes-256-gcm")
        }),
    ];
    let mut absent = vec![];
    for peer in PEERS {
        let found: Result<Vec<PathBuf>, &str> = peer.programs.iter().map(|p| find(p).ok_or(*p)).collect();
        match found {
            Ok(programs) => contenders.push(Contender {
                name: peer.name,
                kind: Kind::Peer,
                version: version(&programs[0], peer.version),
                about: peer.about,
                programs,
                start: peer.start,
            }),
            Err(program) => absent.push((peer.name, format!("there is no `{program}`"))),
        }
    }
    (contenders, absent)
}

/// A program in the directories of `BENCH_PEERS`, then of `PATH`, then where Debian puts daemons.
fn find(program: &str) -> Option<PathBuf> {
    let variables = ["BENCH_PEERS", "PATH"].into_iter().flat_map(std::env::var_os);
    let directories: Vec<PathBuf> =
        variables.flat_map(|v| std::env::split_paths(&v).collect::<Vec<_>>()).collect();
    let all = directories.into_iter().chain(["/usr/sbin".into(), "/sbin".into()]);
    all.map(|d| d.join(program)).find(|p| p.is_file())
}

/// The version in what a program says first of itself.
fn version(program: &Path, argument: &str) -> String {
    let said = Command::new(program).arg(argument).output();
    let said = said.map(|o| [o.stdout, o.stderr].concat()).unwrap_or_default();
    let text = String::from_utf8_lossy(&said);
    let first = text.lines().next().unwrap_or_default();
    let mut words = first.split_whitespace().map(|w| w.trim_start_matches(['v', '.']));
    let number = words.find(|w| w.starts_with(|c: char| c.is_ascii_digit()));
    number.unwrap_or("unknown").to_owned()
}
