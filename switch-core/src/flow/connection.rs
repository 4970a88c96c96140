//! Connections, shared by all workers: whatever worker a packet of either direction arrives at,
//! it finds the same connection, and two first packets at once make one.
//!
//! Two parts. The *slots* hold a connection's pinned facts, and what changes with packets (TCP
//! sides, counters, last packet) as relaxed atomics: one cache line for each direction, which the
//! hit path reads and writes without any lock, one for the facts, one more where packets are translated.
//! The *index* leads from the keys to the slot; it is split into shards, each behind a mutex, and
//! only touched when a worker meets a key that its own flow table does not have (the miss path), and
//! when connections end. Where nothing is translated both directions have one place in it. See
//! decision records 0002 and 0012.
//!
//! A slot is used again under a new generation. A worker's entry remembers the generation, so an
//! entry of a connection that ended is a miss and never applies to another connection.
//!
//! The types are here, the table in `tracker.rs`, what a slot holds in `slot.rs` and `facts.rs`, what
//! packets do to a connection in `packets.rs`, how it ends in `ending.rs`.
//! `model.rs` puts the same source before `shuttle`, which tries interleavings of threads.

mod ending;
mod facts;
mod packets;
mod slot;
mod tracker;

use podswitch_vxlan::vtep::EndIndex;
use podswitch_wire::addr::Mac;
use podswitch_wire::flow_key::{FlowKey, HashKey};

use super::tcp::TcpState;
use crate::id::PortId;

pub use slot::{PRESSURE_SECS, Worth};
pub use tracker::Tracker;

/// What the table is built on; other things in `model.rs`.
#[expect(
    clippy::disallowed_types,
    reason = "shard mutexes are taken on a miss and at the end of a connection, never on a hit"
)]
mod sync {
    pub(super) use std::sync::atomic::{AtomicU32, AtomicU64};
    pub(super) use std::sync::{Mutex, MutexGuard};
}

/// Slots are made this many at a time.
const CHUNK: usize = 256;
/// Enough that two workers seldom want the same one.
const SHARDS: usize = 64;
/// Ports that connections are counted for.
const PORTS: usize = PortId::MAX_PORTS;
/// Tunnel ends that connections are counted for: as many as there can be.
const ENDS: usize = 1 << 16;
/// Counts of sources behind tunnel ends; those whose hash is the same share one.
const SOURCES: usize = 1 << 16;

const _: () = assert!(size_of::<slot::Lane>() == 64 && size_of::<slot::Slot>() == 192);
const _: () = assert!(size_of::<facts::Answer>() == 64);

/// One direction of a connection, as a worker's entry remembers it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConnectionRef {
    /// Slot number times two, plus one for the reply direction.
    slot: u32,
    generation: u32,
}

impl ConnectionRef {
    /// No connection.
    pub const NONE: ConnectionRef = ConnectionRef { slot: u32::MAX, generation: 0 };

    /// Whether this is no connection.
    #[inline]
    pub const fn is_none(self) -> bool {
        self.slot == u32::MAX
    }

    /// As two words, for an entry that is packed.
    #[inline]
    pub(super) const fn parts(self) -> [u32; 2] {
        [self.slot, self.generation]
    }

    /// What [`parts`](Self::parts) were of.
    #[inline]
    pub(super) const fn from_parts([slot, generation]: [u32; 2]) -> Self {
        Self { slot, generation }
    }

    /// The direction: from the originator, or the reply.
    #[inline]
    pub const fn direction(self) -> Direction {
        if self.slot & 1 == 0 { Direction::Original } else { Direction::Reply }
    }

    /// The other direction of the same connection.
    #[inline]
    pub const fn reversed(self) -> Self {
        Self { slot: self.slot ^ 1, generation: self.generation }
    }
}

/// Direction of a packet within its connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Direction {
    /// As its first packet went.
    Original,
    /// The answers.
    Reply,
}

/// What never changes while the connection lives. Survives every configuration change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// Key of the original direction as packets come in.
    pub original: FlowKey,
    /// Key of the reply direction as packets come in: the reverse of the original after
    /// translation.
    pub reply: FlowKey,
    /// Port by which the originator came in.
    pub origin: PortId,
    /// Tunnel end by which it came in, if it came through a tunnel.
    pub origin_end: Option<EndIndex>,
    /// Link-layer address of whoever sent the first packet: answers to those that are no pods of
    /// ours and came by an uplink go back there.
    pub origin_mac: Mac,
    /// Whose the port is that stands in place of the originator's.
    pub source_nat: SourceNat,
    /// How sure it is who opened it.
    pub opened: Opened,
}

