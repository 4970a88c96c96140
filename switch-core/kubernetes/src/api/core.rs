//! Namespace, Node and Pod (core/v1).

use serde::{Deserialize, Serialize};

use super::boolean;
use super::meta::ObjectMeta;

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Namespace {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) metadata: Option<ObjectMeta>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Node {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) metadata: Option<ObjectMeta>,
    pub(crate) spec: Option<NodeSpec>,
    pub(crate) status: Option<NodeStatus>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pub(crate) pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pub(crate) pod_cidrs: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct NodeStatus {
    pub(crate) addresses: Option<Vec<NodeAddress>>,
    pub(crate) conditions: Option<Vec<Condition>>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Condition {
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    pub(crate) status: Option<String>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct NodeAddress {
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    pub(crate) address: Option<String>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Pod {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) metadata: Option<ObjectMeta>,
    pub(crate) spec: Option<PodSpec>,
    pub(crate) status: Option<PodStatus>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodSpec {
    pub(crate) node_name: Option<String>,
    #[serde(default, deserialize_with = "boolean")]
    pub(crate) host_network: Option<bool>,
    pub(crate) containers: Option<Vec<Container>>,
    pub(crate) init_containers: Option<Vec<Container>>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Container {
    pub(crate) ports: Option<Vec<ContainerPort>>,
    /// `Always` makes an init container a sidecar, whose ports count.
    pub(crate) restart_policy: Option<String>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ContainerPort {
    pub(crate) name: Option<String>,
    pub(crate) container_port: Option<i64>,
    pub(crate) protocol: Option<String>,
    pub(crate) host_port: Option<i64>,
    #[serde(rename = "hostIP")]
    pub(crate) host_ip: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct PodStatus {
    pub(crate) phase: Option<String>,
    #[serde(rename = "podIP")]
    pub(crate) pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pub(crate) pod_ips: Option<Vec<Address>>,
    #[serde(rename = "hostIP")]
    pub(crate) host_ip: Option<String>,
    #[serde(rename = "hostIPs")]
    pub(crate) host_ips: Option<Vec<Address>>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Address {
    pub(crate) ip: Option<String>,
}
