//! The error of this crate: the operation, the object, and the system's error.

use std::fmt;
use std::io;

/// A step of the host's set-up failed.
#[derive(Debug)]
pub struct HostError {
    operation: String,
    detail: Option<String>,
    source: io::Error,
}

impl HostError {
    /// An error of `operation`, which is written before a colon: "create bridge br0".
    pub fn new(operation: impl Into<String>, source: io::Error) -> Self {
        Self { operation: operation.into(), detail: None, source }
    }

    /// An error found here, not reported by the system.
    pub(crate) fn invalid(operation: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::new(operation, io::Error::new(io::ErrorKind::InvalidInput, reason.into()))
    }

    /// Adds the kernel's message.
    pub(crate) fn with_detail(mut self, detail: Option<String>) -> Self {
        self.detail = detail;
        self
    }

    /// The kind of the system's error.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }

    /// The system's error number, if it gave one.
    pub fn raw_os_error(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    /// Whether the object does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(
            self.raw_os_error(),
            Some(libc::ENOENT | libc::ENODEV | libc::ESRCH | libc::EADDRNOTAVAIL)
        ) || self.kind() == io::ErrorKind::NotFound
    }

    /// Whether the object already exists.
    pub fn is_already_there(&self) -> bool {
        self.raw_os_error() == Some(libc::EEXIST)
    }

    /// Whether privilege was missing.
    pub fn is_permission(&self) -> bool {
        matches!(self.raw_os_error(), Some(libc::EPERM | libc::EACCES))
    }
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.operation, self.source)?;
        match &self.detail {
            Some(detail) => write!(f, ": {detail}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for HostError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl From<HostError> for io::Error {
    fn from(error: HostError) -> Self {
        io::Error::new(error.kind(), error)
    }
}

/// Adds the operation to an `io::Error`.
pub(crate) trait Context<T> {
    /// `operation` is built only on failure.
    fn context(self, operation: impl FnOnce() -> String) -> Result<T, HostError>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, operation: impl FnOnce() -> String) -> Result<T, HostError> {
        self.map_err(|source| HostError::new(operation(), source))
    }
}

impl<T> Context<T> for Result<T, rustix::io::Errno> {
    fn context(self, operation: impl FnOnce() -> String) -> Result<T, HostError> {
        self.map_err(|errno| HostError::new(operation(), errno.into()))
    }
}
