//! An internet of NATs: one relay that all reach by name, and machines behind each common kind of router.
//!
//! ```text
//!                      vps  relay.test: 203.0.113.2, .3 and 2001:db8:ffff::2, ::3
//!                       |
//!     machine --- nat - net - nat --- machine
//!     192.168.1.2    198.51.N.2      192.168.1.2
//! ```
//!
//! All homes have the same private addresses, as real ones do: an address of the other's LAN is one's own. The words for
//! what a NAT does are those of RFC 4787.

mod kind;

pub use kind::NatKind;

use std::collections::BTreeSet;
use std::time::Duration;

use crate::upnp::{Ways, run_miniupnpd};
use crate::{Host, Lab, LossyWire, Machine, Process, Profile, Wire, make_relay, spawn_relay, wait_for_relay};

/// What is behind each home's router.
const LAN: &str = "192.168.1.0/24";
const BOTH_WAYS: Ways = Ways { natpmp: true, upnp: true };

/// The name that machines know the relay by.
pub const RELAY: &str = "relay.test";
/// Where it is. The second address of each family is for probes.
pub const VPS4: [&str; 2] = ["203.0.113.2", "203.0.113.3"];
/// The same in IPv6.
pub const VPS6: [&str; 2] = ["2001:db8:ffff::2", "2001:db8:ffff::3"];
/// A router's address in its LAN.
pub const GATEWAY: &str = "192.168.1.1";

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the first to the second.
    There,
    /// From the second to the first.
    Back,
    /// Both.
    Both,
}

impl Direction {
    /// Each.
    pub const ALL: [Direction; 3] = [Direction::There, Direction::Back, Direction::Both];
}

/// A router of a machine.
#[derive(Debug, Clone)]
struct Router {
    host: Host,
    /// Its interface to the internet, or to the carrier.
    outside: String,
    /// Whose rules it has.
    kind: NatKind,
    /// Who a full cone hands everything to.
    inside: String,
}

/// Where a machine is.
#[derive(Debug)]
struct Place {
    name: String,
    kind: NatKind,
    /// Of its home: 198.51.N.0/24 outside.
    n: u8,
    /// From the machine outwards.
    routers: Vec<Router>,
    /// Its own address.
    address: String,
    /// That which others see.
    public: String,
    gateway: String,
    /// Machines of this home, kept by the first.
    machines: u8,
    upnp: Option<Process>,
}

/// Machines behind NATs, and a relay that all reach.
#[derive(Debug)]
pub struct Internet {
    places: Vec<Place>,
    net: Host,
    /// Where the relay runs.
    pub vps: Host,
    wire: Wire,
    /// The line to the relay, when it was asked to be slow.
    slow: Option<LossyWire>,
    /// The relay.
    pub relay: Process,
    /// URLs that it gave, each good once.
    pub urls: Vec<String>,
    homes: u8,
    /// From, to: addresses that do not reach each other.
    cuts: BTreeSet<(String, String)>,
    /// Goes last.
    pub lab: Lab,
}

impl Internet {
    /// Only the relay, so far.
    pub fn new(test: &str) -> Internet {
        let mut lab = Lab::new(test);
        let (net, vps) = (lab.router("net"), lab.host("vps"));
        skip_detection(&net);
        skip_detection(&vps);
        let wire = lab.wire(&vps, &[], &net, &[]);
        address_vps(&vps, &wire.a, &net, &wire.b);
        let state = lab.directory().join("relay").display().to_string();
        let urls = make_relay(&vps, &state, RELAY);
        let relay = spawn_relay(&vps, &state, &[]);
        wait_for_relay(&vps);
        Internet {
            places: vec![],
            net,
            vps,
            wire,
            slow: None,
            relay,
            urls,
            homes: 0,
            cuts: BTreeSet::new(),
            lab,
        }
    }

    /// The relay is so far away from now on, one way; what machines have between themselves stays. For the relay of a lab
    /// that is to be far: by a program a frame a system call.
    pub fn delay_relay(&mut self, one_way: Duration) {
        let profile = Profile { delay: one_way, ..Profile::default() };
        if let Some(slow) = &self.slow {
            slow.set(profile);
            return;
        }
        self.vps.ip(&format!("link delete {}", self.wire.a));
        let slow = self.lab.lossy(&self.vps, &[], &self.net, &[], profile);
        address_vps(&self.vps, &slow.a, &self.net, &slow.b);
        self.slow = Some(slow);
    }

