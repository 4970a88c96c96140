//! Whole states, single changes, and pods that come and go one by one.

use std::sync::Arc;

use podswitch_core::config::Endpoint;
use podswitch_core::control::Change;
use podswitch_core::id::{Epoch, PortId};
use podswitch_core::snapshot::Location;
use podswitch_wire::cidr::Cidr;

use super::Node;
use crate::attachment::PodAttachment;
use crate::error::NodeError;
use crate::pod_name::PodName;
use crate::pods::Wanted;
use crate::state::State;

impl Node {
    /// Puts a state in force, or keeps the one in force.
    pub(super) fn put_in_force(&mut self, state: State) -> Result<Epoch, NodeError> {
        let before = std::mem::replace(&mut self.desired, state.into());
        let gone = self.pods.outdated(&Wanted::of(self.desired.state(), &self.added));
        match self.reconcile_ports(gone, true) {
            Ok(_) => {
                self.follow();
                Ok(self.epoch())
            }
            Err(error) => {
                self.desired = before;
                Err(error)
            }
        }
    }

    /// Puts changes in force, all or none.
    pub(super) fn change(&mut self, changes: Vec<Change>) -> Result<Epoch, NodeError> {
        if changes.iter().any(|change| self.concerns_ports(change)) {
            let mut desired = self.desired.clone();
            changes.into_iter().for_each(|change| desired.change(change));
            return self.put_in_force(desired.state().clone());
        }
        let changes: Vec<Change> = changes
            .into_iter()
            .filter(|c| !matches!(c, Change::Port(_) | Change::PortGone(_)))
            .collect();
        let with_ports = changes.iter().map(|change| match change {
            Change::Pod(endpoint) => {
                let mut endpoint = endpoint.clone();
                let attachment = self.pods.attachment_of(&endpoint.cookie);
                if endpoint.attachment != attachment {
                    Arc::make_mut(&mut endpoint).attachment = attachment;
                }
                Change::Pod(endpoint)
            }
            Change::Node(node) => {
                let mut node = node.clone();
                self.underlay.complete_node(&mut node);
                Change::Node(node)
            }
            other => other.clone(),
        });
        let epoch = self.update_control(with_ports.collect())?;
        let (mut host, mut nodes, mut endpoints) = (false, false, false);
        for change in changes {
            endpoints |= matches!(change, Change::Slice(_) | Change::SliceGone(..));
            host |= self.concerns_host(&change);
            nodes |= matches!(change, Change::Node(_) | Change::NodeGone(_));
            self.desired.change(change);
        }
        self.acknowledged(epoch)?;
        if nodes {
            // Another node may need a smaller MTU, or another end of the tunnel.
            self.reconcile_ports(Vec::new(), false)?;
        }
        if host || nodes {
            self.follow();
        } else if endpoints {
            // Health checks of load balancers ask for endpoints of this node.
            self.host.reconcile(&self.control);
        }
        Ok(self.epoch())
    }

    /// Whether a change concerns the ports of the configuration, or what it says of the underlay.
    fn concerns_ports(&self, change: &Change) -> bool {
        match change {
            Change::Node(_) | Change::NodeGone(_) => !self.underlay.is_independent_of_nodes(),
            Change::Route(_) | Change::RouteGone(_) => true,
            Change::Pod(endpoint) => {
                let is_here = endpoint.node == self.desired.config().node.name;
                // A port is not named while the state does not know its pod.
                self.pods.has(&endpoint.cookie) && !(is_here && self.is_named(endpoint))
            }
            Change::PodGone(cookie) => self.pods.has(cookie),
            _ => false,
        }
    }

    /// Whether the state in force names the port of a pod.
    fn is_named(&self, endpoint: &Endpoint) -> bool {
        let snapshot = self.control.snapshot();
        endpoint.workload.addresses.iter().any(|address| {
            snapshot.endpoints.get(address).is_some_and(|facts| {
                facts.endpoint.cookie == endpoint.cookie
                    && matches!(facts.location, Location::Attached { .. })
            })
        })
    }

