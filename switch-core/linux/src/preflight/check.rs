//! The result of a check, and the input of the checks.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::NetNs;

/// The result level of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// No problem.
    Ok,
    /// The switch runs, but something is missing or may interfere.
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
    /// The subject of the check, such as `tun`.
    pub name: &'static str,
    /// Its level.
    pub level: Level,
    /// The finding and its meaning.
    pub found: String,
    /// How to fix it; empty if there is nothing to fix.
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

/// The options with which the switch will be started, as far as checks depend on them.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// The node's own network namespace.
    pub namespace: NetNs,
    /// UDP port of the tunnel. `None`: 4789, or 8472 in a cluster with Flannel.
    pub vxlan_port: Option<u16>,
    /// Address of health checks and metrics, if they are served.
    pub listen: Option<SocketAddr>,
    /// The interface for traffic without a tunnel, if one is used.
    pub uplink: Option<String>,
    /// Where the container runtime looks for CNI configuration. `None`: not checked.
    pub cni_conf_dir: Option<PathBuf>,
    /// Name of the switch's own file there.
    pub conflist: String,
    /// Where the container runtime keeps network namespaces.
    pub netns_dir: PathBuf,
    /// Maximum number of pods on the node.
    pub pods: usize,
    /// Number of forwarding threads.
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
