//! The learned path MTU to a VTEP (RFC 1191 §6.3, RFC 8201 §4).

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::time::Instant;

/// Seconds after which a learned path MTU expires, so that a larger one is found again: ten
/// minutes, as in RFC 1191 and Linux.
pub const PATH_MTU_SECS: u64 = 600;

/// A learned path MTU. Read for each packet to the tunnel, rarely written.
#[derive(Debug, Default)]
pub struct PathMtu {
    /// The second in which it expires, times 2^16, plus the MTU; zero: none.
    learnt: AtomicU64,
}

impl PathMtu {
    /// The path's MTU in bytes, if one is known at `now`.
    #[inline]
    pub fn get(&self, now: Instant) -> Option<u16> {
        match self.learnt.load(Relaxed) {
            0 => None,
            learnt => (now.as_secs() < learnt >> 16).then_some(learnt as u16),
        }
    }

    /// The learned MTU, and the seconds until it expires.
    pub fn left(&self, now: Instant) -> Option<(u16, u64)> {
        let mtu = self.get(now)?;
        Some((mtu, (self.learnt.load(Relaxed) >> 16).saturating_sub(now.as_secs())))
    }

    /// Stores an MTU learned at `now`.
    pub fn learn(&self, mtu: u16, now: Instant) {
        self.learn_for(mtu, now, PATH_MTU_SECS);
    }

    /// Stores an MTU at `now` that expires after this number of seconds, at most [`PATH_MTU_SECS`].
    pub fn learn_for(&self, mtu: u16, now: Instant, left: u64) {
        let left = left.min(PATH_MTU_SECS);
        let ends = now.as_secs().saturating_add(left) & 0xffff_ffff_ffff;
        self.learnt.store(ends << 16 | u64::from(mtu), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_learned_mtu_expires() {
        let path = PathMtu::default();
        assert_eq!(path.get(Instant::from_secs(0)), None);
        path.learn(1400, Instant::from_secs(5));
        assert_eq!(path.get(Instant::from_secs(5)), Some(1400));
        assert_eq!(path.get(Instant::from_secs(604)), Some(1400));
        assert_eq!(path.get(Instant::from_secs(605)), None);
        path.learn(1300, Instant::from_secs(606));
        assert_eq!(path.get(Instant::from_secs(607)), Some(1300));
        assert_eq!(path.left(Instant::from_secs(616)), Some((1300, 590)));
        path.learn_for(1280, Instant::from_secs(7), 10);
        assert_eq!(path.left(Instant::from_secs(9)), Some((1280, 8)));
        assert_eq!(path.left(Instant::from_secs(17)), None);
        path.learn_for(1280, Instant::from_secs(0), u64::MAX);
        assert_eq!(path.left(Instant::from_secs(0)), Some((1280, PATH_MTU_SECS)));
    }
}
