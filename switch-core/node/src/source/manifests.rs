//! A folder of manifests as the source of a node's states. It is read again when it changes, at a
//! cost proportional to the change.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use podswitch_core::id::Epoch;
use podswitch_core::time::{Clock, Instant};
use podswitch_kubernetes::{Files, LoadError, ObjectChanges, Record, Store};

use super::error::{ApplyError, ManifestError, SourceError};
use super::folder_watch::FolderWatch;
use super::follow::{Followed, Source, StateSink};
use super::manifest_view::ManifestView;
use crate::cluster::ClusterOptions;
use crate::cni::ClusterView;
use crate::state::{State, StateChanges};

/// An update for a node.
enum Update {
    Whole(Box<State>),
    Changes(StateChanges),
}

/// How often in a row a file may change while it is read before this is an error.
const MAX_BUSY_READS: usize = 100;

/// See the module's description.
#[derive(Debug)]
pub struct ManifestSource {
    watch: FolderWatch,
    clock: Clock,
    /// How often in a row a file has changed while it was read.
    busy: usize,
    files: Files,
    store: Store,
    cluster: ClusterOptions,
    strict: bool,
    /// The node does not have the state of the last load.
    behind: bool,
    /// Since when a later state has been refused.
    refused_at: Option<Instant>,
    /// Records of the last load.
    records: Vec<Record>,
    /// The objects that the last applied changes added, changed and removed.
    changes: ObjectChanges,
    view: ManifestView,
}

impl ManifestSource {
    /// A source for the manifests at `path`, a file or a folder, and the node `node`. `strict`: an
    /// object that cannot be used makes the state refused. Otherwise it is left out, or, if it is a
    /// policy, isolates the pods that it selects.
    pub fn new(path: &Path, node: &str, cluster: &ClusterOptions, strict: bool) -> Self {
        Self {
            watch: FolderWatch::new(path),
            clock: Clock::start(),
            busy: 0,
            files: Files::new(path),
            store: Store::new(Some(node), cluster.kubernetes()),
            cluster: cluster.clone(),
            strict,
            behind: true,
            refused_at: None,
            records: Vec::new(),
            changes: ObjectChanges::default(),
            view: ManifestView::default(),
        }
    }

    /// The view of this node's pods for the CNI agent.
    pub fn cluster_view(&self) -> Arc<dyn ClusterView> {
        Arc::new(self.view.clone())
    }

    /// Reads the manifests for [`Node::start`](crate::Node::start).
    ///
    /// # Errors
    /// The manifests cannot be read, or are refused.
    pub fn state(&mut self) -> Result<State, ManifestError> {
        self.behind = true;
        let update = self.load()?;
        self.changes = self.store.take_object_changes();
        match update {
            Update::Whole(state) => Ok(*state),
            Update::Changes(_) => Ok(self.whole()),
        }
    }

    /// Reads what changed since the last call, and applies it to `node`. The cost is proportional
    /// to the change.
    ///
    /// # Errors
    /// The manifests cannot be read or are refused, or the node refuses them. The state in force
    /// stays, and the next call tries again.
    pub fn apply(&mut self, node: &mut dyn StateSink) -> Result<Epoch, ApplyError> {
        let applied = match self.load()? {
            Update::Whole(state) => node.apply_state(*state),
            Update::Changes(changes) => node.update_state(changes),
        };
        self.behind = applied.is_err();
        let epoch = applied?;
        self.changes = self.store.take_object_changes();
        self.add_left_out(node);
        Ok(epoch)
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
        self.view.follow(&self.store);
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
}

impl Source for ManifestSource {
    fn first_state(
        &mut self,
        _waiting: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Option<State>, SourceError> {
        Ok(Some(self.state()?))
    }

    fn follow(&mut self, node: &mut dyn StateSink, force: bool) -> Result<Followed, SourceError> {
        if !self.watch.has_changed(&self.clock) && !force {
            return Ok(Followed::Unchanged);
        }
        let applied = self.apply(node);
        let being_written = matches!(
            applied,
            Err(ApplyError::Manifests(ManifestError::Load(LoadError::Changing { .. })))
        );
        // The writer is usually done soon. A writer that never finishes must not prevent the error.
        self.busy = if being_written { self.busy + 1 } else { 0 };
        if being_written && self.busy < MAX_BUSY_READS {
            self.watch.rescan();
            return Ok(Followed::Unchanged);
        }
        self.refused_at = match applied {
            Ok(_) => None,
            Err(_) => self.refused_at.or_else(|| Some(self.clock.now())),
        };
        Ok(Followed::Applied(applied?))
    }

    fn next_check(&self) -> Duration {
        self.watch.pause()
    }

    fn records(&self) -> &[Record] {
        &self.records
    }

    fn add_left_out(&mut self, node: &dyn StateSink) {
        Record::set_left_out(&mut self.records, &node.left_out());
    }

    fn object_changes(&self) -> ObjectChanges {
        self.changes.clone()
    }

    fn stale_for(&self) -> Duration {
        self.refused_at.map_or(Duration::ZERO, |at| self.clock.now().since(at))
    }
}
