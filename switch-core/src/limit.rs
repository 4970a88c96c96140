//! Rate limits: a token bucket, and a bounded set of token buckets, one per source or port. Used by one
//! worker, never shared, of fixed size. The caller passes the time.

use std::net::IpAddr;

use podswitch_wire::flow_key::{FlowKey, HashKey, to_bytes};

use crate::time::Instant;

/// A bucket counts in fractions of a token, so that a refill after a nanosecond loses nothing to rounding. One token is
/// this many fractions.
const TOKEN: u64 = 1_000_000_000;

/// A rate limit: events per second, and the burst that is allowed after a pause.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    /// Tokens added per second.
    pub per_second: u32,
    /// Tokens in a full bucket. 0: nothing passes.
    pub burst: u32,
}

impl Rate {
    /// `per_second` tokens per second, `burst` at once.
    pub const fn new(per_second: u32, burst: u32) -> Self {
        Self { per_second, burst }
    }

    const fn full(&self) -> u64 {
        self.burst as u64 * TOKEN
    }
}

/// Fill level of a bucket at its last update.
#[derive(Clone, Copy, Debug)]
struct Level {
    tokens: u64,
    at: Instant,
}

impl Level {
    /// The level at `now`. Time that runs backwards adds nothing.
    fn at(&self, rate: &Rate, now: Instant) -> u64 {
        let nanos = now.as_nanos().saturating_sub(self.at.as_nanos());
        let refill = nanos.saturating_mul(u64::from(rate.per_second));
        self.tokens.saturating_add(refill).min(rate.full())
    }

    fn take(&mut self, rate: &Rate, count: u32, now: Instant) -> bool {
        let level = self.at(rate, now);
        self.at = self.at.max(now);
        let (rest, short) = level.overflowing_sub(u64::from(count) * TOKEN);
        self.tokens = if short { level } else { rest };
        !short
    }
}

/// A token bucket. Starts full.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    rate: Rate,
    level: Level,
}

impl TokenBucket {
    /// A full bucket.
    pub const fn new(rate: Rate) -> Self {
        Self { rate, level: Level { tokens: rate.full(), at: Instant::ZERO } }
    }

    /// Takes one token; false if there is none.
    #[inline]
    pub fn take(&mut self, now: Instant) -> bool {
        self.take_many(1, now)
    }

    /// Takes `count` tokens. If there are fewer, takes none and returns false.
    #[inline]
    pub fn take_many(&mut self, count: u32, now: Instant) -> bool {
        self.level.take(&self.rate, count, now)
    }

    /// Returns a token that was taken and not used.
    pub fn put_back(&mut self) {
        self.level.tokens = self.level.tokens.saturating_add(TOKEN).min(self.rate.full());
    }

    /// The rate.
    pub const fn rate(&self) -> Rate {
        self.rate
    }
}

/// Buckets that one key may use.
const WAYS: usize = 8;

#[derive(Clone, Copy, Debug)]
struct Slot {
    key: u64,
    level: Level,
}

/// One token bucket per key, for a bounded number of keys.
///
/// If a key has no bucket, it takes over the fullest of the eight buckets that it may use, with its level. So full
/// buckets are replaced first, which loses nothing. No matter how many keys an attacker invents, the total rate is at
/// most the number of buckets times the rate, because a take-over adds no tokens.
#[derive(Clone, Debug)]
pub struct KeyedLimiter {
    rate: Rate,
    slots: Box<[Slot]>,
}

impl KeyedLimiter {
    /// A limiter for about `keys` keys, rounded up to a power of two, at least eight. 24 bytes each,
    /// allocated here.
    pub fn new(rate: Rate, keys: usize) -> Self {
        let count = keys.max(WAYS).next_power_of_two();
        let level = Level { tokens: rate.full(), at: Instant::ZERO };
        Self { rate, slots: vec![Slot { key: 0, level }; count].into_boxed_slice() }
    }

    /// Takes one token of `key`; false if there is none.
    ///
    /// Keys that others can choose, such as addresses, must be hashed with a secret (see
    /// [`address_key`]), or they could be chosen to share one set. Small integers such as port numbers
    /// are mixed here.
    pub fn take(&mut self, key: u64, now: Instant) -> bool {
        let rate = self.rate;
        self.slot(key, now).level.take(&rate, 1, now)
    }

    /// Puts back one token of `key` that was taken and not used.
    pub fn put_back(&mut self, key: u64, now: Instant) {
        let full = self.rate.full();
        let level = &mut self.slot(key, now).level;
        level.tokens = level.tokens.saturating_add(TOKEN).min(full);
    }

    /// The rate of each key.
    pub const fn rate(&self) -> Rate {
        self.rate
    }

