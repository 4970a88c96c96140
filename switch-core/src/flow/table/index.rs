//! The index: buckets of one cache line each, found by hash.
//!
//! A bucket is eight words: two of eight 16-bit tags, four of eight entry numbers, one that
//! counts the keys that passed the bucket by because it was full. A tag of zero is a free slot, so an empty
//! index is all zeroes: memory that the system gives when it is first touched, and an index of a
//! million entries is made without a pause.

/// Slots of a bucket.
pub(in crate::flow) const SLOTS: usize = 8;
/// Words of a bucket.
const WORDS: usize = 8;
const PASSED: usize = 6;

pub(in crate::flow) type Bucket = [u64; WORDS];

/// Lowest bit of each tag in a word, and highest.
const ONES: u64 = 0x0001_0001_0001_0001;
const HIGHS: u64 = ONES << 15;

/// Tags are never zero.
#[inline]
fn tag_of(hash: u64) -> u64 {
    hash >> 48 | 1
}

/// The highest bit of each tag of `tags` that is `tag`. A tag above one that fits may be marked
/// as well though it does not fit; whoever asks compares keys.
#[inline]
fn fits(tags: u64, tag: u64) -> u64 {
    let differ = tags ^ tag.wrapping_mul(ONES);
    differ.wrapping_sub(ONES) & !differ & HIGHS
}

/// The entry number in a slot.
#[inline]
fn number(bucket: &Bucket, slot: usize) -> u32 {
    (bucket[2 + slot / 2 % 4] >> (slot % 2 * 32)) as u32
}

fn set(bucket: &mut Bucket, slot: usize, tag: u64, number: u32) {
    let (word, shift) = (slot / 4, slot % 4 * 16);
    bucket[word] = bucket[word] & !(0xffff << shift) | tag << shift;
    let (word, shift) = (2 + slot / 2, slot % 2 * 32);
    bucket[word] = bucket[word] & !(0xffff_ffff << shift) | u64::from(number) << shift;
}

fn tag(bucket: &Bucket, slot: usize) -> u64 {
    bucket[slot / 4] >> (slot % 4 * 16) & 0xffff
}

pub(in crate::flow) struct Index {
    words: Vec<u64>,
    /// Where the first cache line begins.
    start: usize,
    mask: usize,
}

impl Index {
    pub(in crate::flow) fn new(buckets: usize) -> Self {
        let buckets = buckets.next_power_of_two();
        let words = vec![0u64; (buckets + 1) * WORDS];
        let start = (words.as_ptr().addr() / size_of::<u64>()).wrapping_neg() % WORDS;
        Self { words, start, mask: buckets - 1 }
    }

    pub(in crate::flow) fn buckets(&self) -> usize {
        self.mask + 1
    }

    #[inline]
    fn home(&self, hash: u64) -> usize {
        hash as usize & self.mask
    }

    #[inline]
    pub(in crate::flow) fn bucket(&self, at: usize) -> &Bucket {
        let base = self.start + at * WORDS;
        self.words[base..].first_chunk().expect("one bucket more than there are")
    }

    #[inline]
    fn bucket_mut(&mut self, at: usize) -> &mut Bucket {
        let base = self.start + at * WORDS;
        self.words[base..].first_chunk_mut().expect("one bucket more than there are")
    }

    /// Where the first bucket is in memory, and the mask of bucket numbers: what tells without
    /// the index where a hash's home is, for as long as the index is there.
    pub(in crate::flow) fn whereabouts(&self) -> [usize; 2] {
        [core::ptr::from_ref(self.bucket(0)).addr(), self.mask]
    }

    /// Brings the bucket of `hash` near.
    #[inline]
    pub(in crate::flow) fn prefetch(&self, hash: u64) {
        crate::prefetch::prefetch(self.bucket(self.home(hash)));
    }

    /// The number in the first slot of the home bucket whose tag fits.
    #[inline]
    pub(in crate::flow) fn candidate(&self, hash: u64) -> Option<u32> {
        let slot = self.candidate_slot(hash)?;
        Some(number(self.bucket(self.home(hash)), slot))
    }

