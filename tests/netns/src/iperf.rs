//! iperf3 between two hosts of a lab.

use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::Host;

static PORT: AtomicU16 = AtomicU16::new(5300);

/// Runs iperf3 on one host against one on another, by that address of it, and something else meanwhile. Gives what the
/// client says.
pub fn iperf3(
    from: &Host,
    to: &Host,
    address: &str,
    arguments: &[&str],
    time: Duration,
    meanwhile: impl FnOnce(),
) -> Value {
    let port = PORT.fetch_add(1, Ordering::Relaxed).to_string();
    let label = format!("iperf3-{port}");
    let server = to.spawn(&label, "iperf3", &["-s", "-1", "--forceflush", "-p", &port], &[]);
    server.wait_for("listening", Duration::from_secs(5));
    let seconds = time.as_secs().to_string();
    let ask = ["-J", "--connect-timeout", "3000", "-c", address, "-p", &port, "-t", &seconds];
    let client = from.spawn(&label, "iperf3", &[&ask, arguments].concat(), &[]);
    meanwhile();
    client.wait(time + Duration::from_secs(12));
    let said = client.output();
    // Warnings come before.
    let json = said.find('{').map_or("", |start| &said[start..]);
    let value: Value = serde_json::from_str(json).unwrap_or_else(|e| panic!("iperf3: {e}: {said}"));
    assert!(value["error"].is_null(), "iperf3: {}", value["error"]);
    value
}

/// Does the kernel have this congestion control?
pub fn has_congestion_control(name: &str) -> bool {
    let path = "/proc/sys/net/ipv4/tcp_available_congestion_control";
    std::fs::read_to_string(path).unwrap_or_default().split_whitespace().any(|c| c == name)
}

/// What arrived of a TCP stream, Mbit/s.
pub fn received_mbit(said: &Value) -> f64 {
    said["end"]["sum_received"]["bits_per_second"].as_f64().unwrap_or(0.0) / 1e6
}
