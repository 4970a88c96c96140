//! The objects that routes are compiled from, checked for their types.

use std::collections::BTreeMap;

use podswitch_core::id::Cookie;
use podswitch_kubernetes::{Action, Record, Source, ValueObject};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::gateway_api::{
    GROUP, GatewayClassSpec, GatewaySpec, GrantSpec, HttpRouteSpec, NamespaceSpec,
};

/// Namespace and name; the namespace of objects without one is empty.
pub(crate) type Name = (String, String);

/// The objects, by kind and name.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    pub(crate) ingresses: BTreeMap<Name, Stored<IngressSpec>>,
    pub(crate) classes: BTreeMap<Name, Stored<ClassSpec>>,
    pub(crate) secrets: BTreeMap<Name, Stored<SecretData>>,
    pub(crate) services: BTreeMap<Name, Stored<ServiceSpec>>,
    pub(crate) slices: BTreeMap<Name, Stored<SliceData>>,
    pub(crate) gateway_classes: BTreeMap<Name, Stored<GatewayClassSpec>>,
    pub(crate) gateways: BTreeMap<Name, Stored<GatewaySpec>>,
    pub(crate) http_routes: BTreeMap<Name, Stored<HttpRouteSpec>>,
    pub(crate) grants: BTreeMap<Name, Stored<GrantSpec>>,
    pub(crate) namespaces: BTreeMap<Name, Stored<NamespaceSpec>>,
    /// Objects with fields of wrong types.
    pub(crate) refused: BTreeMap<String, Record>,
}

/// An object with its metadata, and where it was read.
#[derive(Clone, Debug)]
pub(crate) struct Stored<T> {
    pub(crate) source: Option<Source>,
    pub(crate) meta: Meta,
    pub(crate) it: T,
}

type Texts = BTreeMap<String, Option<String>>;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Meta {
    labels: Option<Texts>,
    annotations: Option<Texts>,
    pub(crate) creation_timestamp: Option<String>,
    pub(crate) generation: Option<i64>,
}

impl Meta {
    pub(crate) fn annotations(&self) -> impl Iterator<Item = (&str, &str)> {
        let entries = self.annotations.iter().flatten();
        entries.map(|(key, value)| (&**key, value.as_deref().unwrap_or_default()))
    }

    pub(crate) fn annotation(&self, key: &str) -> Option<&str> {
        Some(self.annotations.as_ref()?.get(key)?.as_deref().unwrap_or_default())
    }

    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        self.labels.as_ref()?.get(key)?.as_deref()
    }
}

