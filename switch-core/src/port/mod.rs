//! Ports: where frames are received and transmitted, a burst per call.
//!
//! The control plane attaches a [`Device`], which opens one [`Port`] for each worker. A port is used by
//! one worker thread only.

mod now;
mod random;
mod wrap;

pub mod delay;
pub mod lossy;
pub mod memory;
pub mod pcap;

pub use now::Now;
pub use wrap::{Wrapped, wrap};

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

pub use crate::packet::Offloads;

use crate::packet::{Batch, Pool};
use podswitch_wire::addr::Mac;

/// Properties of a port that do not change while it is open.
#[derive(Clone, Debug)]
pub struct PortInfo {
    /// Name for display: interface or capture.
    pub name: String,
    /// MAC address of the port's own end, if it has one.
    pub mac: Option<Mac>,
    /// Largest network-layer packet, in bytes; GSO packets may be larger.
    pub mtu: u32,
    /// Offloads that the port supports for transmission.
    pub offloads: Offloads,
}

/// One worker's queue of a device.
pub trait Port: Send {
    /// Receives frames into buffers of `pool`, as many as `batch` has room for. `Ok(0)`: there are none.
    ///
    /// # Errors
    /// The device failed. `ErrorKind::NotConnected`: the device no longer exists.
    fn rx(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<usize>;

    /// Transmits from the front of `batch`. Packets that were sent are removed and returned to `pool`.
    /// Packets that remain were not accepted: the caller counts and frees them.
    ///
    /// # Errors
    /// The device failed. `batch` contains the packets that were not sent.
    fn tx(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<usize>;

    /// Properties of the port.
    fn info(&self) -> &PortInfo;

    /// Number of frames that were lost on reception since the last call. The worker calls it after
    /// every [`rx`](Self::rx), and counts them as received and dropped
    /// ([`RxLost`](crate::action::DropReason::RxLost)).
    fn take_lost(&mut self) -> u64 {
        0
    }

    /// Descriptor that becomes readable when frames can be received. `None`: the port must be polled.
    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Whether the port must be polled in every round: because polling needs no system call, or because
    /// there can be frames while [`poll_fd`](Self::poll_fd) is not readable. With many other ports,
    /// the worker polls only those that the kernel reports as readable.
    fn is_always_polled(&self) -> bool {
        false
    }

    /// Called by the worker just before it waits on [`poll_fd`](Self::poll_fd): from now on the port
    /// must make it readable for the next frame. Ports between user-space threads need not do so at
    /// other times. `false`: there are frames already, do not wait.
    fn arm(&mut self) -> bool {
        true
    }

    /// Called by a worker that is to leave frames in the device from now on. Returns whether frames that were taken from
    /// the device still wait to be received: the worker then receives once more, which must not take others from the
    /// device, and calls this again.
    fn hold(&mut self) -> bool {
        false
    }
}

/// Open files of a device, by which another process goes on with it while it is open here.
#[derive(Clone, Debug)]
pub struct DeviceFiles {
    /// Says which device it is, and which of its files these are; the same in both processes.
    pub key: String,
    /// The files.
    pub files: Vec<Arc<OwnedFd>>,
}

impl DeviceFiles {
    /// Whether these are the same files of the same device.
    pub fn is_same(&self, other: &Self) -> bool {
        let same = |(a, b): (&Arc<OwnedFd>, &Arc<OwnedFd>)| Arc::ptr_eq(a, b);
        self.key == other.key
            && self.files.len() == other.files.len()
            && self.files.iter().zip(&other.files).all(same)
    }
}

/// A source and sink of frames that is attached to the switch as one port.
pub trait Device: Send {
    /// Opens the queue of worker `index` of `workers`. With a device that has one receive queue, worker
    /// 0 receives and the others only transmit.
    ///
    /// # Errors
    /// The device cannot be opened.
    fn open(&mut self, index: usize, workers: usize) -> io::Result<Box<dyn Port>>;

    /// Properties of the device.
    fn info(&self) -> PortInfo;

    /// Called by the control thread, a few times a second, for work that no worker may wait for, such as queries to the
    /// kernel. If another program changed the device and the change was reverted, returns a description of each such
    /// repair. The default does nothing.
    fn maintain(&mut self) -> Vec<String> {
        Vec::new()
    }

    /// The files by which another process can go on with the device as it is. The default: none, so it opens the device
    /// itself.
    fn files(&self) -> Vec<DeviceFiles> {
        Vec::new()
    }

    /// Says whether what was set up for the device stays when it is dropped: another process goes on with it.
    fn leave_in_force(&mut self, _stays: bool) {}
}
