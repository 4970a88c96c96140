//! Hand-over between two running switches: both sides of it, as `run` takes part.

use std::path::Path;
use std::thread;
use std::time::Duration;

use podswitch_linux::handover::{Channel, Inherited, Listener};
use podswitch_node::cni::Agent;
use podswitch_node::{
    HANDOVER_SOCKET, HandoverError, NodeError, NodeHandle, Predecessor, Successor,
};

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
/// How often a switch that was replaced looks whether one runs.
const STAY_PAUSE: Duration = Duration::from_millis(500);

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

/// Introduces this process to the switch that runs, and receives its devices' files.
pub(super) fn meet(run_dir: &Path, node: &str) -> Result<(Predecessor, Inherited), Failure> {
    let mut predecessor = Predecessor::connect(&run_dir.join(HANDOVER_SOCKET))
        .map_err(|error| failed(&error.into()))?;
    let files = predecessor.greet(node).map_err(|error| failed(&error))?;
    if let Some(format) = predecessor.other_format() {
        tracing::warn!(
            target: "run", format,
            "the running switch is of another format: its devices and connections are taken over only"
        );
    }
    Ok((predecessor, files))
}

/// Goes on in place of the switch that runs, and returns when that one has let go of the node.
pub(super) fn take_over(
    node: &NodeHandle,
    predecessor: Predecessor,
    run_dir: &mut RunDir,
) -> Result<(), Failure> {
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
    Ok(())
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

/// Hands the node over. `None`: it was not, and this switch goes on.
pub(super) fn hand_over(
    node: &NodeHandle,
    successor: Successor,
    keep_waiting: impl FnMut() -> bool,
) -> Option<Successor> {
    let prepared = node
        .with(|node| node.device_files())
        .map_err(of_node)
        .and_then(|files| successor.prepare(&files?, keep_waiting));
    if let Err(error) = prepared {
        not_handed(&error);
        successor.end();
        return None;
    }
    let handed = node.with(move |node| {
        let result = node.hand_over(&successor);
        if result.is_err() {
            successor.end();
        }
        result.map(|()| successor)
    });
    handed.map_err(of_node).and_then(|result| result).inspect_err(not_handed).ok()
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
