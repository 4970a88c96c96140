//! `run`: the switch of one node, until it is stopped.

mod cni;
mod confined;
mod control;
mod dns;
mod events;
mod flags;
mod handover;
mod holding;
mod outputs;
mod report;
mod run_dir;
mod source;
mod web;

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use podswitch_core::time::{Clock, Instant};
use podswitch_linux::handover::{Channel, Listener};
use podswitch_linux::{NetNs, sysctl, userns};
use podswitch_node::cni::Agent;
use podswitch_node::source::{Followed, Source, SourceError};
use podswitch_node::{
    HANDOVER_SOCKET, KubeProxyMode, Meters, Node, NodeError, NodeHandle, NodeOptions,
    PodInterfaces, Probes,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::cluster::ClusterArgs;
use crate::failure::Failure;
use crate::log::LogFlags;
use crate::signals::Signals;
use crate::{Done, log, output};
use cni::CniFlags;
use control::ControlFlags;
use dns::{Dns, DnsFlags};
use events::Events;
use flags::UnderlayFlags;
pub(crate) use flags::seconds;
use handover::{Met, SharedFiles};
pub(crate) use holding::HOLD_FOR;
use holding::{HoldFlags, Holding};
use outputs::OutputFlags;
use report::Logged;
use run_dir::Busy;
pub(crate) use run_dir::RunDir;
use source::SourceFlags;
use web::WebFlags;

/// Time between two checks for the first state.
const FIRST_STATE_PAUSE: Duration = Duration::from_millis(50);
/// After how long the log says what a start is waiting for.
const FIRST_STATE_NOTE: Duration = Duration::from_secs(2);
/// How often objects that are not in force are counted. The cost is proportional to the number of
/// records.
const OBJECTS_INTERVAL: Duration = Duration::from_secs(1);
/// How long a stop waits for a hand-over that has begun. Shorter than kubelet waits for a container's end (30 s).
const COMPLETION: Duration = Duration::from_secs(20);
/// The longest time until a failure of the node is noticed.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Run the switch of one node until SIGTERM or SIGINT.
///
/// Attaches every pod of the node whose annotation `podswitch.io/netns` names its network
/// namespace, by a TAP created there or (`podswitch.io/port: veth`) a veth pair. The node itself
/// reaches its pods through the interface podswitch0. Pods' traffic to other destinations leaves
/// through it as well, and the node's kernel routes it on.
///
/// Prints `ready node=NAME epoch=N`. Whenever the manifests change, or on SIGHUP, it prints
/// `applied node=NAME epoch=N`, or `refused node=NAME` if the state in force stays: the manifests
/// cannot be read, are truncated, or do not contain this node. An object that cannot be used is
/// left out, with a warning and ` left_out=N`; a policy keeps its last good version in force, or
/// isolates the pods that it selects. When the switch stops, it removes what it created. If it is
/// killed, the next run attaches to the existing pods. The log goes to standard error: one event
/// per line, with the reasons of what is left out or refused.
///
/// With --kubernetes the state comes from the API server; the switch is ready once every kind of
/// object has been listed. While no API server responds, the state in force stays. If none responds
/// at the start, the last known state is used after 5 s, and ` stale` is added to the output until
/// one responds.
///
/// Exit status: 0 after a stop, 1 the manifests are refused or something cannot be set up, 2 bad
/// usage or manifests that cannot be read.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The node whose switch this is.
    #[arg(long, value_name = "NAME")]
    node: String,
    #[command(flatten)]
    source: SourceFlags,
    /// Number of threads that forward packets.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = flags::workers)]
    workers: usize,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    underlay: UnderlayFlags,
    /// The node's own network namespace, if it is not that of this process.
    #[arg(long, value_name = "PATH")]
    node_netns: Option<PathBuf>,
    /// Path of the node's kernel settings, if /proc/sys is read-only, as in containers: another
    /// mount of it.
    #[arg(long, value_name = "DIR")]
    proc_sys: Option<PathBuf>,
    /// Whether kube-proxy serves this node. If so, node ports, load-balancer addresses and the
    /// node's own connections to Services are left to it. `auto`: if its rules exist at the start.
    #[arg(long, value_name = "auto|present|absent", default_value = "auto", value_parser = flags::kube_proxy)]
    kube_proxy: KubeProxyMode,
    /// Refuse the complete state if one object cannot be used, as `check` does. Otherwise such an
    /// object is left out, or isolates the pods that it selects, and the rest is applied.
    #[arg(long, conflicts_with = "kubernetes")]
    strict: bool,
    #[command(flatten)]
    cni: CniFlags,
    #[command(flatten)]
    dns: DnsFlags,
    /// Folder for data that survives a restart: connections, if it is on tmpfs; with --kubernetes
    /// the last good state and the API servers' addresses. Default: /run/podswitch/NODE with
    /// --kubernetes.
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    #[command(flatten)]
    hold: HoldFlags,
    #[command(flatten)]
    control: ControlFlags,
    #[command(flatten)]
    outputs: OutputFlags,
    #[command(flatten)]
    log: LogFlags,
    #[command(flatten)]
    web: WebFlags,
    /// Wait while another running switch uses the run directory, and start when it stops: for an
    /// upgrade that starts the new switch before it stops the old one.
    #[arg(long)]
    wait: bool,
    /// If another running switch uses the run directory, take the node over from it: it goes on until
    /// this one is ready to forward, then this one goes on with its open devices and connections, and
    /// the other one ends. If this fails, the other one goes on. If none runs, or it is of a version that
    /// cannot hand over, this flag has no effect.
    #[arg(long)]
    take_over: bool,
    /// After another switch has taken the node over, do not end: wait for SIGTERM or SIGINT. For supervisors that would
    /// start this one again, as kubelet does. If no switch runs any more, it ends with status 1, to be started again.
    #[arg(long)]
    stay: bool,
    /// Keep the pods' interfaces and connections at the end, for the next run. Until it starts, packets
    /// for the switch are discarded. If no run follows, use `uninstall`.
    #[arg(long)]
    keep: bool,
    /// Print counters at this interval, in seconds.
    #[arg(long, value_name = "SECONDS", value_parser = flags::seconds)]
    stats: Option<Duration>,
}

