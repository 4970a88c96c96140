//! Errors of the control plane.

use std::io;

use crate::id::{Epoch, PortId};

/// Errors of ports and workers.
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
        /// Index of the worker.
        worker: usize,
        /// The cause.
        source: io::Error,
    },
    /// A worker could not be made.
    #[error("cannot start worker {worker}: {source}")]
    Worker {
        /// Index of the worker.
        worker: usize,
        /// The cause.
        source: io::Error,
    },
    /// The workers did not acknowledge in time.
    #[error("epoch {0} was not acknowledged by every worker in time")]
    NotAcknowledged(Epoch),
    /// Only one capture can run at a time.
    #[error("another capture is running, and there can be one at a time")]
    Capturing,
}
