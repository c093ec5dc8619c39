//! The two system calls, `recvmmsg` and `sendmmsg`, and the socket options that nix has no name for.
#![expect(unsafe_code, reason = "system calls over arrays of pointers")]

use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use nix::errno::Errno;

use super::{BATCH, Received, Remote};

/// Datagrams of one message at most (`UDP_MAX_SEGMENTS` before Linux 6.9), and their bytes: an IPv4 packet holds no more.
const MAX_RUN: usize = 64;
/// Messages that a smaller room is made for: that for [`BATCH`] is 11 KB, which are zeroed for each call, and a packet that
/// comes by itself finds them in no cache.
const FEW: usize = 4;
const MAX_JOINED: usize = 65_507;

/// Room for an address of either family, as the kernel writes it.
#[repr(C)]
#[derive(Clone, Copy)]
union Address {
    family: libc::sa_family_t,
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

/// Sets an integer option.
pub fn set_int(fd: &OwnedFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> nix::Result<()> {
    // SAFETY: the pointer is to a live c_int and the length is its size; the call only reads it.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            ptr::from_ref(&value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    Errno::result(result).map(drop)
}

/// Divides what arrives at a port among the sockets that share it, of which the one bound first is number 0: to it goes
/// what does not have the top bit of its first byte set, empty datagrams too; to `parts` others, of which `second` is one,
/// the rest, by the low four bits of its first four bytes, or, if the first is 0xc1, of those after `behind` bytes.
pub fn divide(second: &OwnedFd, parts: usize, behind: usize) -> nix::Result<()> {
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let load = |size: u32, k: usize| step(libc::BPF_LD | size | libc::BPF_ABS, 0, 0, k as u32);
    // The result is the number of the socket. A load past the end of the datagram ends with 0.
    let mut program = [
        load(libc::BPF_B, 0),
        step(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 9, 0x80),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 2, 0, 0xc1),
        load(libc::BPF_W, 0),
        step(libc::BPF_JMP | libc::BPF_JA, 0, 0, 1),
        load(libc::BPF_W, behind),
        step(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, 15),
        // Of no reader: whichever.
        step(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 2, 0, parts as u32),
        step(libc::BPF_ALU | libc::BPF_ADD | libc::BPF_K, 0, 0, 1),
        step(libc::BPF_RET | libc::BPF_A, 0, 0, 0),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 1),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ];
    let fprog = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the pointer is to a live sock_fprog and the length is its size; the program that it points to lives until
    // the call returns, which copies it.
    let result = unsafe {
        libc::setsockopt(
            second.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            ptr::from_ref(&fprog).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    Errno::result(result).map(drop)
}

/// Each message then comes with the address of this machine that it was sent to.
pub fn tell_local(fd: &OwnedFd, v4: bool, yes: bool) -> nix::Result<()> {
    let (level, option) =
        if v4 { (libc::IPPROTO_IP, libc::IP_PKTINFO) } else { (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO) };
    set_int(fd, level, option, yes.into())
}

/// Control messages of one datagram, as the kernel lays them out: the segment size (`UDP_GRO`, `UDP_SEGMENT`), 24 bytes, and
/// the address of this machine (`IP_PKTINFO`, 32 bytes, or `IPV6_PKTINFO`, 40).
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; 64]);

/// Takes what a socket has into `memory`, a `slot` for each datagram (or for several of one size that the kernel has
/// joined), up to [`FEW`] and [`BATCH`] of them; appends to the list what is where. What was cut is left out and counted.
pub fn recv<P: Remote>(
    fd: BorrowedFd<'_>,
    memory: &mut [u8],
    slot: usize,
    got: &mut Received<'_, P>,
) -> nix::Result<usize> {
    let few = recv_up_to::<P, FEW>(fd, memory, slot, got)?;
    if few < FEW || memory.len() - got.used < slot {
        return Ok(few);
    }
    // An error that is none of the moment comes again.
    Ok(few + recv_up_to::<P, BATCH>(fd, memory, slot, got).unwrap_or(0))
}

