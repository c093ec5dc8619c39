//! The network of a first evening: a relay, and machines behind routers that masquerade.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::{Host, Lab, LossyWire, Process, Profile, wait_until};

/// A machine on which commands are given.
#[derive(Debug)]
pub struct Machine {
    /// Where they run.
    pub host: Host,
    /// Its `SHADOWMESH_DIR`.
    pub directory: PathBuf,
    /// More of the environment that commands, and daemons which they start, are given.
    pub environment: Vec<(&'static str, &'static str)>,
}

impl Machine {
    /// One whose files are in the lab's directory, with this configuration.
    pub fn configured(lab: &Lab, host: &Host, config: &str) -> Machine {
        let directory = lab.directory().join(host.name());
        std::fs::create_dir_all(&directory).expect("a directory in the lab's");
        std::fs::write(directory.join("config.yaml"), config).expect("a configuration");
        Machine { host: host.clone(), directory, environment: vec![] }
    }

    /// A command, to its end: exit code and all that it said.
    pub fn say(&self, arguments: &[&str]) -> (i32, String) {
        let mut command = self.host.command(Lab::binary("shadowmesh"));
        command.args(arguments).env("SHADOWMESH_DIR", &self.directory).env("SHADOWMESH_ALLOW_ROOT", "1");
        command.envs(self.environment.iter().copied()).stdin(Stdio::null());
        let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let shown: String = text.chars().take(1500).collect();
        println!("{}$ shadowmesh {}\n{shown}", self.host.name(), arguments.join(" "));
        (output.status.code().unwrap_or(-1), text)
    }

    /// A command that has to succeed.
    pub fn must(&self, arguments: &[&str]) -> String {
        let (code, text) = self.say(arguments);
        assert_eq!(code, 0, "{arguments:?}: {text}\n{}", self.log());
        text
    }

    /// What a command says with `--json`.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let (_, text) = self.say(&[arguments, &["--json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{arguments:?}: {e}: {text}"))
    }

    /// The log of the daemon that a command started.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("state/daemon.log")).unwrap_or_default()
    }

    fn of_network(&self, key: &str) -> String {
        let value = self.json(&["status"])["networks"][0][key].clone();
        value.as_str().unwrap_or_else(|| panic!("no {key} in the status")).to_owned()
    }

    /// Its overlay IPv4 address.
    pub fn address(&self) -> String {
        self.of_network("ipv4")
    }

    /// Its overlay IPv6 address.
    pub fn address6(&self) -> String {
        self.of_network("ipv6")
    }

    /// The MAC address of its interface.
    pub fn mac(&self, interface: &str) -> String {
        self.host.mac(interface).map(|b| format!("{b:02x}")).join(":")
    }

    /// Starts a command and does not wait for it.
    pub fn start(&self, label: &str, arguments: &[&str]) -> Process {
        let directory = self.directory.display().to_string();
        let mut environment = vec![("SHADOWMESH_DIR", directory.as_str()), ("SHADOWMESH_ALLOW_ROOT", "1")];
        environment.extend(&self.environment);
        self.host.spawn(label, Lab::binary("shadowmesh"), arguments, &environment)
    }

    /// The processes of the product that run here.
    pub fn processes(&self) -> Vec<u32> {
        let ours = |pid: &u32| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.trim_end() == "shadowmesh"
        };
        self.host.processes().into_iter().filter(ours).collect()
    }

    /// SIGKILL to every process of the product here; returns when they are gone.
    pub fn crash(&self) {
        // The first thread of one may be gone, and with it the namespace, while others hold its files yet.
        let gone = |pid: &u32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let dead = status.rsplit_once(')').is_none_or(|(_, rest)| rest.starts_with(" Z"));
            dead && std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count) <= 1
        };
        let mut killed: Vec<u32> = vec![];
        wait_until("the end of what was killed", Duration::from_secs(5), || {
            let left: Vec<u32> = self.processes().into_iter().filter(|p| !gone(p)).collect();
            for pid in &left {
                let _ended_meanwhile = kill(Pid::from_raw(*pid as i32), Signal::SIGKILL);
            }
            killed.extend(&left);
            (left.is_empty() && killed.iter().all(gone)).then_some(())
        });
    }
}

/// Machines that reach each other only through a relay.
pub struct Evening {
    /// In the order of their names.
    pub machines: Vec<Machine>,
    /// The router of each, in the same order.
    pub routers: Vec<Host>,
    /// Where the relay runs.
    pub vps: Host,
    /// The state directory of the relay.
    pub state: String,
    /// The relay.
    pub relay: Process,
    /// URLs that it gave, each good once.
    pub urls: Vec<String>,
    /// More arguments for the relay.
    pub relay_arguments: Vec<String>,
    /// The first machine's line to the internet, where it was asked to be slow.
    pub line: Option<LossyWire>,
    /// Goes last.
    pub lab: Lab,
}

