//! What the relay counts, as Prometheus reads it. No name, address or handle of anybody is in it.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use shadowmesh_relay_core::{Metrics, Relay};

/// The relay at one moment.
#[derive(Debug, Clone)]
pub struct Report {
    counters: Metrics,
    clients: (usize, usize),
    pending: usize,
    networks: usize,
    locators: usize,
    puzzle: u8,
    /// Part of its bounds that is used, 0 to 1.
    pub fullness: f64,
    /// The state on disk is the state in memory.
    pub saved: bool,
    /// Datagrams that the system did not take.
    pub not_sent: u64,
    /// Connections over TCP, and datagrams that their queues did not take.
    pub streams: (usize, u64),
    /// Seconds since the start.
    pub uptime: f64,
}

impl Report {
    /// Of a relay, and what the loop around it counts.
    pub fn new(relay: &Relay, saved: bool, not_sent: u64, streams: (usize, u64), uptime: f64) -> Self {
        Report {
            counters: relay.metrics().clone(),
            clients: relay.clients(),
            pending: relay.pending(),
            networks: relay.networks(),
            locators: relay.open_locators(),
            puzzle: relay.puzzle(),
            fullness: relay.fullness(),
            saved,
            not_sent,
            streams,
            uptime,
        }
    }

    /// Clients: with a pseudonym, anonymous.
    pub fn clients(&self) -> (usize, usize) {
        self.clients
    }

    /// Networks registered.
    pub fn networks(&self) -> usize {
        self.networks
    }

    /// In the OpenMetrics text format.
    pub fn render(self) -> Result<String, std::fmt::Error> {
        let mut registry = Registry::with_prefix("shadowmesh_relay");
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

impl Collector for Report {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let c = &self.counters;
        let counters = [
            ("datagrams_received", "Datagrams that came", c.datagrams_in),
            ("received_bytes", "Bytes of the datagrams that came", c.bytes_in),
            ("datagrams_forwarded", "Datagrams forwarded between clients", c.forwarded),
            ("forwarded_bytes", "Bytes of the datagrams forwarded", c.forwarded_bytes),
            ("datagrams_not_sent", "Datagrams that the system did not take", self.not_sent),
            ("tcp_datagrams_dropped", "Datagrams that a connection over TCP did not take", self.streams.1),
            ("resets", "Clients told that their slot is dead", c.resets),
            ("stun_answers", "STUN requests answered", c.stun),
            ("rebinds", "Clients that moved to another address", c.rebinds),
            ("registrations", "Networks registered", c.registrations),
            ("rotations", "Access secrets rotated", c.rotations),
            ("rendezvous", "Joiners brought together with an inviter", c.rendezvous),
        ];
        for (name, help, value) in counters {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(value).encode(metric)?;
        }
        let mut family =
            encoder.encode_descriptor("handshakes", "Handshakes answered", None, MetricType::Counter)?;
        let kinds = [
            ("pseudonym", c.handshakes_pseudonym),
            ("former", c.handshakes_former),
            ("anonymous", c.handshakes_anonymous),
        ];
        for (kind, value) in kinds {
            ConstCounter::new(value).encode(family.encode_family(&[("kind", kind)])?)?;
        }
        let mut family = encoder.encode_descriptor(
            "dropped",
            "Datagrams dropped, by reason",
            None,
            MetricType::Counter,
        )?;
        for (reason, value) in c.drops.nonzero() {
            ConstCounter::new(value).encode(family.encode_family(&[("reason", reason.label())])?)?;
        }
        let mut family =
            encoder.encode_descriptor("clients", "Clients connected", None, MetricType::Gauge)?;
        for (kind, value) in [("pseudonym", self.clients.0), ("anonymous", self.clients.1)] {
            ConstGauge::new(value as i64).encode(family.encode_family(&[("kind", kind)])?)?;
        }
        let gauges = [
            ("clients_pending", "Clients whose first packet has not come", self.pending as f64),
            ("tcp_connections", "Connections over TCP", self.streams.0 as f64),
            ("networks", "Networks registered", self.networks as f64),
            ("locators", "Inviters waiting for a joiner", self.locators as f64),
            ("puzzle_bits", "Puzzle that an opening costs now", f64::from(self.puzzle)),
            ("fullness", "Part of its bounds that is used, 0 to 1", self.fullness),
            ("state_saved", "1: what is on disk is what is in memory", f64::from(u8::from(self.saved))),
            ("uptime_seconds", "Since the start", self.uptime),
        ];
        for (name, help, value) in gauges {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(metric)?;
        }
        Ok(())
    }
}
