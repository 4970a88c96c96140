//! From values to objects: which kind a value is, lists taken apart, types checked. What a field
//! may hold is checked later, in `compile`.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::Value;

use podswitch_core::id::Cookie;

use crate::api::cluster::ClusterNetworkPolicy;
use crate::api::core::{Namespace, Node, Pod};
use crate::api::meta::ObjectMeta;
use crate::api::networking::NetworkPolicy;
use crate::api::service::{EndpointSlice, Service, ServiceCidr};
use crate::refusal::{Note, Refusal, Source, quote};

/// An object that podswitch reads.
#[derive(Clone, Debug)]
pub(crate) enum Object {
    Namespace,
    Node(Node),
    Pod(Box<Pod>),
    NetworkPolicy(NetworkPolicy),
    ClusterNetworkPolicy(ClusterNetworkPolicy),
    Service(Box<Service>),
    EndpointSlice(EndpointSlice),
    ServiceCidr(ServiceCidr),
}

/// An object and where it was read.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    pub(crate) origin: Source,
    /// `Kind/namespace/name` or `Kind/name`.
    pub(crate) cookie: Cookie,
    pub(crate) meta: ObjectMeta,
    pub(crate) object: Object,
}

/// Everything found so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Collection {
    pub(crate) objects: Vec<Loaded>,
    pub(crate) refusals: Vec<Refusal>,
    /// Kinds passed over: how many, and where the first of them was.
    passed_over: BTreeMap<(String, String), (usize, Source)>,
}

/// A kind that podswitch reads.
struct Kind {
    name: &'static str,
    group: &'static str,
    versions: &'static [&'static str],
    namespaced: bool,
    decode: fn(Value) -> Result<(ObjectMeta, Object), Fault>,
}

/// A field of the wrong type.
pub(crate) struct Fault {
    /// Its path, empty if it is the value itself.
    pub(crate) field: String,
    pub(crate) reason: String,
}

const KINDS: &[Kind] = &[
    Kind {
        name: "Namespace",
        group: "",
        versions: &["v1"],
        namespaced: false,
        decode: |value| {
            let it: Namespace = decode(value)?;
            Ok((it.metadata.unwrap_or_default(), Object::Namespace))
        },
    },
    Kind {
        name: "Node",
        group: "",
        versions: &["v1"],
        namespaced: false,
        decode: |value| {
            let mut it: Node = decode(value)?;
            Ok((it.metadata.take().unwrap_or_default(), Object::Node(it)))
        },
    },
    Kind {
        name: "Pod",
        group: "",
        versions: &["v1"],
        namespaced: true,
        decode: |value| {
            let mut it: Box<Pod> = decode(value)?;
            Ok((it.metadata.take().unwrap_or_default(), Object::Pod(it)))
        },
    },
    Kind {
        name: "NetworkPolicy",
        group: "networking.k8s.io",
        versions: &["v1"],
        namespaced: true,
        decode: |value| {
            let mut it: NetworkPolicy = decode(value)?;
            Ok((it.metadata.take().unwrap_or_default(), Object::NetworkPolicy(it)))
        },
    },
    Kind {
        name: "ClusterNetworkPolicy",
        group: "policy.networking.k8s.io",
        versions: &["v1alpha2"],
        namespaced: false,
        decode: |value| {
            let mut it: ClusterNetworkPolicy = decode(value)?;
            Ok((it.metadata.take().unwrap_or_default(), Object::ClusterNetworkPolicy(it)))
        },
    },
    Kind {
        name: "Service",
        group: "",
        versions: &["v1"],
        namespaced: true,
        decode: |value| {
            let mut it: Box<Service> = decode(value)?;
            Ok((it.metadata.take().unwrap_or_default(), Object::Service(it)))
        },
    },
    Kind {
        name: "EndpointSlice",
        group: "discovery.k8s.io",
        versions: &["v1"],
        namespaced: true,
        decode: |value| {
            let mut it: EndpointSlice = decode(value)?;
            Ok((it.metadata.take().unwrap_or_default(), Object::EndpointSlice(it)))
        },
    },
    Kind {
        name: "ServiceCIDR",
        group: "networking.k8s.io",
        versions: &["v1", "v1beta1"],
        namespaced: false,
        decode: |value| {
            let mut it: ServiceCidr = decode(value)?;
            Ok((it.metadata.take().unwrap_or_default(), Object::ServiceCidr(it)))
        },
    },
];

/// Groups that kinds of ours lived in once. To pass over a policy because its author is behind
/// the times would open what it closes.
const FORMER_GROUPS: &[(&str, &str)] = &[("NetworkPolicy", "extensions")];

impl Collection {
    /// Adds what `value` holds: an object, or a list of them.
    pub(crate) fn add(&mut self, value: Value, origin: &Source) {
        self.add_item(value, origin, None);
    }