pub(crate) fn run(args: Args, json: bool) -> Done {
    log::start(&args.log, &args.node).map_err(Failure::Input)?;
    report::start(args.workers);
    raise_descriptor_limit();
    args.control.join_group();
    if let Some(path) = &args.proc_sys {
        sysctl::use_root(path);
    }
    match userns::has_privilege() {
        true => {
            let run_dirs = match args.keeps() {
                true => RunDir::candidates(args.run_dir.as_deref(), &args.node),
                false => Vec::new(),
            };
            let holding = args.hold.start(run_dirs.iter().map(PathBuf::as_path));
            confined::run(&args.underlay, || serve_node(&args, holding, json))
        }
        // Report errors in the manifests first.
        false => {
            output::start().map_err(|e| Failure::Setup(format!("cannot start a thread: {e}")))?;
            serve_node(&args, args.hold.start([]), json)
        }
    }
}

impl Args {
    /// Whether there is to be a run directory.
    fn keeps(&self) -> bool {
        self.source.kubernetes || self.run_dir.is_some()
    }
}

/// Every pod's port needs a descriptor for each worker: 250 pods and 4 workers reach the usual soft
/// limit of 1024. The hard limit is left to the operator.
pub(crate) fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        tracing::warn!(target: "run", limit = limit.current, %error, "the limit of open files cannot be raised");
    }
}

