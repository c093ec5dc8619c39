//! Path MTU discovery with the shipped programs: underlays of several sizes, and some that shrink under a TCP stream.
#![allow(clippy::unwrap_used, reason = "a test; clippy exempts only functions marked as such")]

use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use shadowmesh_netns_tests::{Evening, Host, Lab, Measured, Pair, iperf3, received_mbit, wait_until};

const SECONDS: fn(u64) -> Duration = Duration::from_secs;

/// What is between the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    Wire,
    Wire6,
    Routers,
}

/// Two members and the wires between them.
struct Path {
    a: Host,
    b: Host,
    pair: Pair,
    /// Ends of the wire that shrinks.
    wire: [(Host, String); 2],
    _lab: Lab,
}

impl Path {
    /// With routers, the wire is between them, so that nobody is told what it takes; else it is the only one:
    ///
    /// ```text
    ///   a (10.1.0.2) --- r --- s --- (10.2.0.2) b        a (10.1.0.2) --- (10.1.0.3) b
    ///                                                      (fd01::2)       (fd01::3)
    /// ```
    fn new(test: &str, over: Over, mtu: u32) -> Path {
        let mut lab = Lab::new(test);
        let (a, b) = (lab.host("a"), lab.host("b"));
        let (wire, addresses) = if over == Over::Routers {
            let (r, s) = (lab.router("r"), lab.router("s"));
            let near = lab.wire(&a, &["10.1.0.2/24"], &r, &["10.1.0.1/24"]);
            let middle = lab.wire(&r, &["10.3.0.1/24"], &s, &["10.3.0.2/24"]);
            let far = lab.wire(&s, &["10.2.0.1/24"], &b, &["10.2.0.2/24"]);
            a.default_route("10.1.0.1");
            b.default_route("10.2.0.1");
            r.default_route("10.3.0.2");
            s.default_route("10.3.0.1");
            // What is near is no bottleneck.
            for (host, interface) in [(&a, &near.a), (&r, &near.b), (&s, &far.a), (&b, &far.b)] {
                host.ip(&format!("link set {interface} mtu 9000"));
            }
            ([(r, middle.a), (s, middle.b)], ["10.1.0.2", "10.2.0.2"])
        } else {
            let ends = [["10.1.0.2/24", "fd01::2/64"], ["10.1.0.3/24", "fd01::3/64"]];
            let wire = lab.wire(&a, &ends[0], &b, &ends[1]);
            let addresses =
                if over == Over::Wire6 { ["[fd01::2]", "[fd01::3]"] } else { ["10.1.0.2", "10.1.0.3"] };
            ([(a.clone(), wire.a), (b.clone(), wire.b)], addresses)
        };
        set_mtu(&wire, mtu);
        let pair = Pair::start(lab.directory(), [(&a, addresses[0]), (&b, addresses[1])], "");
        a.must_reach(&pair.to(), 10);
        Path { a, b, pair, wire, _lab: lab }
    }

    /// What `status` says of the path from a member to the other.
    fn figure(&self, member: usize) -> u64 {
        let status = self.pair.json(member, [&self.a, &self.b][member], &["status"]);
        status["networks"][0]["peers"][0]["mtu"].as_u64().unwrap()
    }

    fn wait_for_figure(&self, member: usize, mtu: u32) {
        let what = format!("member {member} to find {mtu}");
        wait_until(&what, SECONDS(6), || (self.figure(member) == u64::from(mtu)).then_some(()));
    }