/// How a connection came to be known, and with it how sure its direction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Opened {
    /// By its first packet: that one's sender is the client.
    #[default]
    First,
    /// In mid-stream, TCP or SCTP. Ports and what is configured say who is the client of TCP; a SYN
    /// or INIT of the other side says otherwise.
    MidStream,
    /// In mid-stream, TCP, and nothing says who is the client: policy must allow both directions.
    Undirected,
}

/// Whom limits are charged to: each remote node's tunnel end, and each port for all that comes in by
/// it as it is. One node's flood leaves the others their connections (T-C5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account(u32);

impl Account {
    /// Of what comes in by a port, through the tunnel to an end or without.
    #[inline]
    pub fn of(port: PortId, end: Option<EndIndex>) -> Self {
        match end {
            None => Self(port.0.into()),
            Some(end) => Self(1 << 16 | end.0 & 0xffff),
        }
    }

    /// Its place behind the ports, where there are so many of them.
    #[inline]
    fn index(self, ports: usize) -> usize {
        let number = self.0 as usize & 0xffff;
        match self.0 >> 16 {
            // Beyond the ports there is none.
            0 if number >= ports => usize::MAX,
            0 => number,
            _ => ports + number,
        }
    }
}

/// To whom a connection is charged: an account, and within that of a tunnel end its own source, so
/// that one pod of another node leaves the others theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    account: Account,
    /// Which count of sources it is, if its source has as many as it may.
    source: Option<u32>,
}

impl Charge {
    /// A number for it; another has another.
    pub fn key(&self) -> u64 {
        u64::from(self.account.0) << 32 | self.source.map_or(0, |source| u64::from(source) + 1)
    }
}

/// How a connection's source is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SourceNat {
    /// Address kept; the port too, unless two connections would have the same answers (S16).
    #[default]
    Kept,
    /// To an address of the node, with a port of the connection's own (S8).
    Connection,
    /// To an egress address, with one port for all connections of a client's address and port
    /// (masquerade, P3; endpoint-independent mapping, RFC 4787 REQ-1).
    Endpoint,
}

impl Pinned {
    /// A connection that is not translated, opened by a packet with this key.
    #[inline]
    pub fn new(original: FlowKey, origin: PortId) -> Self {
        let (reply, origin_mac) = (original.reversed(), Mac::ZERO);
        let (source_nat, opened) = (SourceNat::Kept, Opened::First);
        Self { original, reply, origin, origin_end: None, origin_mac, source_nat, opened }
    }

    /// Whom limits are charged to.
    #[inline]
    pub fn account(&self) -> Account {
        Account::of(self.origin, self.origin_end)
    }

    /// Whether its destination is another one than the client asked for: a Service's backend.
    #[inline]
    pub fn is_via_service(&self) -> bool {
        self.original.dst != self.reply.src || self.original.dst_port != self.reply.src_port
    }

    /// The same ends, opened by the other one; without translation.
    pub fn turned(&self) -> Self {
        Self { original: self.reply, reply: self.original, ..*self }
    }

    /// Whether packets are translated at all.
    #[inline]
    pub fn is_translated(&self) -> bool {
        self.reply != self.original.reversed()
    }
}

/// Where a key's connections are in the index: the same for both directions of a connection that is
/// not translated. Made by [`Tracker::place`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place(u64);

/// A connection found in the index, seen from one direction.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// The connection and the direction of the key that was asked for.
    pub connection: ConnectionRef,
    /// Its pinned facts.
    pub pinned: Pinned,
}

/// Bounds of the connection table.
#[derive(Clone, Copy, Debug)]
pub struct TrackerConfig {
    /// The most connections in all.
    pub connections: u32,
    /// The most connections that one port or tunnel end may originate. Besides, none has more than are
    /// free in the table, and no source behind a tunnel end more than are free to that end, so that
    /// whoever has none finds room.
    pub per_port: u32,
    /// Secret hash key of this process; the same as the flow tables'.
    pub hash_key: HashKey,
}

/// Why a connection was not made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// The table is full and nothing in it could go early.
    Full,
    /// Whoever it is charged to has as many as it may.
    Limit(Charge),
    /// Another connection has the reply's key (a translation that collides).
    Collision,
}

/// What became of making a connection.
#[derive(Clone, Copy, Debug)]
pub enum Created {
    /// It is new.
    New(ConnectionRef),
    /// Another worker, or the other direction, was first.
    Existing(Known),
}

/// A connection as `flows` lists it.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// Pinned facts.
    pub pinned: Pinned,
    /// Packets by direction.
    pub packets: [u64; 2],
    /// Bytes by direction.
    pub bytes: [u64; 2],
    /// TCP states by direction; `None` for other protocols.
    pub tcp: Option<[TcpState; 2]>,
    /// Second of the last packet.
    pub last_seen: u32,
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