fn recv_up_to<P: Remote, const MOST: usize>(
    fd: BorrowedFd<'_>,
    memory: &mut [u8],
    slot: usize,
    got: &mut Received<'_, P>,
) -> nix::Result<usize> {
    // SAFETY: all of these are plain C data for which zero is a valid value.
    let mut addresses: [Address; MOST] = unsafe { zeroed() };
    // SAFETY: as above; null pointers with length zero.
    let mut iovecs: [libc::iovec; MOST] = unsafe { zeroed() };
    // SAFETY: as above.
    let mut headers: [libc::mmsghdr; MOST] = unsafe { zeroed() };
    let mut controls = [Control([0; 64]); MOST];
    let start = got.used;
    let slots = memory.get_mut(start..).unwrap_or_default().chunks_exact_mut(slot).take(MOST);
    let mut room = 0;
    let parts = slots.zip(&mut iovecs).zip(&mut addresses).zip(&mut headers).zip(&mut controls);
    for ((((slot, iovec), address), header), control) in parts {
        iovec.iov_base = slot.as_mut_ptr().cast();
        iovec.iov_len = slot.len();
        header.msg_hdr.msg_name = ptr::from_mut(address).cast();
        header.msg_hdr.msg_namelen = size_of::<Address>() as libc::socklen_t;
        header.msg_hdr.msg_iov = iovec;
        header.msg_hdr.msg_iovlen = 1;
        header.msg_hdr.msg_control = ptr::from_mut(control).cast();
        header.msg_hdr.msg_controllen = size_of::<Control>() as _;
        room += 1;
    }
    // SAFETY: the first `room` headers were filled above, each with one iovec over its own slot of the memory (disjoint,
    // as chunks are), one address and one buffer for control messages, all of which live and are not touched until the
    // call returns. The timeout may be null.
    let n = unsafe {
        libc::recvmmsg(
            fd.as_raw_fd(),
            headers.as_mut_ptr(),
            room as libc::c_uint,
            libc::MSG_DONTWAIT as _,
            ptr::null_mut(),
        )
    };
    let n = Errno::result(n)? as usize;
    for (i, (header, address)) in headers.iter().zip(&addresses).take(n).enumerate() {
        let (at, len) = (start + i * slot, header.msg_len as usize);
        if header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 || len > slot {
            *got.truncated += 1;
            continue;
        }
        let Some(from) = read_address(address) else { continue };
        let said = said(&header.msg_hdr);
        let from = P::heard(from, said.local.or(got.local));
        let segment = said.segment.unwrap_or(len).max(1);
        let mut begin = 0;
        // An empty datagram is one, too.
        while begin < len || begin == 0 {
            let end = (begin + segment).min(len);
            got.list.push((from, at + begin..at + end));
            begin = end.max(1);
        }
    }
    got.used = start + n * slot;
    Ok(n)
}

/// What the kernel says of a message.
#[derive(Default)]
struct Said {
    /// Of datagrams that it has joined: the size of each but the last.
    segment: Option<usize>,
    /// The address of this machine that it came to.
    local: Option<IpAddr>,
}

fn said(header: &libc::msghdr) -> Said {
    let mut said = Said::default();
    // SAFETY: the header was filled by the kernel, its control buffer is the one given to it, which lives; the macro
    // checks its length.
    let mut control = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !control.is_null() {
        // SAFETY: not null, so a whole header within the buffer, which is aligned for one.
        let c = unsafe { &*control };
        // SAFETY: a calculation of where its data begin.
        let data = unsafe { libc::CMSG_DATA(control) };
        match (c.cmsg_level, c.cmsg_type) {
            (libc::SOL_UDP, libc::UDP_GRO) => {
                // SAFETY: the kernel puts an int there; it may not be aligned for one.
                let size = unsafe { ptr::read_unaligned(data.cast::<libc::c_int>()) };
                said.segment = usize::try_from(size).ok();
            }
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                // SAFETY: the kernel puts an in_pktinfo there, plain integers.
                let info = unsafe { ptr::read_unaligned(data.cast::<libc::in_pktinfo>()) };
                said.local = Some(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr)).into());
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                // SAFETY: the kernel puts an in6_pktinfo there, plain integers.
                let info = unsafe { ptr::read_unaligned(data.cast::<libc::in6_pktinfo>()) };
                said.local = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into());
            }
            _ => {}
        }
        // SAFETY: as for the first.
        control = unsafe { libc::CMSG_NXTHDR(header, control) };
    }
    said
}

