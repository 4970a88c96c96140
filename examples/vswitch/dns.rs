//! `dns`: what a name would be answered, and why.
//!
//! The answer is the real one: the zone compiled from the manifests, and the datagram that a client would get.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use podswitch_api::Client;
use podswitch_dns::{Name, PodNames, Settings, Zone, record_type, type_name, type_number};
use podswitch_kubernetes::{Manifests, Options};
use podswitch_node::NameView;

use crate::cluster::ClusterArgs;
use crate::failure::Failure;
use crate::inspect::Target;
use crate::{Done, print, state};

/// Say what a name would be answered by the cluster's DNS, and why: by which rule of the Kubernetes DNS specification,
/// and which object.
///
/// NAME is absolute: api.shop.svc.cluster.local. An address means the name of its PTR records. Names of other zones
/// are a forwarder's; what that would answer is not known here.
///
/// Exit status: 0 there are records, 1 there are none or the name is another zone's, 2 bad usage or manifests that
/// cannot be read.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The name, or an address.
    #[arg(value_name = "NAME")]
    name: String,
    /// The type of records, such as A, AAAA, SRV, PTR, CNAME, TXT. Default: A; for an address PTR.
    #[arg(value_name = "TYPE", value_parser = qtype)]
    qtype: Option<u16>,
    /// A manifest, or a folder of them: YAML or JSON, as kubectl prints it. Without, the running switch is queried, whose
    /// own options count.
    #[arg(long, value_name = "DIR", conflicts_with = "socket")]
    manifests: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
    /// The cluster's domain.
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local", value_parser = name)]
    cluster_domain: Name,
    /// How names such as 10-1-0-7.shop.pod.cluster.local are answered: not at all, whether there is such a pod or not,
    /// or only if there is.
    #[arg(long, value_enum, value_name = "disabled|insecure|verified", default_value = "verified")]
    pods: Pods,
    #[command(flatten)]
    cluster: ClusterArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Pods {
    Disabled,
    Insecure,
    Verified,
}

fn name(text: &str) -> Result<Name, String> {
    Name::parse(text).map_err(|error| error.to_string())
}

fn qtype(text: &str) -> Result<u16, String> {
    type_number(text).ok_or_else(|| format!("{text:?} is no type of records"))
}

pub(crate) fn run(args: &Args, json: bool) -> Done {
    let view: NameView = match &args.manifests {
        Some(path) => of_manifests(args, path)?,
        None => {
            let parameters =
                [("name", Some(args.name.clone())), ("type", args.qtype.map(type_name))];
            args.target.client()?.get(&Client::query("/v1/dns", &parameters))?
        }
    };
    if json {
        print::json(&view)
    } else {
        print::line(&view)
    }
    if view.answer.is_empty() { Err(Failure::Checked) } else { Ok(()) }
}

/// What the manifests say.
fn of_manifests(args: &Args, path: &Path) -> Result<NameView, Failure> {
    let (name, default) = match args.name.parse::<IpAddr>() {
        Ok(address) => (Name::reverse(address), record_type::PTR),
        Err(_) => (name(&args.name).map_err(Failure::Input)?, record_type::A),
    };
    let qtype = args.qtype.unwrap_or(default);
    let manifests = Manifests::load(path)?;
    let options = args.cluster.options(false);
    let compiled = state::compile(&manifests, args.target.node(), &options);
    if let Some(record) = compiled.records.iter().find(|record| record.is_missing_node()) {
        return Err(Failure::Input(record.reason.clone()));
    }
    state::say(&compiled.records);
    let zone = zone(args, &manifests, &options.kubernetes())?;
    Ok(NameView::of(&zone, &name, qtype))
}

/// The zone of the manifests.
fn zone(args: &Args, manifests: &Manifests, options: &Options) -> Result<Zone, Failure> {
    let pods = match args.pods {
        Pods::Disabled => PodNames::Disabled,
        Pods::Insecure => PodNames::Insecure,
        Pods::Verified => PodNames::Verified,
    };
    let domain = args.cluster_domain.clone();
    let mut zone = Zone::new(Settings { domain, pods, ..Settings::default() })
        .map_err(|error| Failure::Setup(error.to_string()))?;
    for (object, facts) in manifests.name_facts(options) {
        if let Err(error) = zone.upsert(facts) {
            print::warning(format_args!("{object}: has no name: {error}"));
        }
    }
    zone.set_synced(true);
    Ok(zone)
}
