//! The view of pods for the CNI agent, from manifests.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use podswitch_core::id::Cookie;
use podswitch_kubernetes::{PodIdentity, Store};

use crate::cni::{ClusterView, PodDirectory, PodFacts, PodListener, ViewError};
use crate::pod_name::PodName;

/// Pods from the manifests. Manifests need not contain every pod of a node: a pod that they do not
/// contain has no labels until they do.
#[derive(Clone, Default)]
pub(super) struct ManifestView(Arc<PodDirectory>);

impl fmt::Debug for ManifestView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManifestView").finish_non_exhaustive()
    }
}

impl ManifestView {
    /// Updates this node's pods from `store`.
    pub(super) fn follow(&self, store: &Store) {
        let pods = store.local_pods();
        self.0.replace(pods.filter_map(|(pod, identity)| facts(pod, identity)).collect());
    }
}

/// Facts about a pod. `None`: its name is invalid, and the pod is refused.
fn facts(pod: &Cookie, identity: &PodIdentity) -> Option<(PodName, PodFacts)> {
    let name = pod.as_str().strip_prefix("Pod/")?.parse().ok()?;
    let facts = PodFacts::new(identity.uid.clone(), identity.labels.clone())
        .ports(identity.ports.clone())
        .annotations(identity.annotations.clone());
    Some((name, facts))
}

impl ClusterView for ManifestView {
    fn pod(
        &self,
        pod: &PodName,
        uid: Option<&str>,
        deadline: Instant,
    ) -> Result<PodFacts, ViewError> {
        match self.0.get(pod) {
            None => Ok(PodFacts::default()),
            Some(facts) if facts.is(uid) => Ok(facts),
            // The manifest is that of a former pod; the new one is still being written.
            Some(_) => self.0.wait(pod, uid, deadline),
        }
    }

    fn report_addresses(&self, _pod: &PodName, _uid: Option<&str>, _addresses: &[IpAddr]) {
        // Nothing is written to files.
    }

    fn on_change(&self, listener: PodListener) {
        self.0.on_change(listener);
    }
}
