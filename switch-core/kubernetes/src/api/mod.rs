//! Kubernetes objects as in manifests: the fields that podswitch reads, checked only for their
//! types. `docs/decisions/0003-kubernetes-types.md` explains why these types are our own. Field
//! names and types follow the API reference (core/v1, networking/v1, discovery/v1,
//! policy.networking.k8s.io/v1alpha2).
//!
//! Serialized to JSON they are an object's thin form, which contains only what podswitch reads.
//!
//! As in the API server, `null` means the same as a missing field. Unknown fields are ignored,
//! except in policies: a policy must be understood completely or not at all.

pub(crate) mod cluster;
pub(crate) mod core;
pub(crate) mod meta;
pub(crate) mod networking;
pub(crate) mod service;

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::ser::{Serialize, Serializer};

/// A number, or a name for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum IntOrString {
    Int(i64),
    String(String),
}

impl<'de> Deserialize<'de> for IntOrString {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl Visitor<'_> for Either {
            type Value = IntOrString;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number or a name")
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<IntOrString, E> {
                Ok(IntOrString::Int(value))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<IntOrString, E> {
                // Out of range in any case; the range check reports it.
                Ok(IntOrString::Int(i64::try_from(value).unwrap_or(i64::MAX)))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<IntOrString, E> {
                Ok(IntOrString::String(value.to_owned()))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

impl Serialize for IntOrString {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Int(number) => serializer.serialize_i64(*number),
            Self::String(name) => serializer.serialize_str(name),
        }
    }
}

/// Reads a boolean. The YAML dialect of `kubectl` also accepts `yes` and `on`.
pub(super) fn boolean<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<bool>, D::Error> {
    struct Boolean;

    impl Visitor<'_> for Boolean {
        type Value = Option<bool>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("true or false")
        }

        fn visit_unit<E: de::Error>(self) -> Result<Option<bool>, E> {
            Ok(None)
        }

        fn visit_bool<E: de::Error>(self, value: bool) -> Result<Option<bool>, E> {
            Ok(Some(value))
        }

        fn visit_str<E: de::Error>(self, value: &str) -> Result<Option<bool>, E> {
            match value {
                "yes" | "Yes" | "YES" | "on" | "On" | "ON" => Ok(Some(true)),
                "no" | "No" | "NO" | "off" | "Off" | "OFF" => Ok(Some(false)),
                _ => Err(E::invalid_type(de::Unexpected::Str(value), &self)),
            }
        }
    }

    deserializer.deserialize_any(Boolean)
}
