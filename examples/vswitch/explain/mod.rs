//! `explain`: whether one connection is allowed and why, or the reachability of all pairs.
//!
//! Uses the same code as the switch: the compiled policy table and `resolve`, on the given
//! manifests. The policies of both ends are evaluated, whatever their nodes; the route is that of
//! the source's node.

mod ends;
mod evaluate;
mod family;
mod matrix;
mod reference;
mod report;
mod service;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use podswitch_kubernetes::Manifests;

use crate::cluster::ClusterArgs;
use crate::failure::Failure;
use crate::{Done, print, state};
use ends::Ends;
use family::Family;
use reference::{Target, Wanted};

/// Report whether a connection is allowed, and why; or print the reachability matrix.
///
/// REF is `pod/NAMESPACE/NAME`, `svc/NAMESPACE/NAME`, `node/NAME`, `NAMESPACE/NAME` (a pod,
/// otherwise a Service) or an address; with a port `REF:PORT`, `REF:PORT/PROTO` or
/// `[IPv6]:PORT/PROTO`. PROTO is TCP (the default), UDP or SCTP. Without a port, the connection is
/// an ICMP echo request.
///
/// The policies of both ends are evaluated, whatever nodes they are on. The route is that of the
/// source's node, or for a source outside the cluster that of the destination's. For a Service, the
/// backend of exactly this connection is shown; a client with session affinity that has connected
/// before may get another one.
///
/// Exit status: 0 allowed; 1 denied, rejected or dropped, or the manifests are refused; 2 bad
/// usage, or the manifests cannot be read. With --matrix: 0 if the matrix was printed.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// A manifest, or a folder of manifests: YAML or JSON, as printed by kubectl.
    #[arg(long, value_name = "DIR")]
    manifests: PathBuf,
    /// The end that opens the connection.
    #[arg(
        long,
        value_name = "REF",
        value_parser = reference::parse_source,
        requires = "to",
        required_unless_present = "matrix"
    )]
    from: Option<reference::Reference>,
    /// The end that accepts the connection.
    #[arg(
        long,
        value_name = "REF[:PORT/PROTO]",
        value_parser = Target::parse,
        requires = "from",
        required_unless_present = "matrix"
    )]
    to: Option<Target>,
    /// The source port; for an echo request its identifier.
    #[arg(long, value_name = "N", default_value_t = 40_000, conflicts_with = "matrix")]
    sport: u16,
    /// The node at which a client outside the cluster enters when it connects to a Service by an
    /// address that is not a node's. Default: a node with an endpoint of the Service.
    #[arg(long, value_name = "NAME", requires = "to", conflicts_with = "matrix")]
    node: Option<String>,
    /// Only this family. Default: IPv4 if both ends have it; in a matrix both families.
    #[arg(long, value_enum, value_name = "ipv4|ipv6", hide_possible_values = true)]
    family: Option<Family>,
    /// Print a line for every ordered pair of pods and nodes, including a pod and itself, and each
    /// of these ports: FROM, TO, FAMILY, PORT/PROTO and allow or deny, separated by tabs. The port
    /// `ICMP` is an echo request.
    #[arg(
        long,
        value_name = "PORT/PROTO,…",
        value_delimiter = ',',
        value_parser = Wanted::parse,
        conflicts_with_all = ["from", "to"]
    )]
    matrix: Vec<Wanted>,
    /// Include this address in the matrix. Can be repeated.
    #[arg(long, value_name = "ADDRESS", requires = "matrix", conflicts_with_all = ["from", "to"])]
    with: Vec<IpAddr>,
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(crate) fn run(args: &Args, json: bool) -> Done {
    let manifests = Manifests::load(&args.manifests)?;
    let cluster = args.cluster.options(false);
    let whole = state::compile(&manifests, None, &cluster);
    state::say(&whole.records);
    let (Some(from), Some(to)) = (&args.from, &args.to) else {
        let table = Arc::clone(&evaluate::snapshot(&whole.config)?.policy);
        let question = matrix::Question {
            ports: &args.matrix,
            families: args.family.as_ref().map_or(&Family::BOTH, std::slice::from_ref),
            with: &args.with,
        };
        return matrix::print(&whole.config, &table, &question, json);
    };
    let ends = Ends::find(&whole.config, from, to, args.family)?;
    let entry = match &args.node {
        Some(name) => {
            let known = whole.config.nodes.iter().find(|node| *node.name == **name);
            let unknown = || Failure::Input(format!("node/{name}: no such node"));
            Some(&known.ok_or_else(unknown)?.name)
        }
        None => service::entry_node(&whole.config, &ends),
    };
    let outcome = evaluate::evaluate(&manifests, &cluster, &ends, args.sport, entry)?;
    if json {
        print::json(&report::Report::new(&ends, &outcome));
    } else {
        print::line(report::Text { ends: &ends, outcome: &outcome });
    }
    if outcome.is_allowed() { Ok(()) } else { Err(Failure::Checked) }
}
