//! Sources of a node's desired state: a folder of manifests ([`ManifestSource`]), or any other
//! implementation of [`Source`], such as the Kubernetes API server in the package
//! `podswitch-kubernetes-api`.

mod error;
mod folder_watch;
mod follow;
mod manifest_view;
mod manifests;

pub use error::{ApplyError, ManifestError, SourceError};
pub use folder_watch::FolderWatch;
pub use follow::{Followed, Source, StateSink};
pub use manifests::ManifestSource;
