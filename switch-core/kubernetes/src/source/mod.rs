//! Manifests: texts and files, read once ([`Manifests`]) or again and again ([`Files`]).

mod files;
mod folder;
mod manifests;
mod parse;
mod text;

pub use files::{Files, Loading};
pub use folder::LoadError;
pub use manifests::Manifests;
pub(crate) use text::parse_json;
