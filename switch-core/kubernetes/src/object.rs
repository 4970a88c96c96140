//! Converts values to objects: finds the kind of a value, splits lists, checks types. The values of
//! fields are validated later, in [`crate::read`].

use serde::de::DeserializeOwned;
use serde_json::Value;

use podswitch_core::id::Cookie;

use crate::api::cluster::ClusterNetworkPolicy;
use crate::api::core::{Namespace, Node, Pod};
use crate::api::meta::ObjectMeta;
use crate::api::networking::NetworkPolicy;
use crate::api::service::{EndpointSlice, Service, ServiceCidr};
pub(crate) use crate::kind::Kind;
use crate::kind::{self, Named};
use crate::report::{Action, Fault, Record, Source, quote};
use crate::text::parse_json;

/// An object that podswitch reads.
#[derive(Clone, Debug)]
pub(crate) enum Typed {
    Namespace,
    Node(Box<Node>),
    Pod(Box<Pod>),
    NetworkPolicy(Box<NetworkPolicy>),
    ClusterNetworkPolicy(Box<ClusterNetworkPolicy>),
    Service(Box<Service>),
    EndpointSlice(Box<EndpointSlice>),
    ServiceCidr(Box<ServiceCidr>),
}

/// An object and where it was read.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    pub(crate) origin: Option<Source>,
    /// `Kind/namespace/name` or `Kind/name`.
    pub(crate) cookie: Cookie,
    pub(crate) kind: Kind,
    pub(crate) body: Body,
}

/// An object as an API server sends it.
#[derive(Clone, Debug)]
pub struct Object(pub(crate) Loaded);

/// A text is not a supported object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ObjectError {
    /// It is not JSON, or exceeds a limit.
    #[error("not JSON: {0}")]
    Syntax(String),
    /// It is of an unsupported kind, a list, or not an object.
    #[error("not an object of a supported kind")]
    OtherKind,
}

impl Object {
    /// Reads one object in JSON. Errors in its fields are found when it is put into a
    /// [`Store`](crate::Store).
    ///
    /// # Errors
    /// It is not JSON, or not a single object of a supported kind.
    pub fn from_json(text: &str) -> Result<Self, ObjectError> {
        let value = parse_json(text).map_err(|error| ObjectError::Syntax(error.message))?;
        let (mut object, mut several) = (None, false);
        find_item(value, None, None, &mut |found| match found {
            Found::Object(found) => several |= object.replace(*found).is_some(),
            Found::Other { .. } | Found::Nothing(_) => several = true,
        });
        object.filter(|_| !several).map(Self).ok_or(ObjectError::OtherKind)
    }

    /// Reads one object of a known kind in JSON, as an API server sends it: items of a list do not
    /// contain their kind. Fields that podswitch does not read are skipped. Errors in other fields
    /// are found when the object is put into a [`Store`](crate::Store).
    ///
    /// # Errors
    /// It is not JSON, or not an object.
    pub fn decode(kind: Kind, json: &str) -> Result<Self, ObjectError> {
        if let Some((cookie, body)) = decode_typed(kind, json) {
            return Ok(Self(Loaded { origin: None, cookie, kind, body }));
        }
        // The slow path: for policies, in which every field counts, and for objects with errors.
        let value = parse_json(json).map_err(|error| ObjectError::Syntax(error.message))?;
        if !value.is_object() {
            return Err(ObjectError::OtherKind);
        }
        let cookie = object_name(kind.name(), &value, kind.is_namespaced());
        Ok(Self(Loaded { origin: None, cookie, kind, body: body(kind, value) }))
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// Its name: `Kind/namespace/name`, or `Kind/name` for kinds without namespaces.
    pub fn name(&self) -> &Cookie {
        &self.0.cookie
    }
}

/// The content of an object.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    /// Fields of the right types.
    Good(ObjectMeta, Typed),
    /// The same, for an object that must not be used.
    Again(Fault, ObjectMeta, Typed),
    /// A field of the wrong type, or an object of an unknown version or kind. The value is kept for
    /// policies only, to find which pods they isolate.
    Bad(Fault, Value),
}

/// The kind of a value.
#[derive(Clone, Debug)]
pub(crate) enum Found {
    /// An object of a supported kind, or probably meant to be one.
    Object(Box<Loaded>),
    /// An object of another kind.
    Other {
        /// Kind and version, as written.
        kind: String,
        version: String,
    },
    /// Not an object.
    Nothing(Record),
}

/// The kind and version that the items of a list may omit: those of a typed list.
pub(crate) fn listed<'a>(version: &'a str, kind: &'a str) -> Option<(&'a str, &'a str)> {
    let item = kind.strip_suffix("List")?;
    (!item.is_empty()).then_some((version, item))
}

/// Finds the objects in `value`: one object, or a list of objects. `each` is called for every
/// object. `listed_as`: version and kind of the list that contains the value; items of a typed list
/// may omit their own.
pub(crate) fn find_item(
    mut value: Value,
    origin: Option<&Source>,
    listed_as: Option<(&str, &str)>,
    each: &mut dyn FnMut(Found),
) {
    let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    let (version, kind) = match (text("apiVersion"), text("kind"), listed_as) {
        (version, Some(kind), _) => (version.unwrap_or_default(), kind),
        (_, None, Some((version, kind))) => (version.to_owned(), kind.to_owned()),
        (_, None, None) => {
            let reason = match value {
                Value::Object(_) => "the object has no kind",
                _ => "this is not a Kubernetes object",
            };
            let namespaced = value.pointer("/metadata/namespace").is_some();
            return each(Found::Nothing(Record {
                origin: origin.cloned(),
                object: object_name("?", &value, namespaced),
                field: "kind".to_owned(),
                reason: reason.to_owned(),
                action: Action::LeftOut,
                refused: true,
                by_switch: false,
            }));
        }
    };
    if kind.ends_with("List")
        && let Some(Value::Array(items)) = value.get_mut("items").map(Value::take)
    {
        for item in items {
            find_item(item, origin, listed(&version, &kind), each);
        }
        return;
    }
    each(object(value, origin, version, kind));
}

