//! Hand-over between two running switches: both sides of it, as `run` takes part.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use podswitch_api::{ApiServer, WebServer};
use podswitch_core::port::DeviceFiles;
use podswitch_core::time::{Clock, Instant};
use podswitch_linux::handover::{Channel, Inherited, Listener};
use podswitch_node::cni::Agent;
use podswitch_node::{
    HANDOVER_SOCKET, HandoverError, Node, NodeError, NodeHandle, PodName, Predecessor, Successor,
    SuccessorState, shared_file, take_shared,
};

use super::control::Control;
use super::run_dir::RunDir;
use crate::Done;
use crate::failure::Failure;
use crate::signals::Signals;

/// How long a predecessor may take to end. It forwards nothing any more.
const END: Duration = Duration::from_secs(10);
/// How often, and with which pause, the CNI agent is started again when a successor failed: a process that was ended has
/// its socket for a moment.
const ATTEMPTS: usize = 40;
const PAUSE: Duration = Duration::from_millis(50);
/// How long a switch that was replaced can take the node back, and how often it looks at signals meanwhile.
const STAND_BY: Duration = Duration::from_secs(60);
const STAND_BY_CHECK: Duration = Duration::from_millis(100);
/// How long a process waits between two tries to take over, the first and the longest time, and how often it looks
/// whether the other one has ended.
const MEET_PAUSE: Duration = Duration::from_secs(1);
const MEET_PAUSE_MAX: Duration = Duration::from_secs(60);
const MEET_CHECK: Duration = Duration::from_millis(100);
/// How often a switch that was replaced looks whether one runs.
const STAY_PAUSE: Duration = Duration::from_millis(500);

/// Files that are handed over besides those of the node.
#[derive(Default)]
pub(super) struct SharedFiles {
    /// The run directory's lock.
    pub(super) lock: Option<OwnedFd>,
    pub(super) control: Option<OwnedFd>,
    pub(super) web: Option<OwnedFd>,
    pub(super) cni: Option<Arc<UnixListener>>,
}

const LOCK: &str = "lock";
const CONTROL: &str = "control";
const WEB: &str = "web";
const CNI: &str = "cni";

impl SharedFiles {
    /// A predecessor's.
    pub(super) fn take(files: &Inherited) -> Self {
        Self {
            lock: take_shared(files, LOCK),
            control: take_shared(files, CONTROL),
            web: take_shared(files, WEB),
            cni: take_shared(files, CNI).map(|file| Arc::new(file.into())),
        }
    }

    /// Those of servers that end.
    pub(super) fn of(control: Option<&ApiServer>, web: Option<&WebServer>) -> Self {
        let copy = |file: BorrowedFd<'_>| file.try_clone_to_owned().ok();
        let control = control.and_then(|control| copy(control.as_fd()));
        Self { control, web: web.and_then(|web| copy(web.as_fd())), ..Self::default() }
    }
}

/// This switch's files for a successor besides those of the node.
pub(super) fn shared_files(
    run_dir: Option<&RunDir>,
    control: Option<&ApiServer>,
    web: Option<&WebServer>,
    cni: Option<&Arc<UnixListener>>,
) -> Vec<DeviceFiles> {
    let files = [
        (LOCK, run_dir.and_then(RunDir::file).map(AsFd::as_fd)),
        (CONTROL, control.map(AsFd::as_fd)),
        (WEB, web.map(AsFd::as_fd)),
        (CNI, cni.map(AsFd::as_fd)),
    ];
    files.into_iter().filter_map(|(what, file)| shared_file(what, file?)).collect()
}

/// Where successors connect. Without it the switch runs, and is stopped before the next one starts.
pub(super) fn listen(run_dir: &Path) -> Option<Listener> {
    let path = run_dir.join(HANDOVER_SOCKET);
    Listener::bind(&path)
        .inspect_err(|error| {
            let path = path.display();
            tracing::warn!(target: "run", %path, %error, "this switch cannot be handed over");
        })
        .ok()
}

/// The switch that runs.
pub(super) enum Met {
    /// It is ready to hand over, and these are its devices' files.
    Running(Predecessor, Inherited),
    /// There is none any more: this process has the run directory's lock.
    Gone,
    /// This process is to stop.
    Stopped,
}

