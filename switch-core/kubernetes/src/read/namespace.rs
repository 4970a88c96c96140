//! Namespaces.

use std::sync::Arc;

use podswitch_policy::rule::Namespace;

use super::names::Names;
use super::{Content, Context};
use crate::api::meta::ObjectMeta;
use crate::report::Findings;
use crate::validate::meta::{Naming, object_meta};
use crate::validate::name;

/// The label that the API server sets on every namespace to its name, whatever the user wrote
/// (T-L4).
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Reads one namespace.
pub(super) fn read(cx: &mut Context<'_>, meta: &ObjectMeta, faults: &mut Findings) -> Content {
    object_meta(meta, Naming { namespaced: false, name: name::dns_label }, faults);
    let name = cx.names.get(meta.name.as_deref().unwrap_or_default());
    let labels = meta.labels().chain([(NAME_LABEL, &*name)]);
    // If a key is repeated, the last one counts.
    let labels = cx.names.labels(labels);
    Content::Namespace(Arc::new(Namespace { name, labels }))
}

/// A namespace that contains objects but has no Namespace object. It has the label that every
/// namespace has.
pub(crate) fn without_object(names: &mut Names, name: &Arc<str>) -> Arc<Namespace> {
    let labels = names.labels([(NAME_LABEL, &**name)].into_iter());
    Arc::new(Namespace { name: name.clone(), labels })
}