fn read_address(address: &Address) -> Option<SocketAddr> {
    // SAFETY: the memory was zeroed and then perhaps written by the kernel, so every field of every
    // variant is initialised, and all are plain integers.
    match i32::from(unsafe { address.family }) {
        libc::AF_INET => {
            // SAFETY: as above.
            let a = unsafe { address.v4 };
            let ip = Ipv4Addr::from(u32::from_be(a.sin_addr.s_addr));
            Some(SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(a.sin_port))))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let a = unsafe { address.v6 };
            let ip = Ipv6Addr::from(a.sin6_addr.s6_addr);
            // The flow label says nothing about who sent it and would make equal addresses differ.
            Some(SocketAddr::V6(SocketAddrV6::new(ip, u16::from_be(a.sin6_port), 0, a.sin6_scope_id)))
        }
        _ => None,
    }
}

fn write_address(address: &mut Address, to: &SocketAddr) -> libc::socklen_t {
    match to {
        SocketAddr::V4(a) => {
            address.v4 = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: a.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from(*a.ip()).to_be() },
                sin_zero: [0; 8],
            };
            size_of::<libc::sockaddr_in>() as libc::socklen_t
        }
        SocketAddr::V6(a) => {
            address.v6 = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: a.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: a.ip().octets() },
                sin6_scope_id: a.scope_id(),
            };
            size_of::<libc::sockaddr_in6>() as libc::socklen_t
        }
    }
}

/// Sends datagrams of one family, in up to [`BATCH`] messages; with `join`, those to one destination and of one size (the
/// last may be shorter) go as one message that the kernel, or the card, cuts. `local` says of each destination what address
/// of this machine it is sent from, if the routing table is not to choose. Gives how many were taken; the error is that of
/// the first message, and how many datagrams that was.
pub fn send<P: Remote>(
    fd: BorrowedFd<'_>,
    list: &[(P, &[u8])],
    join: bool,
    local: impl Fn(&P) -> Option<IpAddr>,
) -> Result<usize, (Errno, usize)> {
    let send = if list.len() <= FEW { send_up_to::<P, _, FEW> } else { send_up_to::<P, _, BATCH> };
    send(fd, list, join, local)
}

