//! What is cut is joined again as it was, and a member that lies gets nothing to the device that it would not take. [P-CHUNK]

use super::*;
use proptest::prelude::*;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpAddress, Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket};

/// A superframe as a device gives it: the field has the pseudo header's sum.
#[derive(Debug, Clone)]
pub(crate) struct Drawn {
    pub frame: Vec<u8>,
    pub size: u16,
}

fn build(tags: usize, v6: bool, tcp: bool, options: usize, flags: u8, payload: &[u8], seed: u64) -> Vec<u8> {
    let b = |i: u64| (seed.rotate_left(i as u32 * 7) >> 3) as u8;
    let mut f = vec![0x02, b(1), b(2), 3, 4, 5, 0x02, b(3), 8, 9, 10, 11];
    for t in 0..tags {
        f.extend(if t + 1 == tags { [0x81, 0, 0, 7] } else { [0x88, 0xa8, 0, 9] });
    }
    let l4_header = if tcp { 20 + options * 4 } else { 8 };
    let l4_len = l4_header + payload.len();
    if v6 {
        f.extend([0x86, 0xdd, 0x60, b(4) & 15, b(5), b(6)]);
        f.extend((l4_len as u16).to_be_bytes());
        f.extend([if tcp { 6 } else { 17 }, 64]);
        f.extend((0..32).map(b));
    } else {
        f.extend([0x08, 0, 0x45, b(4)]);
        f.extend(((20 + l4_len) as u16).to_be_bytes());
        f.extend([b(5), b(6), 0x40, 0, 64, if tcp { 6 } else { 17 }, 0, 0]);
        f.extend((0..8).map(b));
    }
    let ports = [b(9), b(10), 0x50, b(11)];
    f.extend(ports);
    if tcp {
        f.extend((0..8).map(|i| b(i + 12)));
        f.extend([((5 + options) as u8) << 4, flags, b(20), b(21), 0, 0, 0, 0]);
        f.extend((0..options * 4).map(|i| b(i as u64 + 22)));
    } else {
        f.extend((l4_len as u16).to_be_bytes());
        f.extend([0, 0]);
    }
    f.extend(payload);
    let o = Outline::read(&f).unwrap();
    let h = Headers::read(&f, &o).expect("a frame as built");
    h.set_lengths(&mut f, payload.len());
    f
}

/// ACK, and of PSH, FIN, ECE and CWR any.
const FLAGS: [u8; 6] = [0x10, 0x18, 0x11, 0x50, 0x90, 0xd9];

pub(crate) fn drawn() -> impl Strategy<Value = Drawn> {
    let shape = (0usize..3, any::<bool>(), any::<bool>(), 0usize..11, 0usize..FLAGS.len());
    (shape, 536u16..1500, 1usize..60_000, any::<u64>()).prop_map(
        |((tags, v6, tcp, options, flags), size, len, seed)| {
            let payload: Vec<u8> = (0..len).map(|i| (i as u64 ^ seed >> (i % 50)) as u8).collect();
            Drawn { frame: build(tags, v6, tcp, options, FLAGS[flags], &payload, seed), size }
        },
    )
}

/// Is the frame one that a strict host takes? By smoltcp's parsers and checksums, not ours.
fn is_sound(frame: &[u8]) -> bool {
    let o = Outline::read(frame).unwrap();
    let packet = &frame[o.payload..];
    let all = ChecksumCapabilities::default();
    let (src, dst, protocol, body): (IpAddress, IpAddress, _, _) = if o.ethertype == 0x800 {
        let ip = Ipv4Packet::new_checked(packet).unwrap();
        assert!(ip.verify_checksum() && usize::from(ip.total_len()) == packet.len());
        (ip.src_addr().into(), ip.dst_addr().into(), ip.next_header(), packet[20..].to_vec())
    } else {
        let ip = Ipv6Packet::new_checked(packet).unwrap();
        assert_eq!(ip.total_len(), packet.len());
        (ip.src_addr().into(), ip.dst_addr().into(), ip.next_header(), packet[40..].to_vec())
    };
    assert!(all.tcp.rx() && all.udp.rx());
    match u8::from(protocol) {
        6 => TcpPacket::new_checked(&body[..]).is_ok_and(|t| t.verify_checksum(&src, &dst)),
        17 => UdpPacket::new_checked(&body[..]).is_ok_and(|u| u.verify_checksum(&src, &dst)),
        _ => false,
    }
}

/// Would a device take it? What the kernel checks (`virtio_net_hdr_to_skb`), and that all offsets lie within.
fn is_taken(m: &VnetHeader, frame: &[u8]) -> bool {
    let end = usize::from(m.csum_start) + usize::from(m.csum_offset) + 2;
    let gso = m.gso_type & !GSO_ECN;
    assert_eq!(VnetHeader::parse(&m.emit()), *m);
    m.flags == NEEDS_CSUM
        && end <= usize::from(m.hdr_len)
        && usize::from(m.hdr_len) <= frame.len()
        && matches!(gso, 0 | GSO_TCP4 | GSO_TCP6 | GSO_UDP)
        && (gso == 0) == (m.gso_size == 0)
}

