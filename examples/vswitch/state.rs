//! Manifests read and compiled: what `check`, `run`, `replay` and later commands begin with.

use std::path::Path;
use std::sync::Arc;

use kubernetes::{Compiled, Manifests, Options};
use switch_core::config::Config;
use switch_core::id::Epoch;
use switch_core::snapshot::{FdbIds, compile};

use crate::failure::{Failure, Refused};
use crate::print;

/// Largest network-layer packet of every port, in octets.
pub(crate) const MTU: u16 = 1500;

/// Reads and compiles the manifests at `path` from the point of view of `node`, and passes on
/// what there is to note.
pub(crate) fn load(path: &Path, node: Option<&str>) -> Result<Compiled, Failure> {
    let manifests = Manifests::load(path)?;
    let compiled = judge(&manifests, node).map_err(Failure::Refused)?;
    for note in &compiled.notes {
        print::note(note);
    }
    Ok(compiled)
}

/// Compiles manifests from the point of view of `node`, or says all that is wrong with them.
pub(crate) fn judge(manifests: &Manifests, node: Option<&str>) -> Result<Compiled, Vec<Refused>> {
    let compiled = manifests
        .compile(node, &Options::default())
        .map_err(|refusals| refusals.iter().map(Refused::from).collect::<Vec<_>>())?;
    dry_run(&compiled.config)?;
    Ok(compiled)
}

/// What the switch itself would say to a configuration.
fn dry_run(config: &Config) -> Result<(), Vec<Refused>> {
    match compile(config, Epoch(1), &mut FdbIds::default(), &Arc::default()) {
        Ok(_) => Ok(()),
        Err(errors) => Err(errors.iter().map(Refused::from).collect()),
    }
}
