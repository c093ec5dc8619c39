//! A router that opens ports when it is asked: `miniupnpd`, by PCP, NAT-PMP and UPnP.

use std::path::Path;
use std::time::Duration;

use crate::{Host, Lab, Process, wait_until};

/// Where it is asked by UPnP.
const PORT: u16 = 5000;
/// The table that it writes its mappings to.
const TABLE: &str = "nat_router";

/// The nftables ruleset of a home router: IPv4 that leaves by `wan` is masqueraded, strangers are dropped, and what
/// `miniupnpd` maps is let in.
fn upnp_rules(wan: &str, lan: &str) -> String {
    format!(
        "table inet {TABLE} {{
 chain input {{ type filter hook input priority 0; policy accept;
  iifname \"{wan}\" ct state established,related accept; iifname \"{wan}\" drop; }}
 chain miniupnpd {{ }}
 chain prerouting_miniupnpd {{ }}
 chain postrouting_miniupnpd {{ }}
 chain forward {{ type filter hook forward priority 0; policy drop;
  ct state established,related accept; jump miniupnpd; iifname \"{lan}\" accept; }}
 chain prerouting {{ type nat hook prerouting priority dstnat; jump prerouting_miniupnpd; }}
 chain postrouting {{ type nat hook postrouting priority srcnat;
  jump postrouting_miniupnpd; oifname \"{wan}\" masquerade; }}
}}
"
    )
}

/// What the router has mapped now, as nftables shows it.
pub fn mapped_ports(router: &Host) -> String {
    router.run("nft", &["list", "chain", "inet", TABLE, "prerouting_miniupnpd"])
}

/// The ways in which a router can be asked.
#[derive(Debug, Clone, Copy)]
pub struct Ways {
    /// By NAT-PMP and PCP.
    pub natpmp: bool,
    /// By UPnP.
    pub upnp: bool,
}

/// Loads [`upnp_rules`] and starts `miniupnpd` with them.
pub fn spawn_miniupnpd(
    lab: &Lab,
    router: &Host,
    [wan, lan]: [&str; 2],
    lan_prefix: &str,
    ways: Ways,
) -> Process {
    router.nft(&upnp_rules(wan, lan));
    run_miniupnpd(lab.directory(), router, TABLE, [wan, lan], lan_prefix, ways)
}

/// Starts `miniupnpd` on the router, for hosts of `lan_prefix` (`192.168.1.0/24`), writing to the chains `miniupnpd`,
/// `prerouting_miniupnpd` and `postrouting_miniupnpd` of that table. One that is started again has forgotten its mappings.
/// Its address outside must be a public one, and none of documentation (RFC 5737): it maps nothing else.
pub fn run_miniupnpd(
    directory: &Path,
    router: &Host,
    table: &str,
    [wan, lan]: [&str; 2],
    lan_prefix: &str,
    Ways { natpmp, upnp }: Ways,
) -> Process {
    let said = |on| if on { "yes" } else { "no" };
    let file =
        |what: &str| directory.join(format!("{}.miniupnpd.{what}", router.name())).display().to_string();
    let configuration = format!(
        "ext_ifname={wan}\nlistening_ip={lan}\nport={PORT}\nenable_natpmp={}\nenable_upnp={}\nsecure_mode=yes\n\
         system_uptime=yes\nnotify_interval=30\nuuid=4e340ff6-b7c4-4d44-b0a0-5ea3426bbe01\nserial=1\nmodel_number=1\n\
         ipv6_disable=yes\nclean_ruleset_interval=600\nupnp_table_name={table}\n\
         upnp_nat_table_name={table}\nupnp_forward_chain=miniupnpd\nupnp_nat_chain=prerouting_miniupnpd\n\
         upnp_nat_postrouting_chain=postrouting_miniupnpd\nallow 1024-65535 {lan_prefix} 1024-65535\n\
         deny 0-65535 0.0.0.0/0 0-65535\n",
        said(natpmp),
        said(upnp),
    );
    std::fs::write(file("conf"), configuration).expect("a file for the configuration");
    let arguments = ["-d", "-f", &file("conf"), "-P", &file("pid")];
    let process = router.spawn("miniupnpd", "miniupnpd", &arguments, &[]);
    wait_until("miniupnpd", Duration::from_secs(10), || {
        assert!(process.is_running(), "miniupnpd has ended: {}", process.output());
        let listening = router.run("ss", &["-lun"]).contains(":5351") || !natpmp;
        let serving = router.run("ss", &["-ltn"]).contains(&format!(":{PORT}")) || !upnp;
        (listening && serving).then_some(())
    });
    process
}
