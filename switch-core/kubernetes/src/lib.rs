//! Kubernetes objects read into podswitch configuration.
#![forbid(unsafe_code)]

mod refusal;
mod text;
pub use refusal::{Note, Refusal, Source};
