//! `run`: the switch of one node, until it is told to stop.

mod events;
mod flags;
mod watch;

use std::path::PathBuf;
use std::time::Duration;

use podswitch_core::time::{Clock, Instant};
use podswitch_kubernetes::Manifests;
use podswitch_linux::{NetNs, userns};

use crate::cluster::ClusterArgs;
use crate::failure::Failure;
use crate::node::{Node, NodeOptions};
use crate::signals::Signals;
use crate::{Done, print, state};
use events::Events;
use flags::UnderlayFlags;
use watch::Watch;

/// How often devices and namespaces that are not as they should be are looked after.
const TEND: Duration = Duration::from_secs(2);

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
    let mut watch = Watch::new(&args.manifests);
    let state = state::load(&args.manifests, Some(&args.node), &args.cluster)?;
    if !userns::has_privilege() {
        let message = "run attaches network interfaces: it needs root's privilege \
                       (CAP_NET_ADMIN and CAP_SYS_ADMIN)";
        return Err(Failure::Setup(message.to_owned()));
    }
    let namespace = match &args.node_netns {
        Some(path) => NetNs::open(path)?,
        None => NetNs::current()?,
    };
    let options = NodeOptions {
        name: args.node.clone(),
        namespace,
        switch_namespace: None,
        workers: args.workers,
        masquerade: args.cluster.masquerading(),
        cluster: args.cluster.ranges().to_vec(),
        underlay: args.underlay.options(),
    };
    let events = Events { node: &args.node, json };
    let (mut node, epoch) = Node::start(options, state)?;
    events.ready(epoch);
    let result = serve(&args, &signals, &mut watch, &mut node, &events);
    let stopped = node.stop(args.keep);
    result?;
    Ok(stopped?)
}

/// Everything from ready to stop.
fn serve(
    args: &Args,
    signals: &Signals,
    watch: &mut Watch,
    node: &mut Node,
    events: &Events<'_>,
) -> Done {
    let clock = Clock::start();
    let mut tend_at = clock.now() + TEND;
    let mut stats_at = args.stats.map(|every| clock.now() + every);
    while !signals.stopped() {
        let now = clock.now();
        let due = [Some(tend_at), stats_at].into_iter().flatten().min().unwrap_or(tend_at);
        signals.wait(watch.pause().min(until(now, due)));
        if signals.stopped() {
            break;
        }
        let forced = signals.take_reload();
        if watch.has_changed(&clock) || forced {
            reload(args, node, events);
        }
        unless_refused(node.watch())?;
        let now = clock.now();
        if now >= tend_at {
            tend_at = now + TEND;
            unless_refused(node.tend())?;
        }
        if let (Some(at), Some(every)) = (stats_at, args.stats)
            && now >= at
        {
            // In step with the beginning, unless it fell behind.
            stats_at = Some((at + every).max(now));
            events.stats(node);
        }
    }
    Ok(())
}

/// What the node's interfaces became may be refused (an MTU that leaves nothing for the tunnel): that
/// is told, and the state in force stays.
fn unless_refused<T>(result: Result<T, Failure>) -> Done {
    match result {
        Err(Failure::Refused(refused)) => {
            Failure::Refused(refused).report();
            Ok(())
        }
        result => result.map(drop),
    }
}

fn until(now: Instant, due: Instant) -> Duration {
    due.since(now)
}

/// Puts the manifests in force as they are now, or says why the old state stays.
fn reload(args: &Args, node: &mut Node, events: &Events<'_>) {
    let judged = Manifests::load(&args.manifests)
        .map_err(Failure::from)
        .and_then(|m| state::judge(&m, Some(&args.node), &args.cluster).map_err(Failure::Refused));
    let done = judged.and_then(|state| {
        state.notes.iter().for_each(print::note);
        node.apply(state)
    });
    match done {
        Ok(epoch) => events.applied(epoch),
        Err(failure) => {
            events.refused();
            failure.report();
        }
    }
}