    fn slot(&mut self, key: u64, now: Instant) -> &mut Slot {
        let sets = self.slots.len() / WAYS;
        // Fibonacci hashing: the upper half of the product depends on all bits of the key.
        let mixed = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let start = (mixed as usize & (sets - 1)) * WAYS;
        let rate = self.rate;
        let set = &mut self.slots[start..start + WAYS];
        let way = set.iter().position(|s| s.key == key).unwrap_or_else(|| {
            let fullest = (0..WAYS).max_by_key(|&way| set[way].level.at(&rate, now));
            fullest.unwrap_or(0)
        });
        set[way].key = key;
        &mut set[way]
    }
}

/// The key of an address: its hash with the process's secret.
pub fn address_key(address: IpAddr, secret: &HashKey) -> u64 {
    let (src, family) = to_bytes(address);
    FlowKey { src, family, ..FlowKey::default() }.hash(secret)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn burst_then_rate() {
        let mut bucket = TokenBucket::new(Rate::new(10, 3));
        let start = Instant::from_secs(5);
        assert_eq!((0..10).filter(|_| bucket.take(start)).count(), 3);
        assert!(!bucket.take(start + 99 * MS));
        assert!(bucket.take(start + 100 * MS));
        assert!(!bucket.take(start + 199 * MS));
        assert!(bucket.take(start + 200 * MS));
        // A long pause fills it to the burst and no further.
        let later = start + Duration::from_secs(1_000_000);
        assert_eq!((0..10).filter(|_| bucket.take(later)).count(), 3);
    }

    #[test]
    fn extremes() {
        let mut never = TokenBucket::new(Rate::new(u32::MAX, 0));
        assert!(!never.take(Instant::from_secs(1 << 33)));
        let mut once = TokenBucket::new(Rate::new(0, 1));
        assert!(once.take(Instant::ZERO));
        assert!(!once.take(Instant::from_nanos(u64::MAX)));
        once.put_back();
        assert!(once.take(Instant::ZERO));
        let mut all = TokenBucket::new(Rate::new(u32::MAX, u32::MAX));
        assert!(all.take_many(u32::MAX, Instant::ZERO));
        assert!(!all.take(Instant::ZERO));
        assert!(all.take_many(u32::MAX, Instant::from_secs(1)));
    }

    #[test]
    fn taking_several_tokens_is_all_or_nothing() {
        let mut bucket = TokenBucket::new(Rate::new(1, 4));
        assert!(bucket.take_many(3, Instant::ZERO));
        assert!(!bucket.take_many(2, Instant::ZERO));
        assert!(bucket.take_many(1, Instant::ZERO));
    }

    #[test]
    fn keys_do_not_share_buckets_while_there_is_room() {
        let mut limiter = KeyedLimiter::new(Rate::new(1, 2), 64);
        for key in 1..=4 {
            assert!(limiter.take(key, Instant::ZERO));
            assert!(limiter.take(key, Instant::ZERO));
            assert!(!limiter.take(key, Instant::ZERO));
        }
        assert!(limiter.take(3, Instant::from_secs(1)));
        assert!(!limiter.take(3, Instant::from_secs(1)));
    }

    #[test]
    fn invented_keys_add_no_tokens() {
        let mut limiter = KeyedLimiter::new(Rate::new(10, 5), 32);
        let mut passed = 0;
        for key in 0..100_000u64 {
            passed += usize::from(limiter.take(key, Instant::ZERO));
        }
        assert_eq!(passed, 32 * 5);
        // A second later 10 tokens have been added to each bucket, of which it holds 5.
        for key in 0..100_000u64 {
            passed += usize::from(limiter.take(key, Instant::from_secs(1)));
        }
        assert_eq!(passed, 2 * 32 * 5);
    }

    #[test]
    fn address_keys_differ_by_family_and_secret() {
        let secret = HashKey::new(1);
        let v4: IpAddr = "10.1.2.3".parse().unwrap();
        let v6: IpAddr = "a01:203::".parse().unwrap();
        assert_ne!(address_key(v4, &secret), address_key(v6, &secret));
        assert_ne!(address_key(v4, &secret), address_key(v4, &HashKey::new(2)));
        assert_eq!(address_key(v4, &secret), address_key(v4, &secret));
    }

    proptest! {
        /// For any sequence of times, including times that run backwards, no more events pass than the burst plus what
        /// the rate adds in the elapsed time.
        #[test]
        fn never_over_the_rate(
            per_second in 1u32..1000,
            burst in 1u32..50,
            steps in prop::collection::vec(0u64..200_000_000, 1..200),
        ) {
            let mut bucket = TokenBucket::new(Rate::new(per_second, burst));
            let (mut now, mut passed) = (0u64, 0u128);
            for (i, step) in steps.iter().enumerate() {
                now += step;
                let shown = if i % 7 == 6 { now / 2 } else { now };
                passed += u128::from(bucket.take(Instant::from_nanos(shown)));
                let allowed = u128::from(burst)
                    + u128::from(now) * u128::from(per_second) / u128::from(TOKEN);
                prop_assert!(passed <= allowed);
            }
        }
    }
}
