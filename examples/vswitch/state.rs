//! Manifests, read and compiled, for `check`, `replay` and `explain`.

use std::path::Path;

use podswitch_core::config::Config;
use podswitch_core::control::ControlPlane;
use podswitch_kubernetes::{Compiled, Manifests, Record, Store};
use podswitch_node::{ClusterOptions, Event};

use crate::failure::{Failure, Refused};
use crate::{Done, print};

/// Reads the manifests at `path` into `store`, compiles them, and prints their records.
pub(crate) fn load(
    path: &Path,
    store: &mut Store,
    cluster: &ClusterOptions,
) -> Result<Compiled, Failure> {
    let mut compiled = Manifests::load(path)?.compile_into(store);
    if let Some(record) = compiled.records.iter().find(|record| record.is_missing_node()) {
        return Err(Failure::Input(record.reason.clone()));
    }
    say(&compiled.records);
    cluster.complete(&mut compiled.config, compiled.flannel);
    Ok(compiled)
}

/// Compiles manifests for the node `node`.
pub(crate) fn compile(
    manifests: &Manifests,
    node: Option<&str>,
    cluster: &ClusterOptions,
) -> Compiled {
    let mut compiled = manifests.compile(node, &cluster.kubernetes());
    cluster.complete(&mut compiled.config, compiled.flannel);
    compiled
}

/// Applies a configuration as `run` does: objects that the switch cannot use are left out, with a
/// warning.
pub(crate) fn apply(control: &mut ControlPlane, config: &Config) -> Done {
    let published = control
        .apply_lenient(config)
        .map_err(|errors| Failure::Refused(errors.0.iter().map(Refused::from).collect()))?;
    for object in published.left_out {
        print::event(Event::LeftOut(object));
    }
    Ok(())
}

/// Prints records: warnings about objects that cannot be used, and notes.
pub(crate) fn say<'a>(records: impl IntoIterator<Item = &'a Record>) {
    for record in records {
        if record.refused { print::warning(record) } else { print::note(record) }
    }
}
