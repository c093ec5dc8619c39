//! The underlay of one measurement: fresh namespaces, MTU 1500.
//!
//! ```text
//!   a (10.1.0.2) --- (10.1.0.1) r (10.2.0.1) --- (10.2.0.2) b
//! ```

use shadowmesh_netns_tests::{Host, Lab};

/// What carries the packets of a contender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Underlay {
    /// veth as it is: a daemon that hands over many packets at once has them cross at once.
    Gso,
    /// No offloads: each packet on it is one of at most 1500 bytes, as on a plain network card.
    Wire,
}

impl Underlay {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Underlay::Gso => "gso",
            Underlay::Wire => "wire",
        }
    }
}

/// One of the two hosts, as a contender sees it.
pub struct End {
    /// Where it is.
    pub host: Host,
    /// Its address on the underlay.
    pub address: &'static str,
    /// The other host's.
    pub other: &'static str,
    /// The router's on this side.
    pub router: &'static str,
}

/// Two hosts and a router.
pub struct Net {
    /// Measures.
    pub a: End,
    /// Answers.
    pub b: End,
    /// Between them.
    pub r: Host,
    /// Goes last.
    pub lab: Lab,
}

impl Net {
    /// A fresh one.
    pub fn new(name: &str, underlay: Underlay) -> Net {
        let mut lab = Lab::new(name);
        let (a, r, b) = (lab.host("a"), lab.router("r"), lab.host("b"));
        let near = lab.wire(&a, &["10.1.0.2/24"], &r, &["10.1.0.1/24"]);
        let far = lab.wire(&b, &["10.2.0.2/24"], &r, &["10.2.0.1/24"]);
        a.default_route("10.1.0.1");
        b.default_route("10.2.0.1");
        if underlay == Underlay::Wire {
            for (host, interface) in [(&a, &near.a), (&r, &near.b), (&b, &far.a), (&r, &far.b)] {
                let features =
                    ["tso", "gso", "gro", "tx-udp-segmentation"].into_iter().flat_map(|f| [f, "off"]);
                let arguments: Vec<&str> = ["-K", interface].into_iter().chain(features).collect();
                host.run("ethtool", &arguments);
            }
        }
        let a = End { host: a, address: "10.1.0.2", other: "10.2.0.2", router: "10.1.0.1" };
        let b = End { host: b, address: "10.2.0.2", other: "10.1.0.2", router: "10.2.0.1" };
        Net { a, b, r, lab }
    }

    /// Both hosts, the one that is spoken to first.
    pub fn ends(&self) -> [&End; 2] {
        [&self.b, &self.a]
    }
}
