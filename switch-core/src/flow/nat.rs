//! Source ports of translated connections: no two that live have the same one at an address (S16;
//! no port overloading, RFC 4787 REQ-1 to REQ-3; threat T-N1).
//!
//! Shared by all workers behind one lock, which is taken when a connection whose source is
//! translated is opened or ends, never for other packets. The range that ports are taken from is
//! kept from the node's own sockets by whoever runs the switch.

#![allow(clippy::disallowed_types, reason = "taken when a translated connection begins or ends")]

use core::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hashbrown::HashMap;
use wire::flow_key::{Family, FlowKey};

use super::connection::{Pinned, SourceNat};

/// An address's port space of one protocol.
type Space = ([u8; 16], Family, u8);

/// Ports of one space that are in use.
#[derive(Debug)]
struct Used {
    bits: Box<[u64; 1024]>,
    count: u32,
}

impl Default for Used {
    fn default() -> Self {
        Self { bits: Box::new([0; 1024]), count: 0 }
    }
}

impl Used {
    fn has(&self, port: u16) -> bool {
        self.bits[usize::from(port >> 6)] >> (port & 63) & 1 == 1
    }

    /// The first free port of `range` from a place in it on, going round.
    fn take(&mut self, range: &RangeInclusive<u16>, from: u64) -> Option<u16> {
        let (first, last) = (*range.start(), *range.end());
        let ports = u64::from(last.checked_sub(first)?) + 1;
        if u64::from(self.count) >= ports {
            return None;
        }
        let mut at = (from % ports) as u16;
        for _ in 0..ports {
            let port = first + at;
            if !self.has(port) {
                self.bits[usize::from(port >> 6)] |= 1 << (port & 63);
                self.count += 1;
                return Some(port);
            }
            at = if u64::from(at) + 1 == ports { 0 } else { at + 1 };
        }
        None
    }

    fn give_back(&mut self, port: u16) {
        if self.has(port) {
            self.bits[usize::from(port >> 6)] &= !(1 << (port & 63));
            self.count -= 1;
        }
    }
}

/// A client's own address and port, and the space that it is mapped into.
type Mapped = ([u8; 16], u16, Space);

#[derive(Debug, Default)]
struct Leases {
    used: HashMap<Space, Used>,
    /// Ports that a client's connections share, with how many those are.
    mapped: HashMap<Mapped, (u16, u32)>,
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

    /// A port for the connection `pinned`, which says at what address; `from` says where in
    /// `range` to begin to look, and should not be guessed by others. `None`: all are in use.
    pub fn lease(&self, pinned: &Pinned, range: &RangeInclusive<u16>, from: u64) -> Option<u16> {
        let space = space(&pinned.reply);
        let mut leases = self.lock();
        let Leases { used, mapped } = &mut *leases;
        if pinned.source_nat != SourceNat::Endpoint {
            return used.entry(space).or_default().take(range, from);
        }
        let client = (pinned.original.src, pinned.original.src_port, space);
        if let Some((port, connections)) = mapped.get_mut(&client) {
            *connections += 1;
            return Some(*port);
        }
        let port = used.entry(space).or_default().take(range, from)?;
        mapped.insert(client, (port, 1));
        Some(port)
    }

    /// Gives back what a connection had, if it had anything.
    pub fn release(&self, pinned: &Pinned) {
        let (space, port) = (space(&pinned.reply), pinned.reply.dst_port);
        let mut leases = self.lock_if_leased(pinned);
        let Some(leases) = leases.as_deref_mut() else { return };
        if pinned.source_nat == SourceNat::Endpoint {
            let client = (pinned.original.src, pinned.original.src_port, space);
            let Some((_, connections)) = leases.mapped.get_mut(&client) else { return };
            *connections -= 1;
            if *connections > 0 {
                return;
            }
            leases.mapped.remove(&client);
        }
        if let Some(used) = leases.used.get_mut(&space) {
            used.give_back(port);
            if used.count == 0 {
                leases.used.remove(&space);
            }
        }
    }

    fn lock_if_leased(&self, pinned: &Pinned) -> Option<MutexGuard<'_, Leases>> {
        (pinned.source_nat != SourceNat::Kept).then(|| self.lock())
    }

    /// Ports in use, of all addresses and protocols.
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
    use crate::id::PortId;
    use wire::flow_key::proto;

    const RANGE: RangeInclusive<u16> = 44_000..=44_099;

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
            pinned.reply.dst_port = ports.lease(&pinned, &RANGE, u64::from(n) * 7919).unwrap();
            assert!(RANGE.contains(&pinned.reply.dst_port));
            leased.push(pinned);
        }
        let distinct: HashSet<u16> = leased.iter().map(|p| p.reply.dst_port).collect();
        assert_eq!(distinct.len(), 100);
        assert_eq!(ports.lease(&connection(7, SourceNat::Connection), &RANGE, 0), None);
        ports.release(&leased[31]);
        ports.release(&connection(1, SourceNat::Kept));
        let again = ports.lease(&connection(7, SourceNat::Connection), &RANGE, 0);
        assert_eq!(again, Some(leased[31].reply.dst_port));
        assert_eq!(ports.in_use(), 100);
    }

    #[test]
    fn a_client_port_keeps_its_mapping_for_all_destinations() {
        let ports = NatPorts::default();
        let mut first = connection(9, SourceNat::Endpoint);
        let mut second = connection(9, SourceNat::Endpoint);
        second.original.dst_port = 99;
        first.reply.dst_port = ports.lease(&first, &RANGE, 5).unwrap();
        second.reply.dst_port = ports.lease(&second, &RANGE, 77).unwrap();
        assert_eq!(first.reply.dst_port, second.reply.dst_port);
        let other = ports.lease(&connection(10, SourceNat::Endpoint), &RANGE, 5).unwrap();
        assert_ne!(other, first.reply.dst_port);
        ports.release(&first);
        assert_eq!(ports.in_use(), 2, "the second connection has it still");
        ports.release(&second);
        assert_eq!(ports.in_use(), 1);
    }
}
