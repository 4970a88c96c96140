//! Failures of commands: the message on standard error, and the exit status that programs rely on.

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;

use podswitch_core::config::ConfigError;
use podswitch_core::control::ControlError;
use podswitch_kubernetes::{LoadError, Record};
use podswitch_linux::HostError;
use podswitch_node::NodeError;
use podswitch_node::source::{ManifestError, SourceError};
use serde::Serialize;

use crate::{log, print};

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Bad usage, or input that cannot be read: exit status 2.
    Input(String),
    /// The manifests were read but are refused: exit status 1.
    Refused(Vec<Refused>),
    /// Set-up failed: exit status 1.
    Setup(String),
    /// A check failed and has been reported: exit status 1.
    Checked,
}

impl Failure {
    /// Prints or (for `run`) logs the failure. Returns the exit status.
    pub(crate) fn report(self) -> ExitCode {
        if log::is_on() {
            self.log();
            return self.status();
        }
        match &self {
            Self::Input(message) | Self::Setup(message) => print::error(message),
            Self::Refused(refused) => refused.iter().for_each(print::error),
            Self::Checked => {}
        }
        self.status()
    }

    fn status(&self) -> ExitCode {
        match self {
            Self::Input(_) => ExitCode::from(2),
            Self::Setup(_) | Self::Refused(_) | Self::Checked => ExitCode::FAILURE,
        }
    }

    fn log(&self) {
        match self {
            Self::Input(reason) | Self::Setup(reason) => {
                tracing::error!(target: "run", reason, "the switch exits");
            }
            Self::Refused(refused) => refused.iter().for_each(Refused::log),
            Self::Checked => {}
        }
    }

    /// Logs a failure that the switch goes on after, with what follows from it.
    pub(crate) fn log_error(&self, consequence: &str) {
        if let Self::Input(reason) | Self::Setup(reason) = self {
            tracing::error!(target: "run", reason, "{consequence}");
        }
    }

    /// Logs why a new state is not in force: one event for each object.
    pub(crate) fn log_refusal(&self) {
        match self {
            Self::Input(reason) | Self::Setup(reason) => {
                tracing::error!(target: "state", reason, "the state is refused; the one in force stays");
            }
            Self::Refused(refused) => refused.iter().for_each(Refused::log),
            Self::Checked => {}
        }
    }

    /// The refused objects; a reason without an object is returned as one entry.
    pub(crate) fn reasons(self) -> Vec<Refused> {
        match self {
            Self::Refused(refused) => refused,
            Self::Input(reason) | Self::Setup(reason) => {
                let (file, object, field) = (None, String::new(), String::new());
                vec![Refused { file, object, field, reason, action: "" }]
            }
            Self::Checked => Vec::new(),
        }
    }
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        Self::Input(error.to_string())
    }
}

impl From<HostError> for Failure {
    fn from(error: HostError) -> Self {
        Self::Setup(error.to_string())
    }
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        Self::Setup(error.to_string())
    }
}

impl From<NodeError> for Failure {
    fn from(error: NodeError) -> Self {
        match error {
            NodeError::Refused(errors) => Self::Refused(errors.iter().map(Refused::from).collect()),
            // The node's error texts begin with the missing flag.
            NodeError::Underlay(error) => Self::Setup(format!("--{error}")),
            other => Self::Setup(other.to_string()),
        }
    }
}

/// A refused object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Refused {
    /// The file that it was read from, if it was read from one.
    pub(crate) file: Option<PathBuf>,
    /// `Kind/namespace/name`.
    pub(crate) object: String,
    /// Path of the field, such as `spec.ingress[0].ports[0].endPort`.
    pub(crate) field: String,
    /// What is wrong.
    pub(crate) reason: String,
    /// What was done: `left_out`, `closed` or `kept_last_good`; empty if nothing.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(crate) action: &'static str,
}

impl Refused {
    /// Logs that the state is refused because of this object.
    fn log(&self) {
        let Named { kind, namespace, name } = Named::of(&self.object);
        tracing::error!(
            target: "state",
            kind,
            namespace,
            name,
            field = present(&self.field),
            reason = self.reason,
            file = self.file.as_ref().map(|file| file.display().to_string()),
            "the state is refused for {}",
            self.object,
        );
    }
}

/// The parts of an object's name, `Kind/namespace/name` or `Kind/name`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Named<'a> {
    pub(crate) kind: Option<&'a str>,
    pub(crate) namespace: Option<&'a str>,
    pub(crate) name: Option<&'a str>,
}

impl<'a> Named<'a> {
    pub(crate) fn of(object: &'a str) -> Self {
        let mut parts = object.splitn(3, '/');
        let (kind, second, third) = (parts.next(), parts.next(), parts.next());
        let (namespace, name) = if third.is_some() { (second, third) } else { (None, second) };
        Self { kind: kind.filter(|kind| !kind.is_empty()), namespace, name }
    }
}

/// `None` if the text is empty.
pub(crate) fn present(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}: ", file.display())?;
        }
        write!(f, "{}: ", self.object)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.reason)
    }
}

impl From<&Record> for Refused {
    fn from(record: &Record) -> Self {
        Self {
            file: record.origin.as_ref().map(|origin| origin.file.to_path_buf()),
            object: record.object.to_string(),
            field: record.field.clone(),
            reason: record.reason.clone(),
            action: record.action.name(),
        }
    }
}

impl From<ManifestError> for Failure {
    fn from(error: ManifestError) -> Self {
        match error {
            ManifestError::Load(error) => error.into(),
            ManifestError::Refused(records) => {
                Self::Refused(records.iter().map(Refused::from).collect())
            }
            other => Self::Setup(other.to_string()),
        }
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        match error {
            SourceError::Manifests(error) => error.into(),
            SourceError::Node(error) => error.into(),
            other => Self::Setup(other.to_string()),
        }
    }
}

impl From<&ConfigError> for Refused {
    fn from(error: &ConfigError) -> Self {
        Self {
            file: None,
            object: error.object.to_string(),
            field: error.field.clone(),
            reason: error.reason.clone(),
            action: "",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Named;

    #[test]
    fn names_of_objects_have_parts() {
        let named = |text| {
            let Named { kind, namespace, name } = Named::of(text);
            [kind, namespace, name].map(Option::unwrap_or_default)
        };
        assert_eq!(named("NetworkPolicy/shop/a"), ["NetworkPolicy", "shop", "a"]);
        assert_eq!(named("Node/n1"), ["Node", "", "n1"]);
        assert_eq!(named(""), ["", "", ""]);
    }
}
