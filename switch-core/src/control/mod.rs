//! The control plane: takes the desired state and publishes snapshots; manages ports and workers.
//!
//! Compiles off the packet cores, publishes with one swap, and frees retired snapshots itself
//! once every worker has acknowledged a later one. Used by one thread; no worker ever waits for
//! it.

mod captures;
mod error;
mod learnt;
mod options;
mod policy_counts;
mod ports;
mod restore;
mod service_counts;
mod workers;

use std::sync::Arc;

use arc_swap::ArcSwap;

pub use crate::publish::{Cause, Change, Effect, LeftOut, Objects, Published, Refused};
pub use error::ControlError;
pub use learnt::{AffinityPin, LearntMtu};
pub use options::{Options, Pinning};
pub use podswitch_policy::service::compile::HealthCheck;
pub use policy_counts::{PolicyCount, policy_rules};
pub use restore::{MemoryError, Restored, Running, Saved, SavedMemory, SlotMemory, memory_size};
pub use service_counts::{ServiceCount, ServiceTotal};

use captures::Captures;
use ports::Attached;
use workers::Handle;

use crate::config::{Config, ConfigError};
use crate::engine::Shared;
use crate::flow::connection::ConnectionInfo;
use crate::id::Epoch;
use crate::publish::{Mode, Publisher, Request};
use crate::snapshot::{Names, Snapshot};
use crate::time::Clock;
use crate::worker::Command;

/// See the module's description.
pub struct ControlPlane {
    options: Options,
    clock: Clock,
    shared: Arc<Shared>,
    snapshots: Arc<ArcSwap<Snapshot>>,
    /// Snapshots that a worker may still hold.
    retired: Vec<Arc<Snapshot>>,
    workers: Vec<Handle>,
    devices: Vec<Option<Attached>>,
    /// How often devices were attached, detached, or given to other workers.
    device_changes: u64,
    publisher: Publisher,
    epoch: Epoch,
    captures: Captures,
    /// The memory for the next process.
    memory: Option<restore::Memory>,
}

/// Reads the snapshot in force, from any thread.
#[derive(Clone, Debug)]
pub struct Snapshots(Arc<ArcSwap<Snapshot>>);

impl Snapshots {
    /// The names that the switch answers for now.
    pub fn names(&self) -> Option<Arc<Names>> {
        self.0.load().names.clone()
    }
}

impl core::fmt::Debug for ControlPlane {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("ControlPlane").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl ControlPlane {
    /// A switch without ports and workers, which forwards nothing. Add workers with
    /// [`set_workers`](Self::set_workers), or take one to poll by hand from
    /// [`add_worker`](Self::add_worker).
    pub fn new(options: Options) -> Self {
        let hash_key = options.hash_key.unwrap_or_else(options::random_hash_key);
        Self {
            shared: Arc::new(Shared::new(&options.limits, hash_key)),
            snapshots: Arc::new(ArcSwap::from_pointee(Snapshot::empty())),
            retired: Vec::new(),
            workers: Vec::new(),
            devices: Vec::new(),
            device_changes: 0,
            publisher: Publisher::new(),
            epoch: Epoch(0),
            clock: Clock::start(),
            captures: Captures::default(),
            memory: None,
            options,
        }
    }

    /// All errors of a configuration, for which [`apply`](Self::apply) would refuse it.
    pub fn check(config: &Config) -> Vec<ConfigError> {
        Publisher::check(config)
    }

    /// Puts `config` in force: checked and compiled first, then published with one swap. On return
    /// it applies to every packet that a worker receives from its next burst on;
    /// [`wait`](Self::wait) waits until all workers use it.
    ///
    /// # Errors
    /// All errors of the configuration. Nothing of it is applied.
    pub fn apply(&mut self, config: &Config) -> Result<Epoch, Refused> {
        Ok(self.publish(Request::Whole(config), Mode::Strict)?.epoch)
    }

    /// Applies changes of single objects, all or none of them. If two changes name the same object,
    /// the last one is used. As [`apply`](Self::apply), but the cost depends on the changes only.
    ///
    /// # Errors
    /// All errors that the changes cause. No change is applied then.
    pub fn update(&mut self, changes: impl IntoIterator<Item = Change>) -> Result<Epoch, Refused> {
        let changes = Request::Changes(changes.into_iter().collect());
        Ok(self.publish(changes, Mode::Strict)?.epoch)
    }

