//! A real Kubernetes of namespaces on this machine: etcd, API server, controllers and scheduler in one, each node with
//! containerd and kubelet in others. What it needs is made by `tests/lab/setup`; tests are skipped, loudly, where it is not.
//!
//! [`Lab`] starts and ends it by the scripts beside this file, [`Client`] sends requests from any of its namespaces,
//! [`Checks`] runs named checks one after the other and goes on after one that failed.

#![allow(missing_docs, reason = "names say what a helper does; what they do not say has a comment")]
#![expect(clippy::disallowed_methods, reason = "waits for real processes by the real clock")]

mod checks;
mod client;
mod lab;
mod load;

pub use checks::{Checks, eventually};
pub use client::Client;
pub use lab::{Agent, Lab, Mode, Parts};
pub use load::Load;

/// What a check or a helper comes to: why it failed.
pub type Result<T = ()> = std::result::Result<T, String>;
