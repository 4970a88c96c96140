//! Checks of metadata and of label selectors.

use crate::api::meta::{LabelSelector, LabelSelectorRequirement, ObjectMeta, Texts};
use crate::report::{Field, Findings, quote};
use crate::validate::name;

/// Whether a kind of object is namespaced, and the syntax of its names.
#[derive(Clone, Copy)]
pub(crate) struct Naming {
    /// Whether it is namespaced.
    pub(crate) namespaced: bool,
    /// Check of its name.
    pub(crate) name: fn(&str) -> Result<(), String>,
}

const METADATA: Field<'static> = Field::root("metadata");

/// Size limit of all annotations of an object.
const MOST_ANNOTATIONS: usize = 256 << 10;

/// Checks an object's metadata.
pub(crate) fn object_meta(meta: &ObjectMeta, naming: Naming, faults: &mut Findings) {
    let name = METADATA.child("name");
    match meta.name.as_deref() {
        None | Some("") => faults.add(&name, "is missing"),
        Some(text) => _ = faults.take(&name, (naming.name)(text)),
    }
    let namespace = METADATA.child("namespace");
    match meta.namespace.as_deref() {
        None | Some("") => {}
        Some(text) if naming.namespaced => _ = faults.take(&namespace, name::dns_label(text)),
        Some(_) => faults.add(&namespace, "must be absent; objects of this kind have no namespace"),
    }
    labels(meta.labels.as_ref(), &METADATA.child("labels"), faults);
    annotations(meta.annotations.as_ref(), &METADATA.child("annotations"), faults);
}

/// Checks a map of labels.
pub(crate) fn labels(labels: Option<&Texts>, field: &Field<'_>, faults: &mut Findings) {
    for (key, value) in labels.into_iter().flatten() {
        faults.take(field, name::qualified_name(key));
        let value = name::label_value(value.as_deref().unwrap_or_default());
        faults.take(field, value.map_err(|why| format!("{}: {why}", quote(key))));
    }
}

fn annotations(annotations: Option<&Texts>, field: &Field<'_>, faults: &mut Findings) {
    let mut size = 0;
    for (key, value) in annotations.into_iter().flatten() {
        // The API server ignores case only here.
        faults.take(field, name::qualified_name(&key.to_lowercase()));
        size += key.len() + value.as_ref().map_or(0, String::len);
    }
    if size > MOST_ANNOTATIONS {
        faults.add(field, format!("{size} bytes of annotations, more than {MOST_ANNOTATIONS}"));
    }
}

/// Checks a label selector.
pub(crate) fn label_selector(selector: &LabelSelector, field: &Field<'_>, faults: &mut Findings) {
    labels(selector.match_labels.as_ref(), &field.child("matchLabels"), faults);
    let expressions = field.child("matchExpressions");
    for (at, requirement) in selector.match_expressions.iter().flatten().enumerate() {
        label_requirement(requirement, &expressions.index(at), faults);
    }
}

fn label_requirement(
    requirement: &LabelSelectorRequirement,
    field: &Field<'_>,
    faults: &mut Findings,
) {
    let values = requirement.values.as_deref().unwrap_or_default();
    let operator = requirement.operator.as_deref().unwrap_or_default();
    match operator {
        "In" | "NotIn" if values.is_empty() => {
            faults.add(&field.child("values"), format!("the operator {operator} needs values"));
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            faults.add(&field.child("values"), format!("the operator {operator} takes no values"));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        _ => faults.add(
            &field.child("operator"),
            format!("{} is not one of In, NotIn, Exists, DoesNotExist", quote(operator)),
        ),
    }
    let key = requirement.key.as_deref().unwrap_or_default();
    faults.take(&field.child("key"), name::qualified_name(key));
    let field = field.child("values");
    for (at, value) in values.iter().enumerate() {
        faults.take(&field.index(at), name::label_value(value));
    }
}
