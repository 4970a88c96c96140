//! Notification of dropped frames, and of all frames.

use std::sync::Arc;

use crate::action::DropReason;
use crate::id::{Cookie, Epoch, PortId};
use crate::packet::{Batch, Origin, Packet};
use crate::snapshot::Snapshot;
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

/// Sees all frames that a worker receives and sends, and those that it drops: a [capture](crate::capture). Runs on
/// the worker's thread: it must not lock or wait.
pub trait Tap: Send {
    /// Which capture it is of.
    fn id(&self) -> u64;

    /// A burst was received on `port`, which is going to be processed with `snapshot`. The packets are to be tagged.
    fn received(&mut self, snapshot: &Arc<Snapshot>, now: Instant, port: PortId, batch: &mut Batch);

    /// Received frames were dropped.
    fn dropped(&mut self, drop: &Dropped<'_>);

    /// `port` is about to send a burst.
    fn sending(&mut self, now: Instant, port: PortId, batch: &Batch);

    /// The port has sent the first `count` packets of that burst.
    fn sent(&mut self, count: usize);

    /// All that came of the last burst was processed and sent.
    fn finish(&mut self);
}
