//! `check`: whether the switch would accept these manifests.

use std::path::PathBuf;

use podswitch_core::control::ControlPlane;
use podswitch_kubernetes::{Compiled, Manifests};
use serde::Serialize;

use crate::cluster::ClusterArgs;
use crate::failure::{Failure, Refused};
use crate::{Done, print, state};

/// Load and compile manifests, and print every object that cannot be used, with file, object,
/// field, reason and what `run` would do with it: leave it out, or isolate the pods that a policy
/// selects.
///
/// Everything that an API server stores is accepted, even with a stale status or a value of a newer
/// API version; a note reports these. Whatever probably disables security or attachment by mistake
/// is refused: mistyped policies and annotations, or a --node without a Node object.
///
/// Exit status: 0 everything is accepted, 1 something is refused, 2 the manifests cannot be read.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// A manifest, or a folder of manifests: YAML or JSON, as printed by kubectl.
    #[arg(long, value_name = "DIR")]
    manifests: PathBuf,
    /// Also check what only this node would detect about its own pods.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    #[command(flatten)]
    cluster: ClusterArgs,
}

#[derive(Serialize)]
struct Report {
    refused: Vec<Refused>,
    /// Notes and warnings that are not refusals.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<Refused>,
}

pub(crate) fn run(args: &Args, json: bool) -> Done {
    let cluster = args.cluster.options(false);
    let manifests = Manifests::load(&args.manifests)?;
    let compiled = state::compile(&manifests, args.node.as_deref(), &cluster);
    let mut refused: Vec<_> = compiled.refused().map(Refused::from).collect();
    let errors = ControlPlane::check(&compiled.config);
    let errors: Vec<_> = errors.iter().map(Refused::from).collect();
    refused.extend(errors.iter().cloned());
    let notes = compiled.records.iter().filter(|record| !record.refused);
    let passed = refused.is_empty();
    if json {
        print::json(&Report { notes: notes.map(Refused::from).collect(), refused });
    } else {
        notes.for_each(print::note);
        compiled.refused().for_each(print::line);
        errors.iter().for_each(print::line);
        print::line(summary(&compiled, &refused));
    }
    if passed { Ok(()) } else { Err(Failure::Checked) }
}

fn summary(compiled: &Compiled, refused: &[Refused]) -> String {
    let config = &compiled.config;
    let nodes = config.nodes.len() + usize::from(!config.node.name.is_empty());
    let (namespaces, pods) = (config.namespaces.len(), config.endpoints.len());
    let policies = config.policies.len() + config.cluster_policies.len();
    let (services, slices) = (config.services.len(), config.slices.len());
    let rest = format!(
        "{namespaces} namespaces, {nodes} nodes, {pods} pods, {policies} policies, \
         {services} services, {slices} endpoint slices"
    );
    if refused.is_empty() {
        return format!("good: {rest}");
    }
    let mut objects: Vec<_> = refused.iter().map(|r| &r.object).collect();
    objects.sort_unstable();
    objects.dedup();
    let counts = compiled.counts();
    format!(
        "refused: {} objects ({} left out, {} policies closed); the rest: {rest}",
        objects.len(),
        counts.left_out,
        counts.closed
    )
}
