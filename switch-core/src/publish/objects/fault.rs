//! What is wrong with an object.

use crate::config::ConfigError;
use crate::id::Cookie;
use crate::publish::left_out::{Cause, Effect, LeftOut};

/// One thing that is wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) field: String,
    pub(crate) reason: String,
    pub(crate) cause: Cause,
}

/// Everything that is wrong with an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Faults(pub(crate) Vec<Fault>);

impl Faults {
    pub(crate) fn add(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        self.push(field, reason, Cause::Invalid);
    }

    pub(crate) fn missing(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        self.push(field, reason, Cause::Missing);
    }

    fn push(&mut self, field: impl Into<String>, reason: impl Into<String>, cause: Cause) {
        self.0.push(Fault { field: field.into(), reason: reason.into(), cause });
    }

    /// As errors of `object`.
    pub(crate) fn into_errors(self, object: &Cookie) -> Vec<ConfigError> {
        self.0.into_iter().map(|fault| fault.error(object)).collect()
    }
}

impl Fault {
    fn error(&self, object: &Cookie) -> ConfigError {
        let (field, reason) = (self.field.clone(), self.reason.clone());
        ConfigError { object: object.clone(), field, reason }
    }

    pub(super) fn left_out(&self, object: &Cookie, effect: Effect) -> LeftOut {
        LeftOut { error: self.error(object), cause: self.cause.clone(), effect }
    }
}
