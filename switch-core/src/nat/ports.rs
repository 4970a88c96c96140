//! Source ports for SNAT (S16, RFC 4787 REQ-1 to REQ-3; threat T-N1).
//!
//! A masqueraded client endpoint ([`SourceNat::Endpoint`]) has one port for all its destinations, and no other client
//! has the same port. A connection with a port of its own ([`SourceNat::Connection`]) shares the port with no other
//! connection to the same destination; the connection table ensures this, because their reply keys would be the same.
//! So all ports of the range are available for each destination. This module counts how many of them each port of the
//! switch holds.
//!
//! Shared by all workers behind one lock, which is taken when a connection with SNAT is opened or
//! ends, never for other packets. The range of ports must be reserved on the node, so that the
//! node's own sockets do not use them.
//!
//! For both kinds, shares can be limited fairly: a holder that already has as many ports as are free gets no more. So
//! one pod never has more than half of them, two pods have at most two thirds, and a pod without any ports finds one
//! (T-C5).

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
                self.mark(holder, port);
                return Some(port);
            }
            at = if u64::from(at) + 1 == ports { 0 } else { at + 1 };
        }
        None
    }

    /// Takes a free port.
    fn mark(&mut self, holder: PortId, port: u16) {
        self.bits[usize::from(port >> 6)] |= 1 << (port & 63);
        self.count += 1;
        *self.holders.entry(holder).or_default() += 1;
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

/// Connections to one destination from one address: address and protocol, destination.
type Towards = (Space, [u8; 16], u16);

/// Their number, in total and for each port of the switch.
#[derive(Debug, Default)]
struct Shares {
    count: u32,
    holders: HashMap<PortId, u32>,
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
    shared: HashMap<Towards, Shares>,
    /// Connections with a port of their own.
    alone: usize,
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

    /// The port that all connections of a masqueraded client endpoint share, at the SNAT address of
    /// `pinned`. `None` if all are in use, or the holder's share is exhausted.
    pub fn map(&self, pinned: &Pinned, lease: &Lease<'_>) -> Option<u16> {
        let (space, holder) = (space(&pinned.reply), pinned.origin);
        let Leases { used, mapped, .. } = &mut *self.lock();
        let client = (pinned.original.src, pinned.original.src_port, space);
        if let Some(mapping) = mapped.get_mut(&client) {
            mapping.connections += 1;
            return Some(mapping.port);
        }
        let port = used.entry(space).or_default().take(holder, lease)?;
        mapped.insert(client, Mapping { port, connections: 1, holder });
        Some(port)
    }

    /// Counts a connection with SNAT to its destination. False if shares are limited and the holder's share is
    /// exhausted.
    pub fn share(&self, pinned: &Pinned, lease: &Lease<'_>) -> bool {
        let Leases { shared, alone, .. } = &mut *self.lock();
        let Shares { count, holders } = shared.entry(towards(&pinned.reply)).or_default();
        let ports = u32::from(*lease.range.end()).saturating_sub((*lease.range.start()).into()) + 1;
        let held = holders.entry(pinned.origin).or_default();
        if lease.fair && *held >= ports.saturating_sub(*count) {
            if *held == 0 {
                holders.remove(&pinned.origin);
            }
            return false;
        }
        *held += 1;
        *count += 1;
        *alone += usize::from(pinned.source_nat == SourceNat::Connection);
        true
    }

    /// Leases the port of a connection from an earlier process, regardless of its holder's share. False if another
    /// client has the port now.
    pub fn restore(&self, pinned: &Pinned) -> bool {
        let range = 0..=u16::MAX;
        match pinned.source_nat {
            SourceNat::Kept => return true,
            SourceNat::Connection => {}
            SourceNat::Endpoint if !self.restore_mapping(pinned) => return false,
            SourceNat::Endpoint => {}
        }
        self.share(pinned, &Lease { range: &range, from: 0, fair: false })
    }

    fn restore_mapping(&self, pinned: &Pinned) -> bool {
        let (space, port) = (space(&pinned.reply), pinned.reply.dst_port);
        let Leases { used, mapped, .. } = &mut *self.lock();
        let client = (pinned.original.src, pinned.original.src_port, space);
        if let Some(mapping) = mapped.get_mut(&client) {
            let same = mapping.port == port;
            mapping.connections += u32::from(same);
            return same;
        }
        let used = used.entry(space).or_default();
        let is_free = !used.has(port);
        if is_free {
            used.mark(pinned.origin, port);
            mapped.insert(client, Mapping { port, connections: 1, holder: pinned.origin });
        }
        is_free
    }

    /// Releases the port and the share of a connection, if it has SNAT.
    pub fn release(&self, pinned: &Pinned) {
        match pinned.source_nat {
            SourceNat::Kept => return,
            SourceNat::Connection => {}
            SourceNat::Endpoint => self.release_mapping(pinned),
        }
        self.release_share(pinned);
    }

    /// Releases a [share](Self::share).
    pub fn release_share(&self, pinned: &Pinned) {
        let Leases { shared, alone, .. } = &mut *self.lock();
        let towards = towards(&pinned.reply);
        let Some(Shares { count, holders }) = shared.get_mut(&towards) else { return };
        *alone -= usize::from(pinned.source_nat == SourceNat::Connection);
        *count = count.saturating_sub(1);
        match holders.get_mut(&pinned.origin) {
            Some(held) if *held > 1 => *held -= 1,
            _ => drop(holders.remove(&pinned.origin)),
        }
        if *count == 0 {
            shared.remove(&towards);
        }
    }

    fn release_mapping(&self, pinned: &Pinned) {
        let (space, port) = (space(&pinned.reply), pinned.reply.dst_port);
        let Leases { used, mapped, .. } = &mut *self.lock();
        let client = (pinned.original.src, pinned.original.src_port, space);
        let Some(mapping) = mapped.get_mut(&client) else { return };
        mapping.connections -= 1;
        if mapping.connections > 0 {
            return;
        }
        let holder = mapping.holder;
        mapped.remove(&client);
        if let Some(all) = used.get_mut(&space) {
            all.give_back(holder, port);
            if all.count == 0 {
                used.remove(&space);
            }
        }
    }

    /// Number of leased ports, of all addresses and protocols.
    pub fn in_use(&self) -> usize {
        let leases = self.lock();
        let mapped: usize = leases.used.values().map(|used| used.count as usize).sum();
        mapped + leases.alone
    }
}

fn towards(reply: &FlowKey) -> Towards {
    (space(reply), reply.src, reply.src_port)
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
            let mut pinned = connection(n, SourceNat::Endpoint);
            pinned.reply.dst_port = ports.map(&pinned, &any(u64::from(n) * 7919)).unwrap();
            assert!(RANGE.contains(&pinned.reply.dst_port));
            leased.push(pinned);
        }
        let distinct: HashSet<u16> = leased.iter().map(|p| p.reply.dst_port).collect();
        assert_eq!(distinct.len(), 100);
        assert_eq!(ports.map(&connection(700, SourceNat::Endpoint), &any(0)), None);
        ports.release(&leased[31]);
        ports.release(&connection(1, SourceNat::Kept));
        let again = ports.map(&connection(700, SourceNat::Endpoint), &any(0));
        assert_eq!(again, Some(leased[31].reply.dst_port));
        assert_eq!(ports.in_use(), 100);
    }

    #[test]
    fn a_client_port_keeps_its_mapping_for_all_destinations() {
        let ports = NatPorts::default();
        let mut first = connection(9, SourceNat::Endpoint);
        let mut second = connection(9, SourceNat::Endpoint);
        second.original.dst_port = 99;
        first.reply.dst_port = ports.map(&first, &any(5)).unwrap();
        second.reply.dst_port = ports.map(&second, &any(77)).unwrap();
        assert_eq!(first.reply.dst_port, second.reply.dst_port);
        let other = ports.map(&connection(10, SourceNat::Endpoint), &any(5)).unwrap();
        assert_ne!(other, first.reply.dst_port);
        ports.release(&first);
        assert_eq!(ports.in_use(), 2, "the second connection still has it");
        ports.release(&second);
        assert_eq!(ports.in_use(), 1);
    }

    #[test]
    fn no_holder_takes_all_ports_if_shares_are_fair() {
        for source_nat in [SourceNat::Endpoint, SourceNat::Connection] {
            let ports = NatPorts::default();
            let fair = Lease { fair: true, ..any(3) };
            let lease = |origin: u16, n: u16, to: u16| {
                let mut pinned = connection(n, source_nat);
                pinned.origin = PortId(origin);
                // Each source of packets has its own addresses.
                pinned.original.src[3] = origin as u8;
                pinned.reply.src_port = to;
                if !ports.share(&pinned, &fair) {
                    return None;
                }
                if source_nat == SourceNat::Endpoint {
                    let Some(port) = ports.map(&pinned, &fair) else {
                        ports.release_share(&pinned);
                        return None;
                    };
                    pinned.reply.dst_port = port;
                }
                Some(pinned)
            };
            let first: Vec<_> = (0..100).map_while(|n| lease(1, n, 53)).collect();
            assert_eq!(first.len(), 50);
            let second: Vec<_> = (0..100).map_while(|n| lease(2, n, 53)).collect();
            assert_eq!(second.len(), 25);
            for origin in 3..9 {
                assert!(lease(origin, 1, 53).is_some(), "a holder without a port finds one");
            }
            // Another destination has its own ports, unless a port is for all destinations.
            let elsewhere = lease(1, 1000, 54).is_some();
            assert_eq!(elsewhere, source_nat == SourceNat::Connection);
            // A released port no longer counts.
            first.iter().for_each(|pinned| ports.release(pinned));
            assert!(lease(1, 7, 53).is_some());
            assert_eq!(ports.in_use(), 25 + 6 + 1 + usize::from(elsewhere));
        }
    }

    /// A port that carries many clients has no share.
    #[test]
    fn without_fair_shares_one_holder_may_take_all_ports() {
        let ports = NatPorts::default();
        assert!((0..200).all(|n| ports.share(&connection(n, SourceNat::Connection), &any(0))));
        let mapped =
            (0..200).map_while(|n| ports.map(&connection(n, SourceNat::Endpoint), &any(0)));
        assert_eq!(mapped.count(), 100);
    }
}