    /// Whether a change concerns the node's kernel: frontends of Services, and pods outside the ranges of
    /// nodes do.
    fn concerns_host(&mut self, change: &Change) -> bool {
        let (before, after) = match change {
            Change::Service(_) | Change::ServiceGone(_) | Change::HostPorts(..) => return true,
            Change::Pod(endpoint) => (self.desired.endpoint(&endpoint.cookie), Some(endpoint)),
            Change::PodGone(cookie) => (self.desired.endpoint(cookie), None),
            _ => return false,
        };
        let endpoints = before.cloned().into_iter().chain(after.cloned());
        self.are_outside(endpoints.flat_map(|endpoint| endpoint.workload.addresses.clone()))
    }

    /// Whether some of these addresses are outside the ranges of all nodes.
    fn are_outside(&self, addresses: impl IntoIterator<Item = std::net::IpAddr>) -> bool {
        let config = self.desired.config();
        let of_nodes = config.nodes.iter().flat_map(|node| &node.pod_cidrs);
        let ranges: Vec<&Cidr> = config.node.pod_cidrs.iter().chain(of_nodes).collect();
        addresses.into_iter().any(|address| !ranges.iter().any(|range| range.contains(address)))
    }

    /// Attaches a pod that was added, or leaves it as it is attached.
    pub(super) fn attach_added(&mut self, attachment: &PodAttachment) -> Result<PortId, NodeError> {
        let pod = &attachment.pod;
        let wanted = Wanted::of(self.desired.state(), &self.added);
        let gone: Vec<_> =
            self.pods.outdated(&wanted).into_iter().filter(|name| name == pod).collect();
        if gone.is_empty()
            && let Some(port) = self.pods.port(pod)
        {
            if self.pods.set_labels(attachment) {
                self.publish()?;
            }
            return Ok(port);
        }
        self.withdraw_pods(gone)?;
        let port = self
            .pods
            .attach_one(&mut self.control, attachment)
            .map_err(|error| NodeError::Pod { pod: pod.clone(), error })?;
        if let Err(error) = self.publish_pods(std::slice::from_ref(pod)) {
            // The state in force names no port of it.
            self.pods.detach(&mut self.control, vec![pod.clone()]);
            return Err(error);
        }
        if self.are_outside(attachment.addresses.iter().copied()) {
            self.follow();
        }
        Ok(port)
    }

    /// Detaches a pod that is added no more.
    pub(super) fn detach_removed(&mut self, removed: &PodAttachment) -> Result<(), NodeError> {
        let wanted = Wanted::of(self.desired.state(), &self.added);
        let is_removed = |name: &PodName| *name == removed.pod;
        let gone = self.pods.outdated(&wanted).into_iter().filter(is_removed).collect();
        self.withdraw_pods(gone)?;
        if wanted.has(&removed.pod) {
            self.reconcile_ports(Vec::new(), false)?;
        }
        if self.are_outside(removed.addresses.iter().copied()) {
            self.follow();
        }
        Ok(())
    }

    /// Detaches pods, once a state is in force that does not name their ports.
    fn withdraw_pods(&mut self, pods: Vec<PodName>) -> Result<(), NodeError> {
        self.pods.withdraw(&pods);
        if let Err(error) = self.publish_pods(&pods) {
            self.pods.restore(pods);
            return Err(error);
        }
        self.pods.detach(&mut self.control, pods);
        Ok(())
    }

    /// Publishes which ports these pods have, at the cost of these.
    fn publish_pods(&mut self, pods: &[PodName]) -> Result<(), NodeError> {
        let mut changes = Vec::new();
        for pod in pods {
            let known = self.desired.endpoint(&pod.cookie()).cloned();
            let node = &self.desired.config().node.name;
            changes.extend(self.pods.changes_of(pod, known.as_ref(), node));
        }
        if changes.is_empty() {
            return Ok(());
        }
        let epoch = self.update_control(changes)?;
        self.acknowledged(epoch)
    }
}