    /// A machine at home, connected in that way. Its name is short.
    pub fn machine(&mut self, name: &str, kind: NatKind) -> Machine {
        self.homes += 1;
        let n = self.homes;
        let host = self.host(name);
        let (outer, upstream) = (format!("198.51.{n}.2"), format!("198.51.{n}.1"));
        let (outer24, upstream24) = (format!("{outer}/24"), format!("{upstream}/24"));
        let mut place = Place {
            name: name.into(),
            kind,
            n,
            routers: vec![],
            address: "192.168.1.2".into(),
            public: outer.clone(),
            gateway: GATEWAY.into(),
            machines: 1,
            upnp: None,
        };
        let net = self.net.clone();
        match kind {
            NatKind::Open => {
                self.lab.wire(&host, &[&outer24], &net, &[&upstream24]);
                (place.address, place.gateway) = (outer, upstream);
                host.default_route(&place.gateway);
                return self.placed(host, place);
            }
            NatKind::V6Only => {
                let (outer, upstream) = (format!("2001:db8:{n}::2"), format!("2001:db8:{n}::1"));
                place.gateway = format!("2001:db8:{n}:1::1");
                place.address = format!("2001:db8:{n}:1::2");
                place.public = place.address.clone();
                let router = self.router(
                    &format!("{name}-nat"),
                    kind,
                    (&net, &format!("{upstream}/64")),
                    (&format!("{outer}/64"), &upstream),
                    &place.address,
                );
                net.ip(&format!("-6 route add 2001:db8:{n}:1::/64 via {outer}"));
                place.routers.push(router);
            }
            NatKind::Firewall => {
                place.gateway = format!("198.52.{n}.1");
                place.address = format!("198.52.{n}.2");
                place.public = place.address.clone();
                net_router(self, &mut place, &net, (&outer, &upstream));
                net.ip(&format!("route add 198.52.{n}.0/24 via {outer}"));
            }
            NatKind::DoubleNat => {
                let carrier = self.router(
                    &format!("{name}-cgn"),
                    kind,
                    (&net, &upstream24),
                    (&outer24, &upstream),
                    "100.64.0.2",
                );
                net_router(self, &mut place, &carrier.host, ("100.64.0.2", "100.64.0.1"));
                place.routers.push(carrier);
            }
            _ => net_router(self, &mut place, &net, (&outer, &upstream)),
        }
        let home = place.routers[0].host.clone();
        home.ip("link add lan type bridge");
        home.configure("lan", &[&with_prefix(&place.gateway)]);
        self.on_lan(&host, &home, &place.address, &place.gateway);
        if kind == NatKind::PortMapping {
            place.upnp = Some(run_miniupnpd(
                self.lab.directory(),
                &home,
                "nat",
                [&place.routers[0].outside, "lan"],
                LAN,
                BOTH_WAYS,
            ));
        }
        self.placed(host, place)
    }

    /// A second machine in the LAN of another.
    pub fn on_lan_of(&mut self, name: &str, other: &Machine) -> Machine {
        let host = self.host(name);
        let at = self.index(other);
        self.places[at].machines += 1;
        let first = &self.places[at];
        assert!(!first.routers.is_empty(), "{} has no LAN", first.name);
        let (prefix, _) = first.gateway.rsplit_once(['.', ':']).unwrap_or_default();
        let separator = if first.kind == NatKind::V6Only { ':' } else { '.' };
        let place = Place {
            name: name.into(),
            kind: first.kind,
            n: first.n,
            routers: first.routers.clone(),
            address: format!("{prefix}{separator}{}", first.machines + 1),
            public: first.public.clone(),
            gateway: first.gateway.clone(),
            machines: 0,
            upnp: None,
        };
        self.on_lan(&host, &place.routers[0].host, &place.address, &place.gateway);
        self.placed(host, place)
    }

    /// The address that it has itself.
    pub fn address(&self, machine: &Machine) -> &str {
        &self.place(machine).address
    }

    /// The address that others see.
    pub fn public(&self, machine: &Machine) -> &str {
        &self.place(machine).public
    }

    /// Its routers forget all connections, as when they are switched off and on: what came by them comes no more until
    /// something has gone out. Ports are other ones then, where the kind leaves that open.
    pub fn restart_nat(&mut self, machine: &Machine) {
        let at = self.index(machine);
        // The old one would take its mappings away from the new rules.
        let mapped = self.places[at].upnp.take().is_some();
        for r in &self.places[at].routers {
            r.host.nft(&r.kind.rules(&r.outside, &r.inside, true));
            r.host.run("conntrack", &["-F"]);
        }
        if mapped {
            let home = &self.places[at].routers[0];
            let upnp = run_miniupnpd(
                self.lab.directory(),
                &home.host,
                "nat",
                [&home.outside, "lan"],
                LAN,
                BOTH_WAYS,
            );
            self.places[at].upnp = Some(upnp);
        }
    }

