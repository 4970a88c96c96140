//! What is wrong with the servers that other names are forwarded to, for who reports it.

#![expect(
    clippy::disallowed_types,
    reason = "changed by the resolver's thread every 10 s; no packets pass here"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// What is wrong with the servers of other zones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UpstreamProblems {
    /// There is none for names outside the zones that have servers of their own.
    pub has_no_server: bool,
    /// A zone, and a server that forwards it to this resolver; until it is known to do so no more.
    pub loops: BTreeSet<(String, SocketAddr)>,
    /// Files that name servers and cannot be read, with the reason. The servers that they named before stay in force.
    pub unreadable: BTreeMap<PathBuf, String>,
}

/// The same [`UpstreamProblems`] for all clones.
#[derive(Clone, Debug, Default)]
pub(super) struct SharedProblems(Arc<Mutex<UpstreamProblems>>);

impl SharedProblems {
    pub(super) fn get(&self) -> UpstreamProblems {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn note(&self, change: impl FnOnce(&mut UpstreamProblems)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