impl Evening {
    /// Machines behind routers that masquerade, so that only the relay can be reached; and the relay.
    pub fn new(test: &str, names: &[&str]) -> Evening {
        Evening::build(test, names, &[], None)
    }

    /// The same, and the first machine's line to the internet behaves by `profile`, in each direction.
    pub fn with_line(test: &str, names: &[&str], profile: Profile) -> Evening {
        Evening::build(test, names, &[], Some(profile))
    }

    /// The same, with more arguments for `shadowmesh-relay run`.
    pub fn with_relay(test: &str, names: &[&str], relay_arguments: &[&str]) -> Evening {
        Evening::build(test, names, relay_arguments, None)
    }

    fn build(test: &str, names: &[&str], relay_arguments: &[&str], slow: Option<Profile>) -> Evening {
        let mut lab = Lab::new(test);
        let (internet, vps) = (lab.router("net"), lab.host("vps"));
        lab.wire(&vps, &["203.0.113.2/24"], &internet, &["203.0.113.1/24"]);
        vps.default_route("203.0.113.1");
        let (mut machines, mut routers, mut line) = (vec![], vec![], None);
        for (i, name) in names.iter().enumerate() {
            let (host, nat) = (lab.host(name), lab.router(&format!("nat{i}")));
            lab.wire(&host, &["192.168.1.2/24"], &nat, &["192.168.1.1/24"]);
            let (here, there) = (format!("198.51.{i}.2/24"), format!("198.51.{i}.1/24"));
            let outside = match slow.filter(|_| i == 0) {
                Some(profile) => {
                    let wire = lab.lossy(&nat, &[&here], &internet, &[&there], profile);
                    line.insert(wire).a.clone()
                }
                None => lab.wire(&nat, &[&here], &internet, &[&there]).a,
            };
            host.default_route("192.168.1.1");
            nat.default_route(&format!("198.51.{i}.1"));
            nat.masquerade(&outside, true);
            machines.push(Machine { host, directory: lab.directory().join(name), environment: vec![] });
            routers.push(nat);
        }
        let state = lab.directory().join("relay").display().to_string();
        let urls = make_relay(&vps, &state, "203.0.113.2");
        let relay_arguments: Vec<String> = relay_arguments.iter().map(|a| (*a).to_owned()).collect();
        let relay = spawn_relay(&vps, &state, &relay_arguments);
        wait_for_relay(&vps);
        Evening { machines, routers, vps, state, relay, urls, relay_arguments, line, lab }
    }

    /// The relay, started again; does not wait for it.
    pub fn spawn_relay(&self) -> Process {
        spawn_relay(&self.vps, &self.state, &self.relay_arguments)
    }

    /// The relay, started again, with its socket.
    pub fn start_relay(&self) -> Process {
        let relay = self.spawn_relay();
        wait_for_relay(&self.vps);
        relay
    }

    /// Its machines make a network: [`make_home`].
    pub fn network(&self, network: &str) {
        make_home(&self.machines, &self.urls[0], network);
    }
}

/// The first machine makes a network at a relay, the others join it; all reach the first. Machines are called in it as
/// they are in the lab.
pub fn make_home(machines: &[Machine], url: &str, network: &str) {
    let admin = &machines[0];
    let name = admin.host.name();
    admin.must(&["network", "create", network, "--relay", url, "--device", name]);
    wait_until("the relay link", Duration::from_secs(10), || {
        (admin.json(&["status"])["networks"][0]["relays"][0]["up"] == true).then_some(())
    });
    for machine in &machines[1..] {
        let name = machine.host.name();
        let url = admin.must(&["invite", name]).trim().to_owned();
        machine.must(&["join", &url, "--name", name]);
        machine.host.must_reach(&admin.address(), 10);
    }
}

/// Makes a relay's state; gives two URLs, each good once.
pub fn make_relay(vps: &Host, state: &str, public: &str) -> Vec<String> {
    let arguments = ["init", "--public", public, "--tokens", "2", "--state", state];
    let said = vps.run(Lab::binary("shadowmesh-relay"), &arguments);
    said.split_whitespace().filter(|l| l.starts_with("smr://")).map(str::to_owned).collect()
}

/// Starts a relay whose state was made, with more arguments for `run`; does not wait for it.
pub fn spawn_relay(vps: &Host, state: &str, more: &[String]) -> Process {
    let mut arguments = vec!["run", "--allow-root", "--state", state];
    arguments.extend(more.iter().map(String::as_str));
    vps.spawn("relay", Lab::binary("shadowmesh-relay"), &arguments, &[])
}

/// Returns when the relay has its socket.
pub fn wait_for_relay(vps: &Host) {
    wait_until("the relay's socket", Duration::from_secs(10), || {
        vps.run("ss", &["-lun"]).contains(":443").then_some(())
    });
}