    /// Its routers keep a UDP flow that was used for so many seconds.
    pub fn keep_flows(&self, machine: &Machine, seconds: u32) {
        for r in &self.place(machine).routers {
            r.host.sysctl("net/netfilter/nf_conntrack_udp_timeout_stream", &seconds.to_string());
        }
    }

    /// The routers of both forget what went between the two; what they have with others stays.
    pub fn forget_flows(&self, a: &Machine, b: &Machine) {
        for (me, other) in [(a, b), (b, a)] {
            let other = &self.place(other).public;
            let family = if other.contains(':') { "ipv6" } else { "ipv4" };
            for r in &self.place(me).routers {
                for end in ["-d", "-s"] {
                    // It fails when there were none.
                    let _none = r.host.try_run("conntrack", &["-D", "-f", family, "-p", "udp", end, other]);
                }
                if r.kind == NatKind::AddressRestricted {
                    r.host.run("nft", &["flush", "set", "inet", "nat", "seen"]);
                }
            }
        }
    }

    /// Datagrams between the two are lost without a word, in that direction; what goes by the relay is not.
    pub fn cut(&mut self, a: &Machine, b: &Machine, direction: Direction) {
        let (a, b) = self.ends(a, b);
        if direction != Direction::Back {
            self.cuts.insert((a.clone(), b.clone()));
        }
        if direction != Direction::There {
            self.cuts.insert((b, a));
        }
        self.load_cuts();
    }

    /// They reach each other again.
    pub fn mend(&mut self, a: &Machine, b: &Machine) {
        let (a, b) = self.ends(a, b);
        self.cuts.remove(&(a.clone(), b.clone()));
        self.cuts.remove(&(b, a));
        self.load_cuts();
    }

    /// The machine has another address of its own network from now on, as from DHCP; the old one is gone. Only the first
    /// one of a LAN.
    pub fn change_address(&mut self, machine: &Machine) {
        let at = self.index(machine);
        let place = &mut self.places[at];
        assert!(place.machines > 0, "only the first of a LAN");
        let old = std::mem::take(&mut place.address);
        place.address = other_than(&old);
        if place.public == old {
            place.public = place.address.clone();
        }
        let family = if old.contains(':') { "-6 " } else { "" };
        let nodad = if old.contains(':') { " nodad" } else { "" };
        let host = &machine.host;
        // The first one takes those after it with it, and so goes first.
        host.ip(&format!("{family}address delete {} dev eth0", with_prefix(&old)));
        host.ip(&format!("{family}address add {} dev eth0{nodad}", with_prefix(&place.address)));
        host.default_route(&place.gateway);
        if let Some(r) = place.routers.first_mut() {
            r.inside = place.address.clone();
            if matches!(r.kind, NatKind::FullCone | NatKind::AddressRestricted) {
                r.host.nft(&r.kind.rules(&r.outside, &r.inside, false));
                // Their mappings keep the port, which what went on from the old address would hold for a while.
                r.host.run("conntrack", &["-F"]);
            }
        }
    }

    /// The machine's provider gives its router another address.
    pub fn change_public_address(&mut self, machine: &Machine) {
        let at = self.index(machine);
        let place = &mut self.places[at];
        assert!(place.public != place.address, "{} shows its own address: change_address", place.kind);
        let (old, new) = (place.public.clone(), other_than(&place.public));
        let r = place.routers.last().expect("a router");
        r.host.ip(&format!("address delete {} dev {}", with_prefix(&old), r.outside));
        r.host.ip(&format!("address add {} dev {}", with_prefix(&new), r.outside));
        r.host.default_route(&format!("198.51.{}.1", place.n));
        r.host.run("conntrack", &["-F"]);
        let n = place.n;
        self.places.iter_mut().filter(|p| p.n == n).for_each(|p| p.public.clone_from(&new));
    }

    /// A namespace in which the relay's name resolves: `ip netns exec` mounts this file over `/etc/hosts`.
    fn host(&mut self, name: &str) -> Host {
        let host = self.lab.host(name);
        skip_detection(&host);
        let directory = std::path::Path::new("/etc/netns").join(host.namespace());
        let lines = [VPS4[0], VPS6[0]].map(|a| format!("{a} {RELAY}\n")).concat();
        std::fs::create_dir_all(&directory)
            .and_then(|()| std::fs::write(directory.join("hosts"), format!("127.0.0.1 localhost\n{lines}")))
            .unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
        host
    }

