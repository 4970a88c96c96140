//! Common parts of all objects: metadata and label selectors (meta/v1).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A map of strings. An omitted value (`null`) is an empty string.
pub(crate) type Texts = BTreeMap<String, Option<String>>;

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ObjectMeta {
    pub(crate) name: Option<String>,
    pub(crate) namespace: Option<String>,
    pub(crate) uid: Option<String>,
    pub(crate) labels: Option<Texts>,
    pub(crate) annotations: Option<Texts>,
    pub(crate) creation_timestamp: Option<String>,
    pub(crate) deletion_timestamp: Option<String>,
}

impl ObjectMeta {
    /// The annotation `key`, if there is one.
    pub(crate) fn annotation(&self, key: &str) -> Option<&str> {
        Some(self.annotations.as_ref()?.get(key)?.as_deref().unwrap_or_default())
    }

    /// The labels.
    pub(crate) fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        let pairs = self.labels.iter().flatten();
        pairs.map(|(key, value)| (&**key, value.as_deref().unwrap_or_default()))
    }
}

/// A label selector. Empty selects everything; whether a missing one does depends on the field.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct LabelSelector {
    pub(crate) match_labels: Option<Texts>,
    pub(crate) match_expressions: Option<Vec<LabelSelectorRequirement>>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LabelSelectorRequirement {
    pub(crate) key: Option<String>,
    pub(crate) operator: Option<String>,
    pub(crate) values: Option<Vec<String>>,
}