    /// `listed`: version and kind of the list that the item stands in, which the items of a typed
    /// list may leave out.
    fn add_item(&mut self, mut value: Value, origin: &Source, listed: Option<(&str, &str)>) {
        let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
        let (version, kind) = match (text("apiVersion"), text("kind"), listed) {
            (version, Some(kind), _) => (version.unwrap_or_default(), kind),
            (_, None, Some((version, kind))) => (version.to_owned(), kind.to_owned()),
            (_, None, None) => {
                let reason = match value {
                    Value::Object(_) => "the object does not say what kind it is",
                    _ => "this is no Kubernetes object",
                };
                let namespaced = value.pointer("/metadata/namespace").is_some();
                let object = object_name("?", &value, namespaced);
                return self.refuse(origin, &object, "kind", reason);
            }
        };
        if let (Some(Value::Array(items)), Some(item)) =
            (value.get_mut("items").map(Value::take), kind.strip_suffix("List"))
        {
            let listed = (!item.is_empty()).then_some((&*version, item));
            for item in items {
                self.add_item(item, origin, listed);
            }
            return;
        }
        self.add_object(value, origin, &version, &kind);
    }

    fn add_object(&mut self, value: Value, origin: &Source, version: &str, kind: &str) {
        let (group, number) = version.rsplit_once('/').unwrap_or(("", version));
        let known = KINDS.iter().find(|known| {
            known.name == kind
                && (known.group == group
                    || version.is_empty()
                    || FORMER_GROUPS.contains(&(kind, group)))
        });
        let Some(known) = known else {
            let key = (kind.to_owned(), version.to_owned());
            self.passed_over.entry(key).or_insert((0, origin.clone())).0 += 1;
            return;
        };
        let cookie = object_name(kind, &value, known.namespaced);
        if known.group != group || !known.versions.contains(&number) {
            let expected = known.versions.iter().map(|version| match known.group {
                "" => (*version).to_owned(),
                group => format!("{group}/{version}"),
            });
            let expected = expected.collect::<Vec<_>>().join(" or ");
            let reason = format!("{} is not {expected}", quote(version));
            return self.refuse(origin, &cookie, "apiVersion", &reason);
        }
        match (known.decode)(value) {
            Ok((meta, object)) => {
                self.objects.push(Loaded { origin: origin.clone(), cookie, meta, object });
            }
            Err(fault) => self.refuse(origin, &cookie, &fault.field, &fault.reason),
        }
    }

    fn refuse(&mut self, origin: &Source, object: &Cookie, field: &str, reason: &str) {
        self.refusals.push(Refusal {
            origin: origin.clone(),
            object: object.clone(),
            field: field.to_owned(),
            reason: reason.to_owned(),
        });
    }

    /// What was passed over, a note for each kind.
    pub(crate) fn notes(&self) -> impl Iterator<Item = Note> + '_ {
        self.passed_over.iter().map(|((kind, version), (count, first))| {
            let (kind, version) = (kind.escape_debug(), version.escape_debug());
            let others = match count {
                1 => String::new(),
                count => format!(" (and {} more of that kind)", count - 1),
            };
            Note {
                origin: Some(first.clone()),
                text: format!("passed over: {kind} of {version} is not read{others}"),
            }
        })
    }
}

/// The name that an object goes by, whatever its metadata hold.
fn object_name(kind: &str, value: &Value, namespaced: bool) -> Cookie {
    let text = |name| {
        let text = value.get("metadata").and_then(|meta| meta.get(name)).and_then(Value::as_str);
        text.filter(|text| !text.is_empty()).map(printable)
    };
    let name = text("name").unwrap_or_else(|| "?".to_owned());
    if namespaced {
        let namespace = text("namespace").unwrap_or_else(|| "default".to_owned());
        Cookie::new(format!("{kind}/{namespace}/{name}"))
    } else {
        Cookie::new(format!("{kind}/{name}"))
    }
}

/// Names are checked later; here they only must not harm whoever reads them.
fn printable(text: &str) -> String {
    if text.len() <= 253 && text.bytes().all(|b| b.is_ascii_graphic() && b != b'/') {
        text.to_owned()
    } else {
        quote(text)
    }
}

/// Decodes a value, with the path of the field whose type is wrong.
pub(crate) fn decode<T: DeserializeOwned>(value: Value) -> Result<T, Fault> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let field = match error.path().to_string() {
            root if root == "." => String::new(),
            path => path,
        };
        Fault { field, reason: in_api_words(&error.inner().to_string()) }
    })
}

/// Types as the API's users call them.
fn in_api_words(message: &str) -> String {
    let (found, expected) = message.rsplit_once(", expected ").unwrap_or((message, ""));
    let found = match found {
        "invalid type: map" => "invalid type: an object",
        "invalid type: sequence" => "invalid type: a list",
        found => found,
    };
    let expected = match expected {
        "" => return found.to_owned(),
        "i64" => "a whole number",
        "a sequence" => "a list",
        "a map" => "an object",
        other if other.starts_with("struct ") => "an object",
        other => other,
    };
    format!("{found}, expected {expected}")
}