    /// A TCP stream from `a` to `b`, under which the wire shrinks after two seconds: the longest time without a byte.
    fn stall(&self, mtu: u32) -> Duration {
        let address = self.pair.members[0].ipv4.to_string();
        // In reverse: what is told is told by who receives.
        let arguments = ["-R", "-b", "80M", "-i", "0.1"];
        let result = iperf3(&self.b, &self.a, &address, &arguments, SECONDS(6), || {
            std::thread::sleep(SECONDS(2));
            set_mtu(&self.wire, mtu);
        });
        let intervals = result["intervals"].as_array().unwrap();
        let bytes = |i: &serde_json::Value| i["sum"]["bytes"].as_f64().unwrap();
        let silent = intervals.split(|i| bytes(i) > 0.0).map(<[_]>::len).max().unwrap();
        let mbit = received_mbit(&result);
        assert!(intervals.len() > 50 && mbit > 20.0, "{} intervals, {mbit} Mbit/s", intervals.len());
        let stall = Duration::from_secs_f64(silent as f64 * 0.1);
        println!("to {mtu}: nothing for {stall:?}; {mbit:.0} Mbit/s of 80");
        stall
    }

    /// What a TCP connection between the two puts into one segment, beside timestamps. [P-MSS]
    fn segment(&self) -> u32 {
        let (a, b, address) = (&self.a, &self.b, self.pair.members[0].ipv4);
        let listener = a.enter(|| TcpListener::bind((address, 0)).unwrap());
        let stream = b.enter(|| TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        let (other, _) = listener.accept().unwrap();
        let [one, two] = [&stream, &other].map(|s| getsockopt(s, sockopt::TcpMaxSeg).unwrap());
        assert_eq!(one, two, "both ways");
        one
    }

    /// The stall is a second at most, and the figure is right.
    fn survives(&self, measured: &mut Measured, what: &str, mtu: u32) {
        let stall = self.stall(mtu).as_secs_f64();
        let what = format!("{what}, to {mtu}, under a TCP stream: without a byte for");
        measured.line("9-stall", &what, stall, "s", "<= 1", stall <= 1.0);
        assert!(stall <= 1.0);
        self.wait_for_figure(0, mtu);
    }
}

fn set_mtu(wire: &[(Host, String)], mtu: u32) {
    for (host, interface) in wire {
        host.ip(&format!("link set {interface} mtu {mtu}"));
    }
}

#[test]
fn every_underlay_is_found() {
    for over in [Over::Wire, Over::Wire6, Over::Routers] {
        for mtu in [1280, 1400, 1500, 9000] {
            let path = Path::new(&format!("{over:?} of {mtu}"), over, mtu);
            path.wait_for_figure(0, mtu);
            path.wait_for_figure(1, mtu);
            let address = path.pair.to();
            for size in ["56", "1200", "1472", "8000"] {
                let said =
                    path.a.run("ping", &["-n", "-c", "3", "-i", "0.05", "-W", "2", "-s", size, &address]);
                assert!(said.contains(" 0% packet loss"), "{said}");
            }
            // A segment by itself goes in one datagram, as far as the devices let it.
            let headers = if over == Over::Wire6 { 48 } else { 28 };
            let (around, tcp) = (35 + 14, 20 + 32);
            assert_eq!(path.segment(), (mtu - headers - around).min(1500) - tcp, "{over:?} of {mtu}");
        }
    }
}

#[test]
fn a_stream_survives_a_router_whose_link_shrinks() {
    let mut measured = Measured::new("path-mtu");
    for (before, after) in [(1500, 1400), (9000, 1280)] {
        let path = Path::new(&format!("from {before} to {after}"), Over::Routers, before);
        path.wait_for_figure(0, before);
        path.survives(&mut measured, &format!("a link between two routers shrinks from {before}"), after);
    }
}

#[test]
fn a_stream_survives_an_interface_that_shrinks() {
    let path = Path::new("own interface", Over::Wire, 1500);
    path.wait_for_figure(0, 1500);
    path.survives(&mut Measured::new("path-mtu-own"), "the own interface shrinks from 1500", 1400);
}

#[test]
fn by_relay_both_legs_count() {
    let e = Evening::new("path MTU by relay", &["laptop", "pi"]);
    e.network("home");
    let laptop = &e.machines[0];
    laptop.host.must_reach(&e.machines[1].address(), 10);
    wait_until("1500 by relay", SECONDS(6), || {
        let peer = laptop.json(&["status"])["networks"][0]["peers"][0].clone();
        (peer["path"] == "relay" && peer["mtu"] == 1500).then_some(())
    });
}
