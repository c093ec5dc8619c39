//! What is shown of a network while its engine runs, and how its troubles are worded.

use super::tcp::Carried;
use crate::cli::print::age;
use crate::engine::Inside;
use shadowmesh_control::{NetworkStatus, PeerStatus, RelayStatus, date, rfc3339, with_dates};
use shadowmesh_crypto::aead::Suite;
use shadowmesh_identity::fact::Roles;
use shadowmesh_identity::{DAY, Invalid};
use shadowmesh_proto::{Route, Time};

/// Seconds that clocks may differ by before it is worth a word.
pub const SKEW: i64 = 300;

/// Seconds before a certificate's end from which on that is said.
const WARN_AHEAD: u64 = 45 * DAY;

/// Words for roles.
fn roles(roles: Roles) -> String {
    let all =
        [(Roles::ADMIN, "admin"), (Roles::MEMBER, "member"), (Roles::RELAY, "relay"), (Roles::EXIT, "exit")];
    let named: Vec<_> = all.iter().filter(|(r, _)| roles.contains(*r)).map(|(_, n)| *n).collect();
    named.join(", ")
}

/// Fills in what only the engine's thread knows.
pub fn fill(mut status: NetworkStatus, inside: &mut Inside<'_>, carried: &[Carried]) -> NetworkStatus {
    let (endpoint, now) = (&*inside.endpoint, inside.now);
    let node = &endpoint.node;
    status.up = true;
    status.problems.extend(inside.trouble.map(str::to_owned));
    if let Err(e) = node.roster().is_valid(&node.id(), node.unix(now)) {
        status.problems.push(not_accepted(&e, &status.name, inside.unix));
    }
    for peer in inside.refused.iter().filter_map(|p| node.roster().member(p)) {
        status.problems.push(format!(
            "{} refuses this machine, and has not shown why: it may have been revoked. To come back: shadowmesh leave, \
             then join by a new invite.",
            peer.name()
        ));
    }
    for (relay, place) in node.rotations() {
        let Some(why) = inside.unrotated.get(&relay) else { continue };
        status.problems.push(format!(
            "the relay {} still takes the access secret that a revoked member knows: {why}. It is asked again twice a \
             minute; the member is cut off from all others all the same.",
            place.map_or_else(|| relay.short(), ToString::to_string)
        ));
    }
    if let Some(own) = node.roster().member(&node.id()) {
        status.roles = roles(own.roles());
        status.device = own.name().to_owned();
        status.certificate_ends = Some(rfc3339(own.certificate.not_after));
        status.problems.extend(ends_soon(own.certificate.not_after, node.unix(now), &status.name));
    }
    let places: Vec<_> = node.relay_status();
    status.problems.extend(places.iter().find_map(clock_off));
    status.problems.extend(places.iter().filter(|r| r.former).map(|r| {
        format!(
            "the access secret of the relay {} was changed while this machine was away. A member tells it the new one as \
             soon as one answers; until then nothing else is sent. If that lasts, bring an admin's machine up.",
            r.place
        )
    }));
    let ago = |t: Time| now.since(t).as_secs_f64();
    for p in node.peer_status() {
        let Some(member) = node.roster().member(&p.node) else { continue };
        let (path, via) = match p.route {
            Some(Route::Udp(address)) => ("direct", Some(address.to_string())),
            Some(Route::Relay { relay, .. }) => {
                ("relay", places.get(relay as usize).map(|r| r.place.to_string()))
            }
            None => ("none", None),
        };
        let suite = p.suite.map(|s| match s {
            Suite::Aes256Gcm => "ML-KEM-1024+X25519, AES",
            Suite::ChaCha20Poly1305 => "ML-KEM-1024+X25519, ChaCha",
        });
        let traffic = node.peer_id(&p.node).map(|id| endpoint.traffic(id)).unwrap_or_default();
        status.peers.push(PeerStatus {
            name: member.name().to_owned(),
            node: p.node.to_string(),
            roles: roles(member.roles()),
            ipv4: member.ipv4.map(|a| a.to_string()),
            ipv6: member.ipv6.to_string(),
            path: path.into(),
            via,
            rtt: p.rtt.map(|r| r.as_secs_f64()),
            loss: p.loss,
            mtu: p.mtu.map(|m| m as u32),
            secured: suite.map(str::to_owned),
            secured_ago: p.keyed.map(ago),
            rekeys: p.rekeys,
            heard_ago: p.last_rx.map(ago),
            clock_ahead: p.skew,
            sent: traffic.0,
            received: traffic.1,
        });
    }
    status.peers.sort_by(|a, b| a.name.cmp(&b.name));
    for r in &places {
        let by = carried.iter().find(|c| Some(c.local) == r.address);
        status.problems.extend(by.map(|c| blocked(&r.place.to_string(), c)));
        status.relays.push(RelayStatus {
            relay: r.relay.to_string(),
            place: r.place.to_string(),
            up: r.up,
            rtt: r.rtt.map(|d| d.as_secs_f64()),
            by: if by.is_some() { "tcp" } else { "udp" }.into(),
            address: by.map_or_else(|| r.address.map(|a| a.to_string()), |c| Some(c.by.clone())),
        });
    }
    let mut drops = endpoint.drops();
    drops.add(inside.drops);
    status.drops = drops.nonzero().map(|(reason, n)| (reason.label().to_owned(), n)).collect();
    status
}

