//! Who reads the device raw sees what a network carries: whole checksums, and frames of its size, though TCP goes by
//! superframes. (DHCP clients, which read raw too, are in `lan.rs`.)
#![allow(clippy::unwrap_used, reason = "a test; clippy exempts only functions marked as such")]

use std::time::Duration;

use shadowmesh_netns_tests::{Lab, Pair, iperf3, received_mbit};

const SECONDS: fn(u64) -> Duration = Duration::from_secs;

#[test]
fn tcpdump_sees_no_bad_checksum_and_no_superframe() {
    let mut lab = Lab::new("raw readers");
    let (a, b) = (lab.host("a"), lab.host("b"));
    lab.wire(&a, &["10.1.0.1/24"], &b, &["10.1.0.2/24"]);
    let pair = Pair::start(lab.directory(), [(&a, "10.1.0.1"), (&b, "10.1.0.2")], "");
    let (from, to) = (pair.members[0].ipv4.to_string(), pair.to());
    a.must_reach(&to, 10);
    // Superframes first, so that the test would fail if it read those.
    let before = received_mbit(&iperf3(&a, &b, &to, &[], SECONDS(1), || ()));

    let filter = format!("tcp and src host {from}");
    let reader =
        b.spawn("tcpdump", "tcpdump", &["-vv", "-n", "-l", "-i", "sm-home", "-c", "2000", &filter], &[]);
    reader.wait_for("listening on", SECONDS(5));
    // The device is looked at ten times a second, as long as something arrives.
    a.ping(&to, 10);
    let server = b.spawn("iperf3", "iperf3", &["-s", "-1", "--forceflush"], &[]);
    server.wait_for("listening", SECONDS(5));
    let during =
        received_mbit(&serde_json::from_str(&a.run("iperf3", &["-c", &to, "-n", "200M", "-J"])).unwrap());
    reader.wait(SECONDS(10));
    let seen = reader.output();
    let right = seen.matches("(correct)").count();
    let wrong: Vec<&str> = seen.lines().filter(|l| l.contains("incorrect")).take(3).collect();
    let largest = seen.lines().filter_map(|l| l.rsplit_once("length ")?.1.trim_end_matches(')').parse().ok());
    let largest: usize = largest.max().unwrap_or(0);
    println!(
        "{before:.0} Mbit/s, read along {during:.0}; {right} checksums, the largest packet {largest} bytes"
    );
    assert!(right >= 2000 && wrong.is_empty(), "{right} right, wrong: {wrong:?}");
    assert!(largest <= 1500, "{largest}");
}
