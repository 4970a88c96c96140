//! Options of a source.

use std::path::PathBuf;

use http::Uri;
use podswitch_node::{ClusterOptions, Meters, Probes};

use crate::error::ApiError;

/// Options of an [`ApiSource`](crate::ApiSource).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ApiOptions {
    /// The node whose switch this is.
    pub node: String,
    /// Cluster options that no object contains.
    pub cluster: ClusterOptions,
    /// File with credentials and server. `None`: those of the pod in which this process runs.
    pub kubeconfig: Option<PathBuf>,
    /// API servers that are tried first, such as `https://192.0.2.1:6443`.
    pub servers: Vec<String>,
    /// Folder for the last good state and the API servers' addresses. `None`: they are not saved.
    pub run_dir: Option<PathBuf>,
    /// Liveness and readiness probes.
    pub probes: Probes,
    /// Metrics.
    pub meters: Meters,
    /// Whether to write our Node object, pod annotations and Events.
    pub write_status: bool,
    /// Called first on the thread that communicates with the API server, to drop privileges.
    pub on_thread_start: Option<fn()>,
}

impl ApiOptions {
    /// Options for the node `node`: the pod's own credentials, no folder, status is written.
    pub fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            cluster: ClusterOptions::default(),
            kubeconfig: None,
            servers: Vec::new(),
            run_dir: None,
            probes: Probes::default(),
            meters: Meters::default(),
            write_status: true,
            on_thread_start: None,
        }
    }
}

/// Parses the URI of a server.
pub(crate) fn server(text: &str) -> Result<Uri, ApiError> {
    let refuse = |reason: &str| {
        let reason = format!("{text:?} {reason}");
        Err(ApiError::Option { option: "servers", reason })
    };
    match text.parse::<Uri>() {
        Ok(uri) if !matches!(uri.scheme_str(), Some("https" | "http")) => {
            refuse("does not begin with https:// or http://")
        }
        Ok(uri) if uri.host().is_none_or(str::is_empty) => refuse("names no host"),
        Ok(uri) => Ok(uri),
        Err(error) => refuse(&error.to_string()),
    }
}
