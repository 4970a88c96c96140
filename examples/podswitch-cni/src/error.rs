//! Errors as a runtime gets them (CNI SPEC, "Error").

use std::fmt;

use serde_json::json;

/// A code and a text, or what another program printed.
#[derive(Debug)]
pub(crate) enum Error {
    Own { code: u32, message: String },
    Printed(String),
}

impl Error {
    pub(crate) fn new(code: u32, message: impl Into<String>) -> Self {
        Self::Own { code, message: message.into() }
    }

    /// An environment variable is missing or has a value that cannot be.
    pub(crate) fn environment(message: impl Into<String>) -> Self {
        Self::new(4, message)
    }

    /// An error that the agent or the IPAM plugin wrote.
    pub(crate) fn printed(output: String) -> Self {
        Self::Printed(output)
    }

    pub(crate) fn to_json(&self, version: &str) -> String {
        match self {
            Self::Own { code, message } => {
                json!({"cniVersion": version, "code": code, "msg": message}).to_string()
            }
            Self::Printed(output) => output.clone(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own { message, .. } => f.write_str(message),
            Self::Printed(output) => f.write_str(output),
        }
    }
}
