//! The virtual Ethernet device: a TAP, non-blocking, that disappears with the process.
//!
//! The device is made by tun-rs; frames go through its raw `recv` and `send`, since its batched calls take
//! the first bytes of a frame for an IP header. Without `vnet` a read is one Ethernet frame. With `vnet`
//! each read and write begins with the 10-byte virtio header, and the device may hand over superframes of
//! up to 64 KiB whose checksums are left to us.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::net::if_::if_nametoindex;
use nix::sys::uio::{readv, writev};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

/// Size of the virtio header before each frame of a device opened with `vnet`.
pub const VNET_HEADER: usize = 10;

/// Longest name that an interface can have, in bytes.
pub const MAX_NAME: usize = libc::IFNAMSIZ - 1;

/// How a device is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TapOptions {
    /// Largest payload of a frame, Ethernet header not counted.
    pub mtu: u16,
    /// Hardware address; a unicast one.
    pub mac: [u8; 6],
    /// Superframes and checksum offloads, each frame behind a virtio header.
    pub vnet: bool,
    /// How many queues it is to have; more than one makes [`Tap::another_queue`] possible.
    pub queues: u16,
    /// Frames that wait in the kernel for us, in each queue.
    pub txqueuelen: u32,
}

/// Why there is no device, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The kernel or the container has no TAP.
    #[error(
        "this machine offers no virtual network devices (/dev/net/tun is missing): \
         `modprobe tun`, or give the container that device"
    )]
    NoDevice,
    /// Not allowed.
    #[error("making a network device needs root or CAP_NET_ADMIN")]
    NoPrivilege,
    /// There is an interface of this name.
    #[error(
        "there is already an interface named `{0}`; choose another name (`interface` in the configuration)"
    )]
    NameTaken(String),
    /// The kernel would cut it.
    #[error("interface name `{0}` is too long: at most {MAX_NAME} bytes are allowed")]
    NameTooLong(String),
    /// Empty, or with a character that the kernel refuses.
    #[error("`{0}` cannot be the name of an interface")]
    NameInvalid(String),
    /// Anything else.
    #[error("the network device `{name}` could not be set up ({step}): {source}")]
    Other {
        /// The interface.
        name: String,
        /// What was being done.
        step: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// One queue of a TAP device. The device goes when the last queue is dropped, or the process ends.
pub struct Tap {
    device: SyncDevice,
    name: String,
    options: TapOptions,
}

impl std::fmt::Debug for Tap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tap").field("name", &self.name).field("options", &self.options).finish()
    }
}

mod offload {
    //! `TUNSETOFFLOAD`: which work on a frame the device may leave to its reader.
    #![expect(unsafe_code, reason = "an ioctl that nix has no function for")]
    // The argument is a bit mask by value, not a pointer, so a wrong mask is an error, never a wild access.
    nix::ioctl_write_int_bad!(set, libc::TUNSETOFFLOAD as libc::c_int);

    /// Sets the mask of `TUN_F_*` flags.
    pub fn apply(fd: std::os::fd::BorrowedFd<'_>, mask: u32) -> nix::Result<()> {
        use std::os::fd::AsRawFd;
        // SAFETY: `fd` is borrowed, so open for the whole call; this ioctl takes its argument by value and
        // touches no memory of ours; on a descriptor that is no TUN it fails.
        unsafe { set(fd.as_raw_fd(), mask as libc::c_int) }.map(drop)
    }
}

