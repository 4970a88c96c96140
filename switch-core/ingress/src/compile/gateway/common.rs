//! What Gateways and routes share: faults, conditions, and the order of age.

use std::collections::BTreeMap;

use crate::objects::{Name, Stored};
use crate::status::Condition;

/// A reason in one word, and one for people.
pub(super) type Fault = (&'static str, String);

/// The oldest first, then by namespace and name.
pub(super) fn by_age<T>(
    objects: &BTreeMap<Name, Stored<T>>,
) -> impl Iterator<Item = (&Name, &Stored<T>)> {
    let mut all: Vec<_> = objects.iter().collect();
    all.sort_by_key(|(name, object)| {
        let created = object.meta.creation_timestamp.as_deref();
        (created.is_none(), created, *name)
    });
    all.into_iter()
}

pub(super) fn condition(
    kind: &'static str,
    reason: &'static str,
    fault: Option<&Fault>,
) -> Condition {
    match fault {
        None => Condition { kind, holds: true, reason, message: String::new() },
        Some((reason, message)) => {
            Condition { kind, holds: false, reason, message: message.clone() }
        }
    }
}
