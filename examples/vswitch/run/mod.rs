//! `run`: the switch of one node, until it is told to stop.

mod confined;
mod events;
mod flags;

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use podswitch_core::time::{Clock, Instant};
use podswitch_kubernetes::{LoadError, Record};
use podswitch_linux::{NetNs, userns};
use podswitch_node::source::{ApplyError, FolderWatch, ManifestError, ManifestSource};
use podswitch_node::{Node, NodeOptions, PodInterfaces};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::cluster::ClusterArgs;
use crate::failure::Failure;
use crate::signals::Signals;
use crate::{Done, print, state};
use events::Events;
use flags::UnderlayFlags;

/// How often in a row a file may change while it is read before that is said.
const BUSY: usize = 100;

/// Run the switch of one node until SIGTERM or SIGINT.
///
/// Attaches every pod of the node whose annotation `podswitch.io/netns` names its network
/// namespace, by a TAP made there or (`podswitch.io/port: veth`) a veth pair. The node itself
/// reaches its pods by the interface podswitch0, and by it pods' traffic to elsewhere leaves, routed
/// on by the node's kernel.
///
/// Prints `ready node=NAME epoch=N`, and whenever the manifests change or SIGHUP asks for it
/// `applied node=NAME epoch=N`, or `refused node=NAME` if the state in force stays: manifests that
/// cannot be read or are cut, or a state without this node. An object that cannot be used is left out,
/// with a warning and ` left_out=N`; a policy keeps its last good version in force, or isolates the pods
/// that it selects. When it stops it removes what it made. After a kill the next run attaches to the pods as they are.
///
/// Exit status: 0 after a stop, 1 the manifests are refused or something cannot be set up, 2 bad
/// usage or manifests that cannot be read.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The node whose switch this is.
    #[arg(long, value_name = "NAME")]
    node: String,
    /// A manifest, or a folder of them. Read again when something in it changes.
    #[arg(long, value_name = "DIR")]
    manifests: PathBuf,
    /// Threads that forward.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = flags::workers)]
    workers: usize,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    underlay: UnderlayFlags,
    /// The node's own network namespace, if it is not that of this process.
    #[arg(long, value_name = "PATH")]
    node_netns: Option<PathBuf>,
    /// Refuse the whole state for one object that cannot be used, as `check` does. Otherwise such an
    /// object is left out, or closes the pods that it selects, and the rest is put in force.
    #[arg(long)]
    strict: bool,
    /// Leave pods their interfaces at the end, for the next run.
    #[arg(long)]
    keep: bool,
    /// Print counters every so many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = flags::seconds)]
    stats: Option<Duration>,
}

pub(crate) fn run(args: Args, json: bool) -> Done {
    print::never_block();
    raise_descriptor_limit();
    match userns::has_privilege() {
        true => confined::run(&args.underlay, || serve_node(&args, json)),
        // What is wrong with the manifests comes first.
        false => serve_node(&args, json),
    }
}

/// Every pod's port takes a descriptor for each worker: 250 pods and 4 workers are near the usual soft limit of
/// 1024. The hard limit is the operator's.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        print::warning(format_args!("the limit of open files stays {:?}: {error}", limit.current));
    }
}

/// The switch from its first state to its end, on the thread that may enter namespaces.
fn serve_node(args: &Args, json: bool) -> Done {
    let signals = Signals::listen()?;
    let mut watch = FolderWatch::new(&args.manifests);
    let cluster = args.cluster.options();
    let mut source = ManifestSource::new(&args.manifests, &args.node, &cluster, args.strict);
    let state = source.state()?;
    let mut said = Said::default();
    said.say(source.records());
    if !userns::has_privilege() {
        let message = "run attaches network interfaces: it needs root's privilege \
                       (CAP_NET_ADMIN and CAP_SYS_ADMIN)";
        return Err(Failure::Setup(message.to_owned()));
    }
    let mut options = NodeOptions::new(&args.node)
        .workers(args.workers)
        .lenient(!args.strict)
        .cluster(&cluster)
        .underlay(args.underlay.options())
        .on_event(print::event);
    if let Some(path) = &args.node_netns {
        options = options.namespace(NetNs::open(path)?);
    }
    let events = Events { node: &args.node, json };
    let mut node = Node::start(options, state)?;
    events.ready(node.epoch(), &source);
    let mut serving = Serving { args, source, said, events: &events, busy: 0 };
    let result = serving.serve(&signals, &mut watch, &mut node);
    // Only a planned stop takes pods' interfaces away: after a failure the next run attaches to them.
    let is_kept = args.keep || result.is_err();
    let stopped = node.stop(if is_kept { PodInterfaces::Keep } else { PodInterfaces::Remove });
    result?;
    Ok(stopped?)
}

/// What serving depends on.
struct Serving<'a> {
    args: &'a Args,
    source: ManifestSource,
    said: Said,
    events: &'a Events<'a>,
    /// How often in a row a file changed while it was read.
    busy: usize,
}

/// What was said of the manifests, so that it is said once.
#[derive(Default)]
struct Said(HashSet<String>);

impl Said {
    /// Prints what was not said of the state before.
    fn say(&mut self, records: &[Record]) {
        state::say(records.iter().filter(|record| !self.0.contains(&record.to_string())));
        self.0 = records.iter().map(ToString::to_string).collect();
    }
}

impl Serving<'_> {
    /// Everything from ready to stop.
    fn serve(&mut self, signals: &Signals, watch: &mut FolderWatch, node: &mut Node) -> Done {
        let clock = Clock::start();
        let mut poll_at = clock.now();
        let mut stats_at = self.args.stats.map(|every| clock.now() + every);
        while !signals.stopped() {
            let now = clock.now();
            let due = stats_at.map_or(poll_at, |at| at.min(poll_at));
            signals.wait(watch.pause().min(until(now, due)));
            if signals.stopped() {
                break;
            }
            let forced = signals.take_reload();
            if watch.has_changed(&clock) || forced {
                self.reload(watch, node);
            }
            let pause = node.poll()?;
            let now = clock.now();
            poll_at = now + pause;
            if let (Some(at), Some(every)) = (stats_at, self.args.stats)
                && now >= at
            {
                // In step with the beginning, unless it fell behind.
                stats_at = Some((at + every).max(now));
                self.events.stats(&node.stats(), self.source.counts());
            }
        }
        Ok(())
    }

    /// Puts the manifests in force as they are now, or says why the old state stays.
    fn reload(&mut self, watch: &mut FolderWatch, node: &mut Node) {
        let applied = self.source.apply(node);
        let being_written = matches!(
            applied,
            Err(ApplyError::Manifests(ManifestError::Load(LoadError::Changing { .. })))
        );
        // Its writer is soon done; one that never is must not keep changes from being refused.
        self.busy = if being_written { self.busy + 1 } else { 0 };
        if being_written && self.busy < BUSY {
            return watch.look_again();
        }
        match applied {
            Ok(epoch) => {
                self.said.say(self.source.records());
                self.events.applied(epoch, &self.source);
            }
            Err(error) => {
                self.events.refused();
                Failure::from(error).report();
            }
        }
    }
}

fn until(now: Instant, due: Instant) -> Duration {
    due.since(now)
}
