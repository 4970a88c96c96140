//! Where `run` has its states from.

use podswitch_node::ClusterOptions;
use podswitch_node::source::{ManifestSource, Source};

use super::Args;
use crate::failure::Failure;

/// Opens the source that the arguments name.
pub(super) fn open(args: &Args, cluster: &ClusterOptions) -> Result<Box<dyn Source>, Failure> {
    Ok(Box::new(ManifestSource::new(&args.manifests, &args.node, cluster, args.strict)))
}
