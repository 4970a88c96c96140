//! Notification of dropped frames, and of all frames.

use std::sync::Arc;

use crate::action::DropReason;
use crate::id::{Cookie, Epoch, PortId};
use crate::packet::{Batch, Origin, Packet};
use crate::snapshot::Snapshot;
use crate::time::Instant;

/// The facts that identify a frame after its buffer was passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The port that it was received on.
    pub ingress: PortId,
    /// Received, originated by the switch, or a copy.
    pub origin: Origin,
    /// The mark that its port set.
    pub mark: u32,
    /// Its tag in a running [capture](crate::capture).
    pub tag: u32,
}

impl From<&Packet> for Trace {
    fn from(packet: &Packet) -> Self {
        let (ingress, origin) = (packet.ingress, packet.origin);
        Self { ingress, origin, mark: packet.mark, tag: packet.tag }
    }
}

/// Dropped frames, as an [`Observer`] is notified of them.
#[derive(Debug)]
pub struct Dropped<'a> {
    /// Their origin.
    pub trace: Trace,
    /// The time.
    pub now: Instant,
    /// The snapshot with which they were evaluated. 0: unknown.
    pub epoch: Epoch,
    /// The reason.
    pub reason: DropReason,
    /// The object that caused the decision.
    pub object: Option<&'a Cookie>,
    /// The frame from its Ethernet header on, in its state when it was dropped: without outer headers if they had been
    /// removed, and translated if it had been translated. `None` if its buffer had been passed on.
    pub frame: Option<&'a [u8]>,
    /// Number of frames. More than one only if they were lost together, without a frame to show.
    pub count: u64,
}

/// Receives notifications of every dropped frame. Not called for frames that are forwarded. Runs on the worker's
/// thread: it must not allocate, lock or wait.
pub trait Observer: Send {
    /// Received frames were dropped.
    fn dropped(&mut self, drop: &Dropped<'_>);

    /// The control plane tells the observer to deliver what it collected
    /// ([`ControlPlane::collect`](crate::control::ControlPlane::collect)).
    fn collect(&mut self) {}
}

/// Sees all frames that a worker receives, sends and drops: a [capture](crate::capture). Runs on the worker's thread:
/// it must not lock or wait.
pub trait Tap: Send {
    /// Number of the capture to which it belongs.
    fn id(&self) -> u64;

    /// A burst was received on `port` and will be processed with `snapshot`. The implementation must tag the packets.
    fn received(&mut self, snapshot: &Arc<Snapshot>, now: Instant, port: PortId, batch: &mut Batch);

    /// Received frames were dropped.
    fn dropped(&mut self, drop: &Dropped<'_>);

    /// `port` is about to send a burst.
    fn sending(&mut self, now: Instant, port: PortId, batch: &Batch);

    /// The port has sent the first `count` packets of that burst.
    fn sent(&mut self, count: usize);

    /// All results of the last burst were processed and sent.
    fn finish(&mut self);
}
