//! The device as the packet loop uses it: frames with what is left to do for them, where the kernel takes that.

use shadowmesh_host::tap::{self, Tap, VNET_HEADER};
use shadowmesh_proto::batch::{Delivered, Drops};
use shadowmesh_proto::frame;
use shadowmesh_proto::superframe::{GSO_ECN, GSO_UDP, VnetHeader};
use shadowmesh_wire::DropReason;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

/// A complete frame's header.
const COMPLETE: [u8; VNET_HEADER] = [0; VNET_HEADER];

/// The device, as one thread uses it.
///
/// It has several queues, and the kernel keeps a flow in one: where a frame of it was last given to the host, else by its
/// hash. They are read in turn, so that a flow that fills its queue delays and drops its own frames, hardly those of others.
#[derive(Clone)]
pub struct Device {
    taps: Arc<[Tap]>,
    /// It takes UDP superframes (Linux 6.2).
    udp: bool,
    /// Somebody reads along.
    watched: bool,
    /// The queues that frames were given to, a bit each, since this was asked last.
    written: u64,
}

impl Device {
    /// Uses these queues of a device, one at least.
    pub fn new(taps: Vec<Tap>) -> Self {
        Device { taps: taps.into(), udp: true, watched: false, written: 0 }
    }

    /// Its queues, for a poller.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.taps.iter().map(AsFd::as_fd)
    }

    /// How many they are.
    pub fn queues(&self) -> usize {
        self.taps.len()
    }

    /// Any of them, for what concerns the device.
    fn tap(&self) -> &Tap {
        &self.taps[0]
    }

    /// Looks whether somebody reads along, like tcpdump. Who does would take checksums that are left to the device for
    /// wrong ones, and superframes for frames that no network carries. So frames are written one by one then, complete.
    pub fn look(&mut self) {
        self.watched = self.tap().is_watched();
    }

    /// Does it take superframes of all kinds, so that frames are worth joining?
    pub fn takes_superframes(&self) -> bool {
        self.takes(GSO_UDP)
    }

    /// Does it take frames with something left to do, of this `gso_type`?
    fn takes(&self, gso_type: u8) -> bool {
        self.tap().options().vnet && !self.watched && (self.udp || gso_type & !GSO_ECN != GSO_UDP)
    }

    /// Takes a frame from a queue: its length, and what is left to do for it.
    ///
    /// # Errors
    /// As [`Tap::recv`].
    pub fn read(&self, queue: usize, buf: &mut [u8]) -> io::Result<(usize, Option<VnetHeader>)> {
        let (mut header, tap) = (COMPLETE, &self.taps[queue]);
        let len = tap.recv(&mut header, buf)?;
        let vnet = tap.options().vnet.then(|| VnetHeader::parse(&header));
        // Without offloads a frame that fills the room was cut.
        let cut = !tap.options().vnet && len >= buf.len();
        Ok((if cut { 0 } else { len }, vnet))
    }

    /// Gives a frame to the host.
    ///
    /// # Errors
    /// Only when the device is gone for good.
    pub fn write(&mut self, frame: &Delivered<'_>, drops: &mut Drops) -> io::Result<()> {
        let queue = self.queue_of(frame.head);
        self.written |= 1 << queue;
        if let Some(vnet) = frame.vnet
            && self.takes(vnet.gso_type)
        {
            let header = vnet.emit();
            let mut pieces = vec![IoSlice::new(&header), IoSlice::new(frame.head)];
            pieces.extend(frame.parts().map(IoSlice::new));
            match self.taps[queue].send(&pieces) {
                Err(e) if e.kind() == io::ErrorKind::InvalidInput => {
                    // A kernel that does not know UDP superframes; anything else goes by parts this once.
                    self.udp &= vnet.gso_type & !GSO_ECN != GSO_UDP;
                }
                other => return self.outcome(other, drops),
            }
        }
        if frame.vnet.is_none() {
            return self.send_plain(queue, frame.head, drops);
        }
        for plain in frame.plain() {
            self.send_plain(queue, &plain, drops)?;
        }
        Ok(())
    }

    /// Gives a complete frame to the host.
    ///
    /// # Errors
    /// As [`Device::write`].
    pub fn write_plain(&self, frame: &[u8], drops: &mut Drops) -> io::Result<()> {
        self.send_plain(self.queue_of(frame), frame, drops)
    }

    fn send_plain(&self, queue: usize, frame: &[u8], drops: &mut Drops) -> io::Result<()> {
        let pieces = [IoSlice::new(&COMPLETE), IoSlice::new(frame)];
        let first = usize::from(!self.tap().options().vnet);
        self.outcome(self.taps[queue].send(&pieces[first..]), drops)
    }

    /// The queue that this frame's flow is to have from now on.
    fn queue_of(&self, frame: &[u8]) -> usize {
        let hash = u64::from(if self.taps.len() > 1 { frame::flow(frame) } else { 0 });
        ((hash * self.taps.len() as u64) >> 32) as usize
    }

    /// The queues that frames were given to since this was asked last: what the host answers at once is there already.
    pub fn answering(&mut self) -> u64 {
        std::mem::take(&mut self.written)
    }

    fn outcome(&self, result: io::Result<usize>, drops: &mut Drops) -> io::Result<()> {
        match result {
            Ok(_) => Ok(()),
            Err(e) if tap::vanished(&e) => Err(self.gone()),
            Err(_) => {
                drops.count(DropReason::SocketBusy);
                Ok(())
            }
        }
    }

    /// What is said of a device that was deleted.
    pub fn gone(&self) -> io::Error {
        io::Error::other(format!("the network device `{}` was deleted", self.tap().name()))
    }
}
