//! Source ports for SNAT: no two live connections have the same port of an address (S16; no port
//! overloading, RFC 4787 REQ-1 to REQ-3; threat T-N1).
//!
//! Shared by all workers behind one lock, which is taken when a connection with SNAT is opened or
//! ends, never for other packets. The range of ports must be reserved on the node, so that the
//! node's own sockets do not use them.
//!
//! [`NatPorts::lease`] can keep shares fair: a holder that has as many ports of an address as are
//! free gets no more. So one pod never has more than half of them, two pods have at most two thirds,
//! and a pod without any finds one (T-C5).

#![allow(clippy::disallowed_types, reason = "taken when a translated connection begins or ends")]

use core::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hashbrown::HashMap;
use podswitch_wire::flow_key::{Family, FlowKey};

use crate::id::PortId;
use crate::pinned::{Pinned, SourceNat};

/// The ports of an address for one protocol.
type Space = ([u8; 16], Family, u8);

/// The used ports of one space.
#[derive(Debug)]
struct Used {
    bits: Box<[u64; 1024]>,
    count: u32,
    /// Ports held by connections from each port of the switch.
    holders: HashMap<PortId, u32>,
}

impl Default for Used {
    fn default() -> Self {
        Self { bits: Box::new([0; 1024]), count: 0, holders: HashMap::new() }
    }
}

impl Used {
    fn has(&self, port: u16) -> bool {
        self.bits[usize::from(port >> 6)] >> (port & 63) & 1 == 1
    }

    /// Takes the first free port of the range for `holder`, searching cyclically from the given
    /// position.
    fn take(&mut self, holder: PortId, lease: &Lease<'_>) -> Option<u16> {
        let Lease { range, from, fair } = *lease;
        let (first, last) = (*range.start(), *range.end());
        let ports = u64::from(last.checked_sub(first)?) + 1;
        let free = ports.saturating_sub(u64::from(self.count));
        let held = self.holders.get(&holder).copied().unwrap_or(0);
        if free == 0 || fair && u64::from(held) >= free {
            return None;
        }
        let mut at = (from % ports) as u16;
        for _ in 0..ports {
            let port = first + at;
            if !self.has(port) {
                self.bits[usize::from(port >> 6)] |= 1 << (port & 63);
                self.count += 1;
                *self.holders.entry(holder).or_default() += 1;
                return Some(port);
            }
            at = if u64::from(at) + 1 == ports { 0 } else { at + 1 };
        }
        None
    }

    /// Frees a port.
    fn give_back(&mut self, holder: PortId, port: u16) {
        if !self.has(port) {
            return;
        }
        self.bits[usize::from(port >> 6)] &= !(1 << (port & 63));
        self.count -= 1;
        match self.holders.get_mut(&holder) {
            Some(held) if *held > 1 => *held -= 1,
            _ => {
                self.holders.remove(&holder);
            }
        }
    }
}

/// A client's address and port, and the space that they are mapped to.
type Mapped = ([u8; 16], u16, Space);

/// A port that all connections of a client's address and port share.
#[derive(Clone, Copy, Debug)]
struct Mapping {
    port: u16,
    /// Number of these connections.
    connections: u32,
    holder: PortId,
}

/// The conditions of a lease.
#[derive(Clone, Copy, Debug)]
pub struct Lease<'a> {
    /// The ports to choose from.
    pub range: &'a RangeInclusive<u16>,
    /// Where in the range the search begins. Should be unpredictable for others.
    pub from: u64,
    /// Whether the share of the connection's ingress port is limited. For pods; many clients share
    /// the node's port and the uplinks.
    pub fair: bool,
}

#[derive(Debug, Default)]
struct Leases {
    used: HashMap<Space, Used>,
    mapped: HashMap<Mapped, Mapping>,
}

/// See the module's description.
#[derive(Debug, Default)]
pub struct NatPorts {
    leases: Mutex<Leases>,
}

impl NatPorts {
    fn lock(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leases a port of the SNAT address of the connection `pinned`. `None` if all are in use, or the
    /// holder's share is exhausted.
    pub fn lease(&self, pinned: &Pinned, lease: &Lease<'_>) -> Option<u16> {
        let (space, holder) = (space(&pinned.reply), pinned.origin);
        let mut leases = self.lock();
        let Leases { used, mapped } = &mut *leases;
        if pinned.source_nat != SourceNat::Endpoint {
            return used.entry(space).or_default().take(holder, lease);
        }
        let client = (pinned.original.src, pinned.original.src_port, space);
        if let Some(mapping) = mapped.get_mut(&client) {
            mapping.connections += 1;
            return Some(mapping.port);
        }
        let port = used.entry(space).or_default().take(holder, lease)?;
        mapped.insert(client, Mapping { port, connections: 1, holder });
        Some(port)
    }

    /// Releases the port of a connection, if it has leased one.
    pub fn release(&self, pinned: &Pinned) {
        let (space, port) = (space(&pinned.reply), pinned.reply.dst_port);
        let mut leases = self.lock_if_leased(pinned);
        let Some(leases) = leases.as_deref_mut() else { return };
        let mut holder = pinned.origin;
        if pinned.source_nat == SourceNat::Endpoint {
            let client = (pinned.original.src, pinned.original.src_port, space);
            let Some(mapping) = leases.mapped.get_mut(&client) else { return };
            mapping.connections -= 1;
            if mapping.connections > 0 {
                return;
            }
            holder = mapping.holder;
            leases.mapped.remove(&client);
        }
        if let Some(used) = leases.used.get_mut(&space) {
            used.give_back(holder, port);
            if used.count == 0 {
                leases.used.remove(&space);
            }
        }
    }

    fn lock_if_leased(&self, pinned: &Pinned) -> Option<MutexGuard<'_, Leases>> {
        (pinned.source_nat != SourceNat::Kept).then(|| self.lock())
    }

