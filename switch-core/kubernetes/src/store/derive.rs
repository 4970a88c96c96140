//! Determines the claims that an object won, and its part of the state.

use std::net::IpAddr;
use std::sync::Arc;

use podswitch_core::config::{Endpoint, LocalNode, RemoteNode};
use podswitch_core::id::Cookie;
use podswitch_policy::rule::{ClusterNetworkPolicy, NetworkPolicy};
use podswitch_policy::service::model::{self, EndpointSlice, HostPort, Service};
use podswitch_wire::cidr::Cidr;

use super::{Facts, Store};
use crate::read::Content;
use crate::read::annotations::NETNS;
use crate::read::node::{NodeFacts, first_address, mac_of};
use crate::read::pod::PodFacts;
use crate::read::service::ServiceFacts;
use crate::report::{Finding, Grade};
use crate::state::LocalPod;

/// An object's part of the state.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Output {
    /// None. Namespaces and ServiceCIDRs are kept separately.
    Nothing,
    Node(Arc<RemoteNode>),
    Pod(Box<PodOutput>),
    Policy(Arc<NetworkPolicy>),
    ClusterPolicy(Arc<ClusterNetworkPolicy>),
    Service(Arc<Service>),
    Slice(Arc<EndpointSlice>),
}

/// A pod's part of the state.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PodOutput {
    pub(super) endpoint: Arc<Endpoint>,
    /// Set if it is on this node, and can be attached.
    pub(super) local: Option<Box<LocalPod>>,
    pub(super) host_ports: Option<Arc<[HostPort]>>,
}

impl Store {
    /// An object's part of the state, and findings about claims that other objects won.
    pub(super) fn derive(&self, object: &Cookie, facts: &Facts) -> (Output, Vec<Finding>) {
        let mut lost = Vec::new();
        let output = match &facts.content {
            Content::Nothing
            | Content::Namespace(_)
            | Content::EndedPod(_)
            | Content::ServiceCidr(_) => Output::Nothing,
            Content::Node(node) => self.node(object, facts, node, &mut lost),
            Content::Pod(pod) if pod.endpoint.workload.host_network => {
                self.host_pod(facts, pod, &mut lost)
            }
            Content::Pod(pod) => self.pod(object, facts, pod, &mut lost),
            Content::Policy(policy) => Output::Policy(policy.clone()),
            Content::ClusterPolicy(policy) => Output::ClusterPolicy(policy.clone()),
            Content::Service(service) => self.service(object, facts, service, &mut lost),
            Content::Slice(slice) => Output::Slice(self.slice(slice)),
        };
        (output, lost)
    }

    /// `None` if `object` has the address; otherwise the finding that names its owner.
    fn lost_address(
        &self,
        object: &Cookie,
        facts: &Facts,
        address: IpAddr,
        field: impl FnOnce() -> String,
    ) -> Option<Finding> {
        let owner = self.addresses.owner(&address).filter(|owner| *owner != object)?;
        Some(self.lost(facts, owner, address, field()))
    }

    /// The finding that `owner` owns something that an object with these facts claims.
    fn lost(
        &self,
        facts: &Facts,
        owner: &Cookie,
        what: impl std::fmt::Display,
        field: String,
    ) -> Finding {
        let other = self.objects.get(owner).map(|entry| &entry.facts);
        let why = other.map_or("", |other| other.rank.why_before(facts.rank));
        // In an API server, two pods or two nodes may have the same address for a while. Any other
        // conflict is a mistake.
        let ordinary = other.is_some_and(|other| other.kind == facts.kind)
            && matches!(facts.content, Content::Node(_) | Content::Pod(_));
        let grade = if ordinary { Grade::FieldLeftOut } else { Grade::FieldRefused };
        Finding { field, reason: format!("{what} is also {owner}'s, {why}"), grade }
    }

