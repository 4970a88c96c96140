//! Options of a source.

use std::net::SocketAddr;
use std::path::PathBuf;

use http::Uri;
use podswitch_node::ClusterOptions;

use crate::error::ApiError;
use crate::health::MetricsText;

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
    /// Where `/healthz`, `/readyz`, `/livez` and `/metrics` answer. `None`: nowhere.
    pub health: Option<SocketAddr>,
    /// What `/metrics` answers.
    pub metrics: MetricsText,
    /// Whether our Node object, pods' annotations and Events are written.
    pub write_status: bool,
    /// Called first thing on the thread that speaks to the API server, to give up privilege.
    pub on_thread_start: Option<fn()>,
}

impl ApiOptions {
    /// Options of the node `node`: credentials of a pod, nothing kept, no probes, status written.
    pub fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            cluster: ClusterOptions::default(),
            kubeconfig: None,
            servers: Vec::new(),
            run_dir: None,
            health: None,
            metrics: MetricsText::default(),
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
