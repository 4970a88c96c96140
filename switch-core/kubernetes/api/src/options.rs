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
    /// What no object says.
    pub cluster: ClusterOptions,
    /// Credentials and server. `None`: those of the pod that this runs in.
    pub kubeconfig: Option<PathBuf>,
    /// API servers to try before all others, such as `https://192.0.2.1:6443`.
    pub servers: Vec<String>,
    /// Where the last good state and the API servers' addresses are kept. `None`: nowhere.
    pub run_dir: Option<PathBuf>,
    /// Where the source says that it is alive and ready.
    pub probes: Probes,
    /// Where it enters what it measures.
    pub meters: Meters,
    /// Whether our Node object, pods' annotations and Events are written.
    pub write_status: bool,
    /// Called first thing on the thread that speaks to the API server, to give up privilege.
    pub on_thread_start: Option<fn()>,
}

impl ApiOptions {
    /// Options of the node `node`: credentials of a pod, nothing kept, status written.
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

/// A server of the options.
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
