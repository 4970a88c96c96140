//! Kubernetes objects read into podswitch configuration.
#![forbid(unsafe_code)]

mod api;
mod compile;
mod load;
mod object;
mod refusal;
mod text;
mod validate;

pub use compile::{Compiled, InterfaceKind, LocalPod, Options, Overlay, PodInterface};
pub use load::{LoadError, Manifests};
pub use refusal::{Note, Refusal, Source};
