//! Members of a network find each other on their LANs by multicast DNS, so that they meet there also when no relay is
//! reached. [P-LAN]
//!
//! The library that speaks it keeps whatever anybody on the LAN says, without bound, so it runs in a child with a limit of
//! memory, and the daemon reads a line for each instance that is heard of. Only names that a member has these days are kept,
//! and only addresses within this machine's own subnets.

use crate::engine::Engine;
use crate::lan::{Announced, Heard};
use shadowmesh_host::clock::Clock;
use shadowmesh_identity::{DAY, Name, NetworkId, NodeId, lan};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info};

/// Between two words to the node: who makes noise makes no more of it than that.
const PACE: Duration = Duration::from_secs(1);
/// Lines that are read in that time. The rest waits in the pipe, and then is not printed.
const LINES: usize = 200;
/// A child that has ended is followed by another after so long.
const AGAIN: Duration = Duration::from_secs(30);
/// Names are made anew after so long in any case: members come, days change.
const NAMES: Duration = Duration::from_secs(60);
/// A child has said goodbye by then.
const GOODBYE: Duration = Duration::from_secs(1);

/// What this machine has on its LANs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Basis {
    /// The port at which the network is reached.
    pub port: u16,
    /// Addresses that are told, with the length of their network part.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Interfaces that belong to this machine's own networks.
    pub without: Vec<String>,
}

impl Basis {
    /// In one of this machine's subnets?
    fn holds(&self, ip: IpAddr) -> bool {
        self.addresses.iter().any(|(own, prefix)| *own != ip && same_subnet(*own, ip, *prefix))
    }
}

fn same_subnet(a: IpAddr, b: IpAddr, prefix: u8) -> bool {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros() >= u32::from(prefix),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros() >= u32::from(prefix),
        _ => false,
    }
}

/// A network's presence on the LAN, and the task that keeps it.
pub struct Lan {
    basis: watch::Sender<Basis>,
    task: JoinHandle<()>,
}

impl Lan {
    /// Starts it, for as long as the engine runs; it does nothing before it is told a basis.
    pub fn start(name: Name, network: NetworkId, node: NodeId, engine: &Arc<Engine>) -> Lan {
        let (basis, told) = watch::channel(Basis::default());
        let keeper = Keeper {
            name,
            network,
            node,
            engine: Arc::downgrade(engine),
            told,
            names: HashMap::new(),
            found: BTreeMap::new(),
            clock: Clock::new(),
        };
        Lan { basis, task: tokio::spawn(keeper.run()) }
    }

    /// Says what there is.
    pub fn follow(&self, basis: Basis) {
        self.basis.send_if_modified(|now| {
            let other = *now != basis;
            *now = basis;
            other
        });
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        // And its child with it.
        self.task.abort();
    }
}

struct Keeper {
    name: Name,
    network: NetworkId,
    node: NodeId,
    engine: Weak<Engine>,
    told: watch::Receiver<Basis>,
    /// Whose name it is, of those that members have these days.
    names: HashMap<String, NodeId>,
    /// Who is heard where: no more than there are members.
    found: BTreeMap<NodeId, Vec<SocketAddr>>,
    clock: Clock,
}

/// Why a child is not listened to any more.
#[derive(PartialEq)]
enum Over {
    /// What is to be announced has changed.
    Changed,
    /// It has ended by itself.
    Ended,
    /// The network has.
    Network,
}

impl Keeper {
    async fn run(mut self) {
        loop {
            let basis = self.told.borrow_and_update().clone();
            let over = if basis.addresses.is_empty() || basis.port == 0 {
                match self.told.changed().await {
                    Ok(()) => Over::Changed,
                    Err(_) => Over::Network,
                }
            } else {
                self.listen(&basis).await
            };
            match over {
                Over::Changed => {}
                Over::Ended => sleep(AGAIN).await,
                Over::Network => return,
            }
        }
    }