    /// As [`apply`](Self::apply), but invalid objects are left out and the rest is published, with
    /// one swap. They stay part of the desired state: the publish that removes the reason puts them
    /// in force. So the state in force depends only on the desired state, not on the order of
    /// changes, with one exception: the last valid version of an invalid policy stays in force. See
    /// [`Effect`].
    ///
    /// # Errors
    /// The settings are invalid: this node, the tunnel, masquerading. Nothing of the configuration
    /// is applied.
    pub fn apply_lenient(&mut self, config: &Config) -> Result<Published, Refused> {
        self.publish(Request::Whole(config), Mode::Lenient)
    }

    /// As [`update`](Self::update), but leaves invalid objects out as
    /// [`apply_lenient`](Self::apply_lenient) does.
    ///
    /// # Errors
    /// The settings are invalid, or there are more nodes than a tunnel can have. None of the
    /// changes is applied.
    pub fn update_lenient(
        &mut self,
        changes: impl IntoIterator<Item = Change>,
    ) -> Result<Published, Refused> {
        self.publish(Request::Changes(changes.into_iter().collect()), Mode::Lenient)
    }

    /// The desired objects: those of the last publish that was not refused.
    pub fn objects(&self) -> Objects<'_> {
        self.publisher.objects()
    }

    /// All desired objects that are not in force as written, with the reasons.
    pub fn left_out(&self) -> Vec<LeftOut> {
        self.publisher.left_out()
    }

    fn publish(&mut self, request: Request<'_>, mode: Mode) -> Result<Published, Refused> {
        let epoch = Epoch(self.epoch.0.wrapping_add(1).max(1));
        let before = self.snapshots.load_full();
        let (snapshot, published) = self.publisher.publish(request, mode, epoch, &before)?;
        drop(before);
        self.epoch = epoch;
        let old = self.snapshots.swap(Arc::new(snapshot));
        self.retired.push(old);
        for worker in &self.workers {
            worker.handle.wake();
        }
        self.reclaim();
        Ok(published)
    }

    /// Frees snapshots that no worker uses any more.
    fn reclaim(&mut self) {
        self.retired.retain(|snapshot| Arc::strong_count(snapshot) > 1);
    }

    /// The snapshot in force.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshots.load_full()
    }

    /// For other threads: the snapshot in force at the time.
    pub fn snapshots(&self) -> Snapshots {
        Snapshots(self.snapshots.clone())
    }

    /// The switch's clock, which its workers use too.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Connections, FDB and limits that all workers share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Decision counts of policy rules, without zeros.
    pub fn policy_counts(&self) -> Vec<PolicyCount> {
        policy_counts::read(&self.snapshots.load())
    }

    /// Counts of opened and refused connections of each Service port, by backend, without zeros.
    pub fn service_counts(&self) -> Vec<ServiceCount> {
        service_counts::read(&self.snapshots.load().services)
    }

    /// As [`service_counts`](Self::service_counts), summed over all backends, because their number
    /// is not bounded.
    pub fn service_totals(&self) -> Vec<ServiceTotal> {
        service_counts::totals(&self.snapshots.load().services)
    }

    /// Adds the counts of an earlier process to the counts of the policies and Services in force,
    /// by name. Objects that no longer exist are left out.
    pub fn restore_counts(&self, policies: &[PolicyCount], services: &[ServiceCount]) {
        let snapshot = self.snapshots.load();
        policy_counts::restore(&snapshot, policies);
        service_counts::restore(&snapshot.services, services);
    }

    /// Answers for the health check responder of this node (S12), by port.
    pub fn health_checks(&self) -> Vec<HealthCheck> {
        self.publisher.health_checks()
    }

    /// Every live connection. The counts of packets and bytes of connections that are neither TCP
    /// nor translated may be up to about ten seconds old: each worker counts them in its own table
    /// and reports periodically.
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        let mut list = Vec::new();
        self.shared.tracker.list(|info| list.push(info));
        list
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        for worker in &self.workers {
            worker.handle.send(Command::Stop);
        }
        while !self.workers.is_empty() {
            self.stop_last();
        }
    }
}