    fn node(
        &self,
        object: &Cookie,
        facts: &Facts,
        node: &NodeFacts,
        lost: &mut Vec<Finding>,
    ) -> Output {
        let mut addresses = Vec::with_capacity(node.addresses.len());
        for (address, field) in &node.addresses {
            match self.lost_address(object, facts, *address, || field.clone()) {
                Some(finding) => lost.push(finding),
                None => addresses.push(*address),
            }
        }
        if addresses.is_empty() && !node.addresses.is_empty() {
            all_lost(lost);
            return Output::Nothing;
        }
        let mut ranges: Vec<Cidr> = Vec::with_capacity(node.ranges.len());
        for (range, field) in &node.ranges {
            match self.ranges.before(*range, facts.rank, object) {
                Some((other, owner)) => lost.push(Finding {
                    field: field.clone(),
                    reason: format!("{range} overlaps {other} of {owner}"),
                    grade: Grade::FieldRefused,
                }),
                None => ranges.push(*range),
            }
        }
        Output::Node(Arc::new(node.build(addresses, ranges)))
    }

    /// A pod with hostNetwork has its node's addresses, unless its status has addresses.
    fn host_pod(&self, facts: &Facts, pod: &PodFacts, lost: &mut Vec<Finding>) -> Output {
        let mut endpoint = pod.endpoint.clone();
        if endpoint.workload.addresses.is_empty() {
            let node = Cookie::new(format!("Node/{}", endpoint.node));
            let node = match self.objects.get(&node).map(|entry| &entry.output) {
                Some(Output::Node(node)) => &node.addresses[..],
                _ => &[],
            };
            let own = pod.more.iter().flat_map(|more| &more.host_ips);
            let mut found: Vec<IpAddr> = Vec::new();
            for address in own.chain(node) {
                if !found.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
                    found.push(*address);
                }
            }
            if found.is_empty() {
                debug_assert!(facts.namespace.is_some());
                let reason = "has no address yet".to_owned();
                lost.push(Finding { field: String::new(), reason, grade: Grade::LeftOut });
                return Output::Nothing;
            }
            Arc::make_mut(&mut endpoint).workload.addresses = found;
        }
        Output::Pod(Box::new(PodOutput { endpoint, local: None, host_ports: None }))
    }

    fn pod(
        &self,
        object: &Cookie,
        facts: &Facts,
        pod: &PodFacts,
        lost: &mut Vec<Finding>,
    ) -> Output {
        let mut endpoint = pod.endpoint.clone();
        let claimed = &pod.endpoint.workload.addresses;
        let mut addresses = Vec::with_capacity(claimed.len());
        for (at, address) in claimed.iter().enumerate() {
            match self.lost_address(object, facts, *address, || pod.address_field(at)) {
                Some(finding) => lost.push(finding),
                None => addresses.push(*address),
            }
        }
        if addresses.is_empty() {
            all_lost(lost);
            return Output::Nothing;
        }
        if addresses.len() < claimed.len() {
            Arc::make_mut(&mut endpoint).workload.addresses.clone_from(&addresses);
        }
        let mut interface = pod.interface().cloned();
        if let Some(place) = &interface {
            let key = (endpoint.node.clone(), place.netns.clone());
            if let Some(owner) = self.netns.owner(&key).filter(|owner| *owner != object) {
                lost.push(Finding {
                    field: format!("metadata.annotations[{NETNS}]"),
                    reason: format!("{} is {owner}'s already", place.netns.display()),
                    grade: Grade::FieldRefused,
                });
                interface = None;
            }
        }
        if self.node.as_ref() != Some(&endpoint.node) {
            return Output::Pod(Box::new(PodOutput { endpoint, local: None, host_ports: None }));
        }
        let mac = pod.more.as_ref().and_then(|more| more.mac);
        let default = || first_address(&addresses).map(|address| mac_of([0x0a, 0x58], address));
        let ports = pod.host_ports(&addresses);
        let workload = &endpoint.workload;
        let local = LocalPod {
            name: format!("{}/{}", workload.namespace, workload.name),
            cookie: object.clone(),
            endpoint: 0,
            mac: mac.or_else(default).unwrap_or_default(),
            addresses,
            interface,
        };
        let host_ports = (!ports.is_empty()).then(|| ports.into());
        Output::Pod(Box::new(PodOutput { endpoint, local: Some(Box::new(local)), host_ports }))
    }

    fn service(
        &self,
        object: &Cookie,
        facts: &Facts,
        it: &ServiceFacts,
        lost: &mut Vec<Finding>,
    ) -> Output {
        let mut service = it.service.clone();
        for (at, address) in it.service.cluster_ips.iter().enumerate() {
            let Some(finding) = self.lost_address(object, facts, *address, || it.address_field(at))
            else {
                continue;
            };
            lost.push(finding);
            Arc::make_mut(&mut service).cluster_ips.retain(|other| other != address);
        }
        if service.cluster_ips.is_empty() && !it.service.cluster_ips.is_empty() {
            all_lost(lost);
            return Output::Nothing;
        }
        for (at, protocol, number) in it.node_ports() {
            let owner = self.node_ports.owner(&(protocol, number));
            let Some(owner) = owner.filter(|owner| *owner != object) else { continue };
            let field = match at {
                Some(at) => it.node_port_field(at),
                None => "spec.healthCheckNodePort".to_owned(),
            };
            lost.push(self.lost(facts, owner, format_args!("{number}/{protocol}"), field));
            let service = Arc::make_mut(&mut service);
            match at {
                Some(at) => service.ports[at].node_port = None,
                None => service.health_check_node_port = None,
            }
        }
        Output::Service(service)
    }

    /// A slice without the endpoints of ended pods: those are never backends, however outdated the
    /// slice is.
    fn slice(&self, slice: &Arc<EndpointSlice>) -> Arc<EndpointSlice> {
        let mut slice = slice.clone();
        if slice.endpoints.iter().any(|endpoint| self.has_ended(endpoint)) {
            let slice = Arc::make_mut(&mut slice);
            slice.endpoints.retain(|endpoint| !self.has_ended(endpoint));
        }
        slice
    }

    fn has_ended(&self, endpoint: &model::Endpoint) -> bool {
        match (&endpoint.target, endpoint.addresses.first()) {
            (Some(target), _) if target.starts_with("Pod/") => {
                let pod = self.objects.get(&Cookie::new(target.clone()));
                pod.is_some_and(|pod| matches!(pod.facts.content, Content::EndedPod(_)))
            }
            (_, Some(address)) => {
                let living = |object: &Cookie| object.as_str().starts_with("Pod/");
                self.slices.had_address(*address) && !self.addresses.claimants(address).any(living)
            }
            _ => false,
        }
    }

    /// The content of this node's object, if it is part of the state.
    pub(super) fn local_facts(&self) -> Option<&NodeFacts> {
        let name = self.node.as_ref()?;
        match &self.objects.get(&Cookie::new(format!("Node/{name}")))?.facts.content {
            Content::Node(node) => Some(node),
            _ => None,
        }
    }

    /// This node.
    pub(super) fn local_node(&self) -> Option<LocalNode> {
        let name = self.node.as_ref()?;
        let entry = self.objects.get(&Cookie::new(format!("Node/{name}")))?;
        let Output::Node(node) = &entry.output else { return None };
        Some(LocalNode {
            name: node.name.clone(),
            labels: node.labels.clone(),
            addresses: node.addresses.clone(),
            local_addresses: match &entry.facts.content {
                Content::Node(facts) => facts.external.clone(),
                _ => Vec::new(),
            },
            pod_cidrs: node.pod_cidrs.clone(),
            vtep: node.vtep,
            underlay_mac: node.underlay_mac,
            gateway: self.options.gateway,
            ..LocalNode::default()
        })
    }

    /// This node without a Node object.
    pub(super) fn nameless_node(&self) -> LocalNode {
        LocalNode {
            name: self.node.clone().unwrap_or_else(|| "".into()),
            gateway: self.options.gateway,
            ..LocalNode::default()
        }
    }

    /// Ranges that the addresses of Services come from.
    pub(super) fn service_cidrs(&self) -> Vec<Cidr> {
        self.options.service_cidrs.iter().chain(self.cidrs.values().flatten()).copied().collect()
    }
}

/// An object lost all its claims: the object itself is left out.
fn all_lost(findings: &mut [Finding]) {
    for finding in findings {
        finding.grade = match finding.grade {
            Grade::FieldLeftOut => Grade::LeftOut,
            Grade::FieldRefused => Grade::Refused,
            grade => grade,
        };
    }
}
