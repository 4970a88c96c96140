//! A worker's pool of packet buffers: bounded, with two buffer sizes, last in first out, so that buffers which are
//! still in the cache are used first.

use super::{Batch, HEADROOM, MAX_FRAME, Packet};

/// Size of a buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SizeClass {
    /// Frames of up to [`Pool::SMALL`] bytes.
    Small,
    /// GSO packets and jumbo frames, up to [`MAX_FRAME`] and tunnel headers.
    Large,
}

/// Maximum number of buffers in use, and of free buffers that are kept, by size.
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

/// Buffers of one worker. Allocates on first use, up to the limits of its configuration.
#[derive(Debug)]
pub struct Pool {
    config: PoolConfig,
    small: Vec<Packet>,
    large: Vec<Packet>,
    small_out: usize,
    large_out: usize,
}

impl Pool {
    /// Largest frame in a small buffer. With headroom an odd number of cache lines, so that buffers do
    /// not map to the same cache sets.
    pub const SMALL: usize = 33 * 64 - HEADROOM;
    /// Largest frame in a large buffer; also an odd number of cache lines.
    pub const LARGE: usize = 1033 * 64 - HEADROOM;

    /// An empty pool.
    pub fn new(config: PoolConfig) -> Self {
        Self { config, small: Vec::new(), large: Vec::new(), small_out: 0, large_out: 0 }
    }

    /// An empty packet; `None` if the limit is reached.
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

    /// An empty packet for `len` bytes; `None` if the limit is reached, or no buffer is that large.
    #[inline]
    pub fn alloc_for(&mut self, len: usize) -> Option<Packet> {
        if len <= Self::SMALL
            && let Some(packet) = self.small.pop()
        {
            self.small_out += 1;
            return Some(packet);
        }
        self.alloc_slow(len)
    }

    /// Appends up to `count` empty packets of up to [`SMALL`](Self::SMALL) bytes to `batch`.
    #[inline]
    pub fn alloc_burst(&mut self, batch: &mut Batch, count: usize) {
        let count = count.min(batch.remaining_capacity());
        let ready = count.min(self.small.len());
        batch.extend(self.small.drain(self.small.len() - ready..).rev());
        self.small_out += ready;
        for _ in ready..count {
            let Some(packet) = self.alloc(SizeClass::Small) else { break };
            batch.push(packet);
        }
    }

    #[inline(never)]
    fn alloc_slow(&mut self, len: usize) -> Option<Packet> {
        match len {
            0..=Self::SMALL => self.alloc(SizeClass::Small),
            _ if len <= Self::LARGE => self.alloc(SizeClass::Large),
            _ => None,
        }
    }

    /// Returns a packet to the pool. A buffer of another size, or beyond the limit, is freed.
    #[inline]
    pub fn free(&mut self, mut packet: Packet) {
        if packet.buffer_len() == HEADROOM + Self::SMALL && self.small.len() < self.config.small {
            self.small_out = self.small_out.saturating_sub(1);
            packet.reset();
            return self.small.push(packet);
        }
        self.free_slow(packet);
    }

    /// Returns all packets of a burst.
    #[inline]
    pub fn free_burst(&mut self, batch: &mut Batch) {
        let mut back = 0;
        self.small.reserve(batch.len());
        for mut packet in batch.drain(..) {
            if packet.buffer_len() == HEADROOM + Self::SMALL && self.small.len() < self.config.small
            {
                back += 1;
                packet.reset();
                self.small.push(packet);
            } else {
                self.free_slow(packet);
            }
        }
        self.small_out = self.small_out.saturating_sub(back);
    }

    #[inline(never)]
    fn free_slow(&mut self, mut packet: Packet) {
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

    /// Counts a packet whose buffer came from another thread's pool. The limit does not apply: the
    /// queue that it came through is bounded.
    #[inline]
    pub fn adopt(&mut self, packet: &Packet) {
        match packet.buffer_len() - HEADROOM {
            Self::SMALL => self.small_out += 1,
            Self::LARGE => self.large_out += 1,
            _ => {}
        }
    }

    /// Stops counting a packet whose buffer was handed to another thread.
    #[inline]
    pub fn forget(&mut self, packet: &Packet) {
        match packet.buffer_len() - HEADROOM {
            Self::SMALL => self.small_out = self.small_out.saturating_sub(1),
            Self::LARGE => self.large_out = self.large_out.saturating_sub(1),
            _ => {}
        }
    }

    /// Buffers in use: small, large.
    pub fn outstanding(&self) -> (usize, usize) {
        (self.small_out, self.large_out)
    }
}

const _: () = assert!(Pool::LARGE >= MAX_FRAME + 86);

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> Pool {
        Pool::new(PoolConfig { small: 3, large: 1 })
    }

    #[test]
    fn allocation_stops_at_the_limit() {
        let mut pool = pool();
        let taken: Vec<_> = (0..3).map(|_| pool.alloc(SizeClass::Small).unwrap()).collect();
        assert!(pool.alloc(SizeClass::Small).is_none());
        let large = pool.alloc(SizeClass::Large).unwrap();
        assert!(pool.alloc(SizeClass::Large).is_none());
        assert_eq!(pool.outstanding(), (3, 1));
        for packet in taken {
            pool.free(packet);
        }
        pool.free(large);
        assert_eq!(pool.outstanding(), (0, 0));
    }

    #[test]
    fn the_buffer_freed_last_is_used_first_and_is_reset() {
        let mut pool = pool();
        let (first, mut second) = (pool.alloc_for(9).unwrap(), pool.alloc_for(9).unwrap());
        second.fill(&[1; 9]);
        second.push_front(20);
        second.offload.csum_partial = true;
        let place = second.spare_mut().as_ptr().addr() + 20;
        pool.free(first);
        pool.free(second);
        let again = pool.alloc_for(9).unwrap();
        assert_eq!(again.bytes().as_ptr().addr(), place);
        assert!(again.is_empty() && !again.offload.csum_partial);
    }

    #[test]
    fn the_length_decides_the_size() {
        let mut pool = pool();
        assert_eq!(pool.alloc_for(Pool::SMALL).unwrap().capacity(), Pool::SMALL);
        assert_eq!(pool.alloc_for(Pool::SMALL + 1).unwrap().capacity(), Pool::LARGE);
        assert!(pool.alloc_for(Pool::LARGE + 1).is_none());
    }

    #[test]
    fn buffers_to_and_from_other_threads_are_counted() {
        let mut pool = pool();
        let mine = pool.alloc(SizeClass::Small).unwrap();
        pool.forget(&mine);
        assert_eq!(pool.outstanding(), (0, 0));
        pool.adopt(&mine);
        let large = Packet::with_capacity(Pool::LARGE);
        pool.adopt(&large);
        let foreign = Packet::from_frame(&[1; 60]);
        pool.adopt(&foreign);
        assert_eq!(pool.outstanding(), (1, 1));
        pool.free(foreign);
        assert_eq!(pool.outstanding(), (1, 1), "a buffer of another size");
        pool.free(mine);
        pool.free(large);
        assert_eq!(pool.outstanding(), (0, 0));
    }

    #[test]
    fn buffers_beyond_the_limit_are_freed() {
        let mut pool = pool();
        for _ in 0..9 {
            let packet = Packet::with_capacity(Pool::SMALL);
            pool.adopt(&packet);
            pool.free(packet);
        }
        assert_eq!((pool.small.len(), pool.outstanding()), (3, (0, 0)));
        let taken: Vec<_> = std::iter::from_fn(|| pool.alloc(SizeClass::Small)).collect();
        assert_eq!(taken.len(), 3);
    }
}
