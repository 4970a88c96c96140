//! Service (core/v1), EndpointSlice (discovery/v1) and ServiceCIDR (networking/v1).

use serde::{Deserialize, Serialize};

use super::meta::{ObjectMeta, Texts};
use super::{IntOrString, boolean};

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Service {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) metadata: Option<ObjectMeta>,
    pub(crate) spec: Option<ServiceSpec>,
    pub(crate) status: Option<ServiceStatus>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServiceSpec {
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    #[serde(rename = "clusterIP")]
    pub(crate) cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    pub(crate) cluster_ips: Option<Vec<String>>,
    #[serde(rename = "externalIPs")]
    pub(crate) external_ips: Option<Vec<String>>,
    pub(crate) external_name: Option<String>,
    pub(crate) selector: Option<Texts>,
    pub(crate) ports: Option<Vec<ServicePort>>,
    pub(crate) session_affinity: Option<String>,
    pub(crate) session_affinity_config: Option<SessionAffinityConfig>,
    pub(crate) load_balancer_source_ranges: Option<Vec<String>>,
    pub(crate) external_traffic_policy: Option<String>,
    pub(crate) internal_traffic_policy: Option<String>,
    pub(crate) health_check_node_port: Option<i64>,
    #[serde(default, deserialize_with = "boolean")]
    pub(crate) publish_not_ready_addresses: Option<bool>,
    pub(crate) traffic_distribution: Option<String>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServicePort {
    pub(crate) name: Option<String>,
    pub(crate) protocol: Option<String>,
    pub(crate) port: Option<i64>,
    pub(crate) target_port: Option<IntOrString>,
    pub(crate) node_port: Option<i64>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct SessionAffinityConfig {
    #[serde(rename = "clientIP")]
    pub(crate) client_ip: Option<ClientIpConfig>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ClientIpConfig {
    pub(crate) timeout_seconds: Option<i64>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServiceStatus {
    pub(crate) load_balancer: Option<LoadBalancerStatus>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct LoadBalancerStatus {
    pub(crate) ingress: Option<Vec<LoadBalancerIngress>>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LoadBalancerIngress {
    pub(crate) ip: Option<String>,
    pub(crate) ip_mode: Option<String>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EndpointSlice {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) metadata: Option<ObjectMeta>,
    pub(crate) address_type: Option<String>,
    pub(crate) endpoints: Option<Vec<Endpoint>>,
    pub(crate) ports: Option<Vec<EndpointPort>>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Endpoint {
    pub(crate) addresses: Option<Vec<String>>,
    pub(crate) hostname: Option<String>,
    pub(crate) conditions: Option<Conditions>,
    pub(crate) node_name: Option<String>,
    pub(crate) zone: Option<String>,
    pub(crate) hints: Option<Hints>,
    pub(crate) target_ref: Option<ObjectReference>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Conditions {
    #[serde(default, deserialize_with = "boolean")]
    pub(crate) ready: Option<bool>,
    #[serde(default, deserialize_with = "boolean")]
    pub(crate) serving: Option<bool>,
    #[serde(default, deserialize_with = "boolean")]
    pub(crate) terminating: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Hints {
    pub(crate) for_zones: Option<Vec<Hint>>,
    pub(crate) for_nodes: Option<Vec<Hint>>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Hint {
    pub(crate) name: Option<String>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct ObjectReference {
    pub(crate) kind: Option<String>,
    pub(crate) namespace: Option<String>,
    pub(crate) name: Option<String>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct EndpointPort {
    pub(crate) name: Option<String>,
    pub(crate) protocol: Option<String>,
    pub(crate) port: Option<i64>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct ServiceCidr {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) metadata: Option<ObjectMeta>,
    pub(crate) spec: Option<ServiceCidrSpec>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct ServiceCidrSpec {
    pub(crate) cidrs: Option<Vec<String>>,
}
