//! The two system calls, `recvmmsg` and `sendmmsg`, and the socket options that nix has no name for.
#![expect(unsafe_code, reason = "system calls over arrays of pointers")]

use std::mem::{size_of, zeroed};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use nix::errno::Errno;

use super::{BATCH, RecvBatch};

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

/// Divides what arrives at a port between the two sockets that share it: to this one, bound second, goes what has the top
/// bit of its first byte set, to the one bound first the rest, empty datagrams too.
pub fn divide(second: &OwnedFd) -> nix::Result<()> {
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    // The result is the number of the socket. A load past the end of the datagram ends with 0.
    let mut program = [
        step(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 1, 0x80),
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

/// Appends what a socket has to the batch; leaves out (and counts) what was cut.
pub fn recv(fd: BorrowedFd<'_>, batch: &mut RecvBatch) -> nix::Result<usize> {
    let start = batch.len;
    let room = (batch.capacity() - start).min(BATCH);
    // SAFETY: all of these are plain C data for which zero is a valid value.
    let mut addresses: [Address; BATCH] = unsafe { zeroed() };
    // SAFETY: as above; null pointers with length zero.
    let mut iovecs: [libc::iovec; BATCH] = unsafe { zeroed() };
    // SAFETY: as above.
    let mut headers: [libc::mmsghdr; BATCH] = unsafe { zeroed() };
    let slots = batch.slab.chunks_exact_mut(batch.slot).skip(start).take(room);
    for (((slot, iovec), address), header) in slots.zip(&mut iovecs).zip(&mut addresses).zip(&mut headers) {
        iovec.iov_base = slot.as_mut_ptr().cast();
        iovec.iov_len = slot.len();
        header.msg_hdr.msg_name = ptr::from_mut(address).cast();
        header.msg_hdr.msg_namelen = size_of::<Address>() as libc::socklen_t;
        header.msg_hdr.msg_iov = iovec;
        header.msg_hdr.msg_iovlen = 1;
    }
    // SAFETY: the first `room` headers were filled above, each with one iovec over its own slot of the
    // slab (disjoint, as chunks are) and one address, all of which live and are not touched until the
    // call returns. The timeout may be null.
    let got = unsafe {
        libc::recvmmsg(
            fd.as_raw_fd(),
            headers.as_mut_ptr(),
            room as libc::c_uint,
            libc::MSG_DONTWAIT as _,
            ptr::null_mut(),
        )
    };
    let got = Errno::result(got)? as usize;
    let mut kept = start;
    for (i, (header, address)) in headers.iter().zip(&addresses).take(got).enumerate() {
        let len = header.msg_len as usize;
        if header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 || len > batch.slot {
            batch.truncated += 1;
            continue;
        }
        let Some(from) = read_address(address) else { continue };
        if kept != start + i {
            let at = (start + i) * batch.slot;
            batch.slab.copy_within(at..at + len, kept * batch.slot);
        }
        batch.lens[kept] = len;
        batch.from[kept] = from;
        kept += 1;
    }
    batch.len = kept;
    Ok(kept - start)
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

/// Sends up to [`BATCH`] datagrams of one family; the error is that of the first one.
pub fn send(fd: BorrowedFd<'_>, list: &[(SocketAddr, &[u8])]) -> nix::Result<usize> {
    // SAFETY: all of these are plain C data for which zero is a valid value.
    let mut addresses: [Address; BATCH] = unsafe { zeroed() };
    // SAFETY: as above; null pointers with length zero.
    let mut iovecs: [libc::iovec; BATCH] = unsafe { zeroed() };
    // SAFETY: as above.
    let mut headers: [libc::mmsghdr; BATCH] = unsafe { zeroed() };
    let count = list.len().min(BATCH);
    for ((((to, bytes), iovec), address), header) in
        list.iter().zip(&mut iovecs).zip(&mut addresses).zip(&mut headers)
    {
        header.msg_hdr.msg_namelen = write_address(address, to);
        header.msg_hdr.msg_name = ptr::from_mut(address).cast();
        // The kernel only reads what it sends.
        iovec.iov_base = bytes.as_ptr().cast_mut().cast();
        iovec.iov_len = bytes.len();
        header.msg_hdr.msg_iov = iovec;
        header.msg_hdr.msg_iovlen = 1;
    }
    // SAFETY: the first `count` headers were filled above with pointers to one address and one iovec
    // each, the iovec over a borrowed slice; all live until the call returns, and none is written to.
    let sent = unsafe {
        libc::sendmmsg(
            fd.as_raw_fd(),
            headers.as_mut_ptr(),
            count as libc::c_uint,
            (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as _,
        )
    };
    Errno::result(sent).map(|n| n as usize)
}
