//! Attaching and detaching devices, and the assignment of their queues to workers.

use super::{ControlError, ControlPlane};
use crate::id::PortId;
use crate::port::{Device, DeviceFiles, Port, PortInfo};
use crate::worker::Command;

pub(super) struct Attached {
    pub(super) device: Box<dyn Device>,
    /// The worker that has the device's first queue. If a device has a single queue, only this worker receives.
    first: usize,
}

impl Attached {
    /// Devices with a single queue are spread over the workers by port number.
    pub(super) fn new(device: Box<dyn Device>, id: PortId, workers: usize) -> Self {
        Self { device, first: id.index() % workers.max(1) }
    }

    /// Opens the queue of one of `workers` workers.
    pub(super) fn open(
        &mut self,
        worker: usize,
        workers: usize,
    ) -> Result<Box<dyn Port>, ControlError> {
        // A single worker has the first queue.
        self.first = self.first.min(workers - 1);
        let end = match worker {
            first if first == self.first => 0,
            0 => self.first,
            other => other,
        };
        self.device.open(end, workers).map_err(|source| ControlError::Open {
            name: self.device.info().name,
            worker,
            source,
        })
    }

    /// The workers from number `workers` on were stopped. `Some`: this worker must open its queue again, since a
    /// stopped worker had the first queue.
    pub(super) fn shrunk(&mut self, id: PortId, workers: usize) -> Option<usize> {
        if workers == 0 || self.first < workers {
            return None;
        }
        self.first = id.index() % workers;
        Some(self.first)
    }
}

impl ControlPlane {
    /// Attaches a device as a new port. It forwards nothing until a configuration gives it a role (N13).
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
        let workers = self.workers.len();
        let mut device = Attached::new(device, id, workers);
        let opened: Result<Vec<_>, _> =
            (0..workers).map(|index| device.open(index, workers)).collect();
        for (worker, port) in self.workers.iter().zip(opened?) {
            worker.handle.send(Command::Add(id, port));
        }
        self.devices[number] = Some(device);
        self.device_changes += 1;
        Ok(id)
    }

    /// Detaches a port: workers close it, and packets to it are dropped. The next device may get its number, so publish
    /// a configuration without the port first.
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
        for worker in &self.workers {
            worker.handle.send(Command::Remove(port));
        }
        self.shared.fdb.flush_port(port);
        self.device_changes += 1;
        Ok(device)
    }

    /// Has a worker transmit an Ethernet frame by a port. It counts as originated by the switch. Not meant for traffic:
    /// each frame is a separate command.
    pub fn send(&self, port: PortId, frame: &[u8]) {
        if let Some(worker) = self.workers.first() {
            worker.handle.send(Command::Send(port, frame.into()));
        }
    }

    /// Properties of an attached port.
    pub fn port_info(&self, port: PortId) -> Option<PortInfo> {
        Some(self.devices.get(port.index())?.as_ref()?.device.info())
    }

    /// Calls [`Device::maintain`] on every device: work that no worker may wait for. Call it a few times a second.
    /// Returns what was restored, by the device's name.
    pub fn maintain_devices(&mut self) -> Vec<(String, Vec<String>)> {
        let devices = self.devices.iter_mut().flatten().map(|attached| &mut attached.device);
        let maintained = devices.map(|device| (device.maintain(), device));
        let repaired = maintained.filter(|(done, _)| !done.is_empty());
        repaired.map(|(done, device)| (device.info().name, done)).collect()
    }

    /// The files by which another process goes on with the devices ([`Device::files`]).
    pub fn device_files(&self) -> Vec<DeviceFiles> {
        let devices = self.devices.iter().flatten();
        devices.flat_map(|attached| attached.device.files()).collect()
    }

    /// A number that is another one whenever [`device_files`](Self::device_files) may be others.
    pub fn device_changes(&self) -> u64 {
        self.device_changes
    }

    /// Those of one port.
    pub fn device_files_of(&self, port: PortId) -> Vec<DeviceFiles> {
        let attached = self.devices.get(port.index()).and_then(|device| device.as_ref());
        attached.map(|attached| attached.device.files()).unwrap_or_default()
    }

    /// Says whether what was set up for the devices stays when they are dropped: another process goes on with them
    /// ([`Device::leave_in_force`]).
    pub fn leave_devices_in_force(&mut self, stays: bool) {
        let devices = self.devices.iter_mut().flatten();
        devices.for_each(|attached| attached.device.leave_in_force(stays));
    }

    /// Reassigns the first queues of stopped workers.
    pub(super) fn hand_over(&mut self) -> Result<(), ControlError> {
        let workers = self.workers.len();
        self.device_changes += 1;
        let mut result = Ok(());
        for (number, device) in self.devices.iter_mut().enumerate() {
            let (id, Some(device)) = (PortId(number as u16), device) else { continue };
            let Some(worker) = device.shrunk(id, workers) else { continue };
            match device.open(worker, workers) {
                Ok(port) => self.workers[worker].handle.send(Command::Add(id, port)),
                Err(error) => result = Err(error),
            }
        }
        result
    }
}
