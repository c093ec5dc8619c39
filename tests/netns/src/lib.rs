//! The harness of the tests that run the shipped programs in network namespaces, as root.
//!
//! A [`Lab`] makes namespaces ([`Host`]s, routers among them) and the wires between them, starts programs
//! inside, and takes everything away when it is dropped; what a killed run left is removed by the next.
//! Names begin with `sm<pid>-`, so that runs beside each other do not meet.
//!
//! ```text
//!   let mut lab = Lab::new("two hosts");
//!   let (a, r, b) = (lab.host("a"), lab.router("r"), lab.host("b"));
//!   lab.wire(&a, &["10.1.0.2/24"], &r, &["10.1.0.1/24"]);
//!   lab.lossy(&r, &["10.2.0.1/24"], &b, &["10.2.0.2/24"], Profile { loss: 0.01, ..Profile::default() });
//!   a.default_route("10.1.0.1");
//!   b.default_route("10.2.0.1");
//!   let daemon = a.spawn("daemon", &Lab::binary("shadowmesh"), &["daemon"], &[]);
//!   daemon.wait_for("ready", Duration::from_secs(5));
//! ```
//!
//! Everything panics with what was tried and what came of it: the harness is for tests only.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test harness: to panic is how it reports")]

mod evening;
mod flow;
mod host;
mod iperf;
mod measured;
mod meet;
mod members;
mod nat;
mod pair;
mod process;
mod profile;
mod stream;
mod upnp;
mod usage;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

pub use evening::{Evening, Machine, make_home, make_relay, spawn_relay, wait_for_relay};
pub use flow::{Arrival, Counts, Flow, Flown};
pub use host::{Host, Ping};
pub use iperf::{has_congestion_control, iperf3, received_mbit};
pub use measured::{Measured, median};
pub use meet::{Met, PathTo, meet, meet_again, watch};
pub use members::{Member, make_network};
pub use nat::{Direction, GATEWAY, Internet, NatKind, RELAY, VPS4, VPS6};
pub use pair::Pair;
pub use process::Process;
pub use profile::Profile;
use shadowmesh_host::clock::Clock;
pub use stream::{Streamed, stream};
pub use upnp::{Ways, mapped_ports, spawn_miniupnpd};
pub use usage::{cpu, metrics, rss, thread_cpu, udp_arrived};

static LABS: AtomicU32 = AtomicU32::new(0);

/// Namespaces, wires and programs of one test.
#[derive(Debug)]
pub struct Lab {
    prefix: String,
    directory: PathBuf,
    hosts: Vec<Host>,
    links: u32,
}

/// Two interfaces that are connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wire {
    /// The interface on the first host.
    pub a: String,
    /// The interface on the second host.
    pub b: String,
}

/// A wire through a program that delays, loses, repeats and reorders.
#[derive(Debug)]
pub struct LossyWire {
    /// The interface on the first host.
    pub a: String,
    /// The interface on the second host.
    pub b: String,
    process: Process,
}

impl LossyWire {
    /// Changes how the wire behaves, from the next frame on (the seed stays).
    pub fn set(&self, profile: Profile) {
        self.process.say(&profile.to_string());
    }
}