/// Runs the switch from its first state to its end, on the thread that may enter namespaces.
fn serve_node(args: &Args, mut holding: Holding, json: bool) -> Done {
    let clock = Clock::start();
    let signals = Signals::listen()?;
    let mut cluster = args.cluster.options(args.source.kubernetes);
    cluster.names = args.dns.names();
    let mut run_dir = match args.keeps() {
        true => {
            let busy = |path: &Path| {
                if args.take_over && path.join(HANDOVER_SOCKET).exists() {
                    return Busy::Share;
                }
                signals.wait(FIRST_STATE_PAUSE, None);
                if args.wait && !signals.stopped() { Busy::Wait } else { Busy::Fail }
            };
            RunDir::take(args.run_dir.as_deref(), &args.node, busy)?
        }
        false => None,
    };
    if signals.stopped() {
        return Ok(());
    }
    let mut is_shared = run_dir.as_ref().is_some_and(RunDir::is_shared);
    let run_dir_path = run_dir.as_ref().map(|run_dir| run_dir.path().to_owned());
    let run_dir_path = run_dir_path.as_deref();
    let (probes, meters) = (Probes::default(), Meters::default());
    let open_web = |socket| args.web.open(args.source.kubernetes, &probes, socket);
    let mut web = if is_shared { None } else { open_web(None)? };
    let measured = (&probes, &meters);
    let opened = args.source.open(&args.node, &cluster, args.strict, run_dir_path, measured)?;
    let (mut source, view) = (opened.source, opened.view);
    let mut waited = String::new();
    let mut say_at = clock.now() + FIRST_STATE_NOTE;
    let state = source.first_state(&mut |why| {
        if waited != why && clock.now() >= say_at {
            tracing::info!(target: "run", reason = why, "the start is waiting");
            why.clone_into(&mut waited);
            say_at = clock.now() + FIRST_STATE_NOTE;
        }
        signals.wait(FIRST_STATE_PAUSE, None);
        !signals.stopped()
    })?;
    let Some(state) = state else { return Ok(()) };
    let mut logged = Logged::default();
    logged.log_new(source.records());
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
        .meters(meters.clone())
        .kube_proxy(args.kube_proxy);
    if let Some(path) = run_dir_path {
        options = options.keep_connections(path);
    }
    let (mut predecessor, mut shared) = (None, SharedFiles::default());
    if let Some(run_dir) = run_dir.as_mut().filter(|_| is_shared) {
        match handover::meet_or_wait(run_dir, &args.node, args.wait, &signals)? {
            Met::Running(met, files) => {
                shared = SharedFiles::take(&files);
                if let Some(lock) = shared.lock.take() {
                    run_dir.share_lock(lock);
                }
                options = options.take_over(files.clone());
                predecessor = Some((met, files));
            }
            Met::Gone => {
                is_shared = false;
                web = open_web(None)?;
            }
            Met::Stopped => return Ok(()),
        }
    }
    let mut holder = None;
    if let (Some(path), None) = (run_dir_path, &predecessor)
        && let Some((link, files)) = holding.connect(path)
    {
        options = options.held(files);
        holder = Some(link);
    }
    let outputs = args.outputs.open(&args.node)?;
    let mut control = args.control.open(run_dir_path, is_shared, outputs)?;
    if let Some(socket) = shared.control.take() {
        control.inherit(socket);
    }
    options = control.options(options, args.web.has_page());
    if let Some(path) = &args.node_netns {
        options = options.namespace(NetNs::open(path)?);
    }
    let events = Events { node: &args.node, json };
    let mut dns = args.dns.open(&meters)?;
    let node = Node::start(options, state)?;
    let epoch = node.epoch();
    let node = node.spawn()?;
    // Pods that a runtime attached before are attached again first; then the switch is ready.
    if let Some((predecessor, files)) = &mut predecessor {
        handover::settle(predecessor, files)?;
    }
    let start_agent = |socket| args.cni.start(run_dir_path, node.caller(), &view, socket);
    let mut agent = start_agent(shared.cni.take())?;
    // A predecessor, which may take the node back.
    let mut met = None;
    if let (Some((predecessor, _)), Some(run_dir)) = (predecessor.take(), &mut run_dir) {
        if signals.stopped() {
            // The running one goes on.
            return Ok(());
        }
        met = Some(handover::take_over(&node, predecessor, run_dir)?);
        // It holds the same devices for the predecessor.
        holder = holding.connect(run_dir.path()).map(|(link, _)| link);
        // From here on nobody else forwards: what fails is said, and the switch goes on.
        web = open_web(shared.web.take()).unwrap_or_else(|failure| {
            failure.log_error("there are no metrics and no probes");
            None
        });
    }
    if let Some(path) = run_dir_path.map(Path::to_owned).filter(|_| holding.is_wanted()) {
        // Pods have been attached: what no device has taken is not needed any more.
        if let Err(error) = node.with(move |node| node.hold(holder, path)) {
            tracing::error!(target: "run", %error, "devices are not held");
        }
    }
    if let Some(web) = &web {
        web.serve(node.caller(), control.log());
    }
    let mut asked = match control.serve(node.caller()) {
        Err(failure) if is_shared => {
            failure.log_error("the switch answers no commands");
            None
        }
        result => result?,
    };
    let listener = run_dir_path.and_then(handover::listen);
    dns.follow(&node);
    source.add_left_out(&&node);
    events.ready(epoch, &*source);
    let events = &events;
    let mut serving = Serving {
        args,
        source,
        logged,
        probes: probes.clone(),
        meters,
        dns,
        events,
        listener,
        run_dir: &mut run_dir,
        holding,
    };
    let successor = loop {
        let Some(channel) = serving.serve(&signals, &node) else { break None };
        let mut stop_at = None;
        let keep_waiting = || {
            serving.probes.alive();
            // A hand-over that has begun is completed: the successor could not go on without it.
            let is_late = signals.stopped()
                && clock.now() >= *stop_at.get_or_insert(clock.now() + COMPLETION);
            !is_late && !node.has_ended()
        };
        let Some(successor) = handover::accept(channel, &args.node) else { continue };
        let shares = successor.takes_shared_files();
        // Calls wait in the socket's queue as long as somebody has it.
        let cni = agent.as_ref().map(Agent::listener).filter(|_| shares);
        let mut pods = Vec::new();
        let mut settle = || {
            pods = agent.as_ref().map(Agent::pods).unwrap_or_default();
            drop(agent.take());
        };
        if !successor.settles() {
            settle();
        }
        let run_dir = serving.run_dir.as_ref();
        let files = handover::shared_files(run_dir, asked.as_ref(), web.as_ref(), cni.as_ref());
        // From then on, a predecessor that stands by must not take the node back: it would not know of the successor.
        let before = || {
            if let Some(met) = met.take() {
                met.stopping();
            }
        };
        let handed = handover::hand_over(&node, successor, files, keep_waiting, settle, before);
        if let Some(successor) = handed {
            if let Some(asked) = asked.as_mut().filter(|_| shares) {
                asked.leave_file();
            }
            if !(args.stay && shares && successor.says_stopping()) {
                break Some(successor);
            }
            // The sockets stay open; nobody is served.
            let files = SharedFiles::of(asked.take().as_ref(), web.take().as_ref());
            serving.listener = None;
            serving.dns.stop();
            if !handover::stand_by(&node, &successor, &signals) {
                break Some(successor);
            }
            // What has changed meanwhile, before a packet is forwarded.
            serving.follow(&node, true);
            handover::take_back(&node);
            (asked, web) = handover::serve_again(&node, &mut control, files, open_web);
            serving.listener = run_dir_path.and_then(handover::listen);
        }
        if agent.is_none() {
            let start = || start_agent(cni.clone());
            agent = handover::again(start, || !signals.stopped());
            if let Some(agent) = &agent {
                handover::detach_gone(&node, pods, agent);
            }
        }
        serving.dns.follow(&node);
    };
    serving.dns.stop();
    drop(agent);
    // Only a planned stop removes pods' interfaces: after a failure the next run attaches to them.
    let has_failed = node.has_ended();
    let is_kept = args.keep || has_failed || successor.is_some();
    let uptime = clock.now().since(Instant::ZERO);
    report::stop(has_failed, successor.is_some(), uptime, is_kept);
    if let Some(met) = met.as_ref().filter(|_| !is_kept) {
        met.stopping();
    }
    drop((asked, web, serving.listener.take()));
    let stopped = node.stop(if is_kept { PodInterfaces::Keep } else { PodInterfaces::Remove });
    drop(run_dir);
    if let Some(successor) = successor {
        successor.gone();
        return match (args.stay, run_dir_path) {
            (true, Some(path)) => {
                // It must not be started again: the other one forwards.
                if let Err(error) = stopped {
                    tracing::error!(target: "run", %error, "something of this switch is left");
                }
                handover::stay(&successor, path, &signals)
            }
            _ => Ok(stopped?),
        };
    }
    Ok(stopped?)
}

