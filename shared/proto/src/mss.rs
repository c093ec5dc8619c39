//! TCP's largest segment, as a peer's SYN tells it: lowered to what one datagram of the way back to the peer holds. Else a
//! segment by itself, for which the path is a little too small, goes in two datagrams: twice the packets, and on a lossy
//! path twice the losses, which is 0.7 of the rate (Mathis et al., "The Macroscopic Behavior of the TCP Congestion
//! Avoidance Algorithm", 1997). Routers before narrow links do the same. [P-MSS]

use crate::frame::Outline;
use crate::superframe::{Headers, fold};
use shadowmesh_wire::data::{CHUNK_HEADER, FRAME_OVERHEAD};
use smoltcp::wire::TcpOption;

const SYN: u8 = 0x02;
/// TCP's header without options.
const TCP: usize = 20;
/// The kind of TCP-AO (RFC 5925 section 2.2).
const AUTHENTICATION: u8 = 29;

/// Lowers the option in a frame that has a SYN, where it is more than a datagram of `room` bytes holds. `complete`: the
/// frame's checksum is, and stays so; else it is the sum of the pseudo header, which knows nothing of options. What TCP-AO
/// signs is left as it is.
pub fn lower(frame: &mut [u8], o: &Outline, room: usize, complete: bool) {
    if !is_syn(frame, o) {
        return;
    }
    let Some(h) = Headers::read(frame, o) else { return };
    let Some(at) = option(&frame[..h.payload], h.l4 + TCP) else { return };
    // The number says nothing of options: a sender takes off those that it uses (RFC 6691 section 2).
    let most = room.saturating_sub(FRAME_OVERHEAD + CHUNK_HEADER + h.l4 + TCP);
    let (old, new) =
        (u16::from_be_bytes([frame[at], frame[at + 1]]), u16::try_from(most).unwrap_or(u16::MAX));
    if old <= new {
        return;
    }
    frame[at..at + 2].copy_from_slice(&new.to_be_bytes());
    if complete {
        // RFC 1624 section 3, equation 3; at an odd place the halves belong to two words.
        let [old, new] =
            if (at - h.l4).is_multiple_of(2) { [old, new] } else { [old, new].map(u16::swap_bytes) };
        let field = h.l4 + 16;
        let sum = u16::from_be_bytes([frame[field], frame[field + 1]]);
        let sum = !fold(u64::from(!sum) + u64::from(!old) + u64::from(new));
        frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

/// TCP with SYN, as far as a look at two bytes tells: of most frames no more is read.
fn is_syn(frame: &[u8], o: &Outline) -> bool {
    let (protocol, l4) = match (o.ethertype, frame.get(o.payload)) {
        (0x0800, Some(first)) => (o.payload + 9, o.payload + usize::from(first & 15) * 4),
        (0x86dd, _) => (o.payload + 6, o.payload + 40),
        _ => return false,
    };
    frame.get(protocol) == Some(&6) && frame.get(l4 + 13).is_some_and(|flags| flags & SYN != 0)
}

/// Where the option's number is, among those from `start` to the end of the headers; `None` also where TCP-AO is.
fn option(headers: &[u8], start: usize) -> Option<usize> {
    let (mut rest, mut found) = (headers.get(start..)?, None);
    while !rest.is_empty() {
        let at = headers.len() - rest.len();
        match TcpOption::parse(rest).ok()? {
            (_, TcpOption::EndOfList) => break,
            (_, TcpOption::Unknown { kind: AUTHENTICATION, .. }) => return None,
            (after, option) => {
                if matches!(option, TcpOption::MaxSegmentSize(_)) {
                    found = Some(at + 2);
                }
                rest = after;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{
        EthernetAddress, EthernetFrame, EthernetProtocol, IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr,
        Ipv6Packet, Ipv6Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
    };
    use std::net::{Ipv4Addr, Ipv6Addr};

    /// A SYN with this option, by smoltcp, behind tags; `front` is put before the options that it writes, and after them
    /// as many zeros as are missing to a whole word.
    fn syn(v6: bool, tags: usize, mss: Option<u16>, front: &[u8]) -> Vec<u8> {
        let tcp = TcpRepr {
            src_port: 40_000,
            dst_port: 80,
            control: TcpControl::Syn,
            seq_number: TcpSeqNumber(7),
            ack_number: None,
            window_len: 64_240,
            window_scale: Some(7),
            max_seg_size: mss,
            sack_permitted: true,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &[],
        };
        let len = (tcp.header_len() + front.len()).next_multiple_of(4);
        let caps = ChecksumCapabilities::default();
        let (a4, b4) = (Ipv4Addr::new(10, 1, 2, 3), Ipv4Addr::new(10, 1, 2, 4));
        let (a6, b6) =
            (Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1), Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2));
        let (next_header, payload_len, hop_limit) = (IpProtocol::Tcp, len, 64);
        let mut f = vec![0; 14];
        let mut eth = EthernetFrame::new_unchecked(&mut f[..]);
        eth.set_src_addr(EthernetAddress([2, 0, 0, 0, 0, 1]));
        eth.set_dst_addr(EthernetAddress([2, 0, 0, 0, 0, 2]));
        eth.set_ethertype(if v6 { EthernetProtocol::Ipv6 } else { EthernetProtocol::Ipv4 });
        for _ in 0..tags {
            f.splice(12..12, [0x81, 0, 0, 7]);
        }
        let ip = f.len();
        let (a, b): (IpAddress, IpAddress) = if v6 { (a6.into(), b6.into()) } else { (a4.into(), b4.into()) };
        if v6 {
            let repr = Ipv6Repr { src_addr: a6, dst_addr: b6, next_header, payload_len, hop_limit };
            f.resize(ip + repr.buffer_len() + len, 0);
            repr.emit(&mut Ipv6Packet::new_unchecked(&mut f[ip..]));
        } else {
            let repr = Ipv4Repr { src_addr: a4, dst_addr: b4, next_header, payload_len, hop_limit };
            f.resize(ip + repr.buffer_len() + len, 0);
            repr.emit(&mut Ipv4Packet::new_unchecked(&mut f[ip..]), &caps);
        }
        let l4 = f.len() - len;
        let (options, end) = (l4 + TCP, l4 + tcp.header_len());
        tcp.emit(&mut TcpPacket::new_unchecked(&mut f[l4..end]), &a, &b, &caps);
        f.copy_within(options..end, options + front.len());
        f[options..options + front.len()].copy_from_slice(front);
        let mut packet = TcpPacket::new_unchecked(&mut f[l4..]);
        packet.set_header_len(len as u8);
        packet.fill_checksum(&a, &b);
        f
    }

    /// The option's number, and whether the checksum is right.
    fn read(f: &[u8]) -> (Option<u16>, bool) {
        let o = Outline::read(f).unwrap();
        let h = Headers::read(f, &o).unwrap();
        let (a, b): (IpAddress, IpAddress) = if f[o.payload] >> 4 == 6 {
            let ip = Ipv6Packet::new_checked(&f[o.payload..]).unwrap();
            (ip.src_addr().into(), ip.dst_addr().into())
        } else {
            let ip = Ipv4Packet::new_checked(&f[o.payload..]).unwrap();
            (ip.src_addr().into(), ip.dst_addr().into())
        };
        let packet = TcpPacket::new_checked(&f[h.l4..]).unwrap();
        let mut rest = packet.options();
        let mut mss = None;
        while let Ok((after, option)) = TcpOption::parse(rest) {
            match option {
                TcpOption::EndOfList => break,
                TcpOption::MaxSegmentSize(n) => mss = Some(n),
                _ => {}
            }
            rest = after;
        }
        (mss, packet.verify_checksum(&a, &b))
    }

    /// The largest segment that a sender makes of the number goes in one datagram, with or without options, and one byte
    /// more would not. [P-MSS]
    #[test]
    fn a_segment_fills_a_datagram() {
        for (v6, tags, expected) in [(false, 0, 1383), (true, 0, 1363), (false, 2, 1375)] {
            let mut f = syn(v6, tags, Some(1460), &[]);
            let o = Outline::read(&f).unwrap();
            lower(&mut f, &o, 1472, true);
            assert_eq!(read(&f), (Some(expected), true));
            let segment = o.payload + if v6 { 40 } else { 20 } + TCP + usize::from(expected);
            assert_eq!(FRAME_OVERHEAD + CHUNK_HEADER + segment, 1472);
        }
    }

    /// What is small enough, absent, signed, no SYN or cut stays as it is.
    #[test]
    fn the_rest_is_left_alone() {
        let signed: [u8; 20] = std::array::from_fn(|i| [AUTHENTICATION, 20].get(i).copied().unwrap_or(9));
        let mut ack = syn(false, 0, Some(1460), &[]);
        ack[14 + 20 + 13] = 0x10;
        for f in
            [syn(false, 0, Some(1383), &[]), syn(false, 0, None, &[]), syn(true, 1, Some(1460), &signed), ack]
        {
            let mut g = f.clone();
            lower(&mut g, &Outline::read(&f).unwrap(), 1472, true);
            assert_eq!(g, f);
        }
        let f = syn(false, 0, Some(1460), &[]);
        for end in 14..f.len() {
            let mut g = f[..end].to_vec();
            lower(&mut g, &Outline::read(&f).unwrap(), 1472, true);
            assert_eq!(g, f[..end]);
        }
    }

    proptest! {
        /// Checksums stay right wherever the option is; one that is left to a device is not touched.
        #[test]
        fn checksums_hold(v6: bool, tags in 0usize..3, mss in 1000u16.., room in 1100usize..9000, nops in 0usize..24) {
            let f = syn(v6, tags, Some(mss), &vec![1; nops]);
            let o = Outline::read(&f).unwrap();
            let mut g = f.clone();
            lower(&mut g, &o, room, true);
            let least = room - FRAME_OVERHEAD - CHUNK_HEADER - o.payload - if v6 { 60 } else { 40 };
            prop_assert_eq!(read(&g), (Some(mss.min(least as u16)), true));
            let mut left = f.clone();
            lower(&mut left, &o, room, false);
            let field = o.payload + if v6 { 40 } else { 20 } + 16;
            prop_assert_eq!(&left[field..field + 2], &f[field..field + 2]);
            prop_assert_eq!(read(&left).0, read(&g).0);
        }

        /// Whatever a peer sends.
        #[test]
        fn anything_is_taken(mut f in proptest::collection::vec(any::<u8>(), 14..200), at in 34usize..100) {
            f[12..14].copy_from_slice(&[8, 0]);
            if let Ok(o) = Outline::read(&f) {
                if let Some(flags) = f.get_mut(at) {
                    *flags = SYN;
                }
                lower(&mut f, &o, 1472, true);
            }
        }
    }
}
