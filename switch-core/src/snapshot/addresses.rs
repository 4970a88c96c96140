//! Properties of an address in a snapshot: its owner, its location, and how it is reached.

use std::net::IpAddr;

use super::{EndpointFacts, FibEntry, Location, Reach, Snapshot};

impl EndpointFacts {
    /// Whether it is a pod of this node.
    pub fn is_local(&self) -> bool {
        matches!(self.location, Location::Attached { .. } | Location::Unattached)
    }
}

impl Snapshot {
    /// Whether `address` belongs to the cluster: a pod's or node's address, an address of the pod or
    /// Service ranges, or of a range configured as part of the cluster.
    pub fn is_cluster_address(&self, address: IpAddr) -> bool {
        self.endpoints.contains_key(&address)
            || matches!(
                self.fib.get(address),
                Some(FibEntry::LocalPods | FibEntry::Local | FibEntry::Node(_))
            )
            || self.tunnels.is_node_address(address)
            || self.is_gateway(address)
            || self.services.is_service_address(address)
    }

    /// Whether `address` is in a pod range and not assigned.
    pub fn is_unassigned_pod_address(&self, address: IpAddr) -> bool {
        !self.endpoints.contains_key(&address)
            && !self.tunnels.is_node_address(address)
            && matches!(self.fib.get(address), Some(FibEntry::LocalPods | FibEntry::Node(_)))
    }

    /// Whether `address` is that of a pod of this node.
    pub fn is_local_pod(&self, address: IpAddr) -> bool {
        self.endpoints.get(&address).is_some_and(EndpointFacts::is_local)
    }

    /// The gateway's address of the same family as `peer`.
    pub fn gateway_address(&self, peer: IpAddr) -> IpAddr {
        match peer {
            IpAddr::V4(_) => self.gateway.ipv4.into(),
            IpAddr::V6(_) => self.gateway.ipv6.into(),
        }
    }

    /// How an address of another node, or of one of its pods, is reached; `None` for all others.
    pub fn reach(&self, address: IpAddr) -> Option<Reach> {
        if let Some(facts) = self.endpoints.get(&address) {
            return match facts.location {
                // A pod is on the node that it is assigned to, whether or not that node's pod ranges
                // contain its address.
                Location::Remote => self.tunnels.reach(&facts.endpoint.node, address.is_ipv6()),
                Location::Attached { .. } | Location::Unattached | Location::Host => None,
            };
        }
        match self.fib.get(address) {
            Some(FibEntry::Node(reach)) => Some(*reach),
            _ => None,
        }
    }
}
