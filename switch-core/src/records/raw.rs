//! A drop as a worker records it.

use arrayvec::ArrayVec;
use podswitch_wire::flow_key::{FlowKey, HashKey};
use podswitch_wire::parse::{Fragment, Network, parse};

use super::PREFIX;
use crate::action::DropReason;
use crate::engine::Dropped;
use crate::id::{Cookie, Epoch, PortId};
use crate::time::Instant;

/// The hash of a frame is not used here.
const ANY_KEY: HashKey = HashKey::new(0);

/// The fields that are equal for all drops that are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Alike {
    pub(super) reason: DropReason,
    /// The port that received them.
    pub(super) port: PortId,
    /// Addresses, destination port and protocol, without the source port. `None`: not IP, or malformed.
    pub(super) key: Option<FlowKey>,
    /// The object that caused the decision.
    pub(super) object: Option<Cookie>,
}

/// A drop, or several that were counted together.
#[derive(Clone, Debug)]
pub(crate) struct RawDrop {
    pub(super) alike: Alike,
    /// The snapshot of the last drop.
    pub(super) epoch: Epoch,
    pub(super) first: Instant,
    pub(super) last: Instant,
    pub(super) count: u64,
    /// Sum of the frames' lengths.
    pub(super) bytes: u64,
    /// The beginning of the frame, if it is a single drop.
    pub(crate) frame: Option<Frame>,
}

/// The part of one frame that a record keeps.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(super) src_port: u16,
    pub(super) tcp_flags: u8,
    pub(super) vlan: Option<u16>,
    pub(super) is_fragment: bool,
    pub(super) prefix: ArrayVec<u8, PREFIX>,
}

impl RawDrop {
    /// Converts a notification, and returns the facts about its frame if there is one.
    pub(crate) fn new(drop: &Dropped<'_>) -> (Self, Option<Frame>) {
        let parsed = drop.frame.and_then(|frame| parse(frame, &ANY_KEY).ok());
        let ip = parsed.filter(|p| matches!(p.network, Network::Ipv4 | Network::Ipv6));
        let alike = Alike {
            reason: drop.reason,
            port: drop.trace.ingress,
            key: ip.as_ref().map(|p| FlowKey { src_port: 0, ..p.key }),
            object: drop.object.cloned(),
        };
        let frame = drop.frame.map(|bytes| Frame {
            src_port: ip.as_ref().map_or(0, |p| p.key.src_port),
            tcp_flags: ip.as_ref().map_or(0, |p| p.tcp_flags),
            vlan: parsed.as_ref().filter(|p| p.tags > 0).map(|p| p.outer_tci & 0x0fff),
            is_fragment: ip.as_ref().is_some_and(|p| p.fragment != Fragment::Whole),
            prefix: bytes.iter().take(PREFIX).copied().collect(),
        });
        let raw = Self {
            alike,
            epoch: drop.epoch,
            first: drop.now,
            last: drop.now,
            count: drop.count,
            bytes: drop.frame.map_or(0, |frame| frame.len() as u64),
            frame: None,
        };
        (raw, frame)
    }
}
