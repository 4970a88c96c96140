//! The pinned facts of a connection in its slot. Compiled a second time by `model.rs`.
//!
//! Relaxed atomics suffice: they are written and read under the lock of the slot's home shard, or of
//! a shard whose index leads to the slot. Atomics rather than plain words, so that a slot can be used
//! again without `unsafe`.

use core::array::from_fn;
use core::sync::atomic::Ordering::Relaxed;

use podswitch_vxlan::vtep::VtepIndex;
use podswitch_wire::addr::Mac;
use podswitch_wire::flow_key::FlowKey;

use super::sync::AtomicU64;
use super::{Account, Direction, Opened, Pinned, SourceNat};
use crate::id::PortId;

/// Bit of [`Facts::kind`]: the reply key is not the reverse of the original key, and is stored in a
/// [`ReplyFacts`].
const TRANSLATED: u64 = 1 << 8;
/// Position in [`Facts::kind`] of how the connection was opened: two bits.
const OPENED: u32 = 9;

/// Bit of [`Facts::kind`]: a record says that the connection has ended, although its slot is kept: see `review.rs`.
const RECORDED: u64 = 1 << 11;

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

/// The facts of one slot. One cache line.
#[repr(C, align(64))]
pub(super) struct Facts {
    /// Key of the original direction.
    original: [AtomicU64; 5],
    /// Origin port (low 16), origin MAC (high 48).
    origin: AtomicU64,
    /// Kind of SNAT (low 8), [`TRANSLATED`], [`OPENED`], origin VTEP plus one (high 32).
    kind: AtomicU64,
    /// Index hash of the original key.
    pub(super) index_hash: AtomicU64,
}

/// The reply key of a translated connection. One cache line, allocated only if it is needed.
#[repr(C, align(64))]
pub(super) struct ReplyFacts {
    /// Key of the reply direction.
    reply: [AtomicU64; 5],
    /// Its index hash.
    pub(super) index_hash: AtomicU64,
}

impl ReplyFacts {
    pub(super) fn new() -> Self {
        Self { reply: zeroes(), index_hash: AtomicU64::new(0) }
    }

    pub(super) fn store(&self, reply: &FlowKey, hash: u64) {
        store(&self.reply, reply.words());
        self.index_hash.store(hash, Relaxed);
    }

    fn is(&self, key: &FlowKey) -> bool {
        load(&self.reply) == key.words()
    }
}

impl Facts {
    pub(super) fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self { original: zeroes(), origin: zero(), kind: zero(), index_hash: zero() }
    }

    /// Stores the facts, except the reply key of a translated connection.
    pub(super) fn store(&self, pinned: &Pinned, hash: u64) {
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
        self.index_hash.store(hash, Relaxed);
    }

    /// The account that connection limits are charged to.
    #[inline]
    pub(super) fn account(&self) -> Account {
        Account::of(self.origin(), self.origin_end())
    }

    /// The port that the originator's packets are received on.
    #[inline]
    pub(super) fn origin(&self) -> PortId {
        PortId(self.origin.load(Relaxed) as u16)
    }

    /// Key of the original direction.
    pub(super) fn original(&self) -> FlowKey {
        FlowKey::from_words(load(&self.original))
    }

    #[inline]
    pub(super) fn origin_end(&self) -> Option<VtepIndex> {
        let end = (self.kind.load(Relaxed) >> 32) as u32;
        end.checked_sub(1).map(VtepIndex)
    }

    #[inline]
    pub(super) fn is_translated(&self) -> bool {
        self.kind.load(Relaxed) & TRANSLATED != 0
    }

    /// Whether the connection has leased an SNAT port.
    #[inline]
    pub(super) fn has_lease(&self) -> bool {
        self.source_nat() != SourceNat::Kept
    }

    /// Whether a record says that the connection has ended.
    #[inline]
    pub(super) fn is_recorded(&self) -> bool {
        self.kind.load(Relaxed) & RECORDED != 0
    }

    /// Sets that. The caller holds the lock of the home shard.
    pub(super) fn set_recorded(&self, recorded: bool) {
        let kind = self.kind.load(Relaxed) & !RECORDED;
        self.kind.store(kind | if recorded { RECORDED } else { 0 }, Relaxed);
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

    /// Which direction of the connection `key` is, if any. `reply`: its reply facts.
    #[inline]
    pub(super) fn direction<'a>(
        &self,
        key: &FlowKey,
        reply: impl FnOnce() -> Option<&'a ReplyFacts>,
    ) -> Option<Direction> {
        let original = load(&self.original);
        if original == key.words() {
            return Some(Direction::Original);
        }
        let is_reply = if self.is_translated() {
            reply().is_some_and(|reply| reply.is(key))
        } else {
            original == key.reversed().words()
        };
        is_reply.then_some(Direction::Reply)
    }

    pub(super) fn pinned<'a>(&self, reply: impl FnOnce() -> Option<&'a ReplyFacts>) -> Pinned {
        let original = self.original();
        let reply = if self.is_translated() { reply() } else { None };
        let reply = match reply {
            Some(facts) => FlowKey::from_words(load(&facts.reply)),
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
