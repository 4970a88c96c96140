//! Where desired states come from. So far: a folder of manifests, watched for changes.

mod folder_watch;

pub use folder_watch::FolderWatch;
