//! A worker's store of packet buffers: two sizes, last in first out so that the warm ones are
//! used again, bounded.

use super::{Batch, HEADROOM, MAX_FRAME, Packet};

/// Which buffer a frame needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SizeClass {
    /// Frames of up to [`Pool::SMALL`] bytes.
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

    /// A packet that can hold `len` bytes.
    #[inline]
    pub fn alloc_for(&mut self, len: usize) -> Option<Packet> {
        if len <= Self::SMALL
            && let Some(packet) = self.small.pop()
        {
            self.small_out += 1;
            return Some(packet);
        }
        self.alloc_rare(len)
    }

    /// Up to `count` empty packets of up to [`SMALL`](Self::SMALL) bytes, at the end of `batch`.
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
    fn alloc_rare(&mut self, len: usize) -> Option<Packet> {
        match len {
            0..=Self::SMALL => self.alloc(SizeClass::Small),
            _ if len <= Self::LARGE => self.alloc(SizeClass::Large),
            _ => None,
        }
    }

    /// Takes a packet back. One of a foreign size, or more than the pool keeps, is freed.
    #[inline]
    pub fn free(&mut self, mut packet: Packet) {
        if packet.buffer_len() == HEADROOM + Self::SMALL && self.small.len() < self.config.small {
            self.small_out = self.small_out.saturating_sub(1);
            packet.reset();
            return self.small.push(packet);
        }
        self.free_rare(packet);
    }

    /// Takes all of a burst back.
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
                self.free_rare(packet);
            }
        }
        self.small_out = self.small_out.saturating_sub(back);
    }

    #[inline(never)]
    fn free_rare(&mut self, mut packet: Packet) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> Pool {
        Pool::new(PoolConfig { small: 3, large: 1 })
    }

    #[test]
    fn no_more_than_the_bound_is_handed_out() {
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
    fn the_buffer_used_last_comes_back_first_and_clean() {
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
    fn what_leaves_and_what_comes_from_elsewhere_is_counted() {
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
        assert_eq!(pool.outstanding(), (1, 1), "of a size that is not ours");
        pool.free(mine);
        pool.free(large);
        assert_eq!(pool.outstanding(), (0, 0));
    }

    #[test]
    fn more_than_it_may_keep_is_freed() {
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
