//! A node on a thread of its own, for multi-threaded programs.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;

use podswitch_core::control::Change;
use podswitch_core::id::{Epoch, PortId};
use podswitch_linux::HostError;

use crate::attachment::PodAttachment;
use crate::error::NodeError;
use crate::explain::{Connection, Verdict};
use crate::flows::Flow;
use crate::node::{Node, PodInterfaces};
use crate::pod_name::PodName;
use crate::state::{State, StateChanges};
use crate::stats::Stats;

impl Node {
    /// Moves the node to a thread of its own, which polls it.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn spawn(self) -> Result<NodeHandle, NodeError> {
        NodeHandle::spawn(self)
            .map_err(|error| HostError::new("start the node's thread", error).into())
    }
}

/// What the node's thread is to do; `None`: end.
type Command = Option<Box<dyn FnOnce(&mut Node) + Send>>;

/// A [`Node`] that runs on a thread of its own ([`Node::spawn`]), which polls it. Any thread may
/// call it; calls run one after the other. When it is dropped the node stops and pods keep their
/// interfaces.
pub struct NodeHandle {
    caller: NodeCaller,
    thread: Option<JoinHandle<(Node, Result<(), NodeError>)>>,
}

/// Calls a node that has a thread of its own, from any thread, as long as its [`NodeHandle`] has not stopped it.
#[derive(Clone)]
pub struct NodeCaller(Sender<Command>);

impl fmt::Debug for NodeCaller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeCaller").finish_non_exhaustive()
    }
}

impl NodeCaller {
    /// As [`NodeHandle::with`].
    ///
    /// # Errors
    /// As [`NodeHandle::with`].
    pub fn with<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Node) -> T + Send + 'static,
    ) -> Result<T, NodeError> {
        let (sender, receiver) = channel();
        let command = Box::new(move |node: &mut Node| drop(sender.send(f(node))));
        self.0.send(Some(command)).map_err(|_| NodeError::Ended)?;
        receiver.recv().map_err(|_| NodeError::Ended)
    }
}

impl fmt::Debug for NodeHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeHandle").finish_non_exhaustive()
    }
}

impl NodeHandle {
    /// Starts the thread of `node`.
    pub(crate) fn spawn(mut node: Node) -> std::io::Result<Self> {
        let (commands, received) = channel::<Command>();
        let thread =
            std::thread::Builder::new().name("podswitch-node".into()).spawn(move || {
                let mut serve = || loop {
                    let pause = node.poll()?;
                    match received.recv_timeout(pause) {
                        Ok(Some(command)) => command(&mut node),
                        Err(RecvTimeoutError::Timeout) => {}
                        Ok(None) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
                    }
                };
                // The node must not be dropped by a panic, which would take the node's kernel away from the next run: it
                // is stopped like one that failed otherwise.
                let result = catch_unwind(AssertUnwindSafe(&mut serve));
                let result = result.unwrap_or_else(|panic| Err(panicked(&*panic)));
                (node, result)
            })?;
        Ok(Self { caller: NodeCaller(commands), thread: Some(thread) })
    }

    /// Calls the node for other threads.
    pub fn caller(&self) -> NodeCaller {
        self.caller.clone()
    }

    /// Runs `f` on the node's thread and waits for what it returns.
    ///
    /// # Errors
    /// [`NodeError::Ended`]: the thread ended because the node failed; [`stop`](Self::stop) says why.
    pub fn with<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Node) -> T + Send + 'static,
    ) -> Result<T, NodeError> {
        self.caller.with(f)
    }

    /// Whether the thread has ended: the node failed, and [`stop`](Self::stop) says why.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// As [`Node::apply`].
    ///
    /// # Errors
    /// As [`Node::apply`] and [`with`](Self::with).
    pub fn apply(&self, state: State) -> Result<Epoch, NodeError> {
        self.with(|node| node.apply(state))?
    }

    /// As [`Node::update`].
    ///
    /// # Errors
    /// As [`Node::update`] and [`with`](Self::with).
    pub fn update(&self, changes: Vec<Change>) -> Result<Epoch, NodeError> {
        self.with(|node| node.update(changes))?
    }

    /// As [`Node::update_state`].
    ///
    /// # Errors
    /// As [`Node::update_state`] and [`with`](Self::with).
    pub fn update_state(&self, changes: StateChanges) -> Result<Epoch, NodeError> {
        self.with(|node| node.update_state(changes))?
    }

    /// As [`Node::add_pod`].
    ///
    /// # Errors
    /// As [`Node::add_pod`] and [`with`](Self::with).
    pub fn add_pod(&self, attachment: PodAttachment) -> Result<PortId, NodeError> {
        self.with(|node| node.add_pod(attachment))?
    }

    /// As [`Node::remove_pod`].
    ///
    /// # Errors
    /// As [`Node::remove_pod`] and [`with`](Self::with).
    pub fn remove_pod(&self, pod: PodName) -> Result<bool, NodeError> {
        self.with(move |node| node.remove_pod(&pod))?
    }

    /// As [`Node::explain`].
    ///
    /// # Errors
    /// As [`with`](Self::with).
    pub fn explain(&self, connection: Connection) -> Result<Option<Verdict>, NodeError> {
        self.with(move |node| node.explain(&connection))
    }

    /// As [`Node::flows`].
    ///
    /// # Errors
    /// As [`with`](Self::with).
    pub fn flows(&self) -> Result<Vec<Flow>, NodeError> {
        self.with(|node| node.flows())
    }

    /// As [`Node::stats`].
    ///
    /// # Errors
    /// As [`with`](Self::with).
    pub fn stats(&self) -> Result<Stats, NodeError> {
        self.with(|node| node.stats())
    }

    /// Stops the node, as [`Node::stop`].
    ///
    /// # Errors
    /// Why the node failed, if it did; else as [`Node::stop`].
    pub fn stop(mut self, interfaces: PodInterfaces) -> Result<(), NodeError> {
        match self.end() {
            Some((node, result)) => {
                let stopped = node.stop(interfaces);
                result?;
                Ok(stopped?)
            }
            None => Err(NodeError::Ended),
        }
    }

    fn end(&mut self) -> Option<(Node, Result<(), NodeError>)> {
        // It may have ended by itself.
        let _ = self.caller.0.send(None);
        match self.thread.take()?.join() {
            Ok(ended) => Some(ended),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

fn panicked(panic: &(dyn Any + Send)) -> NodeError {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    NodeError::Panicked(text.unwrap_or_default())
}

impl Drop for NodeHandle {
    fn drop(&mut self) {
        let _ = self.caller.0.send(None);
        if let Some(thread) = self.thread.take()
            && let Ok((node, _)) = thread.join()
        {
            // There is no caller to report to.
            let _ = node.stop(PodInterfaces::Keep);
        }
    }
}