    /// A router below another: that one's host with the address that it gets there; its own with the way out.
    fn router(
        &mut self,
        name: &str,
        kind: NatKind,
        (above, there): (&Host, &str),
        (here, gateway): (&str, &str),
        inside: &str,
    ) -> Router {
        let host = self.lab.router(name);
        skip_detection(&host);
        let outside = self.lab.wire(&host, &[here], above, &[there]).a;
        host.default_route(gateway);
        host.nft(&kind.rules(&outside, inside, false));
        Router { host, outside, kind, inside: inside.into() }
    }

    fn on_lan(&mut self, host: &Host, home: &Host, address: &str, gateway: &str) {
        let wire = self.lab.wire(host, &[&with_prefix(address)], home, &[]);
        home.ip(&format!("link set {} master lan", wire.b));
        host.default_route(gateway);
    }

    fn placed(&mut self, host: Host, place: Place) -> Machine {
        let directory = self.lab.directory().join(&place.name);
        self.places.push(place);
        Machine { host, directory, environment: vec![] }
    }

    fn index(&self, machine: &Machine) -> usize {
        let name = machine.host.name();
        self.places
            .iter()
            .position(|p| p.name == name)
            .unwrap_or_else(|| panic!("{name} is not of this internet"))
    }

    fn place(&self, machine: &Machine) -> &Place {
        &self.places[self.index(machine)]
    }

    /// The addresses by which two meet: in one LAN their own, else those outside.
    fn ends(&self, a: &Machine, b: &Machine) -> (String, String) {
        let (a, b) = (self.place(a), self.place(b));
        let of = |p: &Place| if a.n == b.n { p.address.clone() } else { p.public.clone() };
        (of(a), of(b))
    }

    /// In the middle for those of two homes; in a LAN's bridge for those in one.
    fn load_cuts(&self) {
        let drop = |(from, to): &(String, String)| {
            let ip = if from.contains(':') { "ip6" } else { "ip" };
            format!("  {ip} saddr {from} {ip} daddr {to} drop\n")
        };
        let lines: String = self.cuts.iter().map(drop).collect();
        let bridges = self.places.iter().filter(|p| p.machines > 1).map(|p| (&p.routers[0].host, "bridge"));
        for (host, family) in std::iter::once((&self.net, "inet")).chain(bridges) {
            host.nft(&format!(
                "table {family} cut\ndelete table {family} cut\ntable {family} cut {{\n chain forward {{\n  \
                 type filter hook forward priority 0;\n{lines} }}\n}}\n"
            ));
        }
    }
}

/// A home's own router, below `above`, by which the machine and its LAN go out.
fn net_router(internet: &mut Internet, place: &mut Place, above: &Host, (here, there): (&str, &str)) {
    let name = format!("{}-nat", place.name);
    let (here24, there24) = (with_prefix(here), with_prefix(there));
    let router = internet.router(&name, place.kind, (above, &there24), (&here24, there), &place.address);
    place.routers.push(router);
}

/// A router asks for its neighbours by its link-local address, which is not to be used for the second that detection of
/// duplicates takes.
fn skip_detection(host: &Host) {
    for of in ["all", "default"] {
        host.sysctl(&format!("net/ipv6/conf/{of}/accept_dad"), "0");
    }
}

fn address_vps(vps: &Host, here: &str, net: &Host, there: &str) {
    for address in VPS4.into_iter().chain(VPS6) {
        vps.configure(here, &[&with_prefix(address)]);
    }
    // Nothing goes out from it unless it is told to: the relay answers from the address that it is asked at only where
    // that is the machine's first.
    vps.ip(&format!("-6 address change {} dev {here} preferred_lft 0", with_prefix(VPS6[1])));
    net.configure(there, &["203.0.113.1/24", "2001:db8:ffff::1/64"]);
    vps.default_route("203.0.113.1");
    vps.default_route("2001:db8:ffff::1");
}

fn with_prefix(address: impl AsRef<str>) -> String {
    let address = address.as_ref();
    format!("{address}/{}", if address.contains(':') { 64 } else { 24 })
}

/// Another address of the same network: the last part is changed.
fn other_than(address: &str) -> String {
    match address.strip_suffix("12") {
        Some(rest) => format!("{rest}2"),
        None => format!("{}12", address.strip_suffix('2').expect("an address of this internet")),
    }
}
