//! One compiled Service port: its backends, the selection among them, and its restrictions.
//!
//! Built by the [compiler](super::compile), read by workers when a connection is opened.

use core::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use podswitch_wire::cidr::Cidr;
use podswitch_wire::flow_key::Family;

use super::counts::{Before, Counts, Slot};
use super::endpoints::Topology;
use super::model::TrafficPolicy;
use crate::maglev::Maglev;
use crate::rule::Protocol;

/// Identity of a Service port (or host port). It stays the same through every change of the port
/// and for both families, and is never reused. Affinity and counters refer to it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ServicePortId(pub u32);

/// State of a backend, as bits of one byte.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct BackendFlags(u8);

impl BackendFlags {
    /// Ready.
    pub const READY: Self = Self(1);
    /// Serving.
    pub const SERVING: Self = Self(2);
    /// Terminating.
    pub const TERMINATING: Self = Self(4);
    /// On this node.
    pub const LOCAL: Self = Self(8);
    /// Takes new connections under Cluster policy.
    pub const IN_CLUSTER: Self = Self(16);
    /// Takes new connections under Local policy.
    pub const IN_LOCAL: Self = Self(32);

    /// Whether all bits of `other` are set.
    #[inline]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// With the bits of `other` set if `on`.
    #[must_use]
    pub const fn with(self, other: Self, on: bool) -> Self {
        if on { Self(self.0 | other.0) } else { self }
    }
}

impl fmt::Debug for BackendFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (Self::READY, "ready"),
            (Self::SERVING, "serving"),
            (Self::TERMINATING, "terminating"),
            (Self::LOCAL, "local"),
            (Self::IN_CLUSTER, "cluster"),
            (Self::IN_LOCAL, "node"),
        ];
        let set = names.into_iter().filter(|(flag, _)| self.has(*flag)).map(|(_, name)| name);
        f.debug_list().entries(set).finish()
    }
}

/// One backend. All known backends are kept, usable or not, because existing connections to them
/// continue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Backend {
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// Share of new connections.
    pub weight: u16,
    /// State.
    pub flags: BackendFlags,
    pub(super) slot: Slot,
}

impl Backend {
    /// Address and port.
    #[inline]
    pub const fn socket(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.socket(), f)
    }
}

const _: () = assert!(size_of::<Backend>() <= 24);

/// Further facts about a backend, for explanations.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BackendDetail {
    /// Node that it is on.
    pub node: Option<Arc<str>>,
    /// Zone that it is in.
    pub zone: Option<Arc<str>>,
    /// Cookie of the pod or other object behind it.
    pub target: Option<Arc<str>>,
}

/// The set of backends over which a connection is balanced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// Endpoints of all nodes.
    Cluster,
    /// Endpoints of this node.
    Local,
}

/// CIDRs of one family; membership by binary search.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ranges {
    /// First and last address, sorted, without overlaps.
    spans: Box<[(u128, u128)]>,
}

impl Ranges {
    /// The ranges of `family` among `cidrs`.
    pub fn new(cidrs: &[Cidr], family: Family) -> Self {
        let of_family = cidrs.iter().filter(|c| super::model::family_of(c.address()) == family);
        let mut spans: Vec<(u128, u128)> = of_family.map(span).collect();
        spans.sort_unstable();
        let mut merged: Vec<(u128, u128)> = Vec::with_capacity(spans.len());
        for (first, last) in spans {
            match merged.last_mut() {
                Some(open) if first <= open.1 => open.1 = open.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Self { spans: merged.into() }
    }

    /// Whether an address of the family lies in one of them.
    #[inline]
    pub fn contains(&self, address: IpAddr) -> bool {
        let bits = bits(address);
        let after = self.spans.partition_point(|(first, _)| *first <= bits);
        after.checked_sub(1).is_some_and(|at| bits <= self.spans[at].1)
    }

    fn heap_bytes(&self) -> usize {
        self.spans.len() * size_of::<(u128, u128)>()
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => u128::from(a),
    }
}

fn span(cidr: &Cidr) -> (u128, u128) {
    let first = bits(cidr.address());
    let width: u8 = if cidr.address().is_ipv4() { Ipv4Addr::BITS as u8 } else { 128 };
    let host = u128::MAX.checked_shr(128 - u32::from(width - cidr.prefix())).unwrap_or(0);
    (first, first | host)
}

/// A compiled Service port, in one family.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceEntry {
    /// Identity.
    pub id: ServicePortId,
    /// Cookie of the Service (or of the pod, for a host port).
    pub cookie: Arc<str>,
    /// Name of the port.
    pub port_name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// Port of the Service's own addresses.
    pub port: u16,
    /// Family.
    pub family: Family,
    /// Traffic policy for clients of the cluster IP.
    pub internal_policy: TrafficPolicy,
    /// Traffic policy for outside clients of the other addresses.
    pub external_policy: TrafficPolicy,
    /// Session affinity timeout in seconds.
    pub affinity: Option<u32>,
    /// Clients that load-balancer addresses accept; `None`: all (S7).
    pub source_ranges: Option<Ranges>,
    /// Hints that were honoured.
    pub topology: Topology,
    /// Some endpoint is usable somewhere (S5).
    pub any: bool,
    pub(super) backends: Arc<[Backend]>,
    pub(super) details: Box<[BackendDetail]>,
    pub(super) cluster: Maglev,
    pub(super) local: Maglev,
    pub(super) counts: Counts,
}

impl ServiceEntry {
    /// Every known backend, sorted by address.
    #[inline]
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// The further facts about the backend at `index`.
    pub fn detail(&self, index: usize) -> Option<&BackendDetail> {
        self.details.get(index)
    }

