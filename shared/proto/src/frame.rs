//! Ethernet frames as the switch looks at them: addresses, tags, ARP and neighbour discovery. (Field access of ARP, IPv6
//! and ICMPv6 by smoltcp's checked views.)

use crate::snapshot::{Guard, MeshPrefixes};
use shadowmesh_wire::DropReason;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, Icmpv6Message, Icmpv6Packet,
    Icmpv6Repr, IpProtocol, Ipv6Packet, Ipv6Repr, NdiscNeighborFlags, NdiscRepr, RawHardwareAddress,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Ethernet header without tags. Bytes.
pub const ETHERNET: usize = 14;
/// Tags that are looked through (802.1Q, 802.1ad), 4 bytes each.
pub const MAX_TAGS: usize = 2;

const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// A frame's outline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outline {
    /// Destination MAC.
    pub dst: [u8; 6],
    /// Source MAC.
    pub src: [u8; 6],
    /// Ethertype behind any tags.
    pub ethertype: u16,
    /// The outer VLAN; 0 where there is none, or only a priority (IEEE 802.1Q section 9.6).
    pub vlan: u16,
    /// Where the payload begins.
    pub payload: usize,
}

impl Outline {
    /// Reads the outline.
    ///
    /// # Errors
    /// `BadFrame` when it is too short, or its source is a group address (IEEE 802.3 section 3.2.3).
    pub fn read(frame: &[u8]) -> Result<Self, DropReason> {
        let bad = DropReason::BadFrame;
        let (dst, rest) = frame.split_first_chunk::<6>().ok_or(bad)?;
        let (src, mut rest) = rest.split_first_chunk::<6>().ok_or(bad)?;
        let mut payload = ETHERNET;
        let (mut tags, mut vlan) = (0, 0);
        let ethertype = loop {
            let (t, after) = rest.split_first_chunk::<2>().ok_or(bad)?;
            let t = u16::from_be_bytes(*t);
            if !matches!(t, 0x8100 | 0x88a8) || tags == MAX_TAGS {
                break t;
            }
            let (control, after) = after.split_first_chunk::<2>().ok_or(bad)?;
            if tags == 0 {
                vlan = u16::from_be_bytes(*control) & 0xfff;
            }
            rest = after;
            payload += 4;
            tags += 1;
        };
        if src[0] & 1 == 1 {
            return Err(bad);
        }
        Ok(Outline { dst: *dst, src: *src, ethertype, vlan, payload })
    }

    /// Group destination (multicast, broadcast)?
    pub fn is_group(&self) -> bool {
        self.dst[0] & 1 == 1
    }

    /// A destination that bridges never forward (IEEE 802.1Q table 8-1): BPDUs, pause, LLDP.
    pub fn is_link_local(&self) -> bool {
        self.dst[..5] == [0x01, 0x80, 0xc2, 0, 0] && self.dst[5] < 0x10
    }
}

/// What ARP or neighbour discovery asks or says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    /// Who has `target`? From `sender`, which is unspecified in a probe (RFC 5227) or in DAD (RFC 4862).
    Ask4 {
        /// The asker's address.
        sender: Ipv4Addr,
        /// Whose MAC is wanted.
        target: Ipv4Addr,
    },
    /// `sender` is at this MAC.
    Tell4 {
        /// Whose MAC is told.
        sender: Ipv4Addr,
    },
    /// Neighbour solicitation (RFC 4861).
    Ask6 {
        /// The asker's address.
        sender: Ipv6Addr,
        /// Whose MAC is wanted.
        target: Ipv6Addr,
    },
    /// Neighbour advertisement.
    Tell6 {
        /// Whose MAC is told.
        target: Ipv6Addr,
    },
}

