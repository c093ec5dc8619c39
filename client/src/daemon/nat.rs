//! A network's watch over the NAT before this machine: a task of its own finds out by `netcheck.rs` how it maps, when a
//! relay has come up and when the network has changed, and tells the node.

use super::netcheck::{Extent, look, servers, told};
use crate::engine::Engine;
use shadowmesh_identity::{HostPort, Name};
use shadowmesh_wire::candidate::Mapping;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tracing::{debug, info};

/// Between looks for a relay that is up, while none is.
const WAITING: Duration = Duration::from_millis(500);
/// And while one is. The machine's node is asked for no more than its list.
const WATCHING: Duration = Duration::from_secs(5);
/// After a question without an answer, twice that, and so on to the longest: a relay may answer no STUN.
const RETRY: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(600);
/// A router may be another without a word.
const AGAIN: Duration = Duration::from_secs(1800);

/// The task.
pub struct NatWatch {
    changed: Arc<Notify>,
    task: JoinHandle<()>,
}

impl NatWatch {
    /// Starts it, for as long as the engine runs. `stun` are servers besides the relays.
    pub fn start(network: Name, engine: &Arc<Engine>, stun: Vec<HostPort>) -> NatWatch {
        let changed: Arc<Notify> = Arc::default();
        let watch = Watch { network, engine: Arc::downgrade(engine), stun, changed: changed.clone() };
        NatWatch { changed, task: tokio::spawn(watch.run()) }
    }

    /// Addresses or routes have changed, or the machine has slept.
    pub fn network_changed(&self) {
        self.changed.notify_one();
    }
}

impl Drop for NatWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Watch {
    network: Name,
    engine: Weak<Engine>,
    stun: Vec<HostPort>,
    changed: Arc<Notify>,
}

impl Watch {
    async fn run(self) {
        let mut said = Mapping::Unknown;
        // Relays that were up when all was asked; when to ask again in any case.
        let mut asked: BTreeSet<SocketAddr> = BTreeSet::new();
        let (mut due, mut retry, mut changed) = (Instant::now(), RETRY, false);
        loop {
            // Not held while nothing is asked of it: its last holder closes the device.
            let Some(engine) = self.engine.upgrade() else { return };
            let Ok(relays) = engine.call(|inside| inside.endpoint.node.relay_status()).await else { return };
            drop(engine);
            let up: BTreeSet<_> = relays.iter().filter(|r| r.up).filter_map(|r| r.address).collect();
            let anew = changed || !up.is_subset(&asked);
            if anew {
                retry = RETRY;
            }
            asked = up.clone();
            let possible = !up.is_empty() || changed || !self.stun.is_empty();
            if possible && (anew || Instant::now() >= due) {
                let findings = look(&servers(&relays, &self.stun, Extent::Mapping), Extent::Mapping).await;
                let mapping = told(findings.mapping());
                debug!(network = %self.network, ?mapping, changed, "a look at the NAT");
                due = Instant::now() + if mapping == Mapping::Unknown { retry } else { AGAIN };
                retry = (retry * 2).min(LONGEST);
                // An answer may have been lost: what was known stays, unless all may be other.
                if mapping != said && (mapping != Mapping::Unknown || changed) {
                    let Some(engine) = self.engine.upgrade() else { return };
                    let tell = engine.call(move |i| i.endpoint.node.set_mapping(i.now, mapping));
                    if tell.await.is_err() {
                        return;
                    }
                    said = mapping;
                    info!(network = %self.network, ?mapping, seen = ?findings.four.mapped(), "NAT looked at");
                }
                changed = false;
            }
            let quiet = !up.is_empty() && Instant::now() < due;
            let pause = if quiet { WATCHING.min(due - Instant::now()) } else { WAITING };
            changed |= timeout(pause, self.changed.notified()).await.is_ok();
        }
    }
}
