//! Namespaces.

use std::sync::Arc;

use podswitch_policy::rule::Namespace;

use super::Compiler;
use crate::object::Loaded;
use crate::refusal::{Faults, Note};
use crate::validate::meta::{Naming, object_meta};
use crate::validate::name;

/// The label that the API server sets on every namespace to its name, whatever the user wrote
/// (T-L4).
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

pub(super) fn compile(compiler: &mut Compiler<'_>, object: &Loaded) {
    let mut faults = Faults::default();
    object_meta(&object.meta, Naming { namespaced: false, name: name::dns_label }, &mut faults);
    if !faults.is_empty() {
        return compiler.refuse(object, faults);
    }
    let name = compiler.names.get(object.meta.name.as_deref().unwrap_or_default());
    let labels = object.meta.labels().chain([(NAME_LABEL, &*name)]);
    // Of a repeated key the last one counts.
    let labels = compiler.names.labels(labels);
    compiler.known_namespaces.insert(name.clone());
    compiler.namespaces.push(Arc::new(Namespace { name, labels }));
}

/// The namespace of an object. One that no Namespace object describes is made up, with the label
/// that every namespace has.
pub(super) fn of(compiler: &mut Compiler<'_>, object: &Loaded) -> Arc<str> {
    let name = match object.meta.namespace.as_deref() {
        None | Some("") => "default",
        Some(name) => name,
    };
    let name = compiler.names.get(name);
    if compiler.known_namespaces.insert(name.clone()) {
        let labels = compiler.names.labels([(NAME_LABEL, &*name)].into_iter());
        let text =
            format!("there is no Namespace object for {name}; it is taken to have no labels");
        compiler.notes.push(Note { origin: Some(object.origin.clone()), text });
        compiler.namespaces.push(Arc::new(Namespace { name: name.clone(), labels }));
    }
    name
}
