//! The control plane: desired state in, snapshots out; ports and workers.
//!
//! Compiles off the packet cores, publishes with one swap, and frees retired snapshots itself
//! once every worker has acknowledged a later one. Used by one thread; no worker ever waits for
//! it.

mod options;
mod policy_counts;
mod ports;
mod service_counts;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;

pub use crate::publish::{Cause, Change, Effect, LeftOut, Published, Refused};
pub use options::{Options, Pinning};
pub use podswitch_policy::service::compile::HealthCheck;
pub use policy_counts::PolicyCount;
pub use service_counts::ServiceCount;

use ports::Attached;

use crate::config::{Config, ConfigError};
use crate::engine::{Engine, Observer, Shared};
use crate::flow::connection::ConnectionInfo;
use crate::id::{Epoch, PortId};
use crate::port::{Device, PortInfo};
use crate::publish::{Mode, Publisher, Request};
use crate::snapshot::Snapshot;
use crate::stats::WorkerCounters;
use crate::time::Clock;
use crate::worker::{Command, Worker, WorkerHandle};

/// What can go wrong with ports and workers.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// All port numbers are in use.
    #[error("no port number is free: a switch has at most {} ports", PortId::MAX_PORTS)]
    NoPortFree,
    /// There is no such port.
    #[error("port {0} is not attached")]
    NoSuchPort(PortId),
    /// A device could not be opened.
    #[error("cannot open {name} for worker {worker}: {source}")]
    Open {
        /// The device.
        name: String,
        /// Which worker's end.
        worker: usize,
        /// Why.
        source: io::Error,
    },
    /// A worker could not be made.
    #[error("cannot start worker {worker}: {source}")]
    Worker {
        /// Which.
        worker: usize,
        /// Why.
        source: io::Error,
    },
    /// The workers did not acknowledge in time.
    #[error("epoch {0} was not acknowledged by every worker in time")]
    NotAcknowledged(Epoch),
}

struct Member {
    handle: Arc<WorkerHandle>,
    thread: Option<JoinHandle<()>>,
}

/// See the module's description.
pub struct ControlPlane {
    options: Options,
    clock: Clock,
    shared: Arc<Shared>,
    snapshots: Arc<ArcSwap<Snapshot>>,
    /// Snapshots that a worker may still hold.
    retired: Vec<Arc<Snapshot>>,
    members: Vec<Member>,
    devices: Vec<Option<Attached>>,
    publisher: Publisher,
    epoch: Epoch,
}

impl core::fmt::Debug for ControlPlane {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("ControlPlane").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl ControlPlane {
    /// A switch without ports and workers, that forwards nothing. Add workers with
    /// [`set_workers`](Self::set_workers), or take one to poll by hand from
    /// [`add_worker`](Self::add_worker).
    pub fn new(options: Options) -> Self {
        let hash_key = options.hash_key.unwrap_or_else(options::random_hash_key);
        Self {
            shared: Arc::new(Shared::new(&options.limits, hash_key)),
            snapshots: Arc::new(ArcSwap::from_pointee(Snapshot::empty())),
            retired: Vec::new(),
            members: Vec::new(),
            devices: Vec::new(),
            publisher: Publisher::new(),
            epoch: Epoch(0),
            clock: Clock::start(),
            options,
        }
    }

    /// Makes the next worker, with its end of every port, for the caller to poll or
    /// [`run`](Worker::run).
    ///
    /// # Errors
    /// A device could not be opened for it.
    pub fn add_worker(&mut self) -> Result<Worker, ControlError> {
        let index = self.members.len();
        let counters = Arc::new(WorkerCounters::new(PortId::MAX_PORTS));
        let limits = &self.options.limits;
        let engine = Engine::new(self.shared.clone(), counters, limits, index);
        let worker = Worker::new(engine, self.snapshots.clone(), self.options.pool, self.clock)
            .map_err(|source| ControlError::Worker { worker: index, source })?;
        let mut opened = Vec::new();
        for (number, device) in self.devices.iter_mut().enumerate() {
            let Some(device) = device else { continue };
            let port = device.open(index, index + 1)?;
            opened.push((PortId(number as u16), port));
        }
        for (id, port) in opened {
            worker.handle().send(Command::Add(id, port));
        }
        self.members.push(Member { handle: worker.handle().clone(), thread: None });
        self.shared.set_workers(self.members.len());
        Ok(worker)
    }

