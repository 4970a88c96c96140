//! Manifests: texts and files, read once ([`Manifests`]) or repeatedly ([`Files`], [`Values`]).

mod files;
mod folder;
mod manifests;
mod parse;
mod values;

pub use files::{Files, Loading};
pub use folder::LoadError;
pub use manifests::Manifests;
pub use values::{ValueObject, Values};
