//! A worker's store of packet buffers: two sizes, last in first out so that the warm ones are
//! used again, bounded.

use super::{HEADROOM, MAX_FRAME, Packet};

/// Which buffer a frame needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SizeClass {
    /// Frames of up to [`Pool::SMALL`] octets.
    Small,
    /// Super-frames and jumbo frames, up to [`MAX_FRAME`] and room to encapsulate.
    Large,
}

/// How many buffers a pool may have outstanding or kept, by size.
#[derive(Clone, Copy, Debug)]
pub struct PoolConfig {
    /// Small buffers (2 KiB).
    pub small: usize,
    /// Large buffers (64 KiB).
    pub large: usize,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self { small: 4096, large: 512 }
    }
}

/// Buffers of one worker. Allocates on first use and never more than its configuration says.
#[derive(Debug)]
pub struct Pool {
    config: PoolConfig,
    small: Vec<Packet>,
    large: Vec<Packet>,
    small_out: usize,
    large_out: usize,
}

impl Pool {
    /// The largest frame in a small buffer. With headroom an odd number of cache lines, so that
    /// buffers do not fall on the same cache sets.
    pub const SMALL: usize = 33 * 64 - HEADROOM;
    /// The largest frame in a large buffer, an odd number of cache lines likewise.
    pub const LARGE: usize = 1033 * 64 - HEADROOM;

    /// An empty pool.
    pub fn new(config: PoolConfig) -> Self {
        Self { config, small: Vec::new(), large: Vec::new(), small_out: 0, large_out: 0 }
    }

    /// An empty packet, or `None` when the pool's bound is reached.
    #[inline]
    pub fn alloc(&mut self, class: SizeClass) -> Option<Packet> {
        let (kept, out, limit, size) = match class {
            SizeClass::Small => {
                (&mut self.small, &mut self.small_out, self.config.small, Self::SMALL)
            }
            SizeClass::Large => {
                (&mut self.large, &mut self.large_out, self.config.large, Self::LARGE)
            }
        };
        if let Some(packet) = kept.pop() {
            *out += 1;
            return Some(packet);
        }
        if *out >= limit {
            return None;
        }
        *out += 1;
        Some(Packet::with_capacity(size))
    }

    /// A packet that can hold `len` octets.
    #[inline]
    pub fn alloc_for(&mut self, len: usize) -> Option<Packet> {
        match len {
            0..=Self::SMALL => self.alloc(SizeClass::Small),
            _ if len <= Self::LARGE => self.alloc(SizeClass::Large),
            _ => None,
        }
    }

    /// Takes a packet back. One of a foreign size, or more than the pool keeps, is freed.
    #[inline]
    pub fn free(&mut self, mut packet: Packet) {
        let (kept, out, limit) = match packet.buffer_len() - HEADROOM {
            Self::SMALL => (&mut self.small, &mut self.small_out, self.config.small),
            Self::LARGE => (&mut self.large, &mut self.large_out, self.config.large),
            _ => return,
        };
        *out = out.saturating_sub(1);
        if kept.len() < limit {
            packet.reset();
            kept.push(packet);
        }
    }

    /// Counts a packet that came with its buffer from elsewhere (another thread's pool). The
    /// bound on buffers does not hold it up: whoever sent it was bound by its queue.
    #[inline]
    pub fn adopt(&mut self, packet: &Packet) {
        match packet.buffer_len() - HEADROOM {
            Self::SMALL => self.small_out += 1,
            Self::LARGE => self.large_out += 1,
            _ => {}
        }
    }

    /// Tells the pool that packets of this size left it for good (handed to another thread).
    #[inline]
    pub fn forget(&mut self, packet: &Packet) {
        match packet.buffer_len() - HEADROOM {
            Self::SMALL => self.small_out = self.small_out.saturating_sub(1),
            Self::LARGE => self.large_out = self.large_out.saturating_sub(1),
            _ => {}
        }
    }

    /// Buffers handed out and not yet back: small, large.
    pub fn outstanding(&self) -> (usize, usize) {
        (self.small_out, self.large_out)
    }
}

const _: () = assert!(Pool::LARGE >= MAX_FRAME + 86);