/// That a relay is reached by TCP.
pub fn blocked(place: &str, carried: &Carried) -> String {
    format!(
        "UDP seems blocked here: the relay {place} is reached by TCP ({}), and members through it.",
        carried.by
    )
}

/// Why this node is no member in good standing, and what to do.
fn not_accepted(why: &Invalid, network: &str, clock: u64) -> String {
    match why {
        Invalid::Expired { since } => format!(
            "this machine's clock says {}; its certificate of \"{network}\" ended on {}. Set the clock (timedatectl \
             set-ntp true); if it is right, ask an admin for a new invite.",
            date(clock),
            date(*since)
        ),
        why => format!("this machine is not accepted in \"{network}\": {}", with_dates(&why.to_string())),
    }
}

/// A clock that differs from a relay's. One that is behind works for a week, which is how long what it signs then is good.
fn clock_off(relay: &shadowmesh_proto::RelayStatus) -> Option<String> {
    let ahead = relay.skew.filter(|s| s.abs() > SKEW)?;
    let (by, how) = (age(ahead.abs() as f64), if ahead > 0 { "behind" } else { "ahead of" });
    Some(format!(
        "this machine's clock is {by} {how} that of the relay {}. Set the one that is wrong (timedatectl set-ntp true): \
         in a week members may take each other for expired.",
        relay.place
    ))
}

/// A warning in the weeks before a certificate ends. It is renewed sixty days ahead, so that something keeps that from
/// happening.
fn ends_soon(not_after: u64, now: u64, network: &str) -> Option<String> {
    let soon = (now..now + WARN_AHEAD).contains(&not_after);
    soon.then(|| {
        format!(
            "this machine's certificate of \"{network}\" ends on {}, and no admin's machine has renewed it. Bring one up \
             that reaches this machine (shadowmesh peers says who is admin); after that day, only a new invite helps.",
            date(not_after)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_certificate_is_said_weeks_before() {
        let (now, day) = (1_800_000_000, 86_400);
        for (left, said) in [(200, false), (46, false), (44, true), (1, true)] {
            assert_eq!(ends_soon(now + left * day, now, "home").is_some(), said, "{left} days");
        }
        // Once it has ended, that is said in other words.
        assert_eq!(ends_soon(now - 1, now, "home"), None);
        assert!(ends_soon(now + day, now, "home").unwrap().contains("ends on 16 January 2027"));
    }
}
