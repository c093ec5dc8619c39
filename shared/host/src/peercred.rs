//! Who is at the other end of a Unix stream socket, as the kernel says it.

use std::io;
use std::os::fd::AsFd;

use nix::sys::socket::{getsockopt, sockopt};

/// The process that connected, at the moment when it connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerCred {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id (supplementary groups are not told).
    pub gid: u32,
    /// Process id, in this process's pid namespace; 0 if it is outside.
    pub pid: i32,
}

/// Reads `SO_PEERCRED` of a connected Unix stream.
pub fn of(stream: &impl AsFd) -> io::Result<PeerCred> {
    let c = getsockopt(&stream.as_fd(), sockopt::PeerCredentials)?;
    Ok(PeerCred { uid: c.uid(), gid: c.gid(), pid: c.pid() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn names_this_process() {
        let (a, _b) = UnixStream::pair().unwrap();
        let me = of(&a).unwrap();
        assert_eq!(me.pid, std::process::id() as i32);
        assert_eq!(me.uid, nix::unistd::geteuid().as_raw());
        assert_eq!(me.gid, nix::unistd::getegid().as_raw());
    }

    #[test]
    fn refuses_what_is_no_socket() {
        assert!(of(&std::fs::File::open("/dev/null").unwrap()).is_err());
    }
}
