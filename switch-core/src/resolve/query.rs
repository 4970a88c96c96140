//! The input of a decision: a packet, and the known facts of its connection.

use std::net::SocketAddr;

use podswitch_vxlan::vtep::VtepIndex;
use podswitch_wire::flow_key::FlowKey;

use crate::id::PortId;
use crate::nat::affinity::Affinity;
use crate::packet::Packet;
use crate::pinned::{Direction, Pinned};

/// A packet, as [`resolve`](super::resolve()) sees it.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// The packet's key, as it was received.
    pub key: &'a FlowKey,
    /// The port that it was received on.
    pub ingress: PortId,
    /// The VTEP that sent it, if it came through the tunnel.
    pub via: Option<VtepIndex>,
    /// Its connection and its direction in it, if the connection is known.
    pub known: Option<(&'a Pinned, Direction)>,
    /// Session affinity and the current second. `None`: no client has affinity.
    pub affinity: Option<(&'a Affinity, u32)>,
    /// The backend of a connection through a Service whose other facts are unknown.
    pub backend: Option<SocketAddr>,
}

impl<'a> Query<'a> {
    /// The first packet of a connection.
    pub fn new(key: &'a FlowKey, ingress: PortId) -> Self {
        Self { key, ingress, via: None, known: None, affinity: None, backend: None }
    }

    /// The same for a packet that was received.
    pub fn of(key: &'a FlowKey, packet: &Packet) -> Self {
        Self { via: packet.via(), ..Self::new(key, packet.ingress) }
    }

    /// The packet's direction in its connection.
    #[inline]
    pub fn direction(&self) -> Direction {
        self.known.map_or(Direction::Original, |(_, direction)| direction)
    }

    /// The facts of the packet's connection; if the connection is not known, those of a new one
    /// without translation.
    #[inline]
    pub fn pinned(&self) -> Pinned {
        match self.known {
            Some((pinned, _)) => *pinned,
            None => Pinned { origin_end: self.via, ..Pinned::new(*self.key, self.ingress) },
        }
    }
}
