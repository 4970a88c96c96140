//! Read access to the desired objects, so that the owner of the control plane does not need a copy.

use core::fmt;
use std::sync::Arc;

use podswitch_policy::service::model::{EndpointSlice, HostPort, Service, ServiceName};

use super::diff::Desired;
use crate::config::{Endpoint, RemoteNode, Route};
use crate::id::Cookie;

/// The desired objects as given, including those that are left out. Lists are unordered.
#[derive(Clone, Copy)]
pub struct Objects<'a>(pub(super) &'a Desired);

impl fmt::Debug for Objects<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Objects").finish_non_exhaustive()
    }
}

impl<'a> Objects<'a> {
    /// The pod of this name.
    pub fn endpoint(&self, cookie: &Cookie) -> Option<&'a Arc<Endpoint>> {
        self.0.endpoints.wanted(cookie)
    }

    /// Every pod.
    pub fn endpoints(&self) -> impl Iterator<Item = &'a Arc<Endpoint>> + use<'a> {
        self.0.endpoints.all_wanted()
    }

    /// The other node of this name.
    pub fn node(&self, name: &Arc<str>) -> Option<&'a Arc<RemoteNode>> {
        self.0.nodes.wanted(name)
    }

    /// Every other node.
    pub fn nodes(&self) -> impl Iterator<Item = &'a Arc<RemoteNode>> + use<'a> {
        self.0.nodes.all_wanted()
    }

    /// The Service of this name.
    pub fn service(&self, name: &ServiceName) -> Option<&'a Arc<Service>> {
        self.0.services.wanted(name)
    }

    /// The endpoint slice of this namespace and name.
    pub fn slice(&self, namespace: &Arc<str>, name: &Arc<str>) -> Option<&'a Arc<EndpointSlice>> {
        self.0.slices.wanted(&(namespace.clone(), name.clone()))
    }

    /// Every route.
    pub fn routes(&self) -> impl Iterator<Item = &'a Arc<Route>> + use<'a> {
        self.0.routes.all_wanted()
    }

    /// Ports of this node that lead to the pod of this name.
    pub fn host_ports(&self, pod: &Cookie) -> Option<&'a Arc<[HostPort]>> {
        self.0.host_ports.wanted(pod).map(|(_, ports)| ports)
    }

    /// Whether any pod has host ports.
    pub fn has_host_ports(&self) -> bool {
        self.0.host_ports.len() > 0
    }
}
