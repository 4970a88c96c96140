//! Errors as a CNI runtime gets them (CNI SPEC, "Error").

use std::fmt;

use serde::Serialize;

/// A failed verb: a code of the specification or, from 100 on, of this plugin, and a text that names field and reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniError {
    /// What kind of error it is.
    pub code: u32,
    /// What is wrong, in one line.
    pub message: String,
    /// More of it, if there is more.
    pub details: String,
}

impl CniError {
    /// The configuration's version, or a verb that it does not have.
    pub const VERSION: u32 = 1;
    /// A field that asks for what this plugin does not do.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// The container is not known.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// An environment variable.
    pub const ENVIRONMENT: u32 = 4;
    /// Files or sockets.
    pub const IO: u32 = 5;
    /// What was to be JSON is not.
    pub const DECODE: u32 = 6;
    /// A field of the configuration.
    pub const CONFIGURATION: u32 = 7;
    /// It may go well a little later.
    pub const TRY_AGAIN: u32 = 11;
    /// No pod can be attached.
    pub const NOT_AVAILABLE: u32 = 50;
    /// The same, and attached pods suffer as well.
    pub const LIMITED: u32 = 51;
    /// The system or the switch refused a step.
    pub const SYSTEM: u32 = 100;
    /// The interface is there already.
    pub const INTERFACE_EXISTS: u32 = 101;
    /// CHECK found that something is not as ADD left it.
    pub const NOT_AS_ADDED: u32 = 102;
    /// GC could not remove everything; all that went wrong is in the details.
    pub const GC: u32 = 103;

    pub(crate) fn new(code: u32, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: String::new() }
    }

    pub(crate) fn details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// A field of the network configuration has a value that cannot be.
    pub(crate) fn field(field: impl fmt::Display, reason: impl fmt::Display) -> Self {
        Self::new(Self::CONFIGURATION, format!("network configuration: {field}: {reason}"))
    }

    /// An environment variable has a value that cannot be.
    pub(crate) fn variable(name: &str, reason: impl fmt::Display) -> Self {
        Self::new(Self::ENVIRONMENT, format!("{name}: {reason}"))
    }

    /// As it is printed, in the form of `version`.
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
