//! Which Ingresses are ours.

use crate::annotations::quote;
use crate::objects::{IngressSpec, Objects, Stored};
use crate::options::Options;

const ANNOTATION: &str = "kubernetes.io/ingress.class";
const DEFAULT: &str = "ingressclass.kubernetes.io/is-default-class";

/// A field and a reason.
type Fault = (String, String);

pub(super) struct Class<'o> {
    objects: &'o Objects,
    options: &'o Options,
    /// Names of the classes marked as default.
    defaults: Vec<&'o str>,
}

impl<'o> Class<'o> {
    pub(super) fn new(objects: &'o Objects, options: &'o Options) -> Self {
        let defaults = objects
            .classes
            .iter()
            .filter(|(_, class)| class.meta.annotation(DEFAULT) == Some("true"))
            .map(|((_, name), _)| name.as_str())
            .collect();
        Self { objects, options, defaults }
    }

    /// Whether an Ingress is ours: its `ingressClassName`, else the annotation, else the default
    /// class. A foreign class is no error.
    pub(super) fn of(&self, ingress: &Stored<IngressSpec>) -> Result<bool, Fault> {
        if let Some(name) = ingress.it.ingress_class_name.as_deref() {
            return self.is_ours(name).ok_or_else(|| {
                let reason = format!("there is no IngressClass {}", quote(name));
                ("spec.ingressClassName".to_owned(), reason)
            });
        }
        if let Some(name) = ingress.meta.annotation(ANNOTATION) {
            return Ok(name == self.options.class || self.is_ours(name) == Some(true));
        }
        match *self.defaults.as_slice() {
            [] => Ok(false),
            [name] => Ok(self.is_ours(name) == Some(true)),
            [..] => {
                // Unless none of them is ours, in which case others report it.
                if !self.defaults.iter().any(|name| self.is_ours(name) == Some(true)) {
                    return Ok(false);
                }
                let names = self.defaults.join(", ");
                let reason = format!("is missing, and several classes are the default: {names}");
                Err(("spec.ingressClassName".to_owned(), reason))
            }
        }
    }

    /// Whether the class `name` is ours; None if there is none.
    fn is_ours(&self, name: &str) -> Option<bool> {
        let class = self.objects.classes.get(&(String::new(), name.to_owned()))?;
        Some(class.it.controller.as_deref() == Some(&self.options.controller))
    }
}
