//! Whole states, changes of them, and pods added and removed individually.

use podswitch_core::control::Change;
use podswitch_core::id::{Epoch, PortId};

use super::Node;
use super::request::Request;
use crate::attachment::PodAttachment;
use crate::error::{NodeError, PodError};
use crate::host_side::{Behind, concerns_kernel};
use crate::pod_name::PodName;
use crate::pods::Wanted;
use crate::state::{State, StateChanges, has_same_settings};

impl Node {
    /// Puts a state in force, or keeps the one in force.
    pub(super) fn put_in_force(&mut self, state: State) -> Result<Epoch, NodeError> {
        let State { config, pods } = state;
        let pods = pods.into_iter().map(|pod| (pod.pod.clone(), pod)).collect();
        let before = std::mem::replace(&mut self.desired.pods, pods);
        let gone = self.pods.outdated(&self.wanted(), |_| true);
        let mut request = Request::Whole(Box::new(config));
        let result = self.reconcile_ports(gone, &mut request);
        if !request.is_none() {
            self.desired.pods = before;
        }
        result?;
        self.behind = Behind::all();
        self.follow();
        Ok(self.epoch())
    }

    /// Puts changes in force, all or none.
    pub(super) fn change(&mut self, changes: StateChanges) -> Result<Epoch, NodeError> {
        let StateChanges { objects: changes, pods } = changes;
        let concerns_ports = changes.iter().any(|change| self.concerns_ports(change));
        let (settings, objects) = (&self.desired.settings, self.control.objects());
        let concerns_kernel =
            changes.iter().any(|change| concerns_kernel(change, settings, objects));
        let endpoints = changes
            .iter()
            .any(|change| matches!(change, Change::Slice(_) | Change::SliceDeleted(..)));
        let nodes =
            changes.iter().any(|change| matches!(change, Change::Node(_) | Change::NodeDeleted(_)));
        let settings = changes.iter().any(|change| self.concerns_everything(change));
        let uplink = self.underlay.needs_neighbours()
            && changes.iter().any(|c| matches!(c, Change::Route(_) | Change::RouteDeleted(_)));
        let mut request = Request::Changes(changes);
        let result = match concerns_ports || !pods.is_empty() {
            true => self.change_pods(pods, &mut request),
            false => self.publish(&mut request).map(drop),
        };
        result?;
        if settings {
            self.behind = Behind::all();
        }
        self.behind.services |= concerns_kernel;
        self.behind.nodes |= uplink;
        if nodes && !concerns_ports && self.behind.nodes {
            // Another node may need a smaller MTU, or another end of the tunnel.
            self.reconcile_ports(Vec::new(), &mut Request::none())?;
        }
        if self.behind.any() {
            self.follow();
        } else if endpoints {
            // Health checks of load balancers depend on endpoints of this node.
            self.host.reconcile(&self.control);
        }
        Ok(self.epoch())
    }

    /// Updates the pods that the state attaches.
    fn change_pods(
        &mut self,
        pods: Vec<(PodName, Option<PodAttachment>)>,
        request: &mut Request,
    ) -> Result<(), NodeError> {
        let before = (!pods.is_empty()).then(|| self.desired.pods.clone());
        let mut names = Vec::with_capacity(pods.len());
        for (name, attachment) in pods {
            match attachment {
                Some(attachment) => drop(self.desired.pods.insert(name.clone(), attachment)),
                None => drop(self.desired.pods.remove(&name)),
            }
            names.push(name);
        }
        let gone = self.pods.outdated(&self.wanted(), |name| names.contains(name));
        let is_empty = request.is_none();
        let result = self.reconcile_ports(gone, request);
        if let (Err(_), Some(before)) = (&result, before)
            && (is_empty || !request.is_none())
        {
            self.desired.pods = before;
        }
        result.map(drop)
    }

    /// Whether a change affects the node's own ports: settings, and other nodes and next hops whose
    /// neighbours must be looked up first.
    fn concerns_ports(&self, change: &Change) -> bool {
        match change {
            Change::Node(_) | Change::NodeDeleted(_) => !self.underlay.is_independent_of_nodes(),
            Change::Route(_) | Change::RouteDeleted(_) => self.underlay.needs_neighbours(),
            Change::HostPorts(..) => !self.host.has_local_addresses(),
            change => self.concerns_everything(change),
        }
    }

    /// Whether a change affects the node's own ports and everything in its kernel: the settings, except for the labels
    /// of this node, which only policies use.
    fn concerns_everything(&self, change: &Change) -> bool {
        let Change::Settings(after) = change else { return false };
        !has_same_settings(&self.desired.settings, after)
    }

    /// The pods to be attached.
    pub(super) fn wanted(&self) -> Wanted {
        Wanted::of(&self.desired.pods, &self.added)
    }

    /// Attaches an added pod, unless it is attached already.
    pub(super) fn attach_added(&mut self, attachment: &PodAttachment) -> Result<PortId, NodeError> {
        let pod = &attachment.pod;
        let gone = self.pods.outdated(&self.wanted(), |name| name == pod);
        if gone.is_empty()
            && let Some(port) = self.pods.port(pod)
        {
            if self.pods.set_labels(attachment) {
                self.publish(&mut Request::none())?;
            }
            return Ok(port);
        }
        self.withdraw_pods(gone)?;
        let port = self
            .pods
            .attach_one(&mut self.control, attachment)
            .map_err(|error| NodeError::Pod { pod: pod.clone(), error })?;
        if let Err(error) = self.publish(&mut Request::none()) {
            // The state in force does not name its port.
            self.pods.detach(&mut self.control, vec![pod.clone()]);
            return Err(error);
        }
        if let Some(error) = self.why_left_out(pod) {
            self.withdraw_pods(vec![pod.clone()])?;
            return Err(NodeError::Pod { pod: pod.clone(), error });
        }
        self.follow_if_behind();
        Ok(port)
    }

    /// Detaches a removed pod.
    pub(super) fn detach_removed(&mut self, removed: &PodAttachment) -> Result<(), NodeError> {
        let wanted = self.wanted();
        let gone = self.pods.outdated(&wanted, |name| *name == removed.pod);
        self.withdraw_pods(gone)?;
        if wanted.has(&removed.pod) {
            self.reconcile_ports(Vec::new(), &mut Request::none())?;
        }
        self.follow_if_behind();
        Ok(())
    }

    /// Why the state in force is without a pod that was just published, or without its host ports.
    fn why_left_out(&self, pod: &PodName) -> Option<PodError> {
        if !self.settings.lenient {
            return None;
        }
        let cookie = pod.cookie();
        let left_out = self.control.left_out();
        let object = left_out.into_iter().find(|object| object.error.object == cookie)?;
        Some(PodError::LeftOut(object.error))
    }

    /// Detaches pods, after a state without their ports is in force.
    fn withdraw_pods(&mut self, pods: Vec<PodName>) -> Result<(), NodeError> {
        if pods.is_empty() {
            return Ok(());
        }
        self.pods.withdraw(&pods);
        if let Err(error) = self.publish(&mut Request::none()) {
            self.pods.restore(pods);
            return Err(error);
        }
        self.pods.detach(&mut self.control, pods);
        Ok(())
    }

    fn follow_if_behind(&mut self) {
        if self.behind.any() {
            self.follow();
        }
    }
}