/// Reads ARP and neighbour discovery; `None` for everything else.
pub fn resolution(frame: &[u8], o: &Outline) -> Option<Resolution> {
    let payload = frame.get(o.payload..)?;
    match o.ethertype {
        ARP => {
            let arp = ArpPacket::new_checked(payload).ok()?;
            let ArpRepr::EthernetIpv4 { operation, source_protocol_addr, target_protocol_addr, .. } =
                ArpRepr::parse(&arp).ok()?
            else {
                return None;
            };
            match operation {
                ArpOperation::Request => {
                    Some(Resolution::Ask4 { sender: source_protocol_addr, target: target_protocol_addr })
                }
                ArpOperation::Reply => Some(Resolution::Tell4 { sender: source_protocol_addr }),
                ArpOperation::Unknown(_) => None,
            }
        }
        IPV6 => {
            let ip = Ipv6Packet::new_checked(payload).ok()?;
            if ip.next_header() != IpProtocol::Icmpv6 || ip.hop_limit() != 255 {
                return None;
            }
            let icmp = Icmpv6Packet::new_checked(ip.payload()).ok()?;
            match icmp.msg_type() {
                Icmpv6Message::NeighborSolicit => {
                    Some(Resolution::Ask6 { sender: ip.src_addr(), target: icmp.target_addr() })
                }
                Icmpv6Message::NeighborAdvert => Some(Resolution::Tell6 { target: icmp.target_addr() }),
                _ => None,
            }
        }
        _ => None,
    }
}

/// May this frame come from who has `guard`? MAC always; addresses of the mesh's own prefixes strictly; of hosts that it
/// bridges those that its certificate allows. [P-GUARD]
///
/// # Errors
/// `SourceMac`, `SourceVlan`, `SourceAddress`, `LinkLocal`, `BadFrame`.
pub fn check_source(frame: &[u8], guard: &Guard, mesh: &MeshPrefixes) -> Result<Outline, DropReason> {
    let o = Outline::read(frame)?;
    let mut host = None;
    if o.src != guard.mac {
        let bridge = guard.bridge.as_deref().filter(|b| b.has_mac(&o.src)).ok_or(DropReason::SourceMac)?;
        if !bridge.has_vlan(o.vlan) {
            return Err(DropReason::SourceVlan);
        }
        host = Some(bridge);
    }
    if o.is_link_local() {
        return Err(DropReason::LinkLocal);
    }
    // A machine that bridges speaks with its bridge's MAC: its own addresses are no host's.
    let elsewhere = |a: IpAddr| host.is_none_or(|b| b.has_address(a));
    let may4 = |a: Ipv4Addr| guard.ipv4 == Some(a) || !mesh.holds4(a) && elsewhere(a.into());
    let may6 = |a: Ipv6Addr| guard.ipv6 == a || !mesh.holds6(a) && elsewhere(a.into());
    let ok = match resolution(frame, &o) {
        Some(Resolution::Ask4 { sender, .. } | Resolution::Tell4 { sender }) => may4(sender),
        Some(Resolution::Ask6 { sender, .. }) => may6(sender),
        Some(Resolution::Tell6 { target }) => may6(target) && source6(frame, &o).is_none_or(may6),
        None => match o.ethertype {
            // An IPv4 or IPv6 packet too short for its addresses has none to spoof, and no host takes it.
            IPV4 => source4(frame, &o).is_none_or(may4),
            IPV6 => source6(frame, &o).is_none_or(may6),
            // ARP that does not parse could still be read by a laxer host.
            ARP => false,
            _ => true,
        },
    };
    if ok { Ok(o) } else { Err(DropReason::SourceAddress) }
}

fn source4(frame: &[u8], o: &Outline) -> Option<Ipv4Addr> {
    let b: [u8; 4] = frame.get(o.payload + 12..o.payload + 16)?.try_into().ok()?;
    Some(b.into())
}

fn source6(frame: &[u8], o: &Outline) -> Option<Ipv6Addr> {
    let b: [u8; 16] = frame.get(o.payload + 8..o.payload + 24)?.try_into().ok()?;
    Some(b.into())
}

/// A number that frames of one flow have in common, and of others mostly not: of the addresses, the protocol, and the
/// ports of TCP and UDP.
pub fn flow(frame: &[u8]) -> u32 {
    let Ok(o) = Outline::read(frame) else { return 0 };
    let packet = &frame[o.payload..];
    let (addresses, protocol, l4) = match o.ethertype {
        IPV4 => {
            let first = packet.first().map_or(0, |b| usize::from(b & 15) * 4);
            // Only a fragment's first has ports: none counts.
            let whole = packet.get(6..8).is_some_and(|f| f[0] & 0x3f == 0 && f[1] == 0);
            (12..20, packet.get(9), first + usize::from(!whole) * packet.len())
        }
        IPV6 => (8..40, packet.get(6), 40),
        _ => return 0,
    };
    let ports = packet.get(l4..l4 + 4).filter(|_| matches!(protocol, Some(6 | 17)));
    let words = packet.get(addresses).unwrap_or_default().as_chunks::<4>().0.iter();
    let words = words.chain(ports.and_then(|p| p.first_chunk()));
    let hash = words.fold(u64::from(protocol.copied().unwrap_or(0)), |hash, word| {
        (hash ^ u64::from(u32::from_ne_bytes(*word))).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32)
    });
    (hash >> 32) as u32 ^ hash as u32
}

