//! A slot of the table and its value word. Compiled a second time by `model.rs`.

use super::PORTS;
use super::atomic::{AtomicU64, Ordering};
use crate::id::PortId;
use crate::time::Instant;

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) key: AtomicU64,
    pub(super) value: AtomicU64,
}

const _: () = assert!(PORTS <= 1 << PORT_BITS);
const PORT_BITS: u32 = 12;
const EXPIRY_BITS: u32 = 30;
pub(super) const EXPIRY_MASK: u32 = (1 << EXPIRY_BITS) - 1;
/// Longest ageing time, in seconds: a quarter of the range of the expiry, so that past and future can
/// be told apart when it wraps.
pub(super) const MAX_AGEING: u32 = 1 << (EXPIRY_BITS - 2);
pub(super) const GENERATION_SHIFT: u32 = 2 + EXPIRY_BITS + PORT_BITS;

/// The state of a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    Free = 0,
    /// A thread is writing the key.
    Busy = 1,
    Learned = 2,
    Static = 3,
}

/// A slot's value word.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Value(pub(super) u64);

impl Value {
    #[inline]
    pub(super) fn new(generation: u32, state: State, port: PortId, expiry: u32) -> Self {
        Self(
            u64::from(generation) << GENERATION_SHIFT
                | u64::from(port.0) << (2 + EXPIRY_BITS)
                | u64::from(expiry & EXPIRY_MASK) << 2
                | state as u64,
        )
    }

    #[inline]
    pub(super) fn state(self) -> State {
        match self.0 & 3 {
            0 => State::Free,
            1 => State::Busy,
            2 => State::Learned,
            _ => State::Static,
        }
    }

    #[inline]
    pub(super) fn generation(self) -> u32 {
        (self.0 >> GENERATION_SHIFT) as u32
    }

    #[inline]
    pub(super) fn port(self) -> PortId {
        PortId((self.0 >> (2 + EXPIRY_BITS)) as u16 & ((1 << PORT_BITS) - 1))
    }

    #[inline]
    pub(super) fn expiry(self) -> u32 {
        (self.0 >> 2) as u32 & EXPIRY_MASK
    }

    #[inline]
    pub(super) fn free(self) -> Self {
        Self::new(self.generation(), State::Free, PortId(0), 0)
    }

    /// Whether it is an entry, expired or not.
    #[inline]
    pub(super) fn is_entry(self) -> bool {
        matches!(self.state(), State::Learned | State::Static)
    }

    /// Seconds left; 0 if expired, `None` for entries that do not expire.
    #[inline]
    pub(super) fn left(self, now: u32) -> Option<u32> {
        match self.state() {
            State::Static => None,
            _ => {
                let left = self.expiry().wrapping_sub(now) & EXPIRY_MASK;
                Some(if left > 2 * MAX_AGEING { 0 } else { left })
            }
        }
    }

    #[inline]
    pub(super) fn is_expired(self, now: u32) -> bool {
        self.left(now) == Some(0)
    }
}

/// The current time in the representation of the expiry.
pub(super) fn seconds(now: Instant) -> u32 {
    now.as_secs() as u32 & EXPIRY_MASK
}

impl Slot {
    #[inline]
    pub(super) fn load(&self) -> Value {
        Value(self.value.load(Ordering::Acquire))
    }

    /// The slot's value if it holds `key`. See the head of `fdb.rs` for why this is correct.
    #[inline]
    pub(super) fn read(&self, key: u64) -> Option<Value> {
        // A quick check: another key's slot is skipped without further loads.
        if self.key.load(Ordering::Relaxed) != key {
            return None;
        }
        let before = self.load();
        if !before.is_entry() || self.key.load(Ordering::Acquire) != key {
            return None;
        }
        let after = self.load();
        (after.is_entry() && after.generation() == before.generation()).then_some(after)
    }

    /// The slot's key and value, if it holds an entry.
    #[inline]
    pub(super) fn snapshot(&self) -> Option<(u64, Value)> {
        let before = self.load();
        let key = self.key.load(Ordering::Acquire);
        let after = self.load();
        let whole =
            before.is_entry() && after.is_entry() && after.generation() == before.generation();
        whole.then_some((key, after))
    }

    /// Replaces the value `old`; false if the slot no longer has it.
    #[inline]
    pub(super) fn replace(&self, old: Value, new: Value) -> bool {
        self.value.compare_exchange(old.0, new.0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}
