//! Pods by address: made from the snapshot before and what changed, so that one pod's change costs
//! one pod, however many there are.

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashSet;
use podswitch_policy::cow::CowMap;
use podswitch_policy::touched::Touched;

use super::compile::{Build, is_unicast};
use super::{EndpointFacts, Location, PodPort, PortFacts, Snapshot};
use crate::config::{Endpoint, PortRole};

/// Smallest MTU that IPv4 allows (RFC 791) and IPv6 allows (RFC 8200 §5).
const MIN_MTU_V4: u16 = 68;
const MIN_MTU_V6: u16 = 1280;

/// Pods that left, and those that came or are others than before.
#[derive(Clone, Debug, Default)]
pub struct PodChanges<'a> {
    /// As they were: those that left, and the old look of those that changed.
    pub gone: Vec<&'a Arc<Endpoint>>,
    /// As they are.
    pub here: Vec<&'a Arc<Endpoint>>,
}

impl PodChanges<'_> {
    /// The addresses that these pods had or have.
    pub(super) fn touched(&self) -> Touched {
        let mut touched = Touched::default();
        let pods = self.gone.iter().chain(&self.here);
        touched.extend(pods.flat_map(|pod| pod.workload.addresses.iter().copied()));
        touched
    }
}

/// Pods by address, and those of them that have a port.
pub(super) struct Endpoints {
    pub(super) by_address: CowMap<IpAddr, EndpointFacts>,
    pub(super) attached: Arc<[Arc<Endpoint>]>,
}

impl Build<'_> {
    /// Takes the changes to what `before` has, or all pods where what holds for all of them is
    /// another than it was.
    pub(super) fn endpoints(&mut self, before: &Snapshot, changes: &PodChanges<'_>) -> Endpoints {
        let node = &self.config.node;
        let same = before.node == node.name
            && before.gateway == node.gateway
            && *before.node_addresses == *node.addresses;
        if !same {
            let all = PodChanges { gone: Vec::new(), here: self.config.endpoints.iter().collect() };
            return self.changed(CowMap::new(), &[], &all);
        }
        self.changed(before.endpoints.clone(), &before.attached, changes)
    }

    fn changed(
        &mut self,
        mut map: CowMap<IpAddr, EndpointFacts>,
        attached: &[Arc<Endpoint>],
        changes: &PodChanges<'_>,
    ) -> Endpoints {
        for pod in &changes.gone {
            for address in &pod.workload.addresses {
                let is_its = |facts: &EndpointFacts| facts.endpoint.cookie == pod.cookie;
                if map.get(address).is_some_and(is_its) {
                    map.remove(address);
                }
            }
        }
        // The ports of those that stay may be others' by now, so that they are looked at each time:
        // there are as many as this node has pods. They come first: a newcomer takes no port of theirs.
        let moved = changes.gone.iter().chain(&changes.here).map(|pod| &pod.cookie);
        let moved: HashSet<_> = moved.collect();
        let stay: Vec<_> =
            attached.iter().filter(|pod| !moved.contains(&pod.cookie)).cloned().collect();
        for pod in &stay {
            self.locate(pod);
        }
        for pod in &changes.here {
            let location = self.locate(pod);
            self.enter(&mut map, pod, &location);
        }
        let new = changes.here.iter().filter(|pod| pod.attachment.is_some());
        let attached = stay.into_iter().chain(new.map(|pod| Arc::clone(pod))).collect();
        Endpoints { by_address: map, attached }
    }

    fn enter(
        &mut self,
        map: &mut CowMap<IpAddr, EndpointFacts>,
        endpoint: &Arc<Endpoint>,
        location: &Location,
    ) {
        for (i, &address) in endpoint.workload.addresses.iter().enumerate() {
            let field = format!("addresses[{i}]");
            if !is_unicast(address) {
                self.error(&endpoint.cookie, field, "is not a unicast address");
                continue;
            }
            if endpoint.workload.host_network {
                continue;
            }
            let node = &self.config.node;
            if address == IpAddr::V4(node.gateway.ipv4) || address == IpAddr::V6(node.gateway.ipv6)
            {
                self.error(&endpoint.cookie, field, format!("{address} is the gateway's"));
                continue;
            }
            if node.addresses.contains(&address) {
                self.error(&endpoint.cookie, field, format!("{address} is the node's own"));
                continue;
            }
            let facts = EndpointFacts { location: location.clone(), endpoint: endpoint.clone() };
            if let Some(other) = map.insert(address, facts) {
                let reason = format!("{address} belongs to {} too", other.endpoint.cookie);
                self.error(&endpoint.cookie, field, reason);
            }
        }
    }

    fn locate(&mut self, endpoint: &Arc<Endpoint>) -> Location {
        if endpoint.workload.host_network {
            return Location::Host;
        }
        let Some(at) = endpoint.attachment else {
            let here = endpoint.node == self.config.node.name;
            return if here { Location::Unattached } else { Location::Remote };
        };
        let v6 = endpoint.workload.addresses.iter().any(IpAddr::is_ipv6);
        let least = if v6 { MIN_MTU_V6 } else { MIN_MTU_V4 };
        if at.mtu < least {
            self.error(&endpoint.cookie, "attachment.mtu", format!("is below {least}"));
        }
        if !at.mac.is_unicast() {
            self.error(&endpoint.cookie, "attachment.mac", "is not a unicast MAC address");
        }
        let pod_port =
            self.config.ports.iter().any(|p| p.port == at.port && p.role == PortRole::Pod);
        if !pod_port {
            let reason = format!("port {} is not configured for a pod", at.port);
            self.error(&endpoint.cookie, "attachment.port", reason);
        } else if let PortFacts::Pod(other) =
            self.ports.get(at.port.index()).unwrap_or(&PortFacts::Unused)
        {
            let reason = format!("port {} is {}'s already", at.port, other.endpoint.cookie);
            self.error(&endpoint.cookie, "attachment.port", reason);
        } else {
            let mut facts = PodPort {
                endpoint: endpoint.clone(),
                mac: at.mac,
                ipv4: Vec::new(),
                ipv6: Vec::new(),
                mtu: at.mtu,
            };
            for address in &endpoint.workload.addresses {
                match address {
                    IpAddr::V4(a) => facts.ipv4.push(*a),
                    IpAddr::V6(a) => facts.ipv6.push(*a),
                }
            }
            self.set_port(at.port, PortFacts::Pod(Arc::new(facts)));
        }
        Location::Attached { port: at.port, mac: at.mac, mtu: at.mtu }
    }
}