    /// Announces this node and hears of others.
    async fn listen(&mut self, basis: &Basis) -> Over {
        let day = self.clock.unix() / DAY;
        let name = lan::name(&self.network, &self.node, self.clock.unix());
        let (mut child, mut lines) = match spawn(basis, name) {
            Ok(spawned) => spawned,
            Err(e) => {
                debug!(network = %self.name, "members on the LAN are not looked for: {e}");
                return Over::Ended;
            }
        };
        debug!(network = %self.name, ?basis, "announced on the LAN");
        let over = loop {
            if self.clock.unix() / DAY != day {
                break Over::Changed;
            }
            let heard = match self.hear(&mut lines).await {
                Ok(heard) => heard,
                Err(over) => break over,
            };
            if self.recognise(basis, heard).await.is_none() {
                break Over::Network;
            }
        };
        if over == Over::Ended {
            info!(network = %self.name, "what looks for members on the LAN has ended; it is started again soon");
        }
        drop(child.stdin.take());
        let _gone_or_killed = timeout(GOODBYE, child.wait()).await;
        over
    }

    /// What is heard within [`PACE`] of the first line.
    async fn hear(&mut self, lines: &mut Lines<BufReader<ChildStdout>>) -> Result<Vec<Heard>, Over> {
        let mut heard = vec![];
        let mut until = Instant::now() + NAMES;
        while heard.len() < LINES {
            let line = tokio::select! {
                line = tokio::time::timeout_at(until, lines.next_line()) => line,
                told = self.told.changed() => {
                    return Err(if told.is_ok() { Over::Changed } else { Over::Network });
                }
            };
            match line {
                Err(_late) => return Ok(heard),
                Ok(Ok(Some(line))) => heard.extend(serde_json::from_str::<Heard>(&line)),
                Ok(_) => return Err(Over::Ended),
            }
            if heard.len() == 1 {
                until = Instant::now() + PACE;
            }
        }
        tokio::time::sleep_until(until).await;
        Ok(heard)
    }

    /// Keeps what is said of members, and tells the node if it is anything new.
    async fn recognise(&mut self, basis: &Basis, heard: Vec<Heard>) -> Option<()> {
        let engine = self.engine.upgrade()?;
        let unix = self.clock.unix();
        let known = heard.iter().all(|h| self.names.contains_key(&h.name));
        if heard.is_empty() || !known {
            let list = |i: &mut crate::engine::Inside<'_>| -> Vec<NodeId> {
                i.endpoint.node.roster().members().map(|m| m.id).collect()
            };
            let (own, members) = (self.node, engine.call(list).await.ok()?);
            let others = members.into_iter().filter(|m| *m != own);
            let named = |m: NodeId| lan::names(&self.network, &m, unix).map(|name| (name, m));
            self.names = others.flat_map(named).collect();
        }
        let before = self.found.clone();
        for h in heard {
            let Some(node) = self.names.get(&h.name) else { continue };
            let there: Vec<_> = h.addresses.into_iter().filter(|a| basis.holds(a.ip())).collect();
            if there.is_empty() {
                self.found.remove(node);
            } else {
                self.found.insert(*node, there);
            }
        }
        self.found.retain(|node, _| self.names.values().any(|n| n == node));
        if self.found != before {
            debug!(network = %self.name, found = ?self.found, "members on the LAN");
            let found: Vec<_> = self.found.iter().map(|(n, a)| (*n, a.clone())).collect();
            engine.call(move |i| i.endpoint.node.set_nearby(i.now, &found)).await.ok()?;
        }
        Some(())
    }
}

fn spawn(basis: &Basis, name: String) -> io::Result<(Child, Lines<BufReader<ChildStdout>>)> {
    let addresses = basis.addresses.iter().map(|(ip, _)| *ip).collect();
    let announced = Announced { name, port: basis.port, addresses, without: basis.without.clone() };
    let mut child = Command::new("/proc/self/exe")
        .args(["lan", &serde_json::to_string(&announced)?])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let out = child.stdout.take().ok_or_else(|| io::Error::other("no pipe"))?;
    Ok((child, BufReader::new(out).lines()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_on_the_link_is_taken() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let basis = Basis {
            port: 1,
            addresses: vec![(ip("192.168.1.2"), 24), (ip("2001:db8::1"), 64)],
            without: vec![],
        };
        for (address, holds) in [
            ("192.168.1.3", true),
            ("192.168.1.2", false),
            ("192.168.2.3", false),
            ("203.0.113.9", false),
            ("2001:db8::2", true),
            ("2001:db8:0:1::2", false),
        ] {
            assert_eq!(basis.holds(ip(address)), holds, "{address}");
        }
    }
}
