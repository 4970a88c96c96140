//! ReferenceGrants: which objects may be named from other namespaces; and selectors of namespaces.

use crate::gateway_api::{GROUP, GrantSpec, LabelRequirement, LabelSelector};
use crate::objects::{Name, Objects, Stored};

pub(super) struct Grants<'o> {
    all: Vec<(&'o Name, &'o GrantSpec)>,
}

/// A reference across namespaces.
pub(super) struct Reference<'r> {
    pub(super) from_kind: &'r str,
    pub(super) from: &'r str,
    /// Of the core group.
    pub(super) kind: &'r str,
    pub(super) namespace: &'r str,
    pub(super) name: &'r str,
}

impl<'o> Grants<'o> {
    pub(super) fn new(objects: &'o Objects) -> Self {
        Self { all: objects.grants.iter().map(|(name, grant)| (name, &grant.it)).collect() }
    }

    /// Whether the reference stays in its namespace, or a ReferenceGrant there permits it.
    pub(super) fn permit(&self, it: &Reference<'_>) -> bool {
        it.from == it.namespace
            || self.all.iter().any(|((namespace, _), grant)| {
                let from = grant.from.iter().flatten().any(|from| {
                    from.group == GROUP && from.kind == it.from_kind && from.namespace == it.from
                });
                let to = grant.to.iter().flatten().any(|to| {
                    let is_named = to.name.as_deref().is_none_or(|name| name == it.name);
                    to.group.is_empty() && to.kind == it.kind && is_named
                });
                namespace == it.namespace && from && to
            })
    }
}

/// Whether the labels of a namespace match; the API server adds the name as a label.
pub(super) fn selects(selector: &LabelSelector, objects: &Objects, namespace: &str) -> bool {
    let object = objects.namespaces.get(&(String::new(), namespace.to_owned()));
    let label = |key: &str| match object.and_then(|object: &Stored<_>| object.meta.label(key)) {
        None if key == "kubernetes.io/metadata.name" => Some(namespace),
        label => label,
    };
    let labels = selector.match_labels.iter().flatten();
    let holds = |it: &LabelRequirement| {
        let is_in = |value: &str| it.values.iter().flatten().any(|other| other == value);
        match (&*it.operator, label(&it.key)) {
            ("In", value) => value.is_some_and(is_in),
            ("NotIn", value) => !value.is_some_and(is_in),
            ("Exists", value) => value.is_some(),
            ("DoesNotExist", value) => value.is_none(),
            // An unknown requirement selects nothing.
            _ => false,
        }
    };
    labels.into_iter().all(|(key, value)| label(key) == Some(value))
        && selector.match_expressions.iter().flatten().all(holds)
}
