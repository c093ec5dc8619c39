//! One machine of a lab: a network namespace.

use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use crate::{Process, must, output};

/// A machine. Clones are the same one; it lives as long as its lab.
#[derive(Debug, Clone)]
pub struct Host(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    namespace: String,
    directory: PathBuf,
    interfaces: AtomicU32,
}

/// What came of a ping.
#[derive(Debug, Clone, PartialEq)]
pub struct Ping {
    /// Requests sent.
    pub sent: u32,
    /// Round-trip times of the answers in milliseconds, in order of arrival; repeated answers included.
    pub rtt_ms: Vec<f64>,
}

impl Ping {
    /// The middle round-trip time; panics when nothing came back.
    pub fn median_ms(&self) -> f64 {
        let mut times = self.rtt_ms.clone();
        times.sort_by(f64::total_cmp);
        *times.get(times.len() / 2).unwrap_or_else(|| panic!("no answer to {} pings", self.sent))
    }
}

impl Host {
    pub(crate) fn new(name: &str, namespace: &str, directory: &Path) -> Host {
        Host(Arc::new(Inner {
            name: name.into(),
            namespace: namespace.into(),
            directory: directory.into(),
            interfaces: AtomicU32::new(0),
        }))
    }

    /// Its short name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its namespace, as `ip netns` lists it.
    pub fn namespace(&self) -> &str {
        &self.0.namespace
    }

