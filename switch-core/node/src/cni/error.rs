//! Errors in the form that a CNI runtime receives (CNI SPEC, "Error").

use std::fmt;

use serde::Serialize;

/// A failed verb: a code of the specification or, from 100 on, of this plugin, and a message that
/// names field and reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniError {
    /// Error code.
    pub code: u32,
    /// What is wrong, in one line.
    pub message: String,
    /// Details, if any.
    pub details: String,
}

impl CniError {
    /// The configuration's version is not supported, or does not have the verb.
    pub const VERSION: u32 = 1;
    /// A field requests a feature that this plugin does not have.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// Unknown container.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// Invalid environment variable.
    pub const ENVIRONMENT: u32 = 4;
    /// File or socket error.
    pub const IO: u32 = 5;
    /// Invalid JSON.
    pub const DECODE: u32 = 6;
    /// Invalid field of the configuration.
    pub const CONFIGURATION: u32 = 7;
    /// May succeed if tried again later.
    pub const TRY_AGAIN: u32 = 11;
    /// No pod can be attached.
    pub const NOT_AVAILABLE: u32 = 50;
    /// No pod can be attached, and attached pods are affected as well.
    pub const LIMITED: u32 = 51;
    /// The system or the switch refused a step.
    pub const SYSTEM: u32 = 100;
    /// The interface already exists.
    pub const INTERFACE_EXISTS: u32 = 101;
    /// CHECK found a difference from what ADD configured.
    pub const NOT_AS_ADDED: u32 = 102;
    /// GC could not remove everything. All errors are in the details.
    pub const GC: u32 = 103;

    pub(crate) fn new(code: u32, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: String::new() }
    }

    pub(crate) fn details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// A field of the network configuration has an invalid value.
    pub(crate) fn field(field: impl fmt::Display, reason: impl fmt::Display) -> Self {
        Self::new(Self::CONFIGURATION, format!("network configuration: {field}: {reason}"))
    }

    /// An environment variable has an invalid value.
    pub(crate) fn variable(name: &str, reason: impl fmt::Display) -> Self {
        Self::new(Self::ENVIRONMENT, format!("{name}: {reason}"))
    }

    /// The JSON to be printed, in the form of `version`.
    pub(crate) fn to_json(&self, version: &str) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Printed<'a> {
            cni_version: &'a str,
            code: u32,
            msg: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            details: &'a str,
        }
        let (code, msg, details) = (self.code, &*self.message, &*self.details);
        let printed = Printed { cni_version: version, code, msg, details };
        serde_json::to_string(&printed).unwrap_or_else(|error| error.to_string())
    }
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {})", self.message, self.code)?;
        if !self.details.is_empty() {
            write!(f, ": {}", self.details)?;
        }
        Ok(())
    }
}

impl std::error::Error for CniError {}
