//! The header before the slots in memory that survives a restart.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use super::PORTS;
use crate::id::PortId;

/// Longest name of a port, in bytes. A pod's name has at most 63 bytes of the namespace, 253 of the name, and a few
/// more.
const NAME: usize = 376;

/// The name of a port, by which the next process finds its own port.
#[repr(C)]
struct Name {
    length: AtomicU64,
    bytes: [AtomicU64; NAME / 8],
}

/// The header before the slots.
#[repr(C, align(64))]
pub(super) struct Header {
    pub(super) magic: AtomicU64,
    /// Start of the process's clock, in nanoseconds of the system's monotonic clock.
    pub(super) clock: AtomicU64,
    pub(super) version: AtomicU32,
    /// Number of chunks for which there is room.
    pub(super) chunks: AtomicU32,
    /// The highest chunk in use, plus one.
    pub(super) used: AtomicU32,
    reserved: [AtomicU32; 9],
    names: [Name; PORTS],
}

impl Header {
    /// Names a port, unless the name is too long.
    pub(super) fn set_name(&self, port: PortId, name: &str) {
        let Some(place) = self.names.get(port.index()) else { return };
        place.length.store(0, Relaxed);
        if name.len() > NAME {
            return;
        }
        for (word, bytes) in place.bytes.iter().zip(name.as_bytes().chunks(8)) {
            let mut full = [0; 8];
            full[..bytes.len()].copy_from_slice(bytes);
            word.store(u64::from_le_bytes(full), Relaxed);
        }
        place.length.store(name.len() as u64, Relaxed);
    }

    /// The name of a port.
    pub(super) fn name(&self, port: PortId) -> Option<String> {
        let place = self.names.get(port.index())?;
        let length = usize::try_from(place.length.load(Relaxed)).ok()?;
        let bytes: Vec<u8> =
            place.bytes.iter().flat_map(|word| word.load(Relaxed).to_le_bytes()).collect();
        let name = bytes.get(..length).filter(|name| !name.is_empty())?;
        String::from_utf8(name.to_vec()).ok()
    }
}

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Header").field("used", &self.used).finish_non_exhaustive()
    }
}
