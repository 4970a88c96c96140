//! Ports: where frames come in and go out. Two verbs, dispatched once a burst.
//!
//! A [`Device`] is what the control plane attaches; it opens one [`Port`] for each worker. A port
//! is used by one worker thread only.

mod inject;
mod joined;
mod now;
mod random;
mod wrap;

pub mod af_packet;
pub mod delay;
pub mod lossy;
pub mod memory;
pub mod pcap;
pub mod tap;
pub mod udp_tunnel;
pub mod virtio;

#[cfg(any(test, feature = "fuzz"))]
#[doc(hidden)]
pub use joined::fuzz;
pub use now::Now;
pub use wrap::{Wrapped, wrap};

use std::io;
use std::os::fd::BorrowedFd;

use crate::packet::{Batch, GsoType, Offload, Pool};
use podswitch_wire::addr::Mac;

/// What a port can take over from the switch on transmission.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offloads {
    /// Takes frames with unfinished layer-4 checksums.
    pub checksum: bool,
    /// Takes TCP/IPv4 super-frames.
    pub tso4: bool,
    /// Takes TCP/IPv6 super-frames.
    pub tso6: bool,
    /// Takes UDP super-frames (USO).
    pub uso: bool,
    /// Takes super-frames of these kinds inside a UDP tunnel too, cutting by the inner header.
    pub tunnel: bool,
}

impl Offloads {
    /// Takes everything as it is.
    pub const ALL: Offloads =
        Offloads { checksum: true, tso4: true, tso6: true, uso: true, tunnel: true };
    /// Takes only finished packets.
    pub const NONE: Offloads =
        Offloads { checksum: false, tso4: false, tso6: false, uso: false, tunnel: false };
}

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

/// Stands for offload metadata that contradicts its frame. A port cannot drop with a reason, the
/// worker can: this never passes [`Offload::check`].
const INVALID_OFFLOAD: Offload = Offload {
    gso_type: GsoType::TcpV4,
    ecn: false,
    csum_partial: false,
    csum_valid: false,
    gso_size: 0,
    hdr_len: 0,
    csum_start: 0,
    csum_offset: 0,
};
