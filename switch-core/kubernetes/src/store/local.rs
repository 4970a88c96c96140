//! Pods of this node for a CNI plugin, including those without an address.

use std::sync::Arc;

use podswitch_core::id::Cookie;
use podswitch_policy::rule::{Labels, NamedPort};

use super::Store;
use crate::object::{Body, Loaded, Typed};
use crate::read::pod::container_ports;
use crate::read::{Content, Context};
use crate::report::Findings;

/// What identifies a pod of this node, whether or not it has an address.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PodIdentity {
    /// `metadata.uid`.
    pub uid: Option<String>,
    /// `metadata.labels`.
    pub labels: Labels,
    /// Named container ports.
    pub ports: Vec<NamedPort>,
    /// Annotations whose keys begin with `podswitch.io/`, and `kubernetes.io/config.hash`.
    pub annotations: Labels,
}

impl PodIdentity {
    /// The identity of an object, if it is a pod of `node` that can be attached.
    pub(super) fn of(
        cx: &mut Context<'_>,
        object: &Loaded,
        node: Option<&str>,
        content: &Content,
    ) -> Option<Arc<Self>> {
        let Body::Good(meta, Typed::Pod(pod)) = &object.body else { return None };
        let spec = pod.spec.as_ref()?;
        let is_here = node.is_some() && spec.node_name.as_deref() == node;
        if !is_here || spec.host_network == Some(true) || matches!(content, Content::EndedPod(_)) {
            return None;
        }
        let (ports, _) = container_ports(cx, pod, false, &mut Findings::default());
        let is_told =
            |key: &str| key.starts_with("podswitch.io/") || key == "kubernetes.io/config.hash";
        let annotations = meta.annotations.iter().flatten();
        let annotations = annotations
            .filter(|(key, _)| is_told(key))
            .map(|(key, value)| (key.as_str(), value.as_deref().unwrap_or_default()));
        Some(Arc::new(Self {
            uid: meta.uid.clone(),
            labels: cx.names.labels(meta.labels()),
            ports,
            annotations: annotations.collect(),
        }))
    }
}

impl Store {
    /// Pods of this node, by name (`Pod/namespace/name`).
    pub fn local_pods(&self) -> impl Iterator<Item = (&Cookie, &Arc<PodIdentity>)> {
        self.local.iter()
    }
}
