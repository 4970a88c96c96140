//! Errors of sources: there is no state, or it cannot be applied.

use podswitch_kubernetes::{LoadError, Record};

use crate::error::NodeError;

/// Manifests cannot be applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// They cannot be read, are being written, or are truncated.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// There is no Node object for this node, or in strict mode an object cannot be used: all
    /// records about this.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Refused(Vec<Record>),
}

/// Manifests were not applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// The manifests are invalid.
    #[error(transparent)]
    Manifests(#[from] ManifestError),
    /// The node refused the state.
    #[error(transparent)]
    Node(#[from] NodeError),
}

/// A source has no state, or none that can be applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// Manifests cannot be read, or are refused.
    #[error(transparent)]
    Manifests(#[from] ManifestError),
    /// The node refused the state.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// Any other error of the source.
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
