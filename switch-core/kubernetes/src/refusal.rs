//! What is wrong with an object, and where: field paths as the API server writes them, and the
//! collector that every check adds to. Checks go on after the first fault, so that a person sees
//! all of them at once.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use podswitch_core::id::Cookie;

/// Where an object was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The file.
    pub file: Arc<Path>,
    /// Which document of the file, from 0.
    pub document: usize,
    /// Line of the file at which the document begins, from 1.
    pub line: usize,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// One thing that is wrong with an object. One refused object refuses the whole state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{origin}: {object}: {field}: {reason}")]
pub struct Refusal {
    /// Where the object was read.
    pub origin: Source,
    /// The object: `Kind/namespace/name`, or `Kind/name` where there is no namespace.
    pub object: Cookie,
    /// Path of the field, such as `spec.ingress[0].ports[0].endPort`.
    pub field: String,
    /// What is wrong.
    pub reason: String,
}

/// Something worth saying that does not refuse the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Where it was read; `None` if it is about the manifests as a whole.
    pub origin: Option<Source>,
    /// What there is to say.
    pub text: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Some(origin) => write!(f, "{origin}: {}", self.text),
            None => f.write_str(&self.text),
        }
    }
}

/// One step from a field to the one inside it.
#[derive(Clone, Copy)]
enum Step<'a> {
    Name(&'a str),
    Index(usize),
    Key(&'a str),
}

/// Path of a field within its object, built on the stack and written only when there is a fault
/// to tell.
#[derive(Clone, Copy)]
pub(crate) struct Field<'a> {
    parent: Option<&'a Field<'a>>,
    step: Step<'a>,
}

impl<'a> Field<'a> {
    /// A field of the object itself.
    pub(crate) const fn root(name: &'a str) -> Self {
        Self { parent: None, step: Step::Name(name) }
    }

    /// A field of this field.
    pub(crate) const fn child(&'a self, name: &'a str) -> Self {
        Self { parent: Some(self), step: Step::Name(name) }
    }

    /// An item of this list.
    pub(crate) const fn index(&'a self, index: usize) -> Self {
        Self { parent: Some(self), step: Step::Index(index) }
    }

    /// An entry of this map.
    pub(crate) const fn key(&'a self, key: &'a str) -> Self {
        Self { parent: Some(self), step: Step::Key(key) }
    }
}

impl fmt::Display for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Name(name) if self.parent.is_none() => f.write_str(name),
            Step::Name(name) => write!(f, ".{name}"),
            Step::Index(index) => write!(f, "[{index}]"),
            Step::Key(key) => write!(f, "[{}]", key.escape_debug()),
        }
    }
}

/// The faults of one object.
#[derive(Default)]
pub(crate) struct Faults(Vec<(String, String)>);

impl Faults {
    /// The most faults told of one object; a thousand more help nobody.
    const MOST: usize = 100;

    /// Adds one.
    pub(crate) fn add(&mut self, field: &Field<'_>, reason: impl Into<String>) {
        self.add_at(field.to_string(), reason.into());
    }

    /// Adds one at a path that is written already.
    pub(crate) fn add_at(&mut self, field: String, reason: String) {
        if self.0.len() < Self::MOST {
            self.0.push((field, reason));
        }
    }

    /// Adds what went wrong in `result`, and gives the rest on.
    pub(crate) fn take<T, E: Into<String>>(
        &mut self,
        field: &Field<'_>,
        result: Result<T, E>,
    ) -> Option<T> {
        result.map_err(|reason| self.add(field, reason)).ok()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The faults as refusals of `object`.
    pub(crate) fn into_refusals<'a>(
        self,
        origin: &'a Source,
        object: &'a Cookie,
    ) -> impl Iterator<Item = Refusal> + use<'a> {
        self.0.into_iter().map(|(field, reason)| Refusal {
            origin: origin.clone(),
            object: object.clone(),
            field,
            reason,
        })
    }
}

/// A value as it stands in a reason: quoted, control characters escaped, shortened.
pub(crate) fn quote(text: &str) -> String {
    const LONGEST: usize = 80;
    match text.char_indices().nth(LONGEST) {
        Some((cut, _)) => format!("{:?}…", &text[..cut]),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_written_as_the_api_server_writes_them() {
        let spec = Field::root("spec");
        let ingress = spec.child("ingress");
        let rule = ingress.index(0);
        let ports = rule.child("ports");
        let port = ports.index(12);
        assert_eq!(port.child("endPort").to_string(), "spec.ingress[0].ports[12].endPort");
        let metadata = Field::root("metadata");
        let annotations = metadata.child("annotations");
        assert_eq!(
            annotations.key("podswitch.io/mac").to_string(),
            "metadata.annotations[podswitch.io/mac]"
        );
    }

    #[test]
    fn quoted_values_are_short_and_printable() {
        assert_eq!(quote("a\n\"b"), r#""a\n\"b""#);
        assert!(quote(&"é".repeat(10_000)).chars().count() < 100);
    }
}