#[derive(Deserialize)]
struct WithSpec<T> {
    #[serde(default)]
    metadata: Meta,
    spec: Option<T>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct IngressSpec {
    pub(crate) ingress_class_name: Option<String>,
    pub(crate) default_backend: Option<BackendRef>,
    pub(crate) tls: Option<Vec<TlsEntry>>,
    pub(crate) rules: Option<Vec<Rule>>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct BackendRef {
    pub(crate) service: Option<ServiceRef>,
    pub(crate) resource: Option<Value>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ServiceRef {
    pub(crate) name: Option<String>,
    pub(crate) port: Option<PortRef>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct PortRef {
    pub(crate) name: Option<String>,
    pub(crate) number: Option<i64>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TlsEntry {
    pub(crate) hosts: Option<Vec<String>>,
    pub(crate) secret_name: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Rule {
    pub(crate) host: Option<String>,
    pub(crate) http: Option<HttpRule>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct HttpRule {
    pub(crate) paths: Option<Vec<PathRule>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PathRule {
    pub(crate) path: Option<String>,
    pub(crate) path_type: Option<String>,
    pub(crate) backend: Option<BackendRef>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct ClassSpec {
    pub(crate) controller: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SecretData {
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    pub(crate) data: Option<Texts>,
    pub(crate) string_data: Option<Texts>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServiceSpec {
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    pub(crate) ports: Option<Vec<ServicePort>>,
    pub(crate) ip_families: Option<Vec<String>>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ServicePort {
    pub(crate) name: Option<String>,
    pub(crate) protocol: Option<String>,
    pub(crate) port: Option<i64>,
    #[serde(rename = "appProtocol")]
    pub(crate) app_protocol: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SliceData {
    pub(crate) address_type: Option<String>,
    pub(crate) endpoints: Option<Vec<SliceEndpoint>>,
    pub(crate) ports: Option<Vec<SlicePort>>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct SliceEndpoint {
    pub(crate) addresses: Option<Vec<String>>,
    pub(crate) conditions: Option<Conditions>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Conditions {
    pub(crate) ready: Option<bool>,
    pub(crate) serving: Option<bool>,
    pub(crate) terminating: Option<bool>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct SlicePort {
    pub(crate) name: Option<String>,
    pub(crate) protocol: Option<String>,
    pub(crate) port: Option<i64>,
}

/// A kind that routes are compiled from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ingress,
    Class,
    Secret,
    Service,
    Slice,
    GatewayClass,
    Gateway,
    HttpRoute,
    Grant,
    Namespace,
}

impl Kind {
    fn of(value: &Value) -> Option<(Self, &'static str)> {
        let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
        if let Some(version) = text("apiVersion").strip_prefix(GROUP)
            && matches!(version, "/v1" | "/v1beta1")
        {
            return Some(match text("kind") {
                "GatewayClass" => (Self::GatewayClass, "GatewayClass"),
                "Gateway" => (Self::Gateway, "Gateway"),
                "HTTPRoute" => (Self::HttpRoute, "HTTPRoute"),
                "ReferenceGrant" => (Self::Grant, "ReferenceGrant"),
                _ => return None,
            });
        }
        Some(match (text("apiVersion"), text("kind")) {
            ("networking.k8s.io/v1", "Ingress") => (Self::Ingress, "Ingress"),
            ("networking.k8s.io/v1", "IngressClass") => (Self::Class, "IngressClass"),
            ("v1", "Secret") => (Self::Secret, "Secret"),
            ("v1", "Service") => (Self::Service, "Service"),
            ("v1", "Namespace") => (Self::Namespace, "Namespace"),
            ("discovery.k8s.io/v1", "EndpointSlice") => (Self::Slice, "EndpointSlice"),
            _ => return None,
        })
    }
}

impl Objects {
    /// Adds an object, or replaces the one of the same kind and name. Returns whether its kind and
    /// version are supported. A field of a wrong type leaves the object out; [`compile`] reports it.
    ///
    /// [`compile`]: crate::compile()
    pub fn upsert(&mut self, source: Option<Source>, value: Value) -> bool {
        let Some((kind, text)) = Kind::of(&value) else {
            return self.refuse_old_version(source, &value);
        };
        let name = name_of(&value, kind);
        self.remove(kind, &name);
        let object = object_name(text, &name);
        let result = if name.1.is_empty() {
            Err(("metadata.name".to_owned(), "is missing".to_owned()))
        } else {
            self.store(kind, name, source.clone(), value)
        };
        self.refused.remove(&object);
        if let Err((field, reason)) = result {
            self.refused.insert(object.clone(), refusal(source, &object, field, reason));
        }
        true
    }

    /// Adds the objects of manifests. The first definition of an object counts; a record tells of
    /// others.
    pub fn from_values<'v>(values: impl IntoIterator<Item = &'v ValueObject>) -> Self {
        let (mut objects, mut seen) = (Self::default(), BTreeMap::new());
        for ValueObject { source, value, version, kind } in values {
            let mut value = value.clone();
            // The items of a typed list may omit their own.
            if let Value::Object(fields) = &mut value {
                fields.insert("apiVersion".to_owned(), version.as_str().into());
                fields.insert("kind".to_owned(), kind.as_str().into());
            }
            let Some((kind, text)) = Kind::of(&value) else {
                objects.upsert(Some(source.clone()), value);
                continue;
            };
            let object = object_name(text, &name_of(&value, kind));
            let (count, first) = seen.entry(object.clone()).or_insert((0, source));
            *count += 1;
            if *count == 1 {
                objects.upsert(Some(source.clone()), value);
                continue;
            }
            let reason = format!("is defined already, at {first}");
            let field = "metadata.name".to_owned();
            let record = refusal(Some(source.clone()), &object, field, reason);
            objects.refused.insert(format!("{object}#{count}"), record);
        }
        objects
    }

    /// Replaces all objects of a kind, as a list of an API server has them. `kind` is one of Ingress,
    /// IngressClass, Secret, Service, EndpointSlice, GatewayClass, Gateway, HTTPRoute, ReferenceGrant
    /// and Namespace; others are ignored.
    pub fn replace(&mut self, kind: &str, values: Vec<Value>) {
        match kind {
            "Ingress" => self.ingresses.clear(),
            "IngressClass" => self.classes.clear(),
            "Secret" => self.secrets.clear(),
            "Service" => self.services.clear(),
            "EndpointSlice" => self.slices.clear(),
            "GatewayClass" => self.gateway_classes.clear(),
            "Gateway" => self.gateways.clear(),
            "HTTPRoute" => self.http_routes.clear(),
            "ReferenceGrant" => self.grants.clear(),
            "Namespace" => self.namespaces.clear(),
            _ => return,
        }
        let prefix = format!("{kind}/");
        self.refused.retain(|object, _| !object.starts_with(&prefix));
        for value in values {
            self.upsert(None, value);
        }
    }

    /// Deletes an object; an object that is not there is no error. `value` needs kind, version and
    /// name only.
    pub fn delete(&mut self, value: &Value) {
        if let Some((kind, text)) = Kind::of(value) {
            let name = name_of(value, kind);
            self.refused.remove(&object_name(text, &name));
            self.remove(kind, &name);
        }
    }

    /// An Ingress of a version that no API server serves any more has no effect, and says so.
    fn refuse_old_version(&mut self, source: Option<Source>, value: &Value) -> bool {
        let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
        let (version, kind) = (text("apiVersion"), text("kind"));
        let is_group = version.starts_with("extensions/") || version.starts_with("networking.k8s");
        if kind != "Ingress" || !is_group {
            return false;
        }
        let object = object_name("Ingress", &name_of(value, Kind::Ingress));
        let reason = format!("{version:.64} is not networking.k8s.io/v1");
        let record = refusal(source, &object, "apiVersion".to_owned(), reason);
        self.refused.insert(object, record);
        true
    }

    fn remove(&mut self, kind: Kind, name: &Name) {
        match kind {
            Kind::Ingress => _ = self.ingresses.remove(name),
            Kind::Class => _ = self.classes.remove(name),
            Kind::Secret => _ = self.secrets.remove(name),
            Kind::Service => _ = self.services.remove(name),
            Kind::Slice => _ = self.slices.remove(name),
            Kind::GatewayClass => _ = self.gateway_classes.remove(name),
            Kind::Gateway => _ = self.gateways.remove(name),
            Kind::HttpRoute => _ = self.http_routes.remove(name),
            Kind::Grant => _ = self.grants.remove(name),
            Kind::Namespace => _ = self.namespaces.remove(name),
        }
    }

    fn store(
        &mut self,
        kind: Kind,
        name: Name,
        source: Option<Source>,
        value: Value,
    ) -> Result<(), (String, String)> {
        match kind {
            Kind::Ingress => _ = self.ingresses.insert(name, spec(source, value)?),
            Kind::Class => _ = self.classes.insert(name, spec(source, value)?),
            Kind::Service => _ = self.services.insert(name, spec(source, value)?),
            Kind::Secret => _ = self.secrets.insert(name, flat(source, value)?),
            Kind::Slice => _ = self.slices.insert(name, flat(source, value)?),
            Kind::GatewayClass => _ = self.gateway_classes.insert(name, spec(source, value)?),
            Kind::Gateway => _ = self.gateways.insert(name, spec(source, value)?),
            Kind::HttpRoute => _ = self.http_routes.insert(name, spec(source, value)?),
            Kind::Grant => _ = self.grants.insert(name, spec(source, value)?),
            Kind::Namespace => _ = self.namespaces.insert(name, spec(source, value)?),
        }
        Ok(())
    }
}

fn refusal(source: Option<Source>, object: &str, field: String, reason: String) -> Record {
    Record {
        origin: source,
        object: Cookie::new(object),
        field,
        reason,
        action: Action::LeftOut,
        refused: true,
        by_switch: false,
    }
}

fn spec<T: DeserializeOwned + Default>(
    source: Option<Source>,
    value: Value,
) -> Result<Stored<T>, (String, String)> {
    let WithSpec { metadata, spec } = decode(value)?;
    Ok(Stored { source, meta: metadata, it: spec.unwrap_or_default() })
}

/// An object without `spec`.
fn flat<T: DeserializeOwned>(
    source: Option<Source>,
    mut value: Value,
) -> Result<Stored<T>, (String, String)> {
    let meta = value.get_mut("metadata").map(Value::take).unwrap_or_default();
    let meta: Option<Meta> =
        decode(meta).map_err(|(field, reason)| (format!("metadata.{field}"), reason))?;
    Ok(Stored { source, meta: meta.unwrap_or_default(), it: decode(value)? })
}

fn decode<T: DeserializeOwned>(value: Value) -> Result<T, (String, String)> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        // What is wrong with a Secret must not quote it.
        let text = error.inner().to_string();
        let reason = text.split_once('"').map_or(text.clone(), |(before, after)| {
            let after = after.rsplit_once('"').map_or("", |(_, after)| after);
            format!("{before}…{after}")
        });
        (error.path().to_string(), reason)
    })
}

fn name_of(value: &Value, kind: Kind) -> Name {
    let text = |name: &str| {
        let text = value.get("metadata").and_then(|meta| meta.get(name)).and_then(Value::as_str);
        text.unwrap_or_default().to_owned()
    };
    let namespace = match kind {
        Kind::Class | Kind::GatewayClass | Kind::Namespace => String::new(),
        _ => match text("namespace") {
            none if none.is_empty() => "default".to_owned(),
            namespace => namespace,
        },
    };
    (namespace, text("name"))
}

/// `Kind/namespace/name`, or `Kind/name`.
pub(crate) fn object_name(kind: &str, name: &Name) -> String {
    match name.0.as_str() {
        "" => format!("{kind}/{}", name.1.escape_debug()),
        namespace => format!("{kind}/{}/{}", namespace.escape_debug(), name.1.escape_debug()),
    }
}
