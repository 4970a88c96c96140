//! The interface between a source of states and a node.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use podswitch_core::control::LeftOut;
use podswitch_core::id::Epoch;
use podswitch_kubernetes::{Action, Counts, ObjectChanges, Record};

use super::error::SourceError;
use crate::error::NodeError;
use crate::handle::NodeHandle;
use crate::node::Node;
use crate::state::{State, StateChanges};

/// Provides a node's states: first a complete one, then changes. The cost is proportional to the
/// change.
///
/// Used by one thread, which calls [`follow`](Self::follow) whenever [`wake_fd`](Self::wake_fd) is
/// readable, and after [`next_check`](Self::next_check) at the latest. A source that has to wait
/// for something else does so on its own threads.
///
/// ```no_run
/// # use podswitch_node::{Node, NodeError, NodeOptions, source::{Followed, Source}};
/// # fn serve(source: &mut dyn Source) -> Result<(), Box<dyn std::error::Error>> {
/// // `None`: the wait was stopped.
/// let Some(state) = source.first_state(&mut |_| true)? else { return Ok(()) };
/// let mut node = Node::start(NodeOptions::new("node-1"), state)?;
/// source.add_left_out(&node);
/// loop {
///     if let Followed::Applied(epoch) = source.follow(&mut node, false)? {
///         println!("epoch {epoch}, {} objects are left out", source.counts().left_out);
///     }
///     std::thread::sleep(source.next_check().min(node.poll()?)); // or poll(2) on `wake_fd`
/// }
/// # }
/// ```
pub trait Source: fmt::Debug {
    /// Waits for the first complete state, for [`Node::start`]. While there is none, `waiting` is
    /// called from time to time with the reason; if it returns false, the result is `Ok(None)`.
    ///
    /// # Errors
    /// The state was refused, or there will be none.
    fn first_state(
        &mut self,
        waiting: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Option<State>, SourceError>;

    /// Applies to `node` what changed since the last call. Does not wait. `force`: reads and
    /// applies everything again, as after SIGHUP.
    ///
    /// # Errors
    /// The change cannot be read or is refused, or the node refuses it. The state in force stays,
    /// and a later call tries again.
    fn follow(&mut self, node: &mut dyn StateSink, force: bool) -> Result<Followed, SourceError>;

    /// Maximum time until [`follow`](Self::follow) should be called again.
    fn next_check(&self) -> Duration;

    /// A descriptor that is readable when [`follow`](Self::follow) has something to do. `None`:
    /// only polling detects changes.
    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Records about the objects of the last state, including those that only the switch left out.
    fn records(&self) -> &[Record];

    /// Adds to the records what `node` left out of the state in force. [`follow`](Self::follow) does
    /// this after each change; a caller does it after [`Node::start`], for the first state.
    fn add_left_out(&mut self, node: &dyn StateSink);

    /// How many objects the last [`Followed::Applied`] added, changed and removed. Zero for a
    /// source that does not count.
    fn object_changes(&self) -> ObjectChanges {
        ObjectChanges::default()
    }

    /// Whether the state in force may be out of date: it is the last known one, and no server has
    /// responded since the start.
    fn is_stale(&self) -> bool {
        false
    }

    /// For how long the state in force has been out of date, as far as known: since no server has
    /// responded, or since a later state was refused. Zero: it is up to date.
    fn stale_for(&self) -> Duration {
        Duration::ZERO
    }

    /// Number of records of each kind.
    fn counts(&self) -> Counts {
        Counts::of(self.records())
    }

    /// Records of objects that are not in force as written: left out, closed, or kept at their last
    /// version.
    fn left_out(&self) -> Vec<&Record> {
        let as_written = |action| matches!(action, Action::None | Action::FieldLeftOut);
        self.records().iter().filter(|record| !as_written(record.action)).collect()
    }
}

/// Receives states: a [`Node`], or the handle of one that has its own thread.
pub trait StateSink {
    /// As [`Node::apply`].
    ///
    /// # Errors
    /// As [`Node::apply`].
    fn apply_state(&mut self, state: State) -> Result<Epoch, NodeError>;

    /// As [`Node::update_state`].
    ///
    /// # Errors
    /// As [`Node::update_state`].
    fn update_state(&mut self, changes: StateChanges) -> Result<Epoch, NodeError>;

    /// As [`Node::left_out`].
    fn left_out(&self) -> Vec<LeftOut>;
}

impl StateSink for Node {
    fn apply_state(&mut self, state: State) -> Result<Epoch, NodeError> {
        self.apply(state)
    }

    fn update_state(&mut self, changes: StateChanges) -> Result<Epoch, NodeError> {
        Node::update_state(self, changes)
    }

    fn left_out(&self) -> Vec<LeftOut> {
        Node::left_out(self)
    }
}

impl StateSink for &NodeHandle {
    fn apply_state(&mut self, state: State) -> Result<Epoch, NodeError> {
        self.apply(state)
    }

    fn update_state(&mut self, changes: StateChanges) -> Result<Epoch, NodeError> {
        NodeHandle::update_state(self, changes)
    }

    fn left_out(&self) -> Vec<LeftOut> {
        // After the end of the node's thread nothing is in force; its failure is reported by `stop`.
        self.with(|node| node.left_out()).unwrap_or_default()
    }
}

/// Result of [`Source::follow`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Followed {
    /// Nothing changed, or the change is not complete yet.
    Unchanged,
    /// The changes are in force.
    Applied(Epoch),
}
