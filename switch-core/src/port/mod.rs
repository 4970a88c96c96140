//! Ports: where frames come in and go out. Two verbs, dispatched once a burst.
//!
//! A [`Device`] is what the control plane attaches; it opens one [`Port`] for each worker. A port
//! is used by one worker thread only.

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
use std::os::fd::BorrowedFd;

pub use crate::packet::Offloads;

use crate::packet::{Batch, Pool};
use podswitch_wire::addr::Mac;

/// Facts about a port that do not change while it is open.
#[derive(Clone, Debug)]
pub struct PortInfo {
    /// Name for people: interface or capture.
    pub name: String,
    /// Address of the port's own end, if it has one.
    pub mac: Option<Mac>,
    /// Largest network-layer packet, in bytes (super-frames apart).
    pub mtu: u32,
    /// What transmission may leave unfinished.
    pub offloads: Offloads,
}

/// One worker's end of a device.
pub trait Port: Send {
    /// Receives up to what `batch` has room for, into buffers of `pool`. `Ok(0)`: nothing there.
    ///
    /// # Errors
    /// The device failed; a device that was removed says `ErrorKind::NotConnected`.
    fn rx(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<usize>;

    /// Transmits from the front of `batch`; what was sent is removed and given back to `pool`.
    /// Packets that remain did not fit: the caller counts and frees them.
    ///
    /// # Errors
    /// The device failed; `batch` holds what was not sent.
    fn tx(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<usize>;

    /// Facts about the port.
    fn info(&self) -> &PortInfo;

    /// How many frames arrived and were lost in the port since this was asked last: the worker asks
    /// after every [`rx`](Self::rx), and counts them as received and dropped
    /// ([`RxLost`](crate::action::DropReason::RxLost)).
    fn take_lost(&mut self) -> u64 {
        0
    }

    /// What to wait on for reception when idle. `None`: the port must be polled.
    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Whether looking for frames costs no system call, or frames can come without
    /// [`poll_fd`](Self::poll_fd) being readable. Such a port is looked at in every round; of many
    /// others only those that the kernel says are readable.
    fn is_looked_at(&self) -> bool {
        false
    }

    /// Said by the worker just before it waits on [`poll_fd`](Self::poll_fd), so that ports
    /// whose other side is user space ask for a wake-up only then. `false`: do not wait, there
    /// is something to receive.
    fn arm(&mut self) -> bool {
        true
    }
}

/// Something with frames to give and take, attached to the switch as one port.
pub trait Device: Send {
    /// Opens the end of worker `index` of `workers`. A device with a single queue gives worker 0
    /// an end that receives and the others ends that only transmit.
    ///
    /// # Errors
    /// The device cannot be opened.
    fn open(&mut self, index: usize, workers: usize) -> io::Result<Box<dyn Port>>;

    /// Facts about the device.
    fn info(&self) -> PortInfo;
}
