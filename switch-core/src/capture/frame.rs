//! The options of a capture, and the facts that it records about each frame.

use std::sync::Arc;

use podswitch_wire::flow_key::FlowKey;

use super::filter::{CaptureFilter, Headers};
use crate::id::PortId;
use crate::packet::Origin;
use crate::port::pcap::Direction;
use crate::records::{DropRecord, RawDrop};
use crate::snapshot::Snapshot;
use crate::time::Instant;

/// The options of a capture.
#[derive(Clone, Debug)]
pub struct CaptureOptions {
    /// The filter.
    pub filter: CaptureFilter,
    /// Maximum number of bytes to keep of each frame.
    pub snap_len: usize,
    /// Only received frames that were dropped.
    pub drops_only: bool,
}

impl Default for CaptureOptions {
    /// All frames, in full length.
    fn default() -> Self {
        Self { filter: CaptureFilter::default(), snap_len: usize::MAX, drops_only: false }
    }
}

/// The result of processing a captured frame.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CaptureOutcome {
    /// Received, and sent by this port (the last one if there are several).
    Forwarded(PortId),
    /// Received, and dropped.
    Dropped(Box<DropRecord>),
    /// Received, and consumed by the switch itself: ARP, neighbour discovery, pings of the gateway.
    Consumed,
    /// A received fragment that is held until its datagram is complete.
    Held,
    /// Sent. It was received by `ingress` before, unless the switch itself originated it.
    Sent {
        /// How the sent frame came into being: received, a copy of a received frame, or originated
        /// by the switch.
        origin: Origin,
        /// The port on which it was received.
        ingress: PortId,
    },
}

/// A captured frame.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CapturedFrame {
    /// The worker that received or sent it.
    pub worker: usize,
    /// Start of the poll in which it was received or sent.
    pub time: Instant,
    /// The port that received or sent it.
    pub port: PortId,
    /// Received or sent.
    pub direction: Direction,
    /// Length of the frame in bytes.
    pub original_len: u32,
    /// Addresses, protocol and ports; for a tunnel packet those of the inner frame. `None`: not IP,
    /// or malformed.
    pub key: Option<FlowKey>,
    /// TCP flags of the same frame.
    pub tcp_flags: u8,
    /// The frame has the outer headers of the tunnel.
    pub is_tunnel: bool,
    /// Its first bytes, up to the capture's limit.
    pub frame: Vec<u8>,
    /// The snapshot with which it was evaluated.
    pub snapshot: Arc<Snapshot>,
    /// The result of processing it.
    pub fate: CaptureOutcome,
}

/// The result of processing a frame, as a worker records it.
#[derive(Debug)]
pub(super) enum RawFate {
    Unknown,
    Forwarded(PortId),
    Dropped(Box<RawDrop>),
    Sent { origin: Origin, ingress: PortId },
}

/// A copy on its way to the reader.
#[derive(Debug)]
pub(super) struct Copy {
    pub(super) time: Instant,
    pub(super) port: PortId,
    pub(super) direction: Direction,
    pub(super) original_len: u32,
    pub(super) headers: Headers,
    pub(super) frame: Vec<u8>,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) fate: RawFate,
}
