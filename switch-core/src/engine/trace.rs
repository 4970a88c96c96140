//! Notification of dropped frames.

use crate::action::DropReason;
use crate::id::{Cookie, PortId};
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

/// A dropped frame, as an [`Observer`] is notified of it.
#[derive(Debug)]
pub struct Dropped<'a> {
    /// The frame.
    pub trace: Trace,
    /// The time.
    pub now: Instant,
    /// The reason.
    pub reason: DropReason,
    /// The object that decided it.
    pub object: Option<&'a Cookie>,
}

/// Is notified of every dropped frame. Not called for frames that are forwarded.
pub trait Observer: Send {
    /// A received frame was dropped.
    fn dropped(&mut self, drop: &Dropped<'_>);
}