fn object(value: Value, origin: Option<&Source>, version: String, written: String) -> Found {
    let (kind, fault) = match kind::named(&written, &version) {
        Named::Read(kind) => (kind, None),
        Named::Mistaken(kind, fault) => (kind, Some(fault)),
        Named::Other => return Found::Other { kind: written, version },
    };
    let cookie = object_name(kind.name(), &value, kind.is_namespaced());
    let body = match fault {
        Some(fault) => Body::Bad(fault, if kind.is_policy() { value } else { Value::Null }),
        None => body(kind, value),
    };
    Found::Object(Box::new(Loaded { origin: origin.cloned(), cookie, kind, body }))
}

/// Decodes an object that has a name and fields of the right types, without an intermediate value.
fn decode_typed(kind: Kind, json: &str) -> Option<(Cookie, Body)> {
    macro_rules! decode_as {
        ($type:ty, $typed:expr) => {{
            let mut it: $type = serde_json::from_str(json).ok()?;
            let meta = it.metadata.take().unwrap_or_default();
            (meta, $typed(it))
        }};
    }
    let (meta, typed) = match kind {
        Kind::Namespace => decode_as!(Namespace, |_| Typed::Namespace),
        Kind::Node => decode_as!(Box<Node>, Typed::Node),
        Kind::Pod => decode_as!(Box<Pod>, Typed::Pod),
        Kind::Service => decode_as!(Box<Service>, Typed::Service),
        Kind::EndpointSlice => decode_as!(Box<EndpointSlice>, Typed::EndpointSlice),
        Kind::ServiceCidr => decode_as!(Box<ServiceCidr>, Typed::ServiceCidr),
        Kind::NetworkPolicy | Kind::ClusterNetworkPolicy => return None,
    };
    let name = meta.name.as_deref().filter(|name| !name.is_empty())?;
    let namespace = meta.namespace.as_deref().filter(|name| !name.is_empty());
    let cookie = if kind.is_namespaced() {
        let namespace = namespace.unwrap_or("default");
        format!("{}/{}/{}", kind.name(), printable(namespace), printable(name))
    } else {
        format!("{}/{}", kind.name(), printable(name))
    };
    Some((Cookie::new(cookie), Body::Good(meta, typed)))
}

/// Decodes an object of a kind.
fn body(kind: Kind, value: Value) -> Body {
    macro_rules! decode_as {
        ($type:ty, $typed:path) => {
            decode::<Box<$type>>(value)
                .map(|mut it| (it.metadata.take().unwrap_or_default(), $typed(it)))
        };
    }
    let decoded = match kind {
        Kind::Namespace => {
            decode::<Namespace>(value).map(|it| (it.metadata.unwrap_or_default(), Typed::Namespace))
        }
        Kind::Node => decode_as!(Node, Typed::Node),
        Kind::Pod => decode_as!(Pod, Typed::Pod),
        Kind::Service => decode_as!(Service, Typed::Service),
        Kind::EndpointSlice => decode_as!(EndpointSlice, Typed::EndpointSlice),
        Kind::ServiceCidr => decode_as!(ServiceCidr, Typed::ServiceCidr),
        // By reference, since an unusable policy is examined again.
        Kind::NetworkPolicy => {
            let decoded = decode::<Box<NetworkPolicy>>(&value)
                .map(|mut it| (it.metadata.take().unwrap_or_default(), Typed::NetworkPolicy(it)));
            return decoded.map_or_else(|f| Body::Bad(f, value), |(m, o)| Body::Good(m, o));
        }
        Kind::ClusterNetworkPolicy => {
            let decoded = decode::<Box<ClusterNetworkPolicy>>(&value).map(|mut it| {
                (it.metadata.take().unwrap_or_default(), Typed::ClusterNetworkPolicy(it))
            });
            return decoded.map_or_else(|f| Body::Bad(f, value), |(m, o)| Body::Good(m, o));
        }
    };
    decoded.map_or_else(|fault| Body::Bad(fault, Value::Null), |(m, o)| Body::Good(m, o))
}

/// The name of an object, whatever its metadata contain.
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

/// Names are validated later; here they only need to be safe to print.
fn printable(text: &str) -> String {
    if text.len() <= 253 && text.bytes().all(|b| b.is_ascii_graphic() && b != b'/') {
        text.to_owned()
    } else {
        quote(text)
    }
}

/// Decodes a value, with the path of the field whose type is wrong.
pub(crate) fn decode<'de, T: DeserializeOwned>(
    value: impl serde::Deserializer<'de, Error = serde_json::Error>,
) -> Result<T, Fault> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let field = match error.path().to_string() {
            root if root == "." => String::new(),
            path => path,
        };
        Fault { field, reason: in_api_words(&error.inner().to_string()) }
    })
}

/// The API's terms for types.
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