    /// Has `count` workers run, each on its own thread: starts what is missing, stops the last
    /// ones that are too many.
    ///
    /// # Errors
    /// A worker could not be started, or a device not be opened again for one that stays; those
    /// that run go on.
    pub fn set_workers(&mut self, count: usize) -> Result<(), ControlError> {
        if self.members.len() > count {
            while self.members.len() > count {
                self.stop_last();
            }
            self.hand_over()?;
        }
        while self.members.len() < count {
            let index = self.members.len();
            let worker = self.add_worker()?;
            let core = self.options.pinning.core(index);
            let thread = std::thread::Builder::new()
                .name(format!("podswitch-{index}"))
                .spawn(move || {
                    if let Some(core) = core {
                        core_affinity::set_for_current(core);
                    }
                    worker.run();
                })
                .map_err(|source| ControlError::Worker { worker: index, source });
            match thread {
                Ok(thread) => self.members[index].thread = Some(thread),
                Err(error) => {
                    self.members.pop();
                    self.shared.set_workers(self.members.len());
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn stop_last(&mut self) {
        let Some(member) = self.members.pop() else { return };
        member.handle.send(Command::Stop);
        if let Some(thread) = member.thread {
            // A worker that panicked has said so already; the switch goes on without it.
            let _ = thread.join();
        }
        self.shared.set_workers(self.members.len());
    }

    /// What only a worker that was stopped received from, others do now.
    fn hand_over(&mut self) -> Result<(), ControlError> {
        let workers = self.members.len();
        let mut result = Ok(());
        for (number, device) in self.devices.iter_mut().enumerate() {
            let (id, Some(device)) = (PortId(number as u16), device) else { continue };
            let Some(worker) = device.shrunk(id, workers) else { continue };
            match device.open(worker, workers) {
                Ok(port) => self.members[worker].handle.send(Command::Add(id, port)),
                Err(error) => result = Err(error),
            }
        }
        result
    }

    /// Attaches a device as a new port. Nothing passes it before a configuration names it (N13).
    ///
    /// # Errors
    /// No number is free, or the device cannot be opened.
    pub fn attach(&mut self, device: Box<dyn Device>) -> Result<PortId, ControlError> {
        let number = match self.devices.iter().position(Option::is_none) {
            Some(number) => number,
            None if self.devices.len() < PortId::MAX_PORTS => {
                self.devices.push(None);
                self.devices.len() - 1
            }
            None => return Err(ControlError::NoPortFree),
        };
        let id = PortId(number as u16);
        let workers = self.members.len();
        let mut device = Attached::new(device, id, workers);
        let opened: Result<Vec<_>, _> =
            (0..workers).map(|index| device.open(index, workers)).collect();
        for (member, port) in self.members.iter().zip(opened?) {
            member.handle.send(Command::Add(id, port));
        }
        self.devices[number] = Some(device);
        Ok(id)
    }

    /// Detaches a port: workers let go of it, what still goes there is dropped. Its number may be
    /// given to the next device, so a configuration without it should be in force first.
    ///
    /// # Errors
    /// There is no such port.
    pub fn detach(&mut self, port: PortId) -> Result<Box<dyn Device>, ControlError> {
        let device = self
            .devices
            .get_mut(port.index())
            .and_then(Option::take)
            .ok_or(ControlError::NoSuchPort(port))?
            .device;
        for member in &self.members {
            member.handle.send(Command::Remove(port));
        }
        self.shared.fdb.flush_port(port);
        Ok(device)
    }

    /// Facts about an attached port.
    pub fn port_info(&self, port: PortId) -> Option<PortInfo> {
        Some(self.devices.get(port.index())?.as_ref()?.device.info())
    }

    /// Everything that is wrong with a configuration: what refuses it in [`apply`](Self::apply).
    pub fn check(config: &Config) -> Vec<ConfigError> {
        Publisher::check(config)
    }

    /// Puts `config` in force: checked and compiled first, then published with one swap. On return
    /// every packet that a worker receives from its next burst on is treated by it; see
    /// [`wait`](Self::wait) to know that all workers have it.
    ///
    /// # Errors
    /// Everything that is wrong with the configuration. Nothing of it is applied.
    pub fn apply(&mut self, config: &Config) -> Result<Epoch, Refused> {
        Ok(self.publish(Request::Whole(config), Mode::Strict)?.epoch)
    }

    /// Puts changes of single objects in force, all or none of them: of two for one name the last
    /// counts. As [`apply`](Self::apply), at the cost of what changes.
    ///
    /// # Errors
    /// Everything that is wrong because of the changes. Nothing of them is applied.
    pub fn update(&mut self, changes: impl IntoIterator<Item = Change>) -> Result<Epoch, Refused> {
        let changes = Request::Changes(changes.into_iter().collect());
        Ok(self.publish(changes, Mode::Strict)?.epoch)
    }

    /// As [`apply`](Self::apply), but objects that cannot be taken are left out, and the rest goes
    /// in, with one swap. They stay wanted: when the reason goes, they are taken by the publish that
    /// takes it away. So what is in force depends on what is wanted alone, not on the order in
    /// which it came, with one exception: of a policy that cannot be taken the last version that
    /// was stays in force. See [`Effect`].
    ///
    /// # Errors
    /// What holds for the whole switch is wrong: this node, the tunnel, masquerading. Nothing of
    /// the configuration is applied.
    pub fn apply_lenient(&mut self, config: &Config) -> Result<Published, Refused> {
        self.publish(Request::Whole(config), Mode::Lenient)
    }

    /// As [`update`](Self::update), and lenient as [`apply_lenient`](Self::apply_lenient) is.
    ///
    /// # Errors
    /// There are more nodes than a tunnel can have. Nothing of the changes is applied.
    pub fn update_lenient(
        &mut self,
        changes: impl IntoIterator<Item = Change>,
    ) -> Result<Published, Refused> {
        self.publish(Request::Changes(changes.into_iter().collect()), Mode::Lenient)
    }

    /// Everything that is wanted and not in force as it was written, with the reasons.
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
        for member in &self.members {
            member.handle.wake();
        }
        self.reclaim();
        Ok(published)
    }

    /// Whether every worker has acknowledged `epoch` or a later one.
    pub fn is_acknowledged(&self, epoch: Epoch) -> bool {
        self.members.iter().all(|m| m.handle.acknowledged() >= epoch)
    }

    /// Waits until every worker has acknowledged `epoch`. Not for workers that the same thread
    /// polls by hand.
    ///
    /// # Errors
    /// They have not within `timeout`.
    pub fn wait(&mut self, epoch: Epoch, timeout: Duration) -> Result<(), ControlError> {
        let clock = Clock::start();
        while !self.is_acknowledged(epoch) {
            if Duration::from_nanos(clock.now().as_nanos()) > timeout {
                return Err(ControlError::NotAcknowledged(epoch));
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        self.reclaim();
        Ok(())
    }

    /// Frees snapshots that no worker holds any more.
    fn reclaim(&mut self) {
        self.retired.retain(|snapshot| Arc::strong_count(snapshot) > 1);
    }

    /// The snapshot in force.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshots.load_full()
    }

    /// The clock of the switch, by which its workers note when packets were seen.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// The workers, for their counters and load.
    pub fn workers(&self) -> impl Iterator<Item = &Arc<WorkerHandle>> {
        self.members.iter().map(|m| &m.handle)
    }

    /// Connections, FDB and bounds that all workers share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// How often each rule of each policy decided, where that is not zero.
    pub fn policy_counts(&self) -> Vec<PolicyCount> {
        policy_counts::read(&self.snapshots.load())
    }

    /// How often each Service port's connections were opened, to which backend, or refused, where
    /// that is not zero.
    pub fn service_counts(&self) -> Vec<ServiceCount> {
        service_counts::read(&self.snapshots.load().services)
    }

    /// What a health check responder on this node is to answer (S12), by port.
    pub fn health_checks(&self) -> Vec<HealthCheck> {
        self.publisher.health_checks()
    }

    /// Every connection alive. Packets and bytes of those that are neither TCP nor translated may
    /// be some ten seconds old: workers count them by themselves, and tell in turn.
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        let mut list = Vec::new();
        self.shared.tracker.list(|info| list.push(info));
        list
    }

    /// Has each worker tell an observer of drops; `make` makes one for each.
    pub fn observe(&self, mut make: impl FnMut(usize) -> Option<Box<dyn Observer>>) {
        for (index, member) in self.members.iter().enumerate() {
            member.handle.send(Command::Observe(make(index)));
        }
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        for member in &self.members {
            member.handle.send(Command::Stop);
        }
        while !self.members.is_empty() {
            self.stop_last();
        }
    }
}
