//! The kinds of Gateway API (gateway.networking.k8s.io/v1, and v1beta1, which has the same fields),
//! checked for their types.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The group of the kinds.
pub(crate) const GROUP: &str = "gateway.networking.k8s.io";

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct GatewayClassSpec {
    pub(crate) controller_name: Option<String>,
    pub(crate) parameters_ref: Option<Value>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct GatewaySpec {
    pub(crate) gateway_class_name: Option<String>,
    pub(crate) listeners: Option<Vec<ListenerSpec>>,
    pub(crate) addresses: Option<Vec<AddressSpec>>,
    pub(crate) infrastructure: Option<Infrastructure>,
    /// What it may restrict is not supported.
    pub(crate) tls: Option<Value>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct AddressSpec {
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    pub(crate) value: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Infrastructure {
    pub(crate) parameters_ref: Option<Value>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ListenerSpec {
    pub(crate) name: String,
    pub(crate) hostname: Option<String>,
    pub(crate) port: i64,
    pub(crate) protocol: String,
    pub(crate) tls: Option<ListenerTls>,
    pub(crate) allowed_routes: Option<AllowedRoutes>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ListenerTls {
    pub(crate) mode: Option<String>,
    pub(crate) certificate_refs: Option<Vec<ObjectRef>>,
    pub(crate) options: Option<BTreeMap<String, Value>>,
    pub(crate) frontend_validation: Option<Value>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ObjectRef {
    pub(crate) group: Option<String>,
    pub(crate) kind: Option<String>,
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct AllowedRoutes {
    pub(crate) namespaces: Option<AllowedNamespaces>,
    pub(crate) kinds: Option<Vec<RouteKind>>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct AllowedNamespaces {
    pub(crate) from: Option<String>,
    pub(crate) selector: Option<LabelSelector>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LabelSelector {
    pub(crate) match_labels: Option<BTreeMap<String, String>>,
    pub(crate) match_expressions: Option<Vec<LabelRequirement>>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct LabelRequirement {
    pub(crate) key: String,
    pub(crate) operator: String,
    pub(crate) values: Option<Vec<String>>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RouteKind {
    pub(crate) group: Option<String>,
    pub(crate) kind: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HttpRouteSpec {
    pub(crate) parent_refs: Option<Vec<ParentRef>>,
    pub(crate) hostnames: Option<Vec<String>>,
    pub(crate) rules: Option<Vec<RouteRule>>,
}

/// A Gateway, or one of its listeners, that a route names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentRef {
    /// By default that of Gateway API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// By default Gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// By default that of the route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name of the Gateway.
    pub name: String,
    /// Name of the listener. None: all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
    /// Port of the listeners. None: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<i64>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RouteRule {
    pub(crate) matches: Option<Vec<RouteMatch>>,
    pub(crate) filters: Option<Vec<Filter>>,
    pub(crate) backend_refs: Option<Vec<RouteBackend>>,
    pub(crate) timeouts: Option<Timeouts>,
    pub(crate) retry: Option<Value>,
    pub(crate) session_persistence: Option<Value>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RouteMatch {
    pub(crate) path: Option<PathValue>,
    pub(crate) headers: Option<Vec<NamedMatch>>,
    pub(crate) query_params: Option<Vec<NamedMatch>>,
    pub(crate) method: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct PathValue {
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    pub(crate) value: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct NamedMatch {
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    pub(crate) name: String,
    pub(crate) value: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Filter {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) request_header_modifier: Option<HeaderModifier>,
    pub(crate) response_header_modifier: Option<HeaderModifier>,
    pub(crate) request_redirect: Option<RequestRedirect>,
    pub(crate) url_rewrite: Option<UrlRewrite>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct HeaderModifier {
    pub(crate) set: Option<Vec<HeaderValue>>,
    pub(crate) add: Option<Vec<HeaderValue>>,
    pub(crate) remove: Option<Vec<String>>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct HeaderValue {
    pub(crate) name: String,
    pub(crate) value: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RequestRedirect {
    pub(crate) scheme: Option<String>,
    pub(crate) hostname: Option<String>,
    pub(crate) path: Option<PathModifier>,
    pub(crate) port: Option<i64>,
    pub(crate) status_code: Option<u16>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct UrlRewrite {
    pub(crate) hostname: Option<String>,
    pub(crate) path: Option<PathModifier>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PathModifier {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) replace_full_path: Option<String>,
    pub(crate) replace_prefix_match: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RouteBackend {
    pub(crate) group: Option<String>,
    pub(crate) kind: Option<String>,
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
    pub(crate) port: Option<i64>,
    pub(crate) weight: Option<i64>,
    pub(crate) filters: Option<Vec<Filter>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Timeouts {
    pub(crate) request: Option<String>,
    pub(crate) backend_request: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct GrantSpec {
    pub(crate) from: Option<Vec<GrantFrom>>,
    pub(crate) to: Option<Vec<GrantTo>>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct GrantFrom {
    pub(crate) group: String,
    pub(crate) kind: String,
    pub(crate) namespace: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct GrantTo {
    pub(crate) group: String,
    pub(crate) kind: String,
    pub(crate) name: Option<String>,
}

/// Of a Namespace, only its labels are used.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct NamespaceSpec {}
