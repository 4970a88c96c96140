//! Manifests read and compiled: what `check`, `run`, `replay` and later commands begin with.

use std::path::Path;

use podswitch_core::control::ControlPlane;
use podswitch_kubernetes::{Compiled, Manifests};
use podswitch_node::ClusterOptions;

use crate::failure::{Failure, Refused};
use crate::print;

/// Reads and compiles the manifests at `path` from the point of view of `node`, and passes on
/// what there is to note.
pub(crate) fn load(
    path: &Path,
    node: Option<&str>,
    cluster: &ClusterOptions,
) -> Result<Compiled, Failure> {
    let manifests = Manifests::load(path)?;
    let compiled = judge(&manifests, node, cluster).map_err(Failure::Refused)?;
    for note in &compiled.notes {
        print::note(note);
    }
    Ok(compiled)
}

/// Compiles manifests from the point of view of `node`, or says all that is wrong with them, what
/// the switch itself would say among it.
pub(crate) fn judge(
    manifests: &Manifests,
    node: Option<&str>,
    cluster: &ClusterOptions,
) -> Result<Compiled, Vec<Refused>> {
    let mut compiled = manifests
        .compile(node, &cluster.kubernetes())
        .map_err(|refusals| refusals.iter().map(Refused::from).collect::<Vec<_>>())?;
    cluster.complete(&mut compiled.config, compiled.flannel);
    let errors = ControlPlane::check(&compiled.config);
    if errors.is_empty() { Ok(compiled) } else { Err(errors.iter().map(Refused::from).collect()) }
}
