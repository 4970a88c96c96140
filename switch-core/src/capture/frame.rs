//! What to capture, and what a capture has of each frame.

use std::sync::Arc;

use podswitch_wire::flow_key::FlowKey;

use super::filter::{CaptureFilter, Headers};
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
