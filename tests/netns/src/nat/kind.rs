//! The kinds of NATs and firewalls that a machine is behind (RFC 4787), and what each is in nftables.

use std::fmt;
use std::str::FromStr;

/// How a machine is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NatKind {
    /// A public address, nothing before it.
    Open,
    /// A public address, behind a firewall that lets in only answers.
    Firewall,
    /// Who knows the outside port may come in.
    FullCone,
    /// Addresses that were spoken to may come in, from any port.
    AddressRestricted,
    /// What Linux does by default, and most home routers: only who was spoken to may come in.
    PortRestricted,
    /// Each destination sees another port.
    Symmetric,
    /// A home router behind a carrier's, both port-restricted.
    DoubleNat,
    /// Port-restricted, and the router opens ports when asked: UPnP IGD, NAT-PMP, PCP.
    PortMapping,
    /// IPv6 only, behind a firewall that lets in only answers.
    V6Only,
    /// TCP to port 443 leaves, and nothing else.
    UdpBlocked,
}

impl NatKind {
    /// Each, in the order of tables.
    pub const ALL: [NatKind; 10] = [
        NatKind::Open,
        NatKind::Firewall,
        NatKind::FullCone,
        NatKind::AddressRestricted,
        NatKind::PortRestricted,
        NatKind::Symmetric,
        NatKind::DoubleNat,
        NatKind::PortMapping,
        NatKind::V6Only,
        NatKind::UdpBlocked,
    ];

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            NatKind::Open => "open",
            NatKind::Firewall => "firewall",
            NatKind::FullCone => "full-cone",
            NatKind::AddressRestricted => "address-restricted",
            NatKind::PortRestricted => "port-restricted",
            NatKind::Symmetric => "symmetric",
            NatKind::DoubleNat => "double-nat",
            NatKind::PortMapping => "upnp",
            NatKind::V6Only => "v6-only",
            NatKind::UdpBlocked => "udp-blocked",
        }
    }

    /// On what an outside address and port depend, beside the inside ones; nothing where no UDP leaves.
    pub fn mapping(self) -> Option<&'static str> {
        match self {
            NatKind::UdpBlocked => None,
            NatKind::Symmetric => Some("address-and-port-dependent"),
            _ => Some("endpoint-independent"),
        }
    }

    /// On what it depends who may come in; nothing where no UDP leaves.
    pub fn filtering(self) -> Option<&'static str> {
        match self {
            NatKind::UdpBlocked => None,
            NatKind::Open | NatKind::FullCone => Some("endpoint-independent"),
            NatKind::AddressRestricted => Some("address-dependent"),
            _ => Some("address-and-port-dependent"),
        }
    }

    /// The nftables rules of a router. `host` is who a full cone hands everything to. After a restart (`again`) the ports
    /// of a router that need not keep them are others.
    pub(super) fn rules(self, outside: &str, host: &str, again: bool) -> String {
        let (mut seen, mut come_in, mut mapped) = (String::new(), String::new(), String::new());
        let mut go_out = "accept";
        let mut translate = format!("oifname \"{outside}\" masquerade");
        match self {
            NatKind::Open => return String::new(),
            NatKind::Firewall | NatKind::V6Only => translate.clear(),
            NatKind::FullCone => come_in = format!("udp dport 1024-65535 dnat ip to {host}"),
            NatKind::AddressRestricted => {
                // The port is kept, so that the source port here is the one outside.
                seen = format!(
                    "iifname != \"{outside}\" meta l4proto udp update @seen {{ ip daddr . udp sport }}"
                );
                come_in = format!("ip saddr . udp dport @seen dnat ip to {host}");
            }
            NatKind::Symmetric => translate += " fully-random",
            NatKind::PortRestricted | NatKind::DoubleNat => {}
            NatKind::PortMapping => {
                come_in = "jump prerouting_miniupnpd".into();
                mapped = "jump miniupnpd".into();
                translate = format!("jump postrouting_miniupnpd\n  {translate}");
            }
            NatKind::UdpBlocked => go_out = "tcp dport 443 accept",
        }
        if again && matches!(self, NatKind::PortRestricted | NatKind::DoubleNat | NatKind::PortMapping) {
            let other =
                format!("oifname \"{outside}\" meta l4proto {{ tcp, udp }} masquerade to :20000-29999");
            translate = format!("{other}\n  {translate}");
        }
        if !come_in.is_empty() {
            come_in = format!("iifname \"{outside}\" {come_in}");
        }
        // What comes from outside to the router itself is dropped, or its connection would take the port away.
        format!(
            "table inet nat\ndelete table inet nat\ntable inet nat {{\n \
             set seen {{ type ipv4_addr . inet_service; flags dynamic,timeout; timeout 120s; }}\n \
             chain miniupnpd {{ }}\n chain prerouting_miniupnpd {{ }}\n chain postrouting_miniupnpd {{ }}\n \
             chain input {{ type filter hook input priority 0;\n  ct state established,related accept\n  \
             meta l4proto ipv6-icmp accept\n  iifname \"{outside}\" drop\n }}\n \
             chain forward {{ type filter hook forward priority 0; policy drop;\n  {seen}\n  \
             ct state established,related accept\n  ct status dnat accept\n  {mapped}\n  \
             iifname != \"{outside}\" {go_out}\n }}\n \
             chain prerouting {{ type nat hook prerouting priority dstnat;\n  {come_in}\n }}\n \
             chain postrouting {{ type nat hook postrouting priority srcnat;\n  {translate}\n }}\n}}\n"
        )
    }
}

impl fmt::Display for NatKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for NatKind {
    type Err = String;

    fn from_str(text: &str) -> Result<NatKind, String> {
        let found = NatKind::ALL.into_iter().find(|k| k.name() == text);
        found.ok_or_else(|| {
            format!("`{text}` is no kind of NAT; have {}", NatKind::ALL.map(NatKind::name).join(" "))
        })
    }
}
