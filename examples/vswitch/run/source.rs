//! Where `run` has its states from.

use std::sync::Arc;

use podswitch_node::ClusterOptions;
use podswitch_node::cni::ClusterView;
use podswitch_node::source::{ManifestSource, Source};

use super::Args;
use crate::failure::Failure;

/// A source, and what the CNI agent asks.
pub(super) struct Opened {
    pub(super) source: Box<dyn Source>,
    pub(super) view: Arc<dyn ClusterView>,
}

/// Opens the source that the arguments name.
pub(super) fn open(args: &Args, cluster: &ClusterOptions) -> Result<Opened, Failure> {
    let source = ManifestSource::new(&args.manifests, &args.node, cluster, args.strict);
    let view = source.cluster_view();
    Ok(Opened { source: Box::new(source), view })
}