    /// The selection among backends in a scope. Node-local tables exist only where a policy needs
    /// them.
    #[inline]
    pub fn table(&self, scope: Scope) -> &Maglev {
        match scope {
            Scope::Cluster => &self.cluster,
            Scope::Local => &self.local,
        }
    }

    /// The index of a backend by its address.
    #[inline]
    pub fn find(&self, backend: SocketAddr) -> Option<usize> {
        let key = |b: &Backend| b.socket();
        self.backends.binary_search_by_key(&backend, key).ok()
    }

    /// Counts a connection opened to the backend at `index`. Relaxed and without a lock. Called
    /// once for each connection, not for each packet.
    #[inline]
    pub fn count_opened(&self, index: usize) {
        if let Some(backend) = self.backends.get(index) {
            self.counts.add_opened(backend.slot);
        }
    }

    /// Counts a rejected connection: the client gets an answer (S5).
    #[inline]
    pub fn count_rejected(&self) {
        self.counts.add_rejected();
    }

    /// Counts a dropped connection: the client gets no answer (S3, S4, S7).
    #[inline]
    pub fn count_dropped(&self) {
        self.counts.add_dropped();
    }

    /// Connections opened to the backend at `index` since it was added to this port.
    pub fn opened(&self, index: usize) -> u64 {
        self.backends.get(index).map_or(0, |backend| self.counts.opened(backend.slot))
    }

    /// Connections that were opened to backends that no longer belong to this port.
    pub fn departed(&self) -> u64 {
        self.counts.departed()
    }

    /// Rejected connections.
    pub fn rejected(&self) -> u64 {
        self.counts.rejected()
    }

    /// Dropped connections.
    pub fn dropped(&self) -> u64 {
        self.counts.dropped()
    }

    /// Adds the counts of an earlier process: connections opened to `backend`; `None`: to backends
    /// that no longer exist.
    pub fn restore_opened(&self, backend: Option<SocketAddr>, count: u64) {
        let slot = backend.and_then(|backend| self.find(backend)).map(|at| self.backends[at].slot);
        self.counts.restore_opened(slot, count);
    }

    /// Adds the counts of an earlier process: connections that were rejected and dropped.
    pub fn restore_refused(&self, rejected: u64, dropped: u64) {
        self.counts.restore_refused(rejected, dropped);
    }

    /// Counters for the entry that replaces this one, with these backends.
    pub(super) fn counts_for(
        before: Option<&Self>,
        backends: &[SocketAddr],
    ) -> (Counts, Vec<Slot>) {
        let Some(entry) = before else { return Counts::new(None, backends) };
        let places = entry.backends.iter().map(|b| (b.socket(), b.slot)).collect();
        Counts::new(Some(Before { counts: &entry.counts, backends: places }), backends)
    }

    /// Bytes on the heap, itself included; names are shared and not counted.
    pub fn heap_bytes(&self) -> usize {
        size_of::<Self>()
            + size_of_val::<[Backend]>(&self.backends)
            + size_of_val::<[BackendDetail]>(&self.details)
            + self.cluster.heap_bytes()
            + self.local.heap_bytes()
            + self.counts.heap_bytes()
            + self.source_ranges.as_ref().map_or(0, Ranges::heap_bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn whole_families() {
        let all = [cidr("0.0.0.0/0"), cidr("::/0")];
        for (family, ip) in [(Family::V4, "255.255.255.255"), (Family::V6, "ffff::ffff")] {
            assert!(Ranges::new(&all, family).contains(ip.parse().unwrap()));
        }
        assert!(!Ranges::new(&all[1..], Family::V4).contains([1, 2, 3, 4].into()));
    }

    proptest! {
        #[test]
        fn ranges_agree_with_cidrs(
            list in prop::collection::vec((0u8..4, 0u8..4, any::<u8>(), 6u8..=32), 0..12),
            probe in (0u8..4, 0u8..4, any::<u8>()),
        ) {
            let ip = |(a, b, c): (u8, u8, u8)| IpAddr::from([a, b, c, c]);
            let cidrs: Vec<_> =
                list.iter().map(|(a, b, c, p)| Cidr::new(ip((*a, *b, *c)), *p).unwrap()).collect();
            let expected = cidrs.iter().any(|c| c.contains(ip(probe)));
            prop_assert_eq!(Ranges::new(&cidrs, Family::V4).contains(ip(probe)), expected);
            let six = |ip: IpAddr| match ip {
                IpAddr::V4(a) => IpAddr::V6(a.to_ipv6_mapped()),
                v6 => v6,
            };
            let mapped: Vec<_> =
                cidrs.iter().map(|c| Cidr::new(six(c.address()), 96 + c.prefix()).unwrap()).collect();
            prop_assert_eq!(Ranges::new(&mapped, Family::V6).contains(six(ip(probe))), expected);
            prop_assert!(!Ranges::new(&cidrs, Family::V6).contains(six(ip(probe))));
        }
    }
}
