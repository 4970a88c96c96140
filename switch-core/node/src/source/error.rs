//! Why a source has no state, or none that can be put in force.

use podswitch_kubernetes::{LoadError, Record};

use crate::error::NodeError;

/// Manifests cannot be put in force.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// They cannot be read, are being written, or are cut.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// There is no Node object for this node, or in strict mode an object cannot be used: all records
    /// that say so.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Refused(Vec<Record>),
}

/// Manifests were not put in force.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// The manifests are at fault.
    #[error(transparent)]
    Manifests(#[from] ManifestError),
    /// The node did not take them.
    #[error(transparent)]
    Node(#[from] NodeError),
}

/// A source has no state, or not one that can be put in force.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// Manifests cannot be read, or are refused.
    #[error(transparent)]
    Manifests(#[from] ManifestError),
    /// The node did not take them.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// Something else, which the source says.
    #[error("{0}")]
    Other(String),
}

impl From<ApplyError> for SourceError {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::Manifests(error) => error.into(),
            ApplyError::Node(error) => error.into(),
        }
    }
}