impl Lab {
    /// An empty lab. Panics without root.
    pub fn new(test: &str) -> Lab {
        assert!(nix::unistd::geteuid().is_root(), "network namespaces need root; run: sudo -E make test");
        assert!(
            command_exists("ip") && command_exists("ping"),
            "the namespace tests need `ip` and `ping`; run: sudo make deps"
        );
        remove_leftovers();
        let prefix = format!("sm{}-{}-", std::process::id(), LABS.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(format!("{prefix}lab"));
        std::fs::create_dir_all(&directory).expect("a directory for the output of programs");
        println!("lab {prefix} for {test}, output in {}", directory.display());
        Lab { prefix, directory, hosts: Vec::new(), links: 0 }
    }

    /// A namespace with loopback up that forwards nothing. `name` is short (`a`, `nat`).
    pub fn host(&mut self, name: &str) -> Host {
        let namespace = format!("{}{name}", self.prefix);
        must(Command::new("ip").args(["netns", "add", &namespace]));
        let host = Host::new(name, &namespace, &self.directory);
        host.ip("link set lo up");
        // Linux's usual one; what the kernel was built with may be another, and TCP over the same wire two times as fast.
        allow_cubic();
        host.sysctl("net/ipv4/tcp_congestion_control", "cubic");
        self.hosts.push(host.clone());
        host
    }

    /// A namespace that forwards IPv4 and IPv6.
    pub fn router(&mut self, name: &str) -> Host {
        let host = self.host(name);
        host.sysctl("net/ipv4/ip_forward", "1");
        host.sysctl("net/ipv6/conf/all/forwarding", "1");
        host
    }

    /// A veth pair. Addresses have prefixes (`10.0.0.1/24`, `fd00::1/64`); duplicate detection is off.
    pub fn wire(&mut self, a: &Host, a_addresses: &[&str], b: &Host, b_addresses: &[&str]) -> Wire {
        let wire = Wire { a: a.next_interface(), b: b.next_interface() };
        must(Command::new("ip").args(["link", "add", &wire.a, "netns", a.namespace()]).args([
            "type",
            "veth",
            "peer",
            "name",
            &wire.b,
            "netns",
            b.namespace(),
        ]));
        a.configure(&wire.a, a_addresses);
        b.configure(&wire.b, b_addresses);
        wire
    }

    /// A wire through `lossy-link`, which ends in a TAP on each side. For conditions, not for throughput:
    /// a frame a system call.
    pub fn lossy(
        &mut self,
        a: &Host,
        a_addresses: &[&str],
        b: &Host,
        b_addresses: &[&str],
        profile: Profile,
    ) -> LossyWire {
        let wire = Wire { a: a.next_interface(), b: b.next_interface() };
        self.links += 1;
        let label = format!("lossy-link-{}", self.links);
        let mut command = Command::new(Lab::binary("lossy-link"));
        command.args([a.namespace(), &wire.a, b.namespace(), &wire.b, &profile.to_string()]);
        let process = Process::start(&label, &self.directory, command);
        process.wait_for("ready", Duration::from_secs(10));
        a.configure(&wire.a, a_addresses);
        b.configure(&wire.b, b_addresses);
        LossyWire { a: wire.a, b: wire.b, process }
    }

    /// A bridge in a namespace of its own, with a wire to each host: one Ethernet. Returns the interfaces
    /// of the hosts, in order.
    pub fn lan(&mut self, name: &str, members: &[(&Host, &[&str])]) -> Vec<String> {
        let switch = self.host(name);
        switch.ip("link add br0 type bridge");
        switch.ip("link set br0 up");
        let mut interfaces = Vec::new();
        for (host, addresses) in members {
            let wire = self.wire(host, addresses, &switch, &[]);
            switch.ip(&format!("link set {} master br0", wire.b));
            interfaces.push(wire.a);
        }
        interfaces
    }

    /// Where programs write what they print, and tests may put files. Goes with the lab.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A shipped program: in `SHADOWMESH_BIN_DIR` if that is set, else where cargo built this test.
    pub fn binary(name: &str) -> PathBuf {
        let directory = match std::env::var_os("SHADOWMESH_BIN_DIR") {
            Some(directory) if name != "lossy-link" => PathBuf::from(directory),
            _ => {
                // target/<profile>/deps/<test> or target/<profile>/<program>
                let program = std::env::current_exe().expect("this program has a path");
                let directory = program.parent().expect("a program is in a directory");
                if directory.ends_with("deps") {
                    directory.parent().expect("deps is in the target directory").to_owned()
                } else {
                    directory.to_owned()
                }
            }
        };
        let path = directory.join(name);
        assert!(
            path.is_file(),
            "{} is not built; run: cargo build (or set SHADOWMESH_BIN_DIR)",
            path.display()
        );
        path
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            print_logs(&self.directory);
        }
        for host in &self.hosts {
            remove_namespace(host.namespace());
        }
        let _left = std::fs::remove_dir_all(&self.directory);
    }
}

/// Asks until there is an answer; panics with `what` when the time is over.
pub fn wait_until<T>(what: &str, timeout: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let clock = Clock::new();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(clock.now() < timeout, "waited {timeout:?} in vain for: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs a command; panics with all that it said if it fails.
pub(crate) fn must(command: &mut Command) -> String {
    let output = output(command);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?} did not start: {e}"))
}

/// Namespaces may be given only congestion controls that the machine allows everybody. This one it offers, and not every
/// kernel's default allows it.
fn allow_cubic() {
    let path = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";
    let allowed = std::fs::read_to_string(path).unwrap_or_default();
    if !allowed.split_whitespace().any(|c| c == "cubic") {
        let _then_setting_it_tells = std::fs::write(path, format!("{} cubic", allowed.trim()));
    }
}

fn command_exists(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|d| d.join(name).is_file())
}

/// Ends what runs in a namespace of a lab, then removes it.
fn remove_namespace(namespace: &str) {
    let pids = output(Command::new("ip").args(["netns", "pids", namespace]));
    for pid in String::from_utf8_lossy(&pids.stdout).lines().filter_map(|l| l.trim().parse().ok()) {
        let _ended_meanwhile =
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
    let _gone = output(Command::new("ip").args(["netns", "delete", namespace]));
    // What `ip netns exec` mounts over files of /etc.
    let _none = std::fs::remove_dir_all(Path::new("/etc/netns").join(namespace));
}

/// Removes namespaces and files of labs whose process is gone.
fn remove_leftovers() {
    let dead = |name: &str| {
        let pid = name.strip_prefix("sm").and_then(|r| r.split_once('-')?.0.parse::<u32>().ok());
        pid.is_some_and(|p| !Path::new(&format!("/proc/{p}")).exists())
    };
    let names = |directory: &Path| {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        entries.filter_map(|e| e.file_name().into_string().ok()).collect::<Vec<_>>()
    };
    for name in names(Path::new("/run/netns")) {
        if dead(&name) {
            remove_namespace(&name);
        }
    }
    let temporary = std::env::temp_dir();
    for name in names(&temporary) {
        if name.ends_with("-lab") && dead(&name) {
            let _left = std::fs::remove_dir_all(temporary.join(name));
        }
    }
}

fn print_logs(directory: &Path) {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut logs: Vec<_> =
        entries.map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "log")).collect();
    logs.sort();
    for log in logs {
        let text = String::from_utf8_lossy(&std::fs::read(&log).unwrap_or_default()).into_owned();
        let lines: Vec<_> = text.lines().collect();
        eprintln!("---- {} ----", log.file_name().unwrap_or_default().to_string_lossy());
        for line in &lines[lines.len().saturating_sub(60)..] {
            eprintln!("{line}");
        }
    }
}