/// State of the serving loop.
struct Serving<'a> {
    args: &'a Args,
    source: Box<dyn Source>,
    logged: Logged,
    probes: Probes,
    meters: Meters,
    dns: Dns,
    events: &'a Events<'a>,
    /// Where a successor connects.
    listener: Option<Listener>,
    run_dir: &'a mut Option<RunDir>,
    holding: Holding,
}

impl Serving<'_> {
    /// Serves until the switch is to stop, or another one connects to take over.
    fn serve(&mut self, signals: &Signals, node: &NodeHandle) -> Option<Channel> {
        let clock = Clock::start();
        self.probes.ready();
        let mut objects_at = clock.now();
        let mut stats_at = self.args.stats.map(|every| clock.now() + every);
        while !signals.stopped() && !node.has_ended() {
            self.probes.alive();
            self.meters.set_stale(self.source.stale_for());
            if clock.now() >= objects_at {
                objects_at = clock.now() + OBJECTS_INTERVAL;
                self.note_objects();
                self.holding.reap();
                // A predecessor that could not be ended may have the lock still.
                if let Some(run_dir) = self.run_dir.as_mut().filter(|it| it.is_shared()) {
                    run_dir.lock();
                }
            }
            let mut pause = self.source.next_check().min(LONGEST_PAUSE);
            if let Some(at) = stats_at {
                pause = pause.min(until(clock.now(), at));
            }
            let successor = self.listener.as_ref().map(AsFd::as_fd);
            signals.wait(pause, self.source.wake_fd().into_iter().chain(successor));
            if signals.stopped() {
                break;
            }
            let connected = self.listener.as_ref().and_then(|listener| listener.accept().ok()?);
            if connected.is_some() {
                return connected;
            }
            self.follow(node, signals.take_reload());
            self.dns.follow(node);
            let now = clock.now();
            if let (Some(at), Some(every)) = (stats_at, self.args.stats)
                && now >= at
            {
                // Keep a fixed schedule, unless this fell behind.
                stats_at = Some((at + every).max(now));
                if let Ok(stats) = node.stats() {
                    self.events.stats(&stats, self.source.counts());
                }
            }
        }
        None
    }

    /// Updates the metrics of objects that are not in force as written.
    fn note_objects(&self) {
        let counts = self.source.counts();
        self.meters.set_objects(&[
            ("left_out", counts.left_out),
            ("closed", counts.closed),
            ("kept_last_good", counts.kept_last_good),
        ]);
    }

    /// Applies changes, or logs why the old state stays.
    fn follow(&mut self, mut node: &NodeHandle, force: bool) {
        let clock = Clock::start();
        match self.source.follow(&mut node, force) {
            Ok(Followed::Applied(epoch)) => {
                let duration = clock.now().since(Instant::ZERO);
                self.dns.follow(node);
                self.logged.log_new(self.source.records());
                self.events.applied(epoch, &*self.source, duration);
            }
            Ok(_) => {}
            // The failure is reported when the node is stopped.
            Err(SourceError::Node(NodeError::Ended)) => {}
            Err(error) => {
                let failure = Failure::from(error);
                failure.log_refusal();
                self.events.refused(failure);
            }
        }
    }
}

fn until(now: Instant, due: Instant) -> Duration {
    due.since(now)
}
