//! `run`: the switch of one node, until it is told to stop.

mod events;
mod flags;

use std::path::PathBuf;
use std::time::Duration;

use podswitch_core::time::{Clock, Instant};
use podswitch_kubernetes::Manifests;
use podswitch_linux::{NetNs, userns};
use podswitch_node::source::FolderWatch;
use podswitch_node::{ClusterOptions, Node, NodeOptions, PodInterfaces};

use crate::cluster::ClusterArgs;
use crate::failure::Failure;
use crate::signals::Signals;
use crate::{Done, print, state};
use events::Events;
use flags::UnderlayFlags;

/// Run the switch of one node until SIGTERM or SIGINT.
///
/// Attaches every pod of the node whose annotation `podswitch.io/netns` names its network
/// namespace, by a TAP made there or (`podswitch.io/port: veth`) a veth pair. The node itself
/// reaches its pods by the interface podswitch0, and by it pods' traffic to elsewhere leaves, routed
/// on by the node's kernel.
///
/// Prints `ready node=NAME epoch=N`, and whenever the manifests change or SIGHUP asks for it
/// `applied node=NAME epoch=N`, or `refused node=NAME` if the state in force stays. When it stops it
/// removes what it made. After a kill the next run attaches to the pods as they are.
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
    /// Leave pods their interfaces at the end, for the next run.
    #[arg(long)]
    keep: bool,
    /// Print counters every so many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = flags::seconds)]
    stats: Option<Duration>,
}

pub(crate) fn run(args: Args, json: bool) -> Done {
    let signals = Signals::listen()?;
    let mut watch = FolderWatch::new(&args.manifests);
    let cluster = args.cluster.options();
    let state = state::load(&args.manifests, Some(&args.node), &cluster)?;
    if !userns::has_privilege() {
        let message = "run attaches network interfaces: it needs root's privilege \
                       (CAP_NET_ADMIN and CAP_SYS_ADMIN)";
        return Err(Failure::Setup(message.to_owned()));
    }
    let mut options = NodeOptions::new(&args.node)
        .workers(args.workers)
        .cluster(&cluster)
        .underlay(args.underlay.options())
        .on_event(print::event);
    if let Some(path) = &args.node_netns {
        options = options.namespace(NetNs::open(path)?);
    }
    let events = Events { node: &args.node, json };
    let mut node = Node::start(options, state)?;
    events.ready(node.epoch());
    let result = Serving { args: &args, cluster: &cluster, events: &events }
        .serve(&signals, &mut watch, &mut node);
    let stopped = node.stop(if args.keep { PodInterfaces::Keep } else { PodInterfaces::Remove });
    result?;
    Ok(stopped?)
}

/// What serving depends on.
struct Serving<'a> {
    args: &'a Args,
    cluster: &'a ClusterOptions,
    events: &'a Events<'a>,
}

impl Serving<'_> {
    /// Everything from ready to stop.
    fn serve(&self, signals: &Signals, watch: &mut FolderWatch, node: &mut Node) -> Done {
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
                self.reload(node);
            }
            let pause = node.poll()?;
            let now = clock.now();
            poll_at = now + pause;
            if let (Some(at), Some(every)) = (stats_at, self.args.stats)
                && now >= at
            {
                // In step with the beginning, unless it fell behind.
                stats_at = Some((at + every).max(now));
                self.events.stats(&node.stats());
            }
        }
        Ok(())
    }

    /// Puts the manifests in force as they are now, or says why the old state stays.
    fn reload(&self, node: &mut Node) {
        let compiled = Manifests::load(&self.args.manifests).map_err(Failure::from).and_then(|m| {
            state::judge(&m, Some(&self.args.node), self.cluster).map_err(Failure::Refused)
        });
        let applied = compiled.and_then(|state| {
            state.notes.iter().for_each(print::note);
            node.apply(state).map_err(Failure::from)
        });
        match applied {
            Ok(epoch) => self.events.applied(epoch),
            Err(failure) => {
                self.events.refused();
                failure.report();
            }
        }
    }
}

fn until(now: Instant, due: Instant) -> Duration {
    due.since(now)
}
