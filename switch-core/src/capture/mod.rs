//! Packet capture of a running switch: copies of frames, with what became of each.
//!
//! ```text
//! worker: received burst -> copies of frames that the filter takes, tagged by burst and place
//!         engine         -> a dropped frame's tag finds its copy: the reason
//!         transmission   -> a sent frame's tag finds its copy: forwarded; the sent frame is copied, too
//!         end of poll    -> a bounded queue; what does not fit is lost, and counted
//! reader: queues of all workers -> CapturedFrame, with the snapshot that the frame was evaluated with
//! ```
//!
//! Off, it costs a worker one branch a burst. On, frames are copied on the worker's thread into buffers that the
//! reader gives back; a worker never waits for the reader. One capture runs at a time; it ends when its
//! [`CaptureReader`] is dropped.
//!
//! Frames are shown as ports pass them: GSO packets whole, with partial checksums, tunnel packets with their
//! outer headers.

mod filter;
mod queue;
mod reader;
mod tap;

use std::sync::Arc;

use podswitch_wire::flow_key::FlowKey;

use filter::Headers;

pub use filter::CaptureFilter;
pub use reader::CaptureReader;

use crate::id::PortId;
use crate::packet::Origin;
use crate::port::pcap::Direction;
use crate::records::{DropRecord, RawDrop};
use crate::snapshot::Snapshot;
use crate::time::Instant;

/// What to capture.
#[derive(Clone, Debug)]
pub struct CaptureOptions {
    /// Which frames.
    pub filter: CaptureFilter,
    /// Most bytes to keep of each frame.
    pub snap_len: usize,
    /// Only received frames that were dropped.
    pub drops_only: bool,
}

impl Default for CaptureOptions {
    /// All frames, whole.
    fn default() -> Self {
        Self { filter: CaptureFilter::default(), snap_len: usize::MAX, drops_only: false }
    }
}

/// What became of a captured frame.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fate {
    /// Received, and sent by this port (the last one of several).
    Forwarded(PortId),
    /// Received, and dropped.
    Dropped(Box<DropRecord>),
    /// Received, and taken by the switch itself: ARP, neighbour discovery, echo to the gateway.
    Consumed,
    /// A fragment that was received, and is held until its datagram is complete.
    Held,
    /// Sent. Received by `ingress` before, unless the switch itself originated it.
    Sent {
        /// Received, a copy of a received frame, or originated by the switch.
        origin: Origin,
        /// The port that it was received by.
        ingress: PortId,
    },
}

/// A captured frame.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CapturedFrame {
    /// The worker that received or sent it.
    pub worker: usize,
    /// Start of the poll that received or sent it.
    pub time: Instant,
    /// The port that received or sent it.
    pub port: PortId,
    /// Received or sent.
    pub direction: Direction,
    /// Length of the frame in bytes.
    pub original_len: u32,
    /// Its addresses, protocol and ports, of a tunnel packet those of the inner frame. `None`: not IP, or
    /// malformed.
    pub key: Option<FlowKey>,
    /// TCP flags, of the same frame.
    pub tcp_flags: u8,
    /// It has the outer headers of the tunnel.
    pub is_tunnel: bool,
    /// Its first bytes, up to the capture's limit.
    pub frame: Vec<u8>,
    /// The state that it was evaluated with.
    pub snapshot: Arc<Snapshot>,
    /// What became of it.
    pub fate: Fate,
}

/// What became of a frame, as a worker writes it down.
#[derive(Debug)]
enum RawFate {
    Unknown,
    Forwarded(PortId),
    Dropped(Box<RawDrop>),
    Sent { origin: Origin, ingress: PortId },
}

/// A copy on its way to the reader.
#[derive(Debug)]
struct Copy {
    time: Instant,
    port: PortId,
    direction: Direction,
    original_len: u32,
    headers: Headers,
    frame: Vec<u8>,
    snapshot: Arc<Snapshot>,
    fate: RawFate,
}
