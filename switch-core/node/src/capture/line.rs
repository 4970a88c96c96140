//! A captured frame as a line of JSON.

use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use humantime::format_rfc3339_nanos;
use podswitch_core::capture::CapturedFrame;
use podswitch_core::engine::Shared;
use podswitch_core::port::pcap::Direction;
use podswitch_core::snapshot::Snapshot;
use serde::Serialize;

use super::comment::comment;
use super::interfaces::port_name;

/// What a capture in JSON has of each frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CapturedLine {
    /// Start of the poll that received or sent it (RFC 3339).
    pub time: String,
    /// The port: the pod behind it, `node` or `uplink`.
    pub port: String,
    /// `received` or `sent`.
    pub direction: &'static str,
    /// What happened to it, which objects decided, and both ends.
    pub text: String,
    /// It has the outer headers of the tunnel. Addresses and ports are those of the inner frame.
    pub is_tunnel: bool,
    /// Source address.
    pub src: Option<IpAddr>,
    /// Destination address.
    pub dst: Option<IpAddr>,
    /// Source port. An echo request and its reply have the identifier as the requester's port, and the type of the request
    /// as the other.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// IP protocol number.
    pub protocol: Option<u8>,
    /// Length in bytes.
    pub length: u32,
    /// Its first bytes, up to the capture's limit, in hex.
    pub frame: String,
}

impl CapturedLine {
    pub(super) fn new(frame: &CapturedFrame, shared: &Arc<Shared>, epoch_ns: u64) -> Self {
        let since_1970 = epoch_ns.saturating_add(frame.time.as_nanos());
        let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(since_1970);
        let snapshot: &Snapshot = &frame.snapshot;
        let mut hex = String::with_capacity(2 * frame.frame.len());
        for byte in &frame.frame {
            // Writing to a string does not fail.
            let _ = write!(hex, "{byte:02x}");
        }
        Self {
            time: format_rfc3339_nanos(time).to_string(),
            port: port_name(snapshot, frame.port),
            direction: match frame.direction {
                Direction::Inbound => "received",
                Direction::Outbound => "sent",
            },
            text: comment(frame, shared),
            is_tunnel: frame.is_tunnel,
            src: frame.key.map(|key| key.src_addr()),
            dst: frame.key.map(|key| key.dst_addr()),
            sport: frame.key.map_or(0, |key| key.src_port),
            dport: frame.key.map_or(0, |key| key.dst_port),
            protocol: frame.key.map(|key| key.proto),
            length: frame.original_len,
            frame: hex,
        }
    }
}