/// The answer to "who has `target`", as `owner` would give it; `question` is the asker's frame (its tags are kept).
pub fn answer(question: &[u8], o: &Outline, r: &Resolution, owner: [u8; 6]) -> Option<Vec<u8>> {
    let mut out = question.get(..o.payload)?.to_vec();
    {
        let mut eth = EthernetFrame::new_unchecked(&mut out[..]);
        eth.set_dst_addr(EthernetAddress(o.src));
        eth.set_src_addr(EthernetAddress(owner));
    }
    let at = out.len();
    match *r {
        Resolution::Ask4 { sender, target } => {
            let repr = ArpRepr::EthernetIpv4 {
                operation: ArpOperation::Reply,
                source_hardware_addr: EthernetAddress(owner),
                source_protocol_addr: target,
                target_hardware_addr: EthernetAddress(o.src),
                target_protocol_addr: sender,
            };
            out.resize(at + repr.buffer_len(), 0);
            repr.emit(&mut ArpPacket::new_unchecked(&mut out[at..]));
        }
        Resolution::Ask6 { sender, target } => {
            let icmp = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
                flags: NdiscNeighborFlags::SOLICITED | NdiscNeighborFlags::OVERRIDE,
                target_addr: target,
                lladdr: Some(RawHardwareAddress::from(EthernetAddress(owner))),
            });
            let ip = Ipv6Repr {
                src_addr: target,
                dst_addr: sender,
                next_header: IpProtocol::Icmpv6,
                payload_len: icmp.buffer_len(),
                hop_limit: 255,
            };
            out.resize(at + ip.buffer_len() + icmp.buffer_len(), 0);
            let mut packet = Ipv6Packet::new_unchecked(&mut out[at..]);
            ip.emit(&mut packet);
            icmp.emit(
                &target,
                &sender,
                &mut Icmpv6Packet::new_unchecked(packet.payload_mut()),
                &Default::default(),
            );
        }
        Resolution::Tell4 { .. } | Resolution::Tell6 { .. } => return None,
    }
    // The shortest Ethernet payload is 46 bytes; a TAP does not pad, and some hosts mind.
    out.resize(out.len().max(60), 0);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// IPv4 with these ports; `fragment`: its second part, which has none.
    fn udp(ports: [u8; 4], fragment: bool) -> Vec<u8> {
        let mut f = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, 40, 0, 1];
        f.extend([0x20 * u8::from(fragment), u8::from(fragment), 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        f.extend(ports);
        f.extend([0; 16]);
        f
    }

    /// Flows differ by their ports and share the queues of a device evenly; of one flow all frames are alike.
    #[test]
    fn flows_spread() {
        let mut queues = [0; 4];
        for port in 0..4000u16 {
            let [a, b] = port.to_be_bytes();
            let mut frame = udp([a, b, 0, 53], false);
            let of = flow(&frame);
            frame.extend([7; 100]);
            assert_eq!(flow(&frame), of);
            queues[((u64::from(of) * 4) >> 32) as usize] += 1;
        }
        assert!(queues.iter().all(|n| (900..1100).contains(n)), "{queues:?}");
        assert_eq!(flow(&udp([1, 2, 3, 4], true)), flow(&udp([5, 6, 7, 8], true)));
    }

    proptest! {
        #[test]
        fn any_frame_has_one(mut f in proptest::collection::vec(any::<u8>(), 0..80), kind in 0usize..3) {
            if let Some(ethertype) = f.get_mut(12..14) {
                ethertype.copy_from_slice(&[[8, 0], [0x86, 0xdd], [0x81, 0]][kind]);
            }
            prop_assert_eq!(flow(&f), flow(&f));
        }
    }
}
