//! `check`: whether the switch would accept these manifests.

use std::path::PathBuf;

use podswitch_kubernetes::Manifests;
use serde::Serialize;

use crate::cluster::ClusterArgs;
use crate::failure::{Failure, Refused};
use crate::{Done, print, state};

/// Load and compile manifests; print every refused object with file, object, field and reason.
///
/// Exit status: 0 everything is accepted, 1 something is refused, 2 the manifests cannot be read.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// A manifest, or a folder of them: YAML or JSON, as kubectl prints it.
    #[arg(long, value_name = "DIR")]
    manifests: PathBuf,
    /// Also check what only this node would find, about its own pods.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    #[command(flatten)]
    cluster: ClusterArgs,
}

#[derive(Serialize)]
struct Report<'a> {
    refused: &'a [Refused],
}

pub(crate) fn run(args: &Args, json: bool) -> Done {
    let manifests = Manifests::load(&args.manifests)?;
    let compiled = state::judge(&manifests, args.node.as_deref(), &args.cluster.options());
    let refused = compiled.as_ref().err().map(Vec::as_slice).unwrap_or_default();
    for note in compiled.iter().flat_map(|compiled| &compiled.notes) {
        print::note(note);
    }
    if json {
        print::json(&Report { refused });
    } else {
        refused.iter().for_each(print::line);
        print::line(summary(&compiled));
    }
    if compiled.is_ok() { Ok(()) } else { Err(Failure::Checked) }
}

fn summary(compiled: &Result<podswitch_kubernetes::Compiled, Vec<Refused>>) -> String {
    match compiled {
        Ok(compiled) => {
            let config = &compiled.config;
            let nodes = config.nodes.len() + usize::from(!config.node.name.is_empty());
            let (namespaces, pods) = (config.namespaces.len(), config.endpoints.len());
            let policies = config.policies.len() + config.cluster_policies.len();
            let (services, slices) = (config.services.len(), config.slices.len());
            format!(
                "good: {namespaces} namespaces, {nodes} nodes, {pods} pods, {policies} policies, \
                 {services} services, {slices} endpoint slices"
            )
        }
        Err(refused) => {
            let mut objects: Vec<_> = refused.iter().map(|r| &r.object).collect();
            objects.sort_unstable();
            objects.dedup();
            format!("refused: {} objects", objects.len())
        }
    }
}
