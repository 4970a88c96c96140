//! The interface between the CNI agent and the source of the cluster's state: queries and reports.
//!
//! At ADD a pod has no address yet, so the state does not contain it as an endpoint. Its labels and
//! ports come from this interface until the state contains the pod with its addresses.

use std::fmt;
use std::net::IpAddr;
use std::time::Instant;

use podswitch_policy::rule::{Labels, NamedPort};

use crate::pod_name::PodName;

/// A source of pods, such as the API server. Called on the agent's threads, several at once.
pub trait ClusterView: Send + Sync + 'static {
    /// Facts about a pod of this node. Waits until `deadline` if the pod is unknown, or is known
    /// with a UID other than `uid` ([`PodFacts::is`]). A source that can query a single object
    /// (GET) does so meanwhile.
    ///
    /// # Errors
    /// See [`ViewError`].
    fn pod(
        &self,
        pod: &PodName,
        uid: Option<&str>,
        deadline: Instant,
    ) -> Result<PodFacts, ViewError>;

    /// Called when a pod has its addresses and every worker has acknowledged them. The source
    /// notifies other nodes, which would otherwise deny the pod's first connections. Must not
    /// block; the source retries failed reports.
    fn report_addresses(&self, pod: &PodName, uid: Option<&str>, addresses: &[IpAddr]);

    /// Registers a listener. It is called, from any thread, after facts about a pod of this node
    /// have changed or the pod is gone. The agent then queries them with [`pod`](Self::pod). It
    /// registers one listener, before it answers its first request.
    fn on_change(&self, listener: PodListener);
}

/// Called with the name of a changed pod. It only records the name, and never calls back.
pub type PodListener = Box<dyn Fn(&PodName) + Send + Sync>;

/// Facts about a pod that is to be attached.
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
    /// Annotation of a mirror pod: the UID that kubelet uses for the static pod itself.
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

    /// Whether this is the pod with that UID. If either side has no UID, the name decides. The API
    /// server knows a static pod by its mirror pod, which has its own UID, and the static pod's UID
    /// in an annotation.
    pub fn is(&self, uid: Option<&str>) -> bool {
        match (uid, &self.uid) {
            (Some(asked), Some(known)) => {
                asked == known || self.annotations.get(Self::CONFIG_HASH) == Some(asked)
            }
            _ => true,
        }
    }
}

/// Why the source has no facts about a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ViewError {
    /// The pod did not exist until the deadline.
    Unknown,
    /// Until the deadline the pod of that name had this other UID.
    OtherUid(String),
    /// The source cannot be reached, and the pod was not known before. The reason.
    Away(String),
}

impl fmt::Display for ViewError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("the source of the cluster's state has no such pod"),
            Self::OtherUid(uid) => write!(f, "the pod of that name has the UID {uid}"),
            Self::Away(reason) => {
                write!(f, "the source of the cluster's state cannot be reached: {reason}")
            }
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