    /// Number of leased ports, of all addresses and protocols.
    pub fn in_use(&self) -> usize {
        self.lock().used.values().map(|used| used.count as usize).sum()
    }
}

fn space(reply: &FlowKey) -> Space {
    (reply.dst, reply.family, reply.proto)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use podswitch_wire::flow_key::proto;

    const RANGE: RangeInclusive<u16> = 44_000..=44_099;

    fn any(from: u64) -> Lease<'static> {
        Lease { range: &RANGE, from, fair: false }
    }

    fn connection(client_port: u16, source_nat: SourceNat) -> Pinned {
        let key = |s: &str, d: &str, sp, dp| {
            FlowKey::new(s.parse().unwrap(), d.parse().unwrap(), proto::UDP, sp, dp).unwrap()
        };
        let original = key("10.0.0.1", "10.96.0.1", client_port, 53);
        let reply = key("10.0.0.2", "192.168.0.1", 53, 0);
        Pinned { reply, source_nat, ..Pinned::new(original, PortId(1)) }
    }

    #[test]
    fn every_port_once_then_none_and_again_after_release() {
        let ports = NatPorts::default();
        let mut leased = Vec::new();
        for n in 0..100 {
            let mut pinned = connection(n, SourceNat::Connection);
            pinned.reply.dst_port = ports.lease(&pinned, &any(u64::from(n) * 7919)).unwrap();
            assert!(RANGE.contains(&pinned.reply.dst_port));
            leased.push(pinned);
        }
        let distinct: HashSet<u16> = leased.iter().map(|p| p.reply.dst_port).collect();
        assert_eq!(distinct.len(), 100);
        assert_eq!(ports.lease(&connection(7, SourceNat::Connection), &any(0)), None);
        ports.release(&leased[31]);
        ports.release(&connection(1, SourceNat::Kept));
        let again = ports.lease(&connection(7, SourceNat::Connection), &any(0));
        assert_eq!(again, Some(leased[31].reply.dst_port));
        assert_eq!(ports.in_use(), 100);
    }

    #[test]
    fn a_client_port_keeps_its_mapping_for_all_destinations() {
        let ports = NatPorts::default();
        let mut first = connection(9, SourceNat::Endpoint);
        let mut second = connection(9, SourceNat::Endpoint);
        second.original.dst_port = 99;
        first.reply.dst_port = ports.lease(&first, &any(5)).unwrap();
        second.reply.dst_port = ports.lease(&second, &any(77)).unwrap();
        assert_eq!(first.reply.dst_port, second.reply.dst_port);
        let other = ports.lease(&connection(10, SourceNat::Endpoint), &any(5)).unwrap();
        assert_ne!(other, first.reply.dst_port);
        ports.release(&first);
        assert_eq!(ports.in_use(), 2, "the second connection still uses it");
        ports.release(&second);
        assert_eq!(ports.in_use(), 1);
    }

    #[test]
    fn fair_shares_leave_ports_for_others() {
        let ports = NatPorts::default();
        let fair = Lease { fair: true, ..any(3) };
        let lease = |origin: u16, n: u16| {
            let mut pinned = connection(n, SourceNat::Connection);
            pinned.origin = PortId(origin);
            pinned.reply.dst_port = ports.lease(&pinned, &fair)?;
            Some(pinned)
        };
        let first: Vec<_> = (0..100).map_while(|n| lease(1, n)).collect();
        assert_eq!(first.len(), 50);
        let second: Vec<_> = (0..100).map_while(|n| lease(2, n)).collect();
        assert_eq!(second.len(), 25);
        for origin in 3..9 {
            assert!(lease(origin, 1).is_some(), "a holder without ports finds one");
        }
        // Released ports do not count.
        first.iter().for_each(|pinned| ports.release(pinned));
        assert!(lease(1, 7).is_some());
        // The node's port, shared by many clients, has no limit.
        let mut node = connection(1, SourceNat::Connection);
        node.origin = PortId(2);
        assert!((0..60).all(|n| ports.lease(&node, &any(n)).is_some()));
    }
}
