//! Two members that are told each other's address, and their daemons.

use std::path::Path;
use std::time::Duration;

use shadowmesh_identity::Bridge;
use shadowmesh_identity::fact::ANY_MAC;

use crate::{Host, Lab, Member, Process, make_network};

/// Both names, in the order in which the ends are given.
const NAMES: [&str; 2] = ["one", "two"];

/// Two members whose daemons run.
#[derive(Debug)]
pub struct Pair {
    /// They have the names `one` and `two`.
    pub members: Vec<Member>,
    /// In the same order.
    pub daemons: Vec<Process>,
}

impl Pair {
    /// The same, whose devices are ports of that bridge on their hosts.
    pub fn bridged(directory: &Path, ends: [(&Host, &str); 2], bridge: &str) -> Pair {
        let any = Bridge { macs: vec![ANY_MAC], ..Bridge::default() };
        Pair::begin(directory, ends, &any, &format!("bridge: {bridge}, "), "")
    }

    /// Makes their network under `directory` and starts their daemons, each on port 4000 of the address that is given with
    /// its host (IPv6 in brackets); `more` is added to what they are configured with. They may not have met yet.
    pub fn start(directory: &Path, ends: [(&Host, &str); 2], more: &str) -> Pair {
        Pair::begin(directory, ends, &Bridge::default(), "", more)
    }

    fn begin(directory: &Path, ends: [(&Host, &str); 2], may: &Bridge, home: &str, more: &str) -> Pair {
        let mut pair = Pair { members: make_network(directory, &NAMES, may), daemons: vec![] };
        for (me, other) in [(0, 1), (1, 0)] {
            let text = format!(
                "listen: [\"udp://0.0.0.0:4000\", \"udp://[::]:4000\"]\nnetworks: {{home: {{{home}peers: {{{}: {{endpoints: \
                 [\"udp://{}:4000\"]}}}}}}}}\n{more}",
                NAMES[other], ends[other].1
            );
            let directory = &pair.members[me].directory;
            std::fs::write(directory.join("config.yaml"), text).expect("a configuration");
            pair.daemons.push(pair.daemon(me, ends[me].0));
        }
        pair
    }

    /// Starts the daemon of one of them.
    pub fn daemon(&self, n: usize, host: &Host) -> Process {
        let directory = self.members[n].directory.display().to_string();
        let environment = [("SHADOWMESH_DIR", directory.as_str()), ("SHADOWMESH_ALLOW_ROOT", "1")];
        let daemon = host.spawn("daemon", Lab::binary("shadowmesh"), &["daemon"], &environment);
        daemon.wait_for("ready", Duration::from_secs(10));
        daemon
    }

    /// The second one's address in the network.
    pub fn to(&self) -> String {
        self.members[1].ipv4.to_string()
    }

    /// What a command of one of them prints as JSON.
    pub fn json(&self, n: usize, host: &Host, arguments: &[&str]) -> serde_json::Value {
        let mut command = host.command(Lab::binary("shadowmesh"));
        command.args(arguments).arg("--json").env("SHADOWMESH_DIR", &self.members[n].directory);
        let said = command.output().expect("the client");
        serde_json::from_slice(&said.stdout).unwrap_or_else(|e| panic!("{arguments:?}: {e}: {said:?}"))
    }
}
