//! Where desired states come from. So far: a folder of manifests, watched for changes.

mod folder_watch;
mod manifests;

pub use folder_watch::FolderWatch;
pub use manifests::{ApplyError, ManifestError, ManifestSource};
