//! Records about objects that are compiled.

use podswitch_core::id::Cookie;
use podswitch_kubernetes::{Action, Record, Source};

use crate::objects::{IngressSpec, Name, Stored, object_name};

/// The object that a record is about.
pub(super) struct Subject {
    pub(super) source: Option<Source>,
    pub(super) object: Cookie,
}

impl Subject {
    pub(super) fn new<T>(kind: &str, name: &Name, stored: &Stored<T>) -> Self {
        Self { source: stored.source.clone(), object: Cookie::new(object_name(kind, name)) }
    }

    pub(super) fn ingress(name: &Name, stored: &Stored<IngressSpec>) -> Self {
        Self::new("Ingress", name, stored)
    }
}

/// Collects records.
pub(super) struct Records {
    pub(super) list: Vec<Record>,
}

impl Records {
    pub(super) fn add(
        &mut self,
        of: &Subject,
        field: &str,
        reason: String,
        action: Action,
        refused: bool,
    ) {
        self.list.push(Record {
            origin: of.source.clone(),
            object: of.object.clone(),
            field: field.to_owned(),
            reason,
            action,
            refused,
            by_switch: false,
        });
    }

    /// The object is left out.
    pub(super) fn left_out(&mut self, of: &Subject, field: &str, reason: String, refused: bool) {
        self.add(of, field, reason, Action::LeftOut, refused);
    }

    /// The field or list item is left out.
    pub(super) fn field(&mut self, of: &Subject, field: &str, reason: String) {
        self.add(of, field, reason, Action::FieldLeftOut, true);
    }

    /// A valid field or list item without effect.
    pub(super) fn without_effect(&mut self, of: &Subject, field: &str, reason: String) {
        self.add(of, field, reason, Action::FieldLeftOut, false);
    }

    pub(super) fn note(&mut self, of: &Subject, field: &str, reason: String) {
        self.add(of, field, reason, Action::None, false);
    }
}
