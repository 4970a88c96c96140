//! What the CNI agent asks the source of the cluster's state, and reports to it.
//!
//! At ADD a pod has no address yet, so the state does not have it as an endpoint. Its labels and ports come from here
//! until the state has the pod with its addresses.

use std::fmt;
use std::net::IpAddr;
use std::time::Instant;

use podswitch_policy::rule::{Labels, NamedPort};

use crate::pod_name::PodName;

/// A source of pods, such as the API server. Called on the agent's threads, several at a time.
pub trait ClusterView: Send + Sync + 'static {
    /// What is known of a pod of this node. Waits until `deadline` for a pod that is not known yet, or that is known
    /// with another UID than `uid` ([`PodFacts::is`]); a source that can ask for one object (GET) does so meanwhile.
    ///
    /// # Errors
    /// See [`ViewError`].
    fn pod(
        &self,
        pod: &PodName,
        uid: Option<&str>,
        deadline: Instant,
    ) -> Result<PodFacts, ViewError>;

    /// Called when a pod has its addresses and is in force at every worker: the source tells other nodes, which would
    /// otherwise deny its first connections. Does not wait: what cannot be reported at once is the source's to retry.
    fn report_addresses(&self, pod: &PodName, uid: Option<&str>, addresses: &[IpAddr]);

    /// Has `listener` called, from any thread, after facts of a pod of this node changed or the pod is gone. The agent
    /// asks with [`pod`](Self::pod) then. It registers one listener, before it answers its first request.
    fn on_change(&self, listener: PodListener);
}

/// Called with the name of a pod that changed. It only makes a note, and never calls back.
pub type PodListener = Box<dyn Fn(&PodName) + Send + Sync>;

/// What is known of a pod that is to be attached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PodFacts {
    /// `metadata.uid`, if the source has one.
    pub uid: Option<String>,
    /// `metadata.labels`.
    pub labels: Labels,
    /// Named container ports, as [`Workload`](podswitch_policy::rule::Workload) has them.
    pub ports: Vec<NamedPort>,
    /// Annotations whose keys begin with `podswitch.io/`, and `kubernetes.io/config.hash`.
    pub annotations: Labels,
}

impl PodFacts {
    /// Annotation of a mirror pod: the UID by which kubelet calls the static pod itself.
    const CONFIG_HASH: &str = "kubernetes.io/config.hash";

    /// A pod with these labels.
    pub fn new(uid: Option<String>, labels: Labels) -> Self {
        Self { uid, labels, ..Self::default() }
    }

    /// Sets the named ports.
    #[must_use]
    pub fn ports(mut self, ports: Vec<NamedPort>) -> Self {
        self.ports = ports;
        self
    }

    /// Sets the annotations.
    #[must_use]
    pub fn annotations(mut self, annotations: Labels) -> Self {
        self.annotations = annotations;
        self
    }

    /// Whether this is the pod of that UID. Without a UID on either side the name decides. A static pod is known to
    /// the API server by its mirror pod, which has a UID of its own and the static pod's in an annotation.
    pub fn is(&self, uid: Option<&str>) -> bool {
        match (uid, &self.uid) {
            (Some(asked), Some(known)) => {
                asked == known || self.annotations.get(Self::CONFIG_HASH) == Some(asked)
            }
            _ => true,
        }
    }
}

/// The source cannot say what a pod is like.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ViewError {
    /// It has no such pod, and had none until the deadline.
    Unknown,
    /// It has a pod of that name with this other UID, and had until the deadline.
    OtherUid(String),
    /// It cannot be reached, and had not heard of the pod before: why.
    Away(String),
}

impl fmt::Display for ViewError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("the source of the cluster's state has no such pod"),
            Self::OtherUid(uid) => write!(f, "the pod of that name has the UID {uid}"),
            Self::Away(reason) => write!(f, "the source of the cluster's state is away: {reason}"),
        }
    }
}

impl std::error::Error for ViewError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_known_by_its_uid_or_its_config_hash() {
        let facts = PodFacts::new(Some("a".into()), Labels::default());
        assert!(facts.is(Some("a")) && facts.is(None));
        assert!(!facts.is(Some("b")));
        let hash = [("kubernetes.io/config.hash", "b")].into_iter().collect();
        assert!(facts.annotations(hash).is(Some("b")));
        assert!(PodFacts::default().is(Some("b")), "a manifest without UID");
    }
}
