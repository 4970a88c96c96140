//! The index: buckets of one cache line each, found by hash.
//!
//! A bucket is sixteen words: four hold eight 16-bit tags, eight hold the entry numbers, one
//! counts the keys that passed the bucket by because it was full. A tag of zero is a free slot, so an empty
//! index is all zeroes: memory that the system gives when it is first touched, and an index of a
//! million entries is made without a pause.

use crate::prefetch::prefetch_address;

/// Slots of a bucket.
pub(in crate::flow) const SLOTS: usize = 8;
/// Words of a bucket.
const WORDS: usize = 16;
/// Where the entry numbers begin.
const NUMBERS: usize = 4;
const PASSED: usize = 12;

pub(in crate::flow) type Bucket = [u32; WORDS];

/// Lowest bit of each tag in two words, and highest.
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

/// Half of a bucket's tags.
#[inline]
fn half(bucket: &Bucket, which: usize) -> u64 {
    u64::from(bucket[which * 2]) | u64::from(bucket[which * 2 + 1]) << 32
}

/// The highest bit of each byte whose slot's tag fits: the tags of the even slots are in the first
/// half, those of the odd ones in the second, so that which half it was takes no branch.
#[inline]
fn fitting(bucket: &Bucket, tag: u64) -> u64 {
    fits(half(bucket, 0), tag) >> 8 | fits(half(bucket, 1), tag)
}

/// The first slot of those that [`fitting`] found.
#[inline]
fn first(fitting: u64) -> usize {
    fitting.trailing_zeros() as usize / 8 % SLOTS
}

/// The entry number in a slot.
#[inline]
fn number(bucket: &Bucket, slot: usize) -> u32 {
    bucket[NUMBERS + slot % SLOTS]
}

/// Where a slot's tag is: word, and first bit in it.
#[inline]
fn place(slot: usize) -> (usize, usize) {
    (slot % 2 * 2 + slot / 4, slot / 2 % 2 * 16)
}

fn set(bucket: &mut Bucket, slot: usize, tag: u64, number: u32) {
    let (word, shift) = place(slot);
    bucket[word] = bucket[word] & !(0xffff << shift) | (tag as u32) << shift;
    bucket[NUMBERS + slot] = number;
}

fn tag(bucket: &Bucket, slot: usize) -> u64 {
    let (word, shift) = place(slot);
    u64::from(bucket[word] >> shift & 0xffff)
}

pub(in crate::flow) struct Index {
    words: Vec<u32>,
    /// Where the first cache line begins: word, and address.
    start: u8,
    base: usize,
    mask: u32,
}

impl Index {
    pub(in crate::flow) fn new(buckets: usize) -> Self {
        let buckets = buckets.next_power_of_two();
        let words = vec![0u32; (buckets + 1) * WORDS];
        let address = words.as_ptr().addr();
        let start = (address / size_of::<u32>()).wrapping_neg() % WORDS;
        let base = address + start * size_of::<u32>();
        // Entry numbers have 32 bits, and there are no more buckets than entries.
        Self { words, start: start as u8, base, mask: (buckets - 1) as u32 }
    }

    pub(in crate::flow) fn buckets(&self) -> usize {
        self.mask as usize + 1
    }

    #[inline]
    fn home(&self, hash: u64) -> usize {
        (hash as u32 & self.mask) as usize
    }

    #[inline]
    fn after(&self, at: usize) -> usize {
        (at + 1) & self.mask as usize
    }

    #[inline]
    pub(in crate::flow) fn bucket(&self, at: usize) -> &Bucket {
        let base = usize::from(self.start) + at * WORDS;
        self.words[base..base + WORDS].first_chunk().expect("one bucket more than there are")
    }

    #[inline]
    fn bucket_mut(&mut self, at: usize) -> &mut Bucket {
        let base = usize::from(self.start) + at * WORDS;
        self.words[base..base + WORDS].first_chunk_mut().expect("one bucket more than there are")
    }

    /// Where the first bucket is in memory, and the mask of bucket numbers: what tells without
    /// the index where a hash's home is, for as long as the index is there.
    pub(in crate::flow) fn whereabouts(&self) -> [usize; 2] {
        [self.base, self.mask as usize]
    }

    /// Brings the bucket of `hash` near.
    #[inline]
    pub(in crate::flow) fn prefetch(&self, hash: u64) {
        prefetch_address(self.base.wrapping_add(self.home(hash) * size_of::<Bucket>()));
    }

    /// The number in the first slot of the home bucket whose tag fits.
    #[inline]
    pub(in crate::flow) fn candidate(&self, hash: u64) -> Option<u32> {
        let bucket = self.bucket(self.home(hash));
        let fitting = fitting(bucket, tag_of(hash));
        (fitting != 0).then(|| number(bucket, first(fitting)))
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
            let mut left = fitting(bucket, wanted);
            while left != 0 {
                let slot = first(left);
                if tag(bucket, slot) == wanted && same(number(bucket, slot)) {
                    return Some((at, slot));
                }
                left &= left - 1;
            }
            if bucket[PASSED] == 0 {
                return None;
            }
            at = self.after(at);
        }
        None
    }

    /// Whether anything of this hash may be there: its tag is in its home bucket, or something
    /// passed that by.
    #[inline]
    pub(in crate::flow) fn may_have(&self, hash: u64) -> bool {
        let (bucket, tag) = (self.bucket(self.home(hash)), tag_of(hash));
        fits(half(bucket, 0), tag) | fits(half(bucket, 1), tag) | u64::from(bucket[PASSED]) != 0
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
        loop {
            let bucket = self.bucket_mut(at);
            let free = fitting(bucket, 0);
            if free != 0 {
                return set(bucket, first(free), tag_of(hash), entry);
            }
            bucket[PASSED] += 1;
            at = self.after(at);
        }
    }

    pub(in crate::flow) fn remove(&mut self, hash: u64, entry: u32) -> bool {
        // Nearly always the first of its tag in its home bucket.
        let home = self.home(hash);
        let bucket = self.bucket_mut(home);
        let fitting = fitting(bucket, tag_of(hash));
        let slot = first(fitting);
        if fitting != 0 && number(bucket, slot) == entry && tag(bucket, slot) == tag_of(hash) {
            set(bucket, slot, 0, 0);
            return true;
        }
        let Some((found, slot)) = self.find(hash, |e| e == entry) else { return false };
        set(self.bucket_mut(found), slot, 0, 0);
        let mut at = home;
        while at != found {
            self.bucket_mut(at)[PASSED] -= 1;
            at = self.after(at);
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
