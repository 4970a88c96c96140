//! Changes for the control plane, and for the code that attaches pods.

use std::sync::Arc;

use podswitch_core::config::LocalNode;
use podswitch_core::control::Change;
use podswitch_core::id::Cookie;
use podswitch_policy::rule::Namespace;
use podswitch_policy::service::model::HostPort;
use podswitch_wire::cidr::Cidr;

use super::Store;
use super::derive::Output;
use crate::state::{LocalPod, Overlay};

/// The changes since the last call. Of several changes of one object the last counts.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// For [`ControlPlane::update`](podswitch_core::control::ControlPlane::update). Endpoints are
    /// not attached: the code that attaches this node's pods sets the port.
    pub objects: Vec<Change>,
    /// New, changed and deleted pods of this node.
    pub pods: Vec<PodChange>,
    /// The settings, if they changed.
    pub base: Option<Base>,
}

/// A new, changed or deleted pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodChange {
    /// A new or changed pod.
    Upsert(Box<LocalPod>),
    /// A deleted pod.
    Delete(Cookie),
}

/// The settings: everything that is not an object of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// This node.
    pub node: LocalNode,
    /// Ranges that the addresses of Services come from.
    pub service_cidrs: Vec<Cidr>,
    /// The overlay in Flannel's annotations.
    pub flannel: Option<Overlay>,
}

impl Changes {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.pods.is_empty() && self.base.is_none()
    }

    pub(super) fn namespace(&mut self, name: &Arc<str>, namespace: Option<Arc<Namespace>>) {
        self.objects.push(match namespace {
            Some(namespace) => Change::Namespace(namespace),
            None => Change::NamespaceDeleted(name.clone()),
        });
    }
}

impl Store {
    /// The changes since the last call, at a cost proportional to their number. The first call
    /// returns everything.
    pub fn take_changes(&mut self) -> Changes {
        self.settle();
        if std::mem::take(&mut self.dirty.base) {
            let node = self.local_node().unwrap_or_else(|| self.nameless_node());
            let base = Base { node, service_cidrs: self.service_cidrs(), flannel: self.overlay() };
            if self.base.as_ref() != Some(&base) {
                self.base = Some(base.clone());
                self.changes.base = Some(base);
            }
        }
        self.take_zone_changes();
        self.names.free_unused();
        std::mem::take(&mut self.changes)
    }

    /// Records that an object's part of the state changed.
    pub(super) fn emit(&mut self, object: &Cookie, old: Output, new: Output) {
        let changes = &mut self.changes;
        if let Output::Node(node) = if new == Output::Nothing { &old } else { &new } {
            let pods = self.host_pods.get(&node.name).into_iter().flatten().cloned();
            let pods: Vec<_> = pods.collect();
            if Some(&node.name) == self.node.as_ref() {
                self.dirty.base = true;
            } else {
                changes.objects.push(match &new {
                    Output::Node(node) => Change::Node(node.clone()),
                    _ => Change::NodeDeleted(node.name.clone()),
                });
            }
            return self.mark_all(pods);
        }
        let change = match (old, new) {
            (Output::Nothing, Output::Nothing) => return,
            (Output::Pod(old), Output::Nothing) => {
                if old.host_ports.is_some() {
                    changes.objects.push(Change::HostPorts(object.clone(), no_ports()));
                }
                if old.local.is_some() {
                    changes.pods.push(PodChange::Delete(object.clone()));
                }
                Change::PodDeleted(object.clone())
            }
            (old, Output::Pod(new)) => {
                let (old_local, old_ports) = match &old {
                    Output::Pod(old) => (old.local.as_ref(), old.host_ports.as_ref()),
                    _ => (None, None),
                };
                if old_ports != new.host_ports.as_ref() {
                    let ports = new.host_ports.clone().unwrap_or_else(no_ports);
                    changes.objects.push(Change::HostPorts(object.clone(), ports));
                }
                match (old_local, &new.local) {
                    (Some(_), None) => changes.pods.push(PodChange::Delete(object.clone())),
                    (old, Some(local)) if old != Some(local) => {
                        changes.pods.push(PodChange::Upsert(local.clone()));
                    }
                    _ => {}
                }
                Change::Pod(new.endpoint.clone())
            }
            (_, Output::Policy(policy)) => Change::Policy(policy),
            (Output::Policy(_), _) => Change::PolicyDeleted(object.text()),
            (_, Output::ClusterPolicy(policy)) => Change::ClusterPolicy(policy),
            (Output::ClusterPolicy(_), _) => Change::ClusterPolicyDeleted(object.text()),
            (_, Output::Service(service)) => Change::Service(service),
            (Output::Service(service), _) => Change::ServiceDeleted(service.name.clone()),
            (_, Output::Slice(slice)) => Change::Slice(slice),
            (Output::Slice(slice), _) => {
                Change::SliceDeleted(slice.namespace.clone(), slice.name.clone())
            }
            // Handled above.
            (_, Output::Node(_)) | (Output::Node(_), _) => return,
        };
        changes.objects.push(change);
    }
}

/// No host ports.
fn no_ports() -> Arc<[HostPort]> {
    Arc::default()
}
