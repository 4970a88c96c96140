//! Contents of the table: frontend keys and frontends.

use core::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use podswitch_wire::flow_key::{Family, FlowKey, to_addr, to_bytes};

use super::kinds::FrontendKind;
use crate::maglev::Maglev;
use crate::service::entry::{Backend, Scope, ServiceEntry};
use crate::service::model::TrafficPolicy;

/// The scope of a frontend key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub(in crate::service) enum Place {
    /// One address and port.
    Exact,
    /// A port of all of this node's addresses; the key's address is zero.
    Node,
    /// A whole address; the key's port and protocol are zero.
    Address,
}

/// The key of a frontend.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(in crate::service) struct FrontKey {
    address: [u8; 16],
    port: u16,
    proto: u8,
    family: Family,
    place: Place,
}

impl Hash for FrontKey {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(u128::from_ne_bytes(self.address));
        state.write_u64(
            u64::from(self.port)
                | u64::from(self.proto) << 16
                | (self.family as u64) << 24
                | (self.place as u64) << 32,
        );
    }
}

impl FrontKey {
    #[inline]
    pub(super) fn destination(key: &FlowKey) -> Self {
        let FlowKey { dst, dst_port, proto, family, .. } = *key;
        Self { address: dst, port: dst_port, proto, family, place: Place::Exact }
    }

    pub(in crate::service) fn exact(address: IpAddr, proto: u8, port: u16) -> Self {
        let (address, family) = to_bytes(address);
        Self { address, port, proto, family, place: Place::Exact }
    }

    pub(in crate::service) fn node(family: Family, proto: u8, port: u16) -> Self {
        Self { address: [0; 16], port, proto, family, place: Place::Node }
    }

    pub(in crate::service) fn address(address: IpAddr) -> Self {
        Self { port: 0, proto: 0, place: Place::Address, ..Self::exact(address, 0, 0) }
    }

    /// The port.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// The addresses that it covers, on a node with these addresses.
    pub(in crate::service) fn addresses(&self, node: &[IpAddr]) -> impl Iterator<Item = IpAddr> {
        let own = (self.place != Place::Node).then(|| to_addr(&self.address, self.family));
        let is_v4 = self.family == Family::V4;
        let node = if self.place == Place::Node { node } else { &[] };
        own.into_iter().chain(node.iter().copied().filter(move |a| a.is_ipv4() == is_v4))
    }

    /// Whether it stands for all of the node's addresses.
    pub(super) fn is_of_node(&self) -> bool {
        self.place == Place::Node
    }

    /// The address, if the key is a whole address.
    pub(in crate::service) fn whole_address(&self) -> Option<IpAddr> {
        (self.place == Place::Address).then(|| to_addr(&self.address, self.family))
    }
}

/// The frontend of a key.
#[derive(Clone, Debug)]
pub(in crate::service) enum Front {
    /// A Service's port.
    Port(Port),
    /// A cluster IP that is balanced here (whole address), with the Service's cookie.
    Allocated(Arc<str>),
    /// A cluster IP of a Service that another proxy balances (whole address, S14).
    Foreign,
}

/// A Service's port at one address. The fields that most look-ups need are copied here from the
/// entry, into the hash table's own memory: with many Services, every further step waits for main
/// memory.
#[derive(Clone, Debug)]
pub(in crate::service) struct Port {
    pub(super) kind: FrontendKind,
    /// Some endpoint is usable somewhere.
    pub(super) any: bool,
    /// The entry's source ranges apply.
    pub(super) restricted: bool,
    /// The selection is by the client's address.
    pub(super) sticky: bool,
    /// Traffic policies for clients inside the cluster and outside.
    pub(super) inside: TrafficPolicy,
    pub(super) outside: TrafficPolicy,
    pub(super) cluster: Maglev,
    pub(super) backends: Arc<[Backend]>,
    pub(super) entry: Arc<ServiceEntry>,
}

impl Port {
    pub(in crate::service) fn new(kind: FrontendKind, entry: Arc<ServiceEntry>) -> Self {
        // Clients inside the cluster get Cluster behaviour from external addresses (S3).
        let (inside, outside) = match kind {
            FrontendKind::ClusterIp => (entry.internal_policy, entry.internal_policy),
            _ => (TrafficPolicy::Cluster, entry.external_policy),
        };
        Self {
            kind,
            any: entry.any,
            restricted: kind == FrontendKind::LoadBalancer && entry.source_ranges.is_some(),
            sticky: entry.affinity.is_some(),
            inside,
            outside,
            cluster: entry.cluster.clone(),
            backends: entry.backends.clone(),
            entry,
        }
    }

    pub(in crate::service) fn entry(&self) -> &Arc<ServiceEntry> {
        &self.entry
    }

    #[inline]
    pub(super) fn table(&self, scope: Scope) -> &Maglev {
        match scope {
            Scope::Cluster => &self.cluster,
            Scope::Local => &self.entry.local,
        }
    }
}
