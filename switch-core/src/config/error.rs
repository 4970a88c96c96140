//! Errors of a configuration.

use crate::id::Cookie;

/// One thing that is wrong with one object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {field}: {reason}")]
pub struct ConfigError {
    /// The object, by its cookie.
    pub object: Cookie,
    /// Path of the field within it.
    pub field: String,
    /// What is wrong.
    pub reason: String,
}
