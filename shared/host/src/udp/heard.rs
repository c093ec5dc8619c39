//! By which address of this machine each sender was heard, where the machine has several.
//!
//! An answer that leaves by another address is nobody's to who waits for it, and no NAT lets it in. A socket that is bound to
//! no address in particular leaves the choice to the routing table, which knows nothing of the question.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

/// Senders of one generation; there are two, so that this many of those heard last are known.
const MOST: usize = 1 << 16;

/// What was heard where.
#[derive(Default)]
pub struct Heard {
    fresh: HashMap<SocketAddr, IpAddr>,
    former: HashMap<SocketAddr, IpAddr>,
}

impl Heard {
    /// This sender was heard there.
    pub fn note(&mut self, who: SocketAddr, local: IpAddr) {
        if self.fresh.get(&who) == Some(&local) || no_source(local) {
            return;
        }
        if self.fresh.len() >= MOST {
            self.former = std::mem::take(&mut self.fresh);
        }
        self.fresh.insert(who, local);
    }

    /// Where this one was heard last.
    pub fn of(&self, who: &SocketAddr) -> Option<IpAddr> {
        self.fresh.get(who).or_else(|| self.former.get(who)).copied()
    }

    /// Nothing can be sent from there: was anything known?
    pub fn forget(&mut self, who: &SocketAddr) -> bool {
        let (fresh, former) = (self.fresh.remove(who), self.former.remove(who));
        fresh.or(former).is_some()
    }
}

/// Is it none to send from: of a group or of all, or of one link, which is not known without that link?
fn no_source(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(a) => a.is_multicast() || a.is_broadcast() || a.is_unspecified(),
        IpAddr::V6(a) => a.is_multicast() || a.is_unicast_link_local() || a.is_unspecified(),
    }
}

/// Has this machine several addresses of one family? So it is taken where that cannot be learned.
pub fn several_addresses() -> bool {
    let Ok(all) = getifaddrs() else { return true };
    let up = all.filter(|i| {
        i.flags.contains(InterfaceFlags::IFF_UP) && !i.flags.contains(InterfaceFlags::IFF_LOOPBACK)
    });
    let (mut v4, mut v6) = (0, 0);
    for address in up.filter_map(|i| i.address) {
        v4 += usize::from(address.as_sockaddr_in().is_some());
        v6 += usize::from(address.as_sockaddr_in6().is_some_and(|a| !no_source(a.ip().into())));
    }
    v4 > 1 || v6 > 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_are_known_and_no_more_than_two_generations_are_held() {
        let who = |n: usize| SocketAddr::from(([10, (n >> 16) as u8, (n >> 8) as u8, n as u8], 1));
        let (one, two) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let mut heard = Heard::default();
        for n in 0..4 * MOST {
            heard.note(who(n), one);
            heard.note(who(0), two);
            assert_eq!(heard.of(&who(0)), Some(two), "who is heard again and again is not forgotten");
        }
        assert_eq!(heard.of(&who(4 * MOST - 1)), Some(one));
        assert_eq!(heard.of(&who(1)), None);
        assert!(heard.fresh.len() + heard.former.len() <= 2 * MOST);
        assert!(heard.forget(&who(0)) && !heard.forget(&who(0)));
    }
}