impl Tap {
    /// Makes the device, with its MAC, MTU and queue length set; it is left down (`Netlink::set_up`).
    pub fn open(name: &str, options: TapOptions) -> Result<Tap, TapError> {
        if name.len() > MAX_NAME {
            return Err(TapError::NameTooLong(name.into()));
        }
        let fine = |b: u8| b.is_ascii_graphic() && b != b'/' && b != b':' && b != b'%';
        if name.is_empty() || name == "." || name == ".." || !name.bytes().all(fine) {
            return Err(TapError::NameInvalid(name.into()));
        }
        if !std::fs::exists("/dev/net/tun").unwrap_or(true) {
            return Err(TapError::NoDevice);
        }
        // An existing device that is not in use would be adopted silently, with whatever it is attached to.
        if if_nametoindex(name).is_ok() {
            return Err(TapError::NameTaken(name.into()));
        }
        let other =
            |step: &'static str| move |source: io::Error| TapError::Other { name: name.into(), step, source };
        let mut builder = DeviceBuilder::new()
            .name(name)
            .layer(Layer::L2)
            .mac_addr(options.mac)
            .mtu(options.mtu)
            .offload(options.vnet)
            .inherit_enable_state()
            .multi_queue(options.queues > 1);
        builder = builder.with(|b| {
            b.packet_information(false).tx_queue_len(options.txqueuelen);
        });
        let device =
            builder.build_sync().map_err(|e| match Errno::from_raw(e.raw_os_error().unwrap_or(0)) {
                Errno::ENOENT | Errno::ENODEV | Errno::ENXIO => TapError::NoDevice,
                Errno::EPERM | Errno::EACCES => TapError::NoPrivilege,
                // Somebody was faster between the check above and the making.
                Errno::EBUSY | Errno::EEXIST => TapError::NameTaken(name.into()),
                _ => other("making it")(e),
            })?;
        let tap = Tap { device, name: name.into(), options };
        tap.finish().map_err(other("setting offloads"))?;
        Ok(tap)
    }

    /// A further queue of the same device. Only when opened with `queues` above one.
    pub fn another_queue(&self) -> Result<Tap, TapError> {
        let other = |step| move |source| TapError::Other { name: self.name.clone(), step, source };
        let device = self.device.try_clone().map_err(other("adding a queue"))?;
        let tap = Tap { device, name: self.name.clone(), options: self.options };
        tap.finish().map_err(other("setting offloads"))?;
        Ok(tap)
    }

    fn finish(&self) -> io::Result<()> {
        let flags = OFlag::from_bits_retain(fcntl(self.as_fd(), FcntlArg::F_GETFL)?);
        fcntl(self.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        if self.options.vnet {
            // tun-rs leaves ECN out, and resets the device's mask with each queue.
            let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
            let udp = libc::TUN_F_USO4 | libc::TUN_F_USO6;
            if offload::apply(self.as_fd(), tcp | udp).is_err() {
                offload::apply(self.as_fd(), tcp)?;
            }
        }
        Ok(())
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it was opened with.
    pub fn options(&self) -> &TapOptions {
        &self.options
    }

    /// Whether somebody reads along: the device is promiscuous, and not because a bridge has it.
    pub fn is_watched(&self) -> bool {
        let of = |what| Path::new("/sys/class/net").join(&self.name).join(what);
        let flags = std::fs::read_to_string(of("flags")).unwrap_or_default();
        let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).unwrap_or(0);
        flags & libc::IFF_PROMISC as u32 != 0 && !of("brport").exists()
    }

    /// Takes one frame; with `vnet` its header into `header`, which is left as it is otherwise. `WouldBlock` when there is
    /// none; see [`vanished`] for a device that is gone. A frame longer than `buf` is cut by the kernel: give MTU + 18
    /// (with `vnet`: 65,553).
    pub fn recv(&self, header: &mut [u8; VNET_HEADER], buf: &mut [u8]) -> io::Result<usize> {
        if !self.options.vnet {
            return self.device.recv(buf);
        }
        let n = readv(self.as_fd(), &mut [IoSliceMut::new(header), IoSliceMut::new(buf)])?;
        Ok(n.saturating_sub(VNET_HEADER))
    }

    /// Gives one frame to the host, in pieces; with `vnet` the first is its header, otherwise there is none. `WouldBlock`
    /// when its queue is full; `EIO` while the interface is down; `EINVAL` for a header that it does not take.
    pub fn send(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(writev(self.as_fd(), pieces)?)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        borrow(&self.device)
    }
}

#[expect(unsafe_code, reason = "tun-rs offers the descriptor only as a number")]
fn borrow(device: &SyncDevice) -> BorrowedFd<'_> {
    // SAFETY: the device owns the descriptor and keeps it open until dropped; the result borrows the device,
    // so it cannot outlive it.
    unsafe { BorrowedFd::borrow_raw(device.as_raw_fd()) }
}

/// Whether this error of [`Tap::recv`] or [`Tap::send`] means that somebody deleted the device: it will
/// never work again and has to be opened anew.
pub fn vanished(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::EBADF | libc::ENODEV))
}

/// Whether this error of [`Tap::send`] means that the interface is down at the moment.
pub fn is_down(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EIO)
}
