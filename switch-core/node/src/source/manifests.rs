//! A folder of manifests as the source of a node's states: read again when it changes, at the cost of
//! what changed.

use std::path::Path;

use podswitch_core::id::Epoch;
use podswitch_kubernetes::{Action, Counts, Files, LoadError, Record, Store};

use crate::cluster::ClusterOptions;
use crate::error::NodeError;
use crate::node::Node;
use crate::state::{State, StateChanges};

/// Manifests cannot be put in force.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// They cannot be read, are being written, or are cut.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// There is no Node object for this node, or in strict mode an object cannot be used: all records
    /// that say so.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Refused(Vec<Record>),
}

/// Manifests were not put in force.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// The manifests are at fault.
    #[error(transparent)]
    Manifests(#[from] ManifestError),
    /// The node did not take them.
    #[error(transparent)]
    Node(#[from] NodeError),
}

/// What a node is to be given.
enum Update {
    Whole(Box<State>),
    Changes(StateChanges),
}

/// See the module's description.
#[derive(Debug)]
pub struct ManifestSource {
    files: Files,
    store: Store,
    cluster: ClusterOptions,
    strict: bool,
    /// The node does not have what the last load gave.
    behind: bool,
    /// What was said of the last load.
    records: Vec<Record>,
}

impl ManifestSource {
    /// The manifests at `path`, a file or a folder, as the node `node` is to follow them. `strict`: an
    /// object that cannot be used refuses the state. Otherwise it is left out, or closes what it was to
    /// protect.
    pub fn new(path: &Path, node: &str, cluster: &ClusterOptions, strict: bool) -> Self {
        Self {
            files: Files::new(path),
            store: Store::new(Some(node), cluster.kubernetes()),
            cluster: cluster.clone(),
            strict,
            behind: true,
            records: Vec::new(),
        }
    }

    /// Reads the manifests for [`Node::start`].
    ///
    /// # Errors
    /// The manifests cannot be read, or are refused.
    pub fn state(&mut self) -> Result<State, ManifestError> {
        self.behind = true;
        match self.load()? {
            Update::Whole(state) => Ok(*state),
            Update::Changes(_) => Ok(self.whole()),
        }
    }

    /// Reads what changed since the last time, and has `node` follow, at the cost of what changed.
    ///
    /// # Errors
    /// The manifests cannot be read or are refused, or the node does not take them. The state in force
    /// stays, and the next call tries again what changed.
    pub fn apply(&mut self, node: &mut Node) -> Result<Epoch, ApplyError> {
        let applied = match self.load()? {
            Update::Whole(state) => node.apply(*state),
            Update::Changes(changes) => node.update_state(changes),
        };
        self.behind = applied.is_err();
        Ok(applied?)
    }

    /// Reads what changed since the last load.
    fn load(&mut self) -> Result<Update, ManifestError> {
        let (strict, mut records) = (self.strict, Vec::new());
        self.files.load_if(&mut self.store, |files, store| {
            records = files.records(store);
            let refuses = |record: &&Record| record.refused && (strict || record.is_missing_node());
            let refused: Vec<_> = records.iter().filter(refuses).cloned().collect();
            match refused.is_empty() && store.has_node() {
                true => Ok(()),
                false => Err(ManifestError::Refused(refused)),
            }
        })?;
        self.records = records;
        let changes = self.store.take_changes();
        if !self.behind {
            return Ok(Update::Changes(self.cluster.changes(changes)));
        }
        self.behind = false;
        Ok(Update::Whole(Box::new(self.whole())))
    }

    fn whole(&mut self) -> State {
        let mut compiled = self.store.compiled();
        self.cluster.complete(&mut compiled.config, compiled.flannel);
        State::from(compiled)
    }

    /// What there is to say about the manifests of the last load that was not refused.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Objects that are not in the state as they are written: left out, closed, or kept as they were.
    pub fn left_out(&self) -> impl Iterator<Item = &Record> {
        let as_written = |action| matches!(action, Action::None | Action::FieldLeftOut);
        self.records.iter().filter(move |record| !as_written(record.action))
    }

    /// How many records of each kind there are.
    pub fn counts(&self) -> Counts {
        Counts::of(&self.records)
    }
}
