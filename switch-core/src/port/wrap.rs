//! Wrappers of ports and devices. A wrapped port can be used wherever a port can.

use std::io;
use std::os::fd::BorrowedFd;

use super::{Device, DeviceFiles, Port, PortInfo};
use crate::packet::{Batch, Pool};

impl<P: Port + ?Sized> Port for Box<P> {
    #[inline]
    fn rx(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<usize> {
        (**self).rx(pool, batch)
    }

    #[inline]
    fn tx(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<usize> {
        (**self).tx(pool, batch)
    }

    fn info(&self) -> &PortInfo {
        (**self).info()
    }

    #[inline]
    fn take_lost(&mut self) -> u64 {
        (**self).take_lost()
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        (**self).poll_fd()
    }

    fn is_always_polled(&self) -> bool {
        (**self).is_always_polled()
    }

    fn arm(&mut self) -> bool {
        (**self).arm()
    }

    fn hold(&mut self) -> bool {
        (**self).hold()
    }
}

/// A device whose ports are wrapped when they are opened; see [`wrap`].
#[derive(Debug)]
pub struct Wrapped<D, F> {
    device: D,
    with: F,
}

/// Wraps every port that `device` opens. `with` gets the port and the index of its worker.
pub fn wrap<D, F>(device: D, with: F) -> Wrapped<D, F>
where
    D: Device,
    F: FnMut(Box<dyn Port>, usize) -> Box<dyn Port> + Send,
{
    Wrapped { device, with }
}

impl<D, F> Device for Wrapped<D, F>
where
    D: Device,
    F: FnMut(Box<dyn Port>, usize) -> Box<dyn Port> + Send,
{
    fn open(&mut self, index: usize, workers: usize) -> io::Result<Box<dyn Port>> {
        let port = self.device.open(index, workers)?;
        Ok((self.with)(port, index))
    }

    fn info(&self) -> PortInfo {
        self.device.info()
    }

    fn maintain(&mut self) -> Vec<String> {
        self.device.maintain()
    }

    fn files(&self) -> Vec<DeviceFiles> {
        self.device.files()
    }

    fn leave_in_force(&mut self, stays: bool) {
        self.device.leave_in_force(stays);
    }
}
