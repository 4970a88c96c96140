//! What a check found, and what the checks are told.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::NetNs;

/// What comes of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be, or of no importance.
    Ok,
    /// The switch runs, and something is missing or may be in its way.
    Warn,
    /// The switch does not run, or pods are not connected.
    Fail,
}

impl Level {
    /// Name in machine-readable output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Check {
    /// What was looked at, as `tun`.
    pub name: &'static str,
    /// What came of it.
    pub level: Level,
    /// What was found and what it means.
    pub found: String,
    /// How to mend it; empty if there is nothing to mend.
    pub mend: String,
}

impl Check {
    pub(super) fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, level: Level::Ok, found: found.into(), mend: String::new() }
    }

    pub(super) fn warn(
        name: &'static str,
        found: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self { name, level: Level::Warn, found: found.into(), mend: mend.into() }
    }

    pub(super) fn fail(
        name: &'static str,
        found: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self { name, level: Level::Fail, found: found.into(), mend: mend.into() }
    }
}

/// What the switch will be started with, as far as checks depend on it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// The node's own network namespace.
    pub namespace: NetNs,
    /// UDP port of the tunnel. `None`: 4789, or 8472 in a cluster with Flannel.
    pub vxlan_port: Option<u16>,
    /// Where health and metrics are served, if they are.
    pub listen: Option<SocketAddr>,
    /// The interface for traffic without a tunnel, if one is used.
    pub uplink: Option<String>,
    /// Where the container runtime looks for CNI configuration. `None`: not looked at.
    pub cni_conf_dir: Option<PathBuf>,
    /// Name of our own file there.
    pub conflist: String,
    /// Where the container runtime keeps network namespaces.
    pub netns_dir: PathBuf,
    /// Pods that the node may have.
    pub pods: usize,
    /// Threads that forward.
    pub workers: usize,
}

impl Options {
    /// Defaults, for the node whose namespace this is.
    pub fn new(namespace: NetNs) -> Self {
        Self {
            namespace,
            vxlan_port: None,
            listen: None,
            uplink: None,
            cni_conf_dir: None,
            conflist: "10-podswitch.conflist".into(),
            netns_dir: "/run/netns".into(),
            pods: 250,
            workers: 1,
        }
    }
}
