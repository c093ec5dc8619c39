//! STUN (RFC 8489): the relay tells whoever asks where he is seen, by two ports of its own, so that he learns what his NAT
//! does (RFC 5780). It keeps nothing of it.

use crate::{FourTuple, Relay};
use shadowmesh_proto::Time;
use shadowmesh_proto::handshake::Source;
use shadowmesh_stun::answer;
use shadowmesh_wire::DropReason;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Answers a second to one source prefix, and at once: a look takes a dozen, and many may be behind one address.
pub(crate) const STUN_RATE: f64 = 20.0;
pub(crate) const STUN_BURST: f64 = 200.0;

/// One of the two ports: only STUN tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Port {
    /// Where clients are.
    Main,
    /// For STUN alone.
    Other,
}

/// What is bound, by port and family.
#[derive(Debug, Default)]
pub(crate) struct Ports {
    main: Vec<SocketAddr>,
    other: Vec<SocketAddr>,
}

impl Ports {
    /// What to say of the port that was not asked. The address is left open: a relay that has one alone is not
    /// told which that is.
    fn besides(&self, asked: Port, from: &SocketAddr) -> Option<SocketAddr> {
        let bound = if asked == Port::Main { &self.other } else { &self.main };
        let v4 = from.ip().to_canonical().is_ipv4();
        let port = bound.iter().find(|a| a.is_ipv4() == v4)?.port();
        let any = if v4 { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
        Some(SocketAddr::new(any, port))
    }
}

impl Relay {
    /// Where it is listened: by the ports of clients, and by those for STUN alone. Without the latter only the plain
    /// question is answered, where one is seen.
    pub fn set_ports(&mut self, main: Vec<SocketAddr>, other: Vec<SocketAddr>) {
        self.ports = Ports { main, other };
    }

    /// A datagram that came by the port for STUN.
    pub fn handle_stun(&mut self, now: Time, from: impl Into<FourTuple>, datagram: &[u8]) {
        self.metrics.datagrams_in += 1;
        self.metrics.bytes_in += datagram.len() as u64;
        if let Err(reason) = self.on_stun(now, from.into(), Port::Other, datagram) {
            self.metrics.drops.count(reason);
        }
    }

    /// The next datagram to send by the port for STUN, and where to. Nothing of it rests on what is stored.
    pub fn poll_stun(&mut self) -> Option<(FourTuple, Vec<u8>)> {
        self.stun_out.pop_front()
    }

    /// No larger than what asked for it [P-AMPLIFY], and not before there was a look at how often that prefix has asked.
    pub(crate) fn on_stun(
        &mut self,
        now: Time,
        from: FourTuple,
        by: Port,
        datagram: &[u8],
    ) -> Result<(), DropReason> {
        // By TCP nobody is behind a NAT that matters, and an answer says nothing.
        if from.remote.port() == 0 {
            return Err(DropReason::Malformed);
        }
        if !self.stun_limit.allow(now, &Source::Udp(from.remote)) {
            return Err(DropReason::RateLimited);
        }
        let other = self.ports.besides(by, &from.remote);
        let answer = answer(datagram, from.remote, other).ok_or(DropReason::Malformed)?;
        self.metrics.stun += 1;
        let to = FourTuple { remote: answer.to, ..from };
        let out =
            if (by == Port::Other) == answer.from_other_port { &mut self.out } else { &mut self.stun_out };
        out.push_back((to, answer.bytes));
        Ok(())
    }
}
