//! Manifests read and compiled: what `check`, `replay` and `explain` begin with.

use std::path::Path;

use podswitch_core::control::ControlPlane;
use podswitch_kubernetes::{Compiled, Manifests, Record};
use podswitch_node::ClusterOptions;

use crate::failure::{Failure, Refused};
use crate::print;

/// Reads and compiles the manifests at `path` from the point of view of `node`, and prints what there
/// is to say about them.
pub(crate) fn load(path: &Path, node: &str, cluster: &ClusterOptions) -> Result<Compiled, Failure> {
    let compiled = compile(&Manifests::load(path)?, Some(node), cluster)?;
    if let Some(record) = compiled.records.iter().find(|record| record.is_missing_node()) {
        return Err(Failure::Input(record.reason.clone()));
    }
    say(&compiled.records);
    Ok(compiled)
}

/// Compiles manifests from the point of view of `node`, or says why the switch itself would not take
/// the state.
pub(crate) fn compile(
    manifests: &Manifests,
    node: Option<&str>,
    cluster: &ClusterOptions,
) -> Result<Compiled, Failure> {
    let mut compiled = manifests.compile(node, &cluster.kubernetes());
    let errors = complete(&mut compiled, cluster);
    if errors.is_empty() { Ok(compiled) } else { Err(Failure::Refused(errors)) }
}

/// Adds to a compiled state what no manifest says. Returns what the switch itself would refuse.
pub(crate) fn complete(compiled: &mut Compiled, cluster: &ClusterOptions) -> Vec<Refused> {
    cluster.complete(&mut compiled.config, compiled.flannel);
    ControlPlane::check(&compiled.config).iter().map(Refused::from).collect()
}

/// Prints records: warnings of objects that cannot be used, and notes.
pub(crate) fn say<'a>(records: impl IntoIterator<Item = &'a Record>) {
    for record in records {
        if record.refused { print::warning(record) } else { print::note(record) }
    }
}