/// What a receiver makes of parts that come together: superframes, with what the device is told.
fn join(parts: &[Vec<u8>], id: u32, size: u16) -> Vec<(Vec<u8>, VnetHeader)> {
    let mut out: Vec<(Vec<u8>, VnetHeader)> = vec![];
    // Of which no superframe can be.
    let mut alone = vec![];
    let mut growing: Option<(Growing, Vec<u8>, u8)> = None;
    let mut done = |g: Option<(Growing, Vec<u8>, u8)>| {
        if let Some((g, mut frame, flags)) = g {
            let meta = g.finish(&mut frame, flags);
            out.push((frame, meta));
        }
    };
    for part in parts {
        let h = Headers::read(part, &Outline::read(part).unwrap()).expect("a part has headers");
        if let Some((g, frame, flags)) = &mut growing
            && let Some((at, own)) = g.take(id, size, &frame.clone(), part)
        {
            frame.extend_from_slice(&part[at..]);
            *flags = own;
        } else {
            done(growing.take());
            match Growing::begin(id, size, part, h) {
                Some(g) => growing = Some((g, part.clone(), tcp_flags(part, &h))),
                None => {
                    assert_eq!(size, 0, "a part begins one");
                    alone.push((part.clone(), h.meta(part, 0)));
                }
            }
        }
    }
    done(growing);
    out.extend(alone);
    out
}

