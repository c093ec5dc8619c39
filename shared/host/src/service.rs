//! Being a service: telling the service manager how we are (the `sd_notify` protocol: a datagram to `$NOTIFY_SOCKET`), and a
//! fair share of the processors.
//!
//! Without a service manager the calls do nothing, so a daemon in the foreground needs no other path.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// What the service manager may be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice<'a> {
    /// Start-up is over: what depends on this service may start.
    Ready,
    /// The configuration is being read anew; [`Notice::Ready`] follows.
    Reloading,
    /// The end has begun.
    Stopping,
    /// One line for `systemctl status`.
    Status(&'a str),
}

/// Raises the weight of the session that this process leads, if it leads one. Where the kernel shares the processors among
/// sessions (`sched(7)`, "The autogroup feature") one of a single thread may wait for most of a second beside a busy one,
/// and what goes through a daemon waits with it. Needs `CAP_SYS_NICE`; where it cannot be done all is as before.
pub fn raise_session() {
    const NICE: &str = "-10";
    if nix::unistd::getsid(None) == Ok(nix::unistd::getpid()) {
        // No such file: the kernel does not do so.
        let _unchanged = std::fs::write("/proc/self/autogroup", NICE);
    }
}

/// Tells it; says whether there was anybody to tell. An error is never a reason to stop.
pub fn notify(notice: Notice<'_>) -> io::Result<bool> {
    match std::env::var_os("NOTIFY_SOCKET") {
        Some(name) if !name.is_empty() => notify_at(&name, notice).map(|()| true),
        _ => Ok(false),
    }
}

fn notify_at(name: &OsStr, notice: Notice<'_>) -> io::Result<()> {
    let address = match name.as_bytes() {
        [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest)?,
        _ => SocketAddr::from_pathname(name)?,
    };
    let text = match notice {
        Notice::Ready => "READY=1".to_owned(),
        Notice::Reloading => "RELOADING=1".to_owned(),
        Notice::Stopping => "STOPPING=1".to_owned(),
        // A second line would be a second message.
        Notice::Status(line) => format!("STATUS={}", line.replace('\n', " ")),
    };
    let socket = UnixDatagram::unbound()?;
    socket.send_to_addr(text.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_path_and_by_abstract_name() {
        let path = std::env::temp_dir().join(format!("sm-notify-{}", std::process::id()));
        let abstract_name = format!("sm-notify-{}", std::process::id());
        let at_path = UnixDatagram::bind(&path).unwrap();
        let address = SocketAddr::from_abstract_name(&abstract_name).unwrap();
        let at_name = UnixDatagram::bind_addr(&address).unwrap();
        let mut buf = [0; 100];
        for (socket, name) in
            [(at_path, path.as_os_str()), (at_name, OsStr::new(&format!("@{abstract_name}")))]
        {
            for (notice, text) in [(Notice::Ready, "READY=1"), (Notice::Status("a\nb"), "STATUS=a b")] {
                notify_at(name, notice).unwrap();
                let n = socket.recv(&mut buf).unwrap();
                assert_eq!(&buf[..n], text.as_bytes());
            }
        }
        std::fs::remove_file(&path).unwrap();
        assert!(notify_at(path.as_os_str(), Notice::Ready).is_err());
    }
}
