//! Where a node's desired states come from: a folder of manifests ([`ManifestSource`]), or whatever else implements
//! [`Source`], such as Kubernetes' API server in the package `podswitch-kubernetes-api`.

mod error;
mod folder_watch;
mod follow;
mod manifest_view;
mod manifests;

pub use error::{ApplyError, ManifestError, SourceError};
pub use folder_watch::FolderWatch;
pub use follow::{Followed, Source, StateSink};
pub use manifests::ManifestSource;
