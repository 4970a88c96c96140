//! The receive ring that a packet socket shares with the kernel (TPACKET_V2).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::{AtomicU32, Ordering};

use super::mmsg::{VNET_HEADER, vlan_tag};
use super::packet;

const TP_STATUS_KERNEL: u32 = 0;
const TP_STATUS_USER: u32 = 1;
const TP_STATUS_COPY: u32 = 1 << 1;

/// Bytes that the kernel uses in each slot before the frame: its own header, the sender's address,
/// the virtio-net header, and padding.
const SLOT_OVERHEAD: usize = 96;
/// Bytes that the kernel allocates at once.
const BLOCK: usize = 1 << 16;

/// Length of `struct tpacket2_hdr`.
const HEADER: usize = size_of::<libc::tpacket2_hdr>();

/// A ring of slots mapped into this process. One thread uses it at a time.
#[derive(Debug)]
pub(crate) struct Ring {
    memory: NonNull<u8>,
    slot: usize,
    slots: usize,
    next: usize,
    /// Another process used the ring before: where the oldest frame is shows when there is one.
    is_found: bool,
    /// A look for the oldest frame has seen frames.
    is_noted: bool,
}

// SAFETY: the mapping is owned by this value alone and usable from any thread; what the kernel
// does to it concurrently is ordered by each slot's status word.
unsafe impl Send for Ring {}

/// A frame in the ring.
#[derive(Debug)]
pub(crate) enum Frame<'a> {
    /// It is complete.
    Whole {
        /// Its virtio-net header.
        header: &'a [u8],
        /// Its bytes.
        bytes: &'a [u8],
        /// The VLAN tag that the kernel removed: TPID and TCI.
        vlan: Option<(u16, u16)>,
    },
    /// It is too long for its slot and waits in the socket's queue.
    Queued,
    /// It is too long for its slot, and the socket's queue was full: lost.
    Lost,
}

impl Ring {
    /// Gives `socket` a ring of `slots` slots (a power of two) for frames of up to `longest`
    /// bytes, and maps it.
    pub(crate) fn new(socket: BorrowedFd<'_>, slots: usize, longest: usize) -> io::Result<Self> {
        let (slot, slots) = Self::size(slots, longest);
        let request = libc::tpacket_req {
            tp_block_size: BLOCK as u32,
            tp_block_nr: (slots * slot / BLOCK) as u32,
            tp_frame_size: slot as u32,
            tp_frame_nr: slots as u32,
        };
        packet::set_ring_version(socket)?;
        packet::set_copy_threshold(socket)?;
        packet::set_ring(socket, &request)?;
        Self::map(socket, slot, slots, true)
    }

    /// The ring that another process gave `socket` with the same arguments, which it does not use any more when the first
    /// frame is read here.
    pub(crate) fn adopt(socket: BorrowedFd<'_>, slots: usize, longest: usize) -> io::Result<Self> {
        let (slot, slots) = Self::size(slots, longest);
        Self::map(socket, slot, slots, false)
    }

    /// Bytes of a slot, and number of slots.
    pub(crate) fn size(slots: usize, longest: usize) -> (usize, usize) {
        let slot = (longest + SLOT_OVERHEAD).next_power_of_two().clamp(1 << 11, BLOCK);
        (slot, slots.next_power_of_two().max(BLOCK / slot))
    }

