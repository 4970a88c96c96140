//! Starting, stopping and querying workers.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use super::{ControlError, ControlPlane};
use crate::engine::{Engine, FlowObserver, Observer};
use crate::id::{Epoch, PortId};
use crate::stats::WorkerCounters;
use crate::time::Clock;
use crate::worker::{Command, Worker, WorkerHandle};

/// A worker.
pub(super) struct Handle {
    pub(super) handle: Arc<WorkerHandle>,
    thread: Option<JoinHandle<()>>,
}

impl ControlPlane {
    /// Creates the next worker, with its queue of every port. The caller polls it or calls
    /// [`run`](Worker::run).
    ///
    /// # Errors
    /// A device could not be opened for it.
    pub fn add_worker(&mut self) -> Result<Worker, ControlError> {
        let index = self.workers.len();
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
        self.workers.push(Handle { handle: worker.handle().clone(), thread: None });
        self.shared.set_workers(self.workers.len());
        Ok(worker)
    }

    /// Runs `count` workers, each on its own thread: starts those that are missing, or stops the
    /// last ones.
    ///
    /// # Errors
    /// A worker could not be started, or a device could not be opened again for one that stays.
    /// Running workers continue.
    pub fn set_workers(&mut self, count: usize) -> Result<(), ControlError> {
        if self.workers.len() > count {
            while self.workers.len() > count {
                self.stop_last();
            }
            self.hand_over()?;
        }
        while self.workers.len() < count {
            let index = self.workers.len();
            let worker = self.add_worker()?;
            let core = self.options.pinning.core(index);
            let on_start = self.options.on_worker_start;
            let thread = std::thread::Builder::new()
                .name(format!("podswitch-{index}"))
                .spawn(move || {
                    if let Some(core) = core {
                        core_affinity::set_for_current(core);
                    }
                    if let Some(on_start) = on_start {
                        on_start();
                    }
                    worker.run();
                })
                .map_err(|source| ControlError::Worker { worker: index, source });
            match thread {
                Ok(thread) => self.workers[index].thread = Some(thread),
                Err(error) => {
                    self.workers.pop();
                    self.shared.set_workers(self.workers.len());
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    pub(super) fn stop_last(&mut self) {
        let Some(worker) = self.workers.pop() else { return };
        worker.handle.send(Command::Stop);
        if let Some(thread) = worker.thread {
            // A worker's panic has been reported already; the switch continues without it.
            let _ = thread.join();
        }
        self.shared.set_workers(self.workers.len());
    }

    /// Whether every worker has acknowledged `epoch` or a later one.
    pub fn is_acknowledged(&self, epoch: Epoch) -> bool {
        self.workers.iter().all(|m| m.handle.acknowledged() >= epoch)
    }

    /// Waits until every worker has acknowledged `epoch`. Not for workers that the same thread
    /// polls by hand.
    ///
    /// # Errors
    /// Timeout.
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

    /// The workers, for their counters and load.
    pub fn workers(&self) -> impl Iterator<Item = &Arc<WorkerHandle>> {
        self.workers.iter().map(|m| &m.handle)
    }

    /// Makes each worker report drops to an observer created by `make`.
    pub fn observe(&self, mut make: impl FnMut(usize) -> Option<Box<dyn Observer>>) {
        for (index, worker) in self.workers.iter().enumerate() {
            worker.handle.send(Command::Observe(make(index)));
        }
    }

    /// Makes each worker report opened and ended connections to an observer created by `make`.
    pub fn observe_flows(&self, mut make: impl FnMut(usize) -> Option<Box<dyn FlowObserver>>) {
        for (index, worker) in self.workers.iter().enumerate() {
            worker.handle.send(Command::ObserveFlows(make(index)));
        }
    }

    /// Makes the observers of these workers deliver what they collected ([`Observer::collect`]),
    /// soon, between two polls.
    pub fn collect(&self, workers: impl IntoIterator<Item = usize>) {
        for index in workers {
            if let Some(worker) = self.workers.get(index) {
                worker.handle.send(Command::Collect);
            }
        }
    }
}
