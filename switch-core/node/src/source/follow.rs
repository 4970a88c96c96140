//! What a source of states and a node have to do with each other.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use podswitch_core::id::Epoch;
use podswitch_kubernetes::{Action, Counts, ObjectChanges, Record};

use super::error::SourceError;
use crate::error::NodeError;
use crate::handle::NodeHandle;
use crate::node::Node;
use crate::state::{State, StateChanges};

/// Gives a node its states: a whole one first, then changes at the cost of what changed.
///
/// Used by one thread, which calls [`follow`](Self::follow) whenever [`wake_fd`](Self::wake_fd) is readable, and at
/// the latest after [`next_check`](Self::next_check). A source that waits for something else does so on threads of its
/// own.
///
/// ```no_run
/// # use podswitch_node::{Node, NodeError, NodeOptions, source::{Followed, Source}};
/// # fn serve(source: &mut dyn Source) -> Result<(), Box<dyn std::error::Error>> {
/// // `None`: it was told to stop while it waited.
/// let Some(state) = source.first_state(&mut |_| true)? else { return Ok(()) };
/// let mut node = Node::start(NodeOptions::new("node-1"), state)?;
/// loop {
///     if let Followed::Applied(epoch) = source.follow(&mut node, false)? {
///         println!("epoch {epoch}, {} objects are left out", source.counts().left_out);
///     }
///     std::thread::sleep(source.next_check().min(node.poll()?)); // or poll(2) on `wake_fd`
/// }
/// # }
/// ```
pub trait Source: fmt::Debug {
    /// Waits for the first whole state, for [`Node::start`]. While there is none, `waiting` is called now and then
    /// with why; once it returns false there is `Ok(None)`.
    ///
    /// # Errors
    /// There is a state and it is refused, or there will be none.
    fn first_state(
        &mut self,
        waiting: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Option<State>, SourceError>;

    /// Has `node` follow what changed since the last call. Does not wait. `force`: takes everything up again, as after
    /// SIGHUP.
    ///
    /// # Errors
    /// What changed cannot be read or is refused, or the node does not take it. The state in force stays, and a later
    /// call tries again.
    fn follow(&mut self, node: &mut dyn StateSink, force: bool) -> Result<Followed, SourceError>;

    /// After how long [`follow`](Self::follow) should be called again, whatever happens.
    fn next_check(&self) -> Duration;

    /// A descriptor that is readable when [`follow`](Self::follow) has something to do. `None`: only looking tells.
    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// What there is to say about the objects of the last state.
    fn records(&self) -> &[Record];

    /// How many objects the last [`Followed::Applied`] added, changed and removed. A source that does not count has
    /// none.
    fn object_changes(&self) -> ObjectChanges {
        ObjectChanges::default()
    }

    /// Whether the state in force may be out of date: it is the last one known, and nobody could be asked since.
    fn is_stale(&self) -> bool {
        false
    }

    /// For how long the state in force has been out of date, as far as is known: since nobody could be asked, or since
    /// a later state was refused. Zero: it is not.
    fn stale_for(&self) -> Duration {
        Duration::ZERO
    }

    /// How many records of each kind there are.
    fn counts(&self) -> Counts {
        Counts::of(self.records())
    }

    /// Records of objects that are not in the state as they are written: left out, closed, or kept as they were.
    fn left_out(&self) -> Vec<&Record> {
        let as_written = |action| matches!(action, Action::None | Action::FieldLeftOut);
        self.records().iter().filter(|record| !as_written(record.action)).collect()
    }
}

/// What takes states: a [`Node`], or the handle of one that has a thread of its own.
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
}

impl StateSink for Node {
    fn apply_state(&mut self, state: State) -> Result<Epoch, NodeError> {
        self.apply(state)
    }

    fn update_state(&mut self, changes: StateChanges) -> Result<Epoch, NodeError> {
        Node::update_state(self, changes)
    }
}

impl StateSink for &NodeHandle {
    fn apply_state(&mut self, state: State) -> Result<Epoch, NodeError> {
        self.apply(state)
    }

    fn update_state(&mut self, changes: StateChanges) -> Result<Epoch, NodeError> {
        NodeHandle::update_state(self, changes)
    }
}

/// What came of [`Source::follow`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Followed {
    /// Nothing changed, or what did is not ready to be taken.
    Unchanged,
    /// The changes are in force.
    Applied(Epoch),
}
