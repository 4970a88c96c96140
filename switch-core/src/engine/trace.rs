//! Notification of dropped frames.

use crate::action::DropReason;
use crate::id::{Cookie, Epoch, PortId};
use crate::packet::{Origin, Packet};
use crate::time::Instant;

/// What identifies a frame after its buffer was given away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The port that it was received on.
    pub ingress: PortId,
    /// Received, originated by the switch, or a copy.
    pub origin: Origin,
    /// The mark that its port gave it.
    pub mark: u32,
}

impl From<&Packet> for Trace {
    fn from(packet: &Packet) -> Self {
        Self { ingress: packet.ingress, origin: packet.origin, mark: packet.mark }
    }
}

/// Dropped frames, as an [`Observer`] is notified of them.
#[derive(Debug)]
pub struct Dropped<'a> {
    /// Where they came from.
    pub trace: Trace,
    /// The time.
    pub now: Instant,
    /// The snapshot that they were evaluated with. 0: it is not known any more.
    pub epoch: Epoch,
    /// The reason.
    pub reason: DropReason,
    /// The object that decided it.
    pub object: Option<&'a Cookie>,
    /// The frame from its Ethernet header on, as it was when it was dropped: in the tunnel without the
    /// outer headers once they were removed, and translated once it was. `None` if its buffer was given
    /// away before.
    pub frame: Option<&'a [u8]>,
    /// How many frames. More than one only where they were lost together, without a frame to show.
    pub count: u64,
}

/// Is notified of every dropped frame. Not called for frames that are forwarded. Runs on the worker's
/// thread: it must not allocate, lock or wait.
pub trait Observer: Send {
    /// Received frames were dropped.
    fn dropped(&mut self, drop: &Dropped<'_>);

    /// The control plane asks for what the observer has collected
    /// ([`ControlPlane::collect`](crate::control::ControlPlane::collect)).
    fn collect(&mut self) {}
}
