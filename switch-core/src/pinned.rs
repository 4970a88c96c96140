//! The pinned facts of a connection: fixed when the connection is opened, and unchanged by every
//! later configuration.
//!
//! Plain data, used by the connection table, NAT, `resolve` and the snapshot's invalidation.
//! Everything else about a flow (verdict, plan) is derived from these facts and the snapshot, and
//! is computed again when the configuration changes.

use podswitch_vxlan::vtep::VtepIndex;
use podswitch_wire::addr::Mac;
use podswitch_wire::flow_key::FlowKey;

use crate::id::{Epoch, PortId};
use crate::time::Instant;

/// Direction of a packet within its connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Direction {
    /// The direction of the connection's first packet.
    Original,
    /// The replies.
    Reply,
}

/// How a connection's source is translated (SNAT).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SourceNat {
    /// No SNAT. The source port may still change if two connections would otherwise have the same
    /// reply key (S16).
    #[default]
    Kept,
    /// To an address of the node, with a port of the connection's own (S8).
    Connection,
    /// To an egress address, with one port for all connections of a client's address and port
    /// (masquerade, P3; endpoint-independent mapping, RFC 4787 REQ-1).
    Endpoint,
}

/// How a connection was opened, and therefore how certain its direction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Opened {
    /// By its first packet, whose sender is the client.
    #[default]
    First,
    /// In mid-stream, TCP or SCTP. For TCP the configuration and the ports show which end is the
    /// client. A SYN or INIT of the other end corrects it.
    MidStream,
    /// In mid-stream, TCP, and nothing shows which end is the client: policy must allow both
    /// directions.
    Undirected,
}

/// When a connection was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpenedAt {
    /// The time.
    pub time: Instant,
    /// The snapshot that its first packet was evaluated with.
    pub epoch: Epoch,
}

impl OpenedAt {
    /// At this second, by an unknown snapshot.
    pub const fn second(second: u32) -> Self {
        Self { time: Instant::from_secs(second as u64), epoch: Epoch(0) }
    }

    pub(crate) const fn seconds(self) -> u32 {
        self.time.as_secs() as u32
    }
}

/// The facts that are fixed for the lifetime of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// Key of the original direction, as its packets are received.
    pub original: FlowKey,
    /// Key of the reply direction, as its packets are received: the reverse of the original key
    /// after translation.
    pub reply: FlowKey,
    /// Port on which the originator's packets are received.
    pub origin: PortId,
    /// VTEP that the originator's packets come from, if they come through the tunnel.
    pub origin_end: Option<VtepIndex>,
    /// Source MAC address of the first packet. If the client is not a local pod and its packets
    /// came in on an uplink, replies go back to this address.
    pub origin_mac: Mac,
    /// How the source is translated.
    pub source_nat: SourceNat,
    /// How the connection was opened, and therefore how certain its direction is.
    pub opened: Opened,
}

impl Pinned {
    /// A connection without translation, opened by a packet with the key `original`.
    #[inline]
    pub fn new(original: FlowKey, origin: PortId) -> Self {
        let (reply, origin_mac) = (original.reversed(), Mac::ZERO);
        let (source_nat, opened) = (SourceNat::Kept, Opened::First);
        Self { original, reply, origin, origin_end: None, origin_mac, source_nat, opened }
    }

    /// The account that connection limits are charged to.
    #[inline]
    pub fn account(&self) -> Account {
        Account::of(self.origin, self.origin_end)
    }

    /// The key of the packets of `direction` as they leave: the reverse of the other direction's
    /// key.
    #[inline]
    pub fn outgoing(&self, direction: Direction) -> FlowKey {
        match direction {
            Direction::Original => self.reply.reversed(),
            Direction::Reply => self.original.reversed(),
        }
    }

    /// A connection between the same ends in the opposite direction, without translation.
    pub fn turned(&self) -> Self {
        Self { original: self.reply, reply: self.original, ..*self }
    }

    /// Whether the destination is translated (DNAT): the client addressed a Service, not the
    /// backend.
    #[inline]
    pub fn is_via_service(&self) -> bool {
        self.original.dst != self.reply.src || self.original.dst_port != self.reply.src_port
    }

    /// Whether any address or port is translated.
    #[inline]
    pub fn is_translated(&self) -> bool {
        self.reply != self.original.reversed()
    }
}

/// The account that a connection is charged to. Behind a VTEP, also the count of its source, so
/// that one pod of another node leaves the other pods their share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    pub(crate) account: Account,
    /// The count of the source, if that one has reached its limit.
    pub(crate) source: Option<u32>,
}

impl Charge {
    /// A number that no other account or source has.
    pub fn key(&self) -> u64 {
        u64::from(self.account.0) << 32 | self.source.map_or(0, |source| u64::from(source) + 1)
    }
}

/// The account that connection limits are charged to: a port, or a remote node's VTEP. So a flood
/// from one node does not use up the connections of other nodes (T-C5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account(u32);

impl Account {
    /// The account of packets received on `port`: that of the VTEP `end` if they came through the
    /// tunnel, otherwise that of the port.
    #[inline]
    pub fn of(port: PortId, end: Option<VtepIndex>) -> Self {
        match end {
            None => Self(port.0.into()),
            Some(end) => Self(1 << 16 | end.0 & 0xffff),
        }
    }

    /// Index into a table of `ports` port accounts followed by one account for each VTEP.
    /// `usize::MAX` for a port number outside the table.
    #[inline]
    pub(crate) fn index(self, ports: usize) -> usize {
        let number = self.0 as usize & 0xffff;
        match self.0 >> 16 {
            0 if number >= ports => usize::MAX,
            0 => number,
            _ => ports + number,
        }
    }
}
