//! `make bench`: hosts of two LANs, each behind a machine that bridges, beside the two machines themselves. The hosts know
//! nothing of the overlay and have the MTU of any Ethernet, 1500.
//!
//! ```text
//!   near (192.168.7.1) --- br0 a (10.1.0.2) --- (10.1.0.3) b br0 --- (192.168.7.2) far
//! ```

use std::time::Duration;

use shadowmesh_netns_tests::{Host, Lab, Measured, Pair, Wire, iperf3, median, received_mbit};

/// Of each stream.
const TIME: Duration = Duration::from_secs(3);

fn main() {
    let rounds = std::env::var("BENCH_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(9);
    let mut measured = Measured::new("bench-bridge");
    let mut found: [Vec<f64>; 3] = Default::default();
    for round in 1..=rounds {
        let [over, back] = bridged();
        let now = [direct(), over, back];
        println!("round {round}: direct, LAN to LAN and back: {now:.0?} Mbit/s");
        for (all, one) in found.iter_mut().zip(now) {
            all.push(one);
        }
    }
    let [direct, over, back] = found.map(median);
    for (what, value) in [("LAN to LAN", over), ("and back", back)] {
        let what = format!("{what} over direct ({direct:.0} Mbit/s), one TCP stream, medians of {rounds}");
        measured.line("8-bridge", &what, value / direct, "x", ">= 0.5", value >= 0.5 * direct);
    }
}

fn lab() -> (Lab, Host, Host, Wire) {
    let mut lab = Lab::new("bridge");
    let (a, b) = (lab.host("a"), lab.host("b"));
    let wire = lab.wire(&a, &["10.1.0.2/24"], &b, &["10.1.0.3/24"]);
    (lab, a, b, wire)
}

fn direct() -> f64 {
    let (lab, a, b, _) = lab();
    let pair = Pair::start(lab.directory(), [(&a, "10.1.0.2"), (&b, "10.1.0.3")], "");
    a.must_reach(&pair.to(), 20);
    received_mbit(&iperf3(&a, &b, &pair.to(), &[], TIME, || ()))
}

fn bridged() -> [f64; 2] {
    let (mut lab, a, b, _) = lab();
    let (near, far) = (lab.host("near"), lab.host("far"));
    for (host, machine, address) in [(&near, &a, "192.168.7.1/24"), (&far, &b, "192.168.7.2/24")] {
        machine.ip("link add br0 type bridge");
        machine.ip("link set br0 up");
        let wire = lab.wire(machine, &[], host, &[address]);
        machine.ip(&format!("link set {} master br0", wire.a));
    }
    let _pair = Pair::bridged(lab.directory(), [(&a, "10.1.0.2"), (&b, "10.1.0.3")], "br0");
    near.must_reach("192.168.7.2", 20);
    [&[][..], &["-R"]].map(|way| received_mbit(&iperf3(&near, &far, "192.168.7.2", way, TIME, || ())))
}
