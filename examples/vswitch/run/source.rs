//! The source of `run`'s states: manifests, or the API server.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use podswitch_node::cni::ClusterView;
use podswitch_node::source::{ManifestSource, Source};
use podswitch_node::{ClusterOptions, Meters, Probes};

use crate::failure::Failure;

/// The source of the states.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct SourceFlags {
    /// A manifest, or a folder of manifests. Read again when something in it changes.
    #[arg(
        long,
        value_name = "DIR",
        required_unless_present = "kubernetes",
        conflicts_with = "kubernetes"
    )]
    pub(super) manifests: Option<PathBuf>,
    /// Follow the cluster's API server, with the credentials of the pod in which this runs or of
    /// --kubeconfig. Needs a build with `--features kubernetes`. Pod annotations then have no
    /// effect unless --pod-annotations is `trust`.
    #[arg(long)]
    pub(super) kubernetes: bool,
    /// File with credentials and API server; its current context is used.
    #[arg(long, value_name = "FILE", requires = "kubernetes")]
    kubeconfig: Option<PathBuf>,
    /// API servers to try first, in turn. After them come those that responded last, then that of
    /// the kubeconfig or the environment. Never give only a Service's address: it works only while
    /// the switch does. Can be repeated.
    #[arg(long, value_name = "URL", value_delimiter = ',', requires = "kubernetes")]
    api_server: Vec<String>,
}

/// A source, and the view of pods for the CNI agent.
pub(super) struct Opened {
    pub(super) source: Box<dyn Source>,
    pub(super) view: Arc<dyn ClusterView>,
}

impl SourceFlags {
    /// Opens the source that the flags name.
    pub(super) fn open(
        &self,
        node: &str,
        cluster: &ClusterOptions,
        strict: bool,
        run_dir: Option<&Path>,
        measured: (&Probes, &Meters),
    ) -> Result<Opened, Failure> {
        match &self.manifests {
            Some(path) => {
                let source = ManifestSource::new(path, node, cluster, strict);
                let view = source.cluster_view();
                Ok(Opened { source: Box::new(source), view })
            }
            None => self.open_api(node, cluster, run_dir, measured),
        }
    }

    #[cfg(feature = "kubernetes")]
    fn open_api(
        &self,
        node: &str,
        cluster: &ClusterOptions,
        run_dir: Option<&Path>,
        (probes, meters): (&Probes, &Meters),
    ) -> Result<Opened, Failure> {
        use podswitch_kubernetes_api::{ApiError, ApiOptions, ApiSource};
        let mut options = ApiOptions::new(node);
        options.cluster = cluster.clone();
        options.kubeconfig.clone_from(&self.kubeconfig);
        options.servers.clone_from(&self.api_server);
        options.run_dir = run_dir.map(Path::to_owned);
        (options.probes, options.meters) = (probes.clone(), meters.clone());
        options.on_thread_start = Some(podswitch_linux::confine::worker_thread);
        let source = ApiSource::open(options).map_err(|error| match error {
            ApiError::Option { reason, .. } => Failure::Input(format!("--api-server: {reason}")),
            ApiError::Credentials(reason) => Failure::Input(reason),
            error => Failure::Setup(error.to_string()),
        })?;
        let view = source.view();
        Ok(Opened { source: Box::new(source), view })
    }

    #[cfg(not(feature = "kubernetes"))]
    fn open_api(
        &self,
        _: &str,
        _: &ClusterOptions,
        _: Option<&Path>,
        _: (&Probes, &Meters),
    ) -> Result<Opened, Failure> {
        let message =
            "this build does not support the API server: build it with `--features kubernetes`";
        Err(Failure::Input(message.to_owned()))
    }
}
