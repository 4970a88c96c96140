//! Files mapped into memory.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::AtomicU64;

/// A mapping of a whole file, readable and writable.
#[derive(Debug)]
pub(crate) struct Mapping {
    memory: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping is owned by this value alone and usable from any thread.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps the first `length` bytes of a file. Writes go to the file.
    pub(crate) fn shared(file: BorrowedFd<'_>, length: usize) -> io::Result<Self> {
        Self::new(file, length, libc::MAP_SHARED)
    }

    /// As `shared`, but writes do not go to the file.
    pub(crate) fn private(file: BorrowedFd<'_>, length: usize) -> io::Result<Self> {
        Self::new(file, length, libc::MAP_PRIVATE | libc::MAP_NORESERVE)
    }

    fn new(file: BorrowedFd<'_>, length: usize, flags: libc::c_int) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice; nothing else refers to it.
        let memory =
            unsafe { libc::mmap(ptr::null_mut(), length, protection, flags, file.as_raw_fd(), 0) };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory = NonNull::new(memory.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { memory, length })
    }

    /// The mapped words, without a rest that is shorter. Another process may change them.
    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping has this length, is aligned to a page, and is borrowed from this value; in this process it
        // is read in this way only. Pages beyond the file's end are not touched: callers map files of their own, which
        // nobody shortens.
        unsafe { slice::from_raw_parts(self.memory.as_ptr().cast(), self.length / 8) }
    }

    /// The mapped bytes, for the rest of the process's life.
    pub(crate) fn leak(self) -> &'static mut [u8] {
        let mut kept = std::mem::ManuallyDrop::new(self);
        // SAFETY: as in `words`, but exclusive; the mapping is never removed, since the value is not dropped.
        unsafe { slice::from_raw_parts_mut(kept.memory.as_mut(), kept.length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: unmaps what `new` mapped; borrows of the bytes have ended.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.length) };
    }
}