    fn map(socket: BorrowedFd<'_>, slot: usize, slots: usize, is_found: bool) -> io::Result<Self> {
        // SAFETY: a fresh mapping at an address of the kernel's choice, of the length that the
        // ring was made with; nothing else refers to it.
        let memory = unsafe {
            libc::mmap(
                ptr::null_mut(),
                slots * slot,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                socket.as_raw_fd(),
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory = NonNull::new(memory.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { memory, slot, slots, next: 0, is_found, is_noted: false })
    }

    fn status(&self, index: usize) -> &AtomicU32 {
        let offset = (index & (self.slots - 1)) * self.slot;
        // SAFETY: the offset lies in the mapping and is a multiple of the slot's size, so the
        // word is aligned; kernel and we access it atomically only.
        unsafe { AtomicU32::from_ptr(self.memory.as_ptr().add(offset).cast()) }
    }

    /// The next frame may be anywhere: another process has used the ring meanwhile.
    pub(crate) fn forget_position(&mut self) {
        self.is_found = false;
        self.is_noted = false;
    }

    /// Finds the oldest frame of a ring that another process used. The kernel fills slots in order, so the oldest frame
    /// follows an empty slot; if none is empty, it is the one with the earliest time. Returns whether there is any frame.
    #[cold]
    fn find(&mut self) -> bool {
        let some = (0..self.slots).find(|&index| self.is_filled(index));
        let Some(some) = some else { return false };
        // CPUs complete frames out of order: the one before the first may follow a moment later. So the first look only
        // notes that there are frames.
        if !std::mem::replace(&mut self.is_noted, true) {
            return false;
        }
        let after_empty = (some..some + self.slots)
            .find(|&i| self.is_filled(i) && !self.is_filled(i + self.slots - 1));
        let first = after_empty.or_else(|| (0..self.slots).min_by_key(|&index| self.time(index)));
        self.next = first.unwrap_or(some) & (self.slots - 1);
        self.is_found = true;
        true
    }

    /// Whether a slot has a frame that was not released.
    fn is_filled(&self, index: usize) -> bool {
        // Acquire: as in `peek`.
        self.status(index).load(Ordering::Acquire) & TP_STATUS_USER != 0
    }

    /// When the kernel received the frame in a slot that has one.
    fn time(&self, index: usize) -> (u32, u32) {
        let offset = (index & (self.slots - 1)) * self.slot;
        // SAFETY: as in `peek`.
        let slot = unsafe { slice::from_raw_parts(self.memory.as_ptr().add(offset), self.slot) };
        let word =
            |at: usize| u32::from_ne_bytes([slot[at], slot[at + 1], slot[at + 2], slot[at + 3]]);
        // tp_sec and tp_nsec.
        (word(16), word(20))
    }

    /// Makes sure that the oldest frame is known. Returns whether there may be one.
    pub(crate) fn is_ready(&mut self) -> bool {
        self.is_found || self.find()
    }

    /// The frame that is `ahead` frames behind the oldest one not yet released; `None` if it has
    /// not arrived.
    pub(crate) fn peek(&self, ahead: usize) -> Option<Frame<'_>> {
        if ahead >= self.slots {
            return None;
        }
        // Acquire: everything that the kernel wrote before the status is visible.
        let status = self.status(self.next + ahead).load(Ordering::Acquire);
        if status & TP_STATUS_USER == 0 {
            return None;
        }
        if status & TP_STATUS_COPY != 0 {
            return Some(Frame::Queued);
        }
        let offset = ((self.next + ahead) & (self.slots - 1)) * self.slot;
        // SAFETY: the slot lies in the mapping and is ours, since its status says so, until
        // `release` (which needs `&mut self`, so the borrow has ended) gives it back.
        let slot = unsafe { slice::from_raw_parts(self.memory.as_ptr().add(offset), self.slot) };
        Some(read(slot, status))
    }

    /// Gives the oldest `count` frames back to the kernel.
    pub(crate) fn release(&mut self, count: usize) {
        for _ in 0..count {
            // Release: our reads are complete before the kernel writes.
            self.status(self.next).store(TP_STATUS_KERNEL, Ordering::Release);
            self.next = (self.next + 1) & (self.slots - 1);
        }
    }
}

/// Reads one slot. The kernel's data is trusted, but memory safety does not depend on it.
fn read(slot: &[u8], status: u32) -> Frame<'_> {
    let word = |at: usize| u32::from_ne_bytes([slot[at], slot[at + 1], slot[at + 2], slot[at + 3]]);
    let half = |at: usize| u16::from_ne_bytes([slot[at], slot[at + 1]]);
    const _: () = assert!(HEADER >= 32);
    let (len, captured, mac) = (word(4) as usize, word(8) as usize, usize::from(half(12)));
    let parts = (|| {
        let header = slot.get(mac.checked_sub(VNET_HEADER)?..mac)?;
        Some((header, slot.get(mac..mac + captured)?))
    })();
    match parts {
        Some((header, bytes)) if len == captured => {
            Frame::Whole { header, bytes, vlan: vlan_tag(status, half(24), half(26)) }
        }
        _ => Frame::Lost,
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this length and nothing borrows from it any more.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.slot * self.slots) };
    }
}
