//! An attached device, and which worker has which of its ends.

use super::ControlError;
use crate::id::PortId;
use crate::port::{Device, Port};

pub(super) struct Attached {
    pub(super) device: Box<dyn Device>,
    /// The worker that has the device's first end, the one that receives where a device has a
    /// single queue.
    first: usize,
}

impl Attached {
    /// Such devices spread over the workers that there are: the first end goes round with the
    /// port's number.
    pub(super) fn new(device: Box<dyn Device>, id: PortId, workers: usize) -> Self {
        Self { device, first: id.index() % workers.max(1) }
    }

    /// Opens the end of a worker, of `workers` in all.
    pub(super) fn open(
        &mut self,
        worker: usize,
        workers: usize,
    ) -> Result<Box<dyn Port>, ControlError> {
        // A worker that is the only one is the first, whoever was before all went.
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

    /// The workers from `workers` on were stopped. Some: this worker is to open its end again,
    /// since the first end went with them.
    pub(super) fn shrunk(&mut self, id: PortId, workers: usize) -> Option<usize> {
        if workers == 0 || self.first < workers {
            return None;
        }
        self.first = id.index() % workers;
        Some(self.first)
    }
}
