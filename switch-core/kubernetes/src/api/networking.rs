//! NetworkPolicy (networking/v1).
//!
//! Lists and selectors are optional where the API distinguishes empty from missing (T-L2). An
//! unknown field makes the policy unusable: a policy that is understood only partly could allow
//! what its author denied.

use serde::{Deserialize, Serialize};

use super::IntOrString;
use super::meta::{LabelSelector, ObjectMeta};

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct NetworkPolicy {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) metadata: Option<ObjectMeta>,
    pub(crate) spec: Option<NetworkPolicySpec>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct NetworkPolicySpec {
    /// If missing, it selects every pod of the namespace, as if empty.
    pub(crate) pod_selector: Option<LabelSelector>,
    pub(crate) policy_types: Option<Vec<String>>,
    pub(crate) ingress: Option<Vec<IngressRule>>,
    pub(crate) egress: Option<Vec<EgressRule>>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct IngressRule {
    pub(crate) from: Option<Vec<Peer>>,
    pub(crate) ports: Option<Vec<Port>>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EgressRule {
    pub(crate) to: Option<Vec<Peer>>,
    pub(crate) ports: Option<Vec<Port>>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Peer {
    pub(crate) pod_selector: Option<LabelSelector>,
    pub(crate) namespace_selector: Option<LabelSelector>,
    pub(crate) ip_block: Option<IpBlock>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct IpBlock {
    pub(crate) cidr: Option<String>,
    pub(crate) except: Option<Vec<String>>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Port {
    pub(crate) protocol: Option<String>,
    pub(crate) port: Option<IntOrString>,
    pub(crate) end_port: Option<i64>,
}
