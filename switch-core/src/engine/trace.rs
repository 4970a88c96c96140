//! What is told of frames that went nowhere.

use crate::action::DropReason;
use crate::id::{Cookie, PortId};
use crate::packet::{Origin, Packet};
use crate::time::Instant;

/// What is remembered of a frame when its buffer may be gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The port that it came in by.
    pub ingress: PortId,
    /// Received, made here, or a copy.
    pub origin: Origin,
    /// The receiver's mark.
    pub mark: u32,
}

impl From<&Packet> for Trace {
    fn from(packet: &Packet) -> Self {
        Self { ingress: packet.ingress, origin: packet.origin, mark: packet.mark }
    }
}

/// A frame that was dropped, as an [`Observer`] is told.
#[derive(Debug)]
pub struct Dropped<'a> {
    /// Which frame.
    pub trace: Trace,
    /// When.
    pub now: Instant,
    /// Why.
    pub reason: DropReason,
    /// The object that decided it.
    pub object: Option<&'a Cookie>,
}

/// Is told of what the counters only count. Not called for frames that pass.
pub trait Observer: Send {
    /// A received frame was dropped.
    fn dropped(&mut self, drop: &Dropped<'_>);
}