    pub(crate) fn next_interface(&self) -> String {
        format!("eth{}", self.0.interfaces.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn configure(&self, interface: &str, addresses: &[&str]) {
        for address in addresses {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            self.ip(&format!("address add {address} dev {interface}{nodad}"));
        }
        self.ip(&format!("link set {interface} up"));
    }

    /// `ip` inside, arguments separated by spaces.
    pub fn ip(&self, arguments: &str) -> String {
        let mut command = Command::new("ip");
        must(command.args(["-n", self.namespace()]).args(arguments.split_whitespace()))
    }

    /// The MAC address of an interface.
    pub fn mac(&self, interface: &str) -> [u8; 6] {
        let said = self.ip(&format!("-j link show dev {interface}"));
        let value: serde_json::Value = serde_json::from_str(&said).unwrap_or_default();
        let text = value[0]["address"].as_str().unwrap_or_else(|| panic!("no address: {said}"));
        let bytes: Vec<u8> = text.split(':').filter_map(|b| u8::from_str_radix(b, 16).ok()).collect();
        bytes.try_into().unwrap_or_else(|_| panic!("{text} is no MAC address"))
    }

    /// A default route; the family follows from the address.
    pub fn default_route(&self, via: &str) {
        let family = if via.contains(':') { "-6 " } else { "" };
        self.ip(&format!("{family}route replace default via {via}"));
    }

    /// Writes a file under `/proc/sys` (`net/ipv4/ip_forward`) inside.
    pub fn sysctl(&self, key: &str, value: &str) {
        let path = format!("/proc/sys/{key}");
        self.enter(|| std::fs::write(&path, value)).unwrap_or_else(|e| panic!("{path} = {value}: {e}"));
    }

    /// A command to be run inside, for what the other functions do not offer.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.namespace()]).arg(program.as_ref());
        command
    }

    /// Runs a command inside to its end; panics with all that it said if it fails. Returns what it printed.
    pub fn run(&self, program: impl AsRef<Path>, arguments: &[&str]) -> String {
        must(self.command(program).args(arguments))
    }

    /// Runs a command inside to its end, however that is.
    pub fn try_run(&self, program: impl AsRef<Path>, arguments: &[&str]) -> Output {
        output(self.command(program).args(arguments))
    }

    /// Starts a program inside. `label` names its output (`<host>.<label>.log`) in messages.
    pub fn spawn(
        &self,
        label: &str,
        program: impl AsRef<Path>,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Process {
        let mut command = self.command(program);
        command.args(arguments).envs(environment.iter().copied());
        Process::start(&format!("{}.{label}", self.name()), &self.0.directory, command)
    }

    /// The processes that run inside.
    pub fn processes(&self) -> Vec<u32> {
        let said = output(Command::new("ip").args(["netns", "pids", self.namespace()]));
        String::from_utf8_lossy(&said.stdout).lines().filter_map(|l| l.trim().parse().ok()).collect()
    }

    /// Runs a function on a thread inside. Sockets that it opens stay inside wherever they are used.
    pub fn enter<R: Send>(&self, function: impl FnOnce() -> R + Send) -> R {
        let path = Path::new("/run/netns").join(self.namespace());
        let result = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let namespace = File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                setns(namespace, CloneFlags::CLONE_NEWNET).expect("entering a namespace");
                function()
            });
            thread.join()
        });
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Pings `count` times, 50 ms apart.
    pub fn ping(&self, to: &str, count: u32) -> Ping {
        self.ping_every(to, count, Duration::from_millis(50))
    }

    /// Pings `count` times, so far apart.
    pub fn ping_every(&self, to: &str, count: u32, interval: Duration) -> Ping {
        let (count_text, interval) = (count.to_string(), interval.as_secs_f64().to_string());
        let said = self.try_run("ping", &["-n", "-c", &count_text, "-i", &interval, "-W", "2", to]);
        let text = String::from_utf8_lossy(&said.stdout);
        let time = |line: &str| line.split_once("time=")?.1.split_once(' ')?.0.parse().ok();
        Ping { sent: count, rtt_ms: text.lines().filter_map(time).collect() }
    }

    /// Panics unless a ping is answered within `tries` attempts, half a second each.
    pub fn must_reach(&self, to: &str, tries: u32) {
        for _ in 0..tries {
            let said = self.try_run("ping", &["-n", "-c", "1", "-W", "0.5", to]);
            if said.status.success() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{} cannot reach {to}:\n{}{}", self.name(), self.ip("address"), self.ip("route"));
    }

    /// Limits what leaves by an interface: a token bucket with `latency_ms` of queue.
    pub fn shape(&self, interface: &str, mbit: u32, latency_ms: u32) {
        // A bucket of at least 10 ms and ten frames, or the timer's grain eats the rate.
        let burst = (mbit * 1_000_000 / 8 / 100).max(15_140);
        let mut tc = Command::new("tc");
        must(tc.args(["-n", self.namespace(), "qdisc", "replace", "dev", interface, "root", "tbf"]).args([
            "rate",
            &format!("{mbit}mbit"),
            "burst",
            &burst.to_string(),
            "latency",
            &format!("{latency_ms}ms"),
        ]));
    }

    /// Loads an nftables ruleset inside.
    pub fn nft(&self, ruleset: &str) {
        let file = self.0.directory.join(format!("{}.nft", self.name()));
        std::fs::write(&file, ruleset).expect("a file for the ruleset");
        must(self.command("nft").arg("-f").arg(&file));
    }

    /// Makes this router a NAT behind `outside`: it rewrites IPv4 sources. With `symmetric` every
    /// destination sees another port; without, the port is kept where it is free. Strangers are dropped.
    pub fn masquerade(&self, outside: &str, symmetric: bool) {
        let random = if symmetric { " fully-random" } else { "" };
        self.nft(&format!(
            "table ip nat {{\n chain post {{\n  type nat hook postrouting priority 100;\n  \
             oifname \"{outside}\" masquerade{random}\n }}\n}}\n\
             table ip filter {{\n chain forward {{\n  type filter hook forward priority 0;\n  \
             iifname \"{outside}\" ct state new drop\n }}\n}}\n"
        ));
    }

    /// The addresses of an interface, without link-local ones.
    pub fn addresses(&self, interface: &str) -> Vec<IpAddr> {
        let said = output(Command::new("ip").args([
            "-n",
            self.namespace(),
            "-j",
            "address",
            "show",
            "dev",
            interface,
        ]));
        let value: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap_or_default();
        let infos = value[0]["addr_info"].as_array().cloned().unwrap_or_default();
        let global = infos.iter().filter(|i| i["scope"] == "global");
        global.filter_map(|i| i["local"].as_str()?.parse().ok()).collect()
    }
}