    #[inline]
    fn candidate_slot(&self, hash: u64) -> Option<usize> {
        let bucket = self.bucket(self.home(hash));
        let tag = tag_of(hash);
        let (low, high) = (fits(bucket[0], tag), fits(bucket[1], tag));
        let slot = if low != 0 {
            low.trailing_zeros() / 16
        } else if high != 0 {
            4 + high.trailing_zeros() / 16
        } else {
            return None;
        };
        Some(slot as usize)
    }

    /// The first entry whose tag fits and which `same` accepts, with its bucket and slot.
    #[inline]
    pub(in crate::flow) fn find(
        &self,
        hash: u64,
        mut same: impl FnMut(u32) -> bool,
    ) -> Option<(usize, usize)> {
        let wanted = tag_of(hash);
        let mut at = self.home(hash);
        for _ in 0..self.buckets() {
            let bucket = self.bucket(at);
            for half in 0..2 {
                let mut left = fits(bucket[half], wanted);
                while left != 0 {
                    let slot = half * 4 + left.trailing_zeros() as usize / 16;
                    if tag(bucket, slot) == wanted && same(number(bucket, slot)) {
                        return Some((at, slot));
                    }
                    left &= left - 1;
                }
            }
            if bucket[PASSED] == 0 {
                return None;
            }
            at = (at + 1) & self.mask;
        }
        None
    }

    /// Whether anything of this hash may be there: its tag is in its home bucket, or something
    /// passed that by.
    #[inline]
    pub(in crate::flow) fn may_have(&self, hash: u64) -> bool {
        let (bucket, tag) = (self.bucket(self.home(hash)), tag_of(hash));
        fits(bucket[0], tag) | fits(bucket[1], tag) | bucket[PASSED] != 0
    }

    /// As [`find`](Self::find), the number alone.
    #[inline(always)]
    pub(in crate::flow) fn get(&self, hash: u64, same: impl FnMut(u32) -> bool) -> Option<u32> {
        // What is not there is told so by its home bucket nearly always.
        if self.may_have(hash) { self.get_likely(hash, same) } else { None }
    }

    #[inline(never)]
    fn get_likely(&self, hash: u64, same: impl FnMut(u32) -> bool) -> Option<u32> {
        let (at, slot) = self.find(hash, same)?;
        Some(number(self.bucket(at), slot))
    }

    /// Puts an entry in. The index is never full: it grows at 3/4 load.
    pub(in crate::flow) fn insert(&mut self, hash: u64, entry: u32) {
        let mut at = self.home(hash);
        let mask = self.mask;
        loop {
            let bucket = self.bucket_mut(at);
            let (low, high) = (fits(bucket[0], 0), fits(bucket[1], 0));
            if low != 0 || high != 0 {
                let slot = match low {
                    0 => 4 + high.trailing_zeros() / 16,
                    _ => low.trailing_zeros() / 16,
                };
                return set(bucket, slot as usize, tag_of(hash), entry);
            }
            bucket[PASSED] += 1;
            at = (at + 1) & mask;
        }
    }

    pub(in crate::flow) fn remove(&mut self, hash: u64, entry: u32) -> bool {
        // Nearly always the first of its tag in its home bucket.
        if let Some(slot) = self.candidate_slot(hash) {
            let home = self.home(hash);
            let bucket = self.bucket_mut(home);
            if number(bucket, slot) == entry && tag(bucket, slot) == tag_of(hash) {
                set(bucket, slot, 0, 0);
                return true;
            }
        }
        let Some((found, slot)) = self.find(hash, |e| e == entry) else { return false };
        set(self.bucket_mut(found), slot, 0, 0);
        let mask = self.mask;
        let mut at = self.home(hash);
        while at != found {
            self.bucket_mut(at)[PASSED] -= 1;
            at = (at + 1) & mask;
        }
        true
    }

    /// The numbers in a bucket.
    pub(in crate::flow) fn numbers(&self, at: usize) -> impl Iterator<Item = u32> + use<> {
        let bucket = *self.bucket(at);
        (0..SLOTS).filter(move |&slot| tag(&bucket, slot) != 0).map(move |s| number(&bucket, s))
    }

    /// No trace of any entry, past or present.
    #[cfg(test)]
    pub(in crate::flow) fn is_clean(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }

    /// No key stands in another bucket than its own.
    #[cfg(test)]
    pub(in crate::flow) fn none_passed(&self) -> bool {
        (0..self.buckets()).all(|at| self.bucket(at)[PASSED] == 0)
    }
}