/// Introduces this process to the switch that runs. `waits`: until that one hands over or ends, if it does not do so at
/// once; it may have just taken the node back, and not listen yet.
///
/// # Errors
/// It does not hand over.
pub(super) fn meet_or_wait(
    run_dir: &mut RunDir,
    node: &str,
    waits: bool,
    signals: &Signals,
) -> Result<Met, Failure> {
    let clock = Clock::start();
    let (mut again_at, mut pause) = (clock.now(), MEET_PAUSE);
    let mut is_said = false;
    loop {
        if clock.now() >= again_at {
            match meet(run_dir.path(), node) {
                Ok((met, files)) => return Ok(Met::Running(met, files)),
                Err(failure) if !waits => return Err(failure),
                Err(failure) => {
                    if !std::mem::replace(&mut is_said, true) {
                        failure.log_error(
                            "not taken over: waiting for the running switch to hand over, or to stop",
                        );
                    }
                    // One that refuses says so in its log each time.
                    again_at = clock.now() + pause;
                    pause = (pause * 2).min(MEET_PAUSE_MAX);
                }
            }
        }
        if run_dir.lock() {
            return Ok(Met::Gone);
        }
        signals.wait(MEET_CHECK, None);
        if signals.stopped() {
            return Ok(Met::Stopped);
        }
    }
}

/// Introduces this process to the switch that runs, and receives its devices' files.
fn meet(run_dir: &Path, node: &str) -> Result<(Predecessor, Inherited), Failure> {
    let mut predecessor = Predecessor::connect(&run_dir.join(HANDOVER_SOCKET))
        .map_err(|error| failed(&error.into()))?;
    let files = predecessor.receive_devices(node).map_err(|error| failed(&error))?;
    if let Some(format) = predecessor.other_format() {
        tracing::warn!(
            target: "run", format,
            "the running switch is of another format: its devices and connections are taken over only"
        );
    }
    Ok((predecessor, files))
}

/// From now on that switch attaches and detaches no pods.
pub(super) fn settle(predecessor: &mut Predecessor, files: &Inherited) -> Result<(), Failure> {
    predecessor.settle(files).map_err(|error| failed(&error))
}

/// Goes on in place of the switch that runs, and returns when that one has let go of the node.
pub(super) fn take_over(
    node: &NodeHandle,
    predecessor: Predecessor,
    run_dir: &mut RunDir,
) -> Result<Predecessor, Failure> {
    let (result, predecessor) = node.with(move |node| {
        let result = node.take_over(&predecessor);
        (result, predecessor)
    })?;
    result.map_err(|error| failed(&error))?;
    tracing::info!(target: "run", "taken over: this switch forwards");
    let is_gone = predecessor.wait_until_gone(END);
    if !is_gone || !run_dir.lock() {
        tracing::warn!(target: "run", "the switch before does not end");
    }
    if let Err(error) = node.with(|node| node.adopt())? {
        // What is missing is put back later.
        tracing::error!(target: "run", %error, "the node's settings are not taken over");
    }
    Ok(predecessor)
}

fn failed(error: &HandoverError) -> Failure {
    Failure::Setup(format!("--take-over: {error}; the running switch goes on"))
}

/// The process that connected, if it is a successor. Nothing is stopped for any other one.
pub(super) fn accept(channel: Channel, name: &str) -> Option<Successor> {
    let successor = Successor::accept(channel, name).inspect_err(not_handed).ok()?;
    let (version, format) = (successor.version(), successor.other_format());
    tracing::info!(target: "run", version, "another switch starts, to take over");
    if let Some(format) = format {
        tracing::warn!(
            target: "run", format,
            "it is of another format: devices and connections are handed over only"
        );
    }
    Some(successor)
}

/// Hands the node over. `None`: it was not, and this switch goes on. `before` is called before the successor can forward.
pub(super) fn hand_over(
    node: &NodeHandle,
    successor: Successor,
    shared: Vec<DeviceFiles>,
    keep_waiting: impl FnMut() -> bool,
    mut settle: impl FnMut(),
    before: impl FnOnce(),
) -> Option<Successor> {
    let files_now = || node.with(|node| node.device_files()).map_err(of_node).and_then(|it| it);
    let prepared = files_now().and_then(|mut files| {
        files.extend(shared);
        successor.prepare(&files, keep_waiting, || {
            settle();
            files_now()
        })
    });
    if let Err(error) = prepared {
        not_handed(&error);
        successor.end();
        // It may have copied connections, which nobody is to read.
        let _ = node.with(Node::forget_successor);
        return None;
    }
    before();
    let handed = node.with(move |node| {
        let result = node.hand_over(&successor);
        if result.is_err() {
            successor.end();
        }
        result.map(|()| successor)
    });
    handed.map_err(of_node).and_then(|result| result).inspect_err(not_handed).ok()
}