fn send_up_to<P: Remote, L: Fn(&P) -> Option<IpAddr>, const MOST: usize>(
    fd: BorrowedFd<'_>,
    list: &[(P, &[u8])],
    join: bool,
    local: L,
) -> Result<usize, (Errno, usize)> {
    // SAFETY: all of these are plain C data for which zero is a valid value.
    let mut addresses: [Address; MOST] = unsafe { zeroed() };
    // SAFETY: as above; null pointers with length zero.
    let mut iovecs: [libc::iovec; MOST] = unsafe { zeroed() };
    // SAFETY: as above.
    let mut headers: [libc::mmsghdr; MOST] = unsafe { zeroed() };
    let mut controls = [Control([0; 64]); MOST];
    let mut runs = [0usize; MOST];
    let (mut at, mut count) = (0, 0);
    let mut free = &mut iovecs[..];
    let parts = addresses.iter_mut().zip(&mut headers).zip(&mut controls).zip(&mut runs);
    for (((address, header), control), run) in parts {
        let Some((to, first)) = list.get(at) else { break };
        let wanted = if join { run_of(&list[at..]) } else { 1 };
        let (taken, pieces) = gather(&list[at..at + wanted], free);
        if taken < wanted && count > 0 {
            break;
        }
        let (own, rest) = std::mem::take(&mut free).split_at_mut(pieces);
        free = rest;
        *run = taken;
        header.msg_hdr.msg_namelen = write_address(address, &to.address());
        header.msg_hdr.msg_name = ptr::from_mut(address).cast();
        header.msg_hdr.msg_iov = own.as_mut_ptr();
        header.msg_hdr.msg_iovlen = own.len() as _;
        let mut used = 0;
        if taken > 1 {
            used += put(control, used, libc::SOL_UDP, libc::UDP_SEGMENT, first.len() as u16);
        }
        match local(to) {
            None => {}
            Some(IpAddr::V4(ip)) => {
                let ipi_spec_dst = libc::in_addr { s_addr: u32::from(ip).to_be() };
                let info =
                    libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst, ipi_addr: libc::in_addr { s_addr: 0 } };
                used += put(control, used, libc::IPPROTO_IP, libc::IP_PKTINFO, info);
            }
            Some(IpAddr::V6(ip)) => {
                let ipi6_addr = libc::in6_addr { s6_addr: ip.octets() };
                let info = libc::in6_pktinfo { ipi6_addr, ipi6_ifindex: 0 };
                used += put(control, used, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
            }
        }
        if used > 0 {
            header.msg_hdr.msg_control = ptr::from_mut(control).cast();
            header.msg_hdr.msg_controllen = used as _;
        }
        at += taken;
        count += 1;
    }
    // SAFETY: the first `count` headers were filled above with pointers to one address, to as many iovecs as they say,
    // each over borrowed slices that lie one after the other, and to one control message or none; all live until the call
    // returns, and none is written to.
    let sent = unsafe {
        libc::sendmmsg(
            fd.as_raw_fd(),
            headers.as_mut_ptr(),
            count as libc::c_uint,
            (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as _,
        )
    };
    match Errno::result(sent) {
        Ok(n) => Ok(runs.iter().take(n as usize).sum()),
        Err(e) => Err((e, runs[0])),
    }
}

/// Points to as many datagrams as these pieces can, those that lie one after the other with one; says how many datagrams
/// and pieces that were.
fn gather<P>(list: &[(P, &[u8])], pieces: &mut [libc::iovec]) -> (usize, usize) {
    let (mut used, mut end) = (0usize, ptr::null());
    for (n, (_, bytes)) in list.iter().enumerate() {
        let span = bytes.as_ptr_range();
        match used.checked_sub(1).and_then(|last| pieces.get_mut(last)) {
            Some(last) if span.start == end => last.iov_len += bytes.len(),
            _ => {
                let Some(next) = pieces.get_mut(used) else { return (n, used) };
                // The kernel only reads what it sends.
                *next = libc::iovec { iov_base: span.start.cast_mut().cast(), iov_len: bytes.len() };
                used += 1;
            }
        }
        end = span.end;
    }
    (list.len(), used)
}

/// How many from the front may be one message.
fn run_of<P: Remote>(list: &[(P, &[u8])]) -> usize {
    let Some((to, first)) = list.first() else { return 0 };
    let (size, mut total, mut run) = (first.len(), first.len(), 1);
    if size == 0 {
        return 1;
    }
    for (other, bytes) in &list[1..] {
        total += bytes.len();
        if other != to || bytes.len() > size || bytes.is_empty() || total > MAX_JOINED || run == MAX_RUN {
            break;
        }
        run += 1;
        if bytes.len() < size {
            break;
        }
    }
    run
}

/// Writes one control message behind those that take `used` bytes; gives what it takes itself.
fn put<T: Copy>(
    control: &mut Control,
    used: usize,
    level: libc::c_int,
    kind: libc::c_int,
    value: T,
) -> usize {
    let size = size_of::<T>() as u32;
    // SAFETY: calculations.
    let (space, len) = unsafe { (libc::CMSG_SPACE(size) as usize, libc::CMSG_LEN(size)) };
    let Some(room) = control.0.get_mut(used..used + space) else { return 0 };
    let c = room.as_mut_ptr().cast::<libc::cmsghdr>();
    // SAFETY: there is room for the header and the data behind it; it is aligned for a header, since the buffer is, and what
    // stands before takes whole multiples of that.
    unsafe {
        (*c).cmsg_level = level;
        (*c).cmsg_type = kind;
        (*c).cmsg_len = len as _;
        ptr::write_unaligned(libc::CMSG_DATA(c).cast::<T>(), value);
    }
    space
}
