//! How wide a terminal is.
#![expect(unsafe_code, reason = "an ioctl that nix has no function for")]

use std::os::fd::{AsFd, AsRawFd};

/// The columns of the terminal behind a descriptor; `None` where there is none, or it does not say.
pub fn columns(fd: impl AsFd) -> Option<usize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: `fd` is borrowed, so open for the whole call; the kernel writes one `winsize`, and `size` is one.
    let done = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (done == 0 && size.ws_col > 0).then_some(size.ws_col.into())
}
