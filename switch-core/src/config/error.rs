//! Errors of a configuration.

use crate::id::Cookie;

/// One error of one object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {field}: {reason}")]
pub struct ConfigError {
    /// The object, by its cookie.
    pub object: Cookie,
    /// Path of the field within it.
    pub field: String,
    /// The reason.
    pub reason: String,
}