/// Stands by for a while after the node was handed over, with everything that is needed to forward. Returns whether the
/// node is to be taken back: the successor has ended, and did not say that nobody is to.
pub(super) fn stand_by(node: &NodeHandle, successor: &Successor, signals: &Signals) -> bool {
    if node.with(Node::stand_by).is_err() {
        return false;
    }
    successor.gone();
    tracing::info!(target: "run", "the node is handed over: standing by");
    let clock = Clock::start();
    while !signals.stopped() && clock.now().since(Instant::ZERO) < STAND_BY {
        match successor.wait_for_end(STAND_BY_CHECK) {
            SuccessorState::Runs => {}
            SuccessorState::Stopped => return false,
            SuccessorState::Ended => {
                tracing::error!(target: "run", version = successor.version(), "the switch that took the node over has ended: this one takes it back");
                return !node.has_ended();
            }
        }
        signals.wait(Duration::ZERO, None);
    }
    false
}

/// Goes on after that.
pub(super) fn take_back(node: &NodeHandle) {
    if let Err(error) = node.with(Node::take_back).and_then(|result| result) {
        // What is missing is put back later.
        tracing::error!(target: "run", %error, "the node's settings are not taken back");
    }
}

/// Serves commands, probes and metrics again, on the sockets that stayed open.
pub(super) fn serve_again(
    node: &NodeHandle,
    control: &mut Control,
    files: SharedFiles,
    open_web: impl Fn(Option<OwnedFd>) -> Result<Option<WebServer>, Failure>,
) -> (Option<ApiServer>, Option<WebServer>) {
    if let Some(socket) = files.control {
        control.inherit(socket);
    }
    let asked = control.serve(node.caller()).unwrap_or_else(|failure| {
        failure.log_error("the switch answers no commands");
        None
    });
    let web = open_web(files.web).unwrap_or_else(|failure| {
        failure.log_error("there are no metrics and no probes");
        None
    });
    if let Some(web) = &web {
        web.serve(node.caller(), control.log());
    }
    (asked, web)
}

/// Detaches pods that were detached by another process: of those before, the agent has these.
pub(super) fn detach_gone(node: &NodeHandle, before: Vec<PodName>, agent: &Agent) {
    let now = agent.pods();
    for pod in before.into_iter().filter(|pod| !now.contains(pod)) {
        let removed = node.with({
            let pod = pod.clone();
            move |node| node.remove_pod(&pod)
        });
        if let Err(error) = removed.and_then(|result| result) {
            tracing::warn!(target: "cni", %pod, %error, "a pod that is gone is not detached");
        }
    }
}

/// Waits for a signal after the node was handed over.
///
/// # Errors
/// The successor has ended, and no switch runs.
pub(super) fn stay(successor: &Successor, run_dir: &Path, signals: &Signals) -> Done {
    tracing::info!(target: "run", "the node is handed over: waiting to be stopped");
    let mut is_free = false;
    loop {
        signals.wait(STAY_PAUSE, None);
        if signals.stopped() {
            return Ok(());
        }
        // Twice: another one may be taking over from the successor.
        let was_free =
            std::mem::replace(&mut is_free, successor.has_ended() && RunDir::is_free(run_dir));
        if was_free && is_free {
            let message = "the switch that took the node over has ended, and none runs";
            return Err(Failure::Setup(message.to_owned()));
        }
    }
}

fn not_handed(error: &HandoverError) {
    tracing::warn!(target: "run", %error, "not handed over: this switch goes on");
}

fn of_node(error: NodeError) -> HandoverError {
    HandoverError::Refused(error.to_string())
}

/// Starts the CNI agent again.
pub(super) fn again(
    start: impl Fn() -> Result<Option<Agent>, Failure>,
    keep_trying: impl Fn() -> bool,
) -> Option<Agent> {
    let mut last = None;
    for _ in 0..ATTEMPTS {
        match start() {
            Ok(agent) => return agent,
            Err(failure) => last = Some(failure),
        }
        if !keep_trying() {
            break;
        }
        thread::sleep(PAUSE);
    }
    if let Some(failure) = last {
        failure.log_error("pods are not attached or detached");
    }
    None
}
