//! What never changes while a connection lives, once in its slot. Compiled a second time by
//! `model.rs`.
//!
//! Relaxed atomics, though they are written and read under the lock of the slot's home shard or of
//! a shard whose index leads to it: the words of a slot that is used again are nobody's but the
//! lock holder's, and no line of it is `unsafe`.

use core::array::from_fn;
use core::sync::atomic::Ordering::Relaxed;

use podswitch_vxlan::vtep::EndIndex;
use podswitch_wire::addr::Mac;
use podswitch_wire::flow_key::FlowKey;

use super::sync::AtomicU64;
use super::{Account, Direction, Opened, Pinned, SourceNat};
use crate::id::PortId;

/// Bit of [`Facts::kind`]: the reply is not just the reverse, and stands in an [`Answer`].
const TRANSLATED: u64 = 1 << 8;
/// Where [`Facts::kind`] has how the connection was opened: two bits.
const OPENED: u32 = 9;

fn load<const N: usize>(words: &[AtomicU64; N]) -> [u64; N] {
    from_fn(|i| words[i].load(Relaxed))
}

fn store<const N: usize>(words: &[AtomicU64; N], values: [u64; N]) {
    for (word, value) in words.iter().zip(values) {
        word.store(value, Relaxed);
    }
}

fn zeroes<const N: usize>() -> [AtomicU64; N] {
    from_fn(|_| AtomicU64::new(0))
}

/// Facts of one slot. One cache line.
#[repr(C, align(64))]
pub(super) struct Facts {
    /// Key of the original direction.
    original: [AtomicU64; 5],
    /// Origin port (low 16), origin MAC (high 48).
    origin: AtomicU64,
    /// How the source is translated (low 8), [`TRANSLATED`], [`OPENED`], origin tunnel end plus one
    /// (high 32).
    kind: AtomicU64,
    /// Where the original key is in the index.
    pub(super) place: AtomicU64,
}

/// The reply of a translated connection. One cache line; exists where there is one.
#[repr(C, align(64))]
pub(super) struct Answer {
    /// Key of the reply direction.
    reply: [AtomicU64; 5],
    /// Where it is in the index.
    pub(super) place: AtomicU64,
}

impl Answer {
    pub(super) fn new() -> Self {
        Self { reply: zeroes(), place: AtomicU64::new(0) }
    }

    pub(super) fn store(&self, reply: &FlowKey, place: u64) {
        store(&self.reply, reply.words());
        self.place.store(place, Relaxed);
    }

    fn is(&self, key: &FlowKey) -> bool {
        load(&self.reply) == key.words()
    }
}

impl Facts {
    pub(super) fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self { original: zeroes(), origin: zero(), kind: zero(), place: zero() }
    }

    /// `answer` is to be stored beside, if the connection is translated.
    pub(super) fn store(&self, pinned: &Pinned, place: u64) {
        let [a, b, c, d, e, f] = pinned.origin_mac.0;
        let mac = u64::from_be_bytes([a, b, c, d, e, f, 0, 0]);
        let translated = if pinned.is_translated() { TRANSLATED } else { 0 };
        let source_nat = match pinned.source_nat {
            SourceNat::Kept => 0,
            SourceNat::Connection => 1,
            SourceNat::Endpoint => 2,
        };
        store(&self.original, pinned.original.words());
        self.origin.store(mac | u64::from(pinned.origin.0), Relaxed);
        let end = pinned.origin_end.map_or(0, |end| u64::from(end.0) + 1) << 32;
        let opened = match pinned.opened {
            Opened::First => 0,
            Opened::MidStream => 1,
            Opened::Undirected => 2,
        } << OPENED;
        self.kind.store(source_nat | translated | opened | end, Relaxed);
        self.place.store(place, Relaxed);
    }

    /// Whom limits are charged to.
    #[inline]
    pub(super) fn account(&self) -> Account {
        Account::of(PortId(self.origin.load(Relaxed) as u16), self.origin_end())
    }

    /// Key of the original direction.
    pub(super) fn original(&self) -> FlowKey {
        FlowKey::from_words(load(&self.original))
    }

    #[inline]
    pub(super) fn origin_end(&self) -> Option<EndIndex> {
        let end = (self.kind.load(Relaxed) >> 32) as u32;
        end.checked_sub(1).map(EndIndex)
    }

    #[inline]
    pub(super) fn is_translated(&self) -> bool {
        self.kind.load(Relaxed) & TRANSLATED != 0
    }

    /// Whether a port was leased for it.
    #[inline]
    pub(super) fn has_lease(&self) -> bool {
        self.source_nat() != SourceNat::Kept
    }

    fn source_nat(&self) -> SourceNat {
        match self.kind.load(Relaxed) & 0xff {
            0 => SourceNat::Kept,
            1 => SourceNat::Connection,
            _ => SourceNat::Endpoint,
        }
    }

    fn opened(&self) -> Opened {
        match self.kind.load(Relaxed) >> OPENED & 3 {
            0 => Opened::First,
            1 => Opened::MidStream,
            _ => Opened::Undirected,
        }
    }

    /// Which direction of the connection `key` is, if it is one. `answer` is what stands beside.
    #[inline]
    pub(super) fn direction<'a>(
        &self,
        key: &FlowKey,
        answer: impl FnOnce() -> Option<&'a Answer>,
    ) -> Option<Direction> {
        let original = load(&self.original);
        if original == key.words() {
            return Some(Direction::Original);
        }
        let is_reply = if self.is_translated() {
            answer().is_some_and(|answer| answer.is(key))
        } else {
            original == key.reversed().words()
        };
        is_reply.then_some(Direction::Reply)
    }

    pub(super) fn pinned<'a>(&self, answer: impl FnOnce() -> Option<&'a Answer>) -> Pinned {
        let original = self.original();
        let answer = if self.is_translated() { answer() } else { None };
        let reply = match answer {
            Some(answer) => FlowKey::from_words(load(&answer.reply)),
            None => original.reversed(),
        };
        let origin = self.origin.load(Relaxed);
        let [a, b, c, d, e, f, ..] = origin.to_be_bytes();
        Pinned {
            original,
            reply,
            origin: PortId(origin as u16),
            origin_end: self.origin_end(),
            origin_mac: Mac([a, b, c, d, e, f]),
            source_nat: self.source_nat(),
            opened: self.opened(),
        }
    }
}
