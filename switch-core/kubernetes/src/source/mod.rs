//! Manifests: texts and files, read once ([`Manifests`]) or repeatedly ([`Files`]).

mod files;
mod folder;
mod manifests;
mod parse;

pub use files::{Files, Loading};
pub use folder::LoadError;
pub use manifests::Manifests;