proptest! {
    /// Cut and joined, a superframe is what it was, byte for byte; each part stands alone. So are frames by themselves
    /// (`many` is 0) of which the sender has said nothing.
    #[test]
    fn cut_and_joined_it_is_the_same(d in drawn(), many in 0usize..4) {
        let o = Outline::read(&d.frame).unwrap();
        let h = Headers::read(&d.frame, &o).unwrap();
        let (size, len) = (usize::from(d.size), d.frame.len() - h.payload);
        let (many, told) = if many == 0 { (1, 0) } else { (many, d.size) };
        let step = size * many;
        let parts: Vec<Vec<u8>> = (0..len.div_ceil(step)).map(|i| {
            let mut part = vec![];
            h.cut(&d.frame, i * step, step, i * many, &mut part);
            part
        }).collect();
        for part in &parts {
            let mut whole = part.clone();
            prop_assert!(complete(&mut whole, &h.meta(part, 0)));
            prop_assert!(is_sound(&whole));
        }
        let joined = join(&parts, 9, told);
        prop_assert_eq!(joined.len(), 1);
        let (frame, meta) = &joined[0];
        prop_assert_eq!(frame, &d.frame);
        prop_assert_eq!(meta.gso_size, if len > size { d.size } else { 0 });
        prop_assert!(is_taken(meta, frame));
    }

    /// A lost part, a repeated one, two in the wrong order: what is joined holds every byte at its place, and nothing
    /// twice that did not come twice.
    #[test]
    fn what_does_not_follow_is_not_joined(d in drawn(), lost in any::<prop::sample::Index>(), way in 0..3, alone in any::<bool>()) {
        let o = Outline::read(&d.frame).unwrap();
        let h = Headers::read(&d.frame, &o).unwrap();
        prop_assume!(h.is_tcp());
        let (size, len) = (usize::from(d.size), d.frame.len() - h.payload);
        let mut parts: Vec<Vec<u8>> = (0..len.div_ceil(size)).map(|i| {
            let mut part = vec![];
            h.cut(&d.frame, i * size, size, i, &mut part);
            part
        }).collect();
        prop_assume!(parts.len() > 2);
        let i = lost.index(parts.len() - 1);
        match way {
            0 => drop(parts.remove(i)),
            1 => { let again = parts[i].clone(); parts.insert(i, again); }
            _ => parts.swap(i, i + 1),
        }
        let first = h.seq(&d.frame);
        let mut bytes = 0;
        for (frame, meta) in join(&parts, 9, if alone { 0 } else { d.size }) {
            let o = Outline::read(&frame).unwrap();
            let j = Headers::read(&frame, &o).unwrap();
            let at = j.seq(&frame).wrapping_sub(first) as usize;
            prop_assert_eq!(&frame[j.payload..], &d.frame[h.payload + at..h.payload + at + frame.len() - j.payload]);
            bytes += frame.len() - j.payload;
            for whole in plain(&frame, &o, &meta).unwrap() {
                prop_assert!(is_sound(&whole));
            }
        }
        prop_assert_eq!(bytes, parts.iter().map(|p| p.len() - h.payload).sum::<usize>());
    }

    /// A part of which a byte or the length is another is taken only if what was found of the first holds of it, too: else
    /// what a member may send would be looked at in the first alone.
    #[test]
    fn a_part_taken_is_as_the_first(d in drawn(), change in 1u8.., longer in -70isize..70, alone in any::<bool>()) {
        let o = Outline::read(&d.frame).unwrap();
        let h = Headers::read(&d.frame, &o).unwrap();
        let size = usize::from(d.size);
        prop_assume!(d.frame.len() - h.payload > 2 * size);
        let [head, right] = [0, 1].map(|i| {
            let mut part = vec![];
            h.cut(&d.frame, i * size, size, i, &mut part);
            part
        });
        let told = if alone { 0 } else { d.size };
        let took = |part: &[u8]| Growing::begin(9, told, &head, h).and_then(|mut g| g.take(9, told, &head, part)).is_some();
        // (A first part may be the last, too, by its flags.)
        let first_is_open = took(&right);
        for (i, resized) in (0..h.payload).flat_map(|i| [(i, 0), (i, longer)]) {
            let mut part = right.clone();
            part.resize(part.len().saturating_add_signed(resized), 7);
            part[i] ^= change;
            if took(&part) {
                prop_assert!(first_is_open);
                prop_assert_eq!(Outline::read(&part).unwrap(), o);
                prop_assert_eq!(Headers::read(&part, &o), Some(h));
                let addresses = if h.v6 { h.ip + 8..h.ip + 40 } else { h.ip + 12..h.ip + 20 };
                prop_assert_eq!(&part[addresses.clone()], &head[addresses]);
                prop_assert!(told > 0 || part.len() <= head.len());
            }
        }
    }

    /// For a device that takes no superframes: complete frames, of no more than a segment each, with all of the payload.
    #[test]
    fn plain_frames_are_complete(d in drawn()) {
        let o = Outline::read(&d.frame).unwrap();
        let h = Headers::read(&d.frame, &o).unwrap();
        let len = d.frame.len() - h.payload;
        prop_assume!(len.div_ceil(usize::from(d.size)) <= MAX_SEGMENTS);
        let frames = plain(&d.frame, &o, &h.meta(&d.frame, d.size)).unwrap();
        let mut payload = vec![];
        for f in &frames {
            prop_assert!(is_sound(f));
            prop_assert!(f.len() - h.payload <= usize::from(d.size));
            payload.extend_from_slice(&f[h.payload..]);
        }
        prop_assert_eq!(&payload, &d.frame[h.payload..]);
        // The first alone says that the window was reduced, the last alone that it ends.
        if h.is_tcp() {
            for (i, f) in frames.iter().enumerate() {
                let (had, has) = (d.frame[h.l4 + 13], f[h.l4 + 13]);
                prop_assert_eq!(has & CWR, if i == 0 { had & CWR } else { 0 });
                prop_assert_eq!(has & FIN_PSH, if i + 1 == frames.len() { had & FIN_PSH } else { 0 });
                prop_assert_eq!(has & !(CWR | FIN_PSH), had & !(CWR | FIN_PSH));
            }
        }
    }

    /// Any bytes: no panic, and what is begun, taken or finished is within what a device takes.
    #[test]
    fn any_bytes_are_a_superframe_or_none(a in prop::collection::vec(any::<u8>(), 0..200), d in drawn(), size in any::<u16>(),
                                          at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        if let Ok(o) = Outline::read(&a) {
            let _ = Headers::read(&a, &o);
            let m = VnetHeader { flags: 1, gso_type: byte, hdr_len: 0, gso_size: size, csum_start: size, csum_offset: 6 };
            let _ = plain(&a, &o, &m);
        }
        // One byte of the headers is another.
        let mut frame = d.frame.clone();
        let i = at.index(frame.len().min(100));
        frame[i] = byte;
        let Ok(o) = Outline::read(&frame) else { return Ok(()) };
        let Some(h) = Headers::read(&frame, &o) else { return Ok(()) };
        if let Some(g) = Growing::begin(1, size, &frame, h) {
            let mut head = frame.clone();
            let meta = g.finish(&mut head, 0);
            prop_assert!(is_taken(&meta, &head));
        }
    }
}

/// DHCP's readers look at the checksum; IPv6's do not come by Ethernet alone.
#[test]
fn dhcp_is_known() {
    let mut f = build(0, false, false, 0, 0, &[1; 300], 5);
    let o = Outline::read(&f).unwrap();
    let h = Headers::read(&f, &o).unwrap();
    assert!(!h.is_dhcp(&f));
    f[h.l4 + 2..h.l4 + 4].copy_from_slice(&67u16.to_be_bytes());
    assert!(h.is_dhcp(&f));
}

/// A sum that would be zero is sent as all ones: zero says that UDP has none (RFC 768).
#[test]
fn a_sum_of_zero_is_all_ones() {
    let mut f = build(0, false, false, 0, 0, &[0, 0], 5);
    let o = Outline::read(&f).unwrap();
    let h = Headers::read(&f, &o).unwrap();
    let sum = fold(sum(&f[h.l4..], 0));
    f[h.payload..].copy_from_slice(&(!sum).to_be_bytes());
    let meta = h.meta(&f, 0);
    assert!(complete(&mut f, &meta));
    assert_eq!(&f[h.l4 + 6..h.l4 + 8], &[0xff, 0xff]);
    assert!(is_sound(&f));
}
