//! ClusterNetworkPolicy (policy.networking.k8s.io/v1alpha2).
//!
//! Where the API says "exactly one of", the fields are kept unparsed: an unknown field is a peer of
//! a later version, and the API requires that the rule then fail closed.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::meta::{LabelSelector, ObjectMeta};

/// Fields of which exactly one may be present.
pub(crate) type OneOf = Map<String, Value>;

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct ClusterNetworkPolicy {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) metadata: Option<ObjectMeta>,
    pub(crate) spec: Option<ClusterNetworkPolicySpec>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClusterNetworkPolicySpec {
    pub(crate) tier: Option<String>,
    pub(crate) priority: Option<i64>,
    pub(crate) subject: Option<OneOf>,
    pub(crate) ingress: Option<Vec<ClusterIngressRule>>,
    pub(crate) egress: Option<Vec<ClusterEgressRule>>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClusterIngressRule {
    pub(crate) name: Option<String>,
    pub(crate) action: Option<String>,
    pub(crate) from: Option<Vec<OneOf>>,
    pub(crate) protocols: Option<Vec<OneOf>>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClusterEgressRule {
    pub(crate) name: Option<String>,
    pub(crate) action: Option<String>,
    pub(crate) to: Option<Vec<OneOf>>,
    pub(crate) protocols: Option<Vec<OneOf>>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct NamespacedPod {
    pub(crate) namespace_selector: Option<LabelSelector>,
    pub(crate) pod_selector: Option<LabelSelector>,
}

/// The content of `tcp`, `udp` and `sctp` in an entry of `protocols`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ProtocolMatch {
    pub(crate) destination_port: Option<DestinationPort>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DestinationPort {
    pub(crate) number: Option<i64>,
    pub(crate) range: Option<PortRange>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PortRange {
    pub(crate) start: Option<i64>,
    pub(crate) end: Option<i64>,
}
