//! What is measured: every figure that the report shows, in its order.

use std::collections::BTreeMap;

/// A kind of measurement, as `--tests` takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Test {
    /// Echoes on an idle overlay.
    Ping,
    /// One TCP stream from a to b.
    Tcp1,
    /// One TCP stream from b to a.
    Tcp1r,
    /// Four TCP streams from a to b.
    Tcp4,
    /// One from a to b that BBR controls, where the kernel has it.
    Tcp1bbr,
    /// Echoes beside a TCP stream.
    Loadping,
    /// UDP with 64 bytes of payload, as fast as it goes.
    Udp64,
    /// The same, 50,000 a second.
    Udp50k,
    /// UDP in IP packets of 1400 bytes, the most that loses less than a hundredth.
    Udp1400,
}

/// A table of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// How much passes.
    Rate,
    /// How long it takes.
    Delay,
    /// What it takes.
    Cost,
}

/// One number of a measurement.
pub struct Figure {
    /// In the raw report.
    pub key: &'static str,
    /// In tables.
    pub title: &'static str,
    /// Decimals shown.
    pub decimals: usize,
    /// Whether more is better.
    pub more: bool,
    /// Where it is shown.
    pub table: Table,
}

/// What one measurement found, by key. Also holds what is in no table.
pub type Found = BTreeMap<String, f64>;

const fn rate(key: &'static str, title: &'static str) -> Figure {
    Figure { key, title, decimals: 0, more: true, table: Table::Rate }
}

const fn delay(key: &'static str, title: &'static str, decimals: usize) -> Figure {
    Figure { key, title, decimals, more: false, table: Table::Delay }
}

const fn cost(key: &'static str, title: &'static str, decimals: usize) -> Figure {
    Figure { key, title, decimals, more: false, table: Table::Cost }
}

/// All that is shown.
pub const FIGURES: &[Figure] = &[
    rate("tcp1", "TCP one stream a>b, Mbit/s"),
    rate("tcp1r", "TCP one stream b>a, Mbit/s"),
    rate("tcp4", "TCP four streams a>b, Mbit/s"),
    rate("tcp1bbr", "TCP one stream a>b with BBR, Mbit/s"),
    rate("udp64", "UDP 64 B flood, delivered/s"),
    Figure { decimals: 1, ..rate("udp50k_delivered", "UDP 64 B at 50,000/s, % delivered") },
    rate("udp1400", "UDP 1400 B with < 1 % loss, delivered/s"),
    delay("ping_min", "idle ping least, ms", 3),
    delay("ping_median", "idle ping median, ms", 3),
    delay("ping_p99", "idle ping p99, ms", 3),
    delay("loadping_median", "loaded ping median, ms", 2),
    delay("loadping_p99", "loaded ping p99, ms", 2),
    delay("loadping_loss", "loaded ping lost, %", 1),
    cost("tcp1_cpu", "CPU s/GB, TCP one stream a>b", 2),
    cost("tcp1r_cpu", "CPU s/GB, TCP one stream b>a", 2),
    cost("tcp4_cpu", "CPU s/GB, TCP four streams a>b", 2),
    cost("udp50k_cpu", "CPU at 50,000/s, % of a core", 0),
    cost("udp50k_us", "CPU at 50,000/s, µs a delivered packet", 1),
    cost("rss_idle", "memory idle, MiB", 1),
    cost("rss_load", "memory loaded, MiB", 1),
];

/// The figure with a key.
pub fn figure(key: &str) -> Option<&'static Figure> {
    FIGURES.iter().find(|f| f.key == key)
}
