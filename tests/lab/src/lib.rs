//! A real Kubernetes in namespaces on this machine: etcd, API server, controllers and scheduler in one namespace, and
//! containerd and kubelet of each node in others. `tests/lab/setup` installs the programs. If they are missing, the
//! tests are skipped, with a message.
//!
//! [`Lab`] starts and stops it with the scripts beside this file, [`Client`] sends requests from any of its namespaces,
//! [`Checks`] runs named checks one after the other and continues after a failed one.

#![allow(missing_docs, reason = "the names describe most helpers; the others have comments")]
#![expect(clippy::disallowed_methods, reason = "waits for real processes by the real clock")]

mod checks;
mod client;
mod lab;
mod load;
mod proxy;

pub use checks::{Checks, eventually};
pub use client::Client;
pub use lab::{Agent, Lab, Mode, Parts, TWO_FAMILIES};
pub use load::Load;
pub use proxy::ApiProxy;

/// The result of a check or a helper; the error is the reason for the failure.
pub type Result<T = ()> = std::result::Result<T, String>;
