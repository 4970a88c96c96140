//! The buckets of the index, one cache line each, found by hash.
//!
//! A bucket has sixteen words: four hold eight 16-bit tags, eight hold entry numbers, one counts the
//! entries that overflowed into the next buckets because this one was full. A tag of zero is a free
//! slot, so an empty index is all zeroes: the operating system provides its memory page by page as
//! it is first written, and an index for a million entries is allocated without a pause.

use crate::prefetch::prefetch_address;

/// Slots of a bucket.
pub(in crate::flow) const SLOTS: usize = 8;
/// Words of a bucket.
const WORDS: usize = 16;
/// Where the entry numbers begin.
const NUMBERS: usize = 4;
/// Where the overflow count is.
const OVERFLOWED: usize = 12;

type Bucket = [u32; WORDS];

/// Bytes of a bucket.
pub(in crate::flow) const BUCKET_BYTES: usize = size_of::<Bucket>();

/// Lowest bit of each tag in two words, and highest.
const ONES: u64 = 0x0001_0001_0001_0001;
const HIGHS: u64 = ONES << 15;

/// The tag of a hash; never zero.
#[inline]
fn tag_of(hash: u64) -> u64 {
    hash >> 48 | 1
}

/// The highest bit of each tag of `tags` that equals `tag`. A tag above an equal one may be marked
/// as well although it differs; callers compare keys.
#[inline]
fn matches(tags: u64, tag: u64) -> u64 {
    let differ = tags ^ tag.wrapping_mul(ONES);
    differ.wrapping_sub(ONES) & !differ & HIGHS
}

/// One half of a bucket's tags.
#[inline]
fn half(bucket: &Bucket, which: usize) -> u64 {
    u64::from(bucket[which * 2]) | u64::from(bucket[which * 2 + 1]) << 32
}

/// The slots whose tag matches, one byte per slot. The tags of even slots are in the first half,
/// those of odd slots in the second, so that combining the halves takes no branch.
#[inline]
fn matching(bucket: &Bucket, tag: u64) -> u64 {
    matches(half(bucket, 0), tag) >> 8 | matches(half(bucket, 1), tag)
}

/// The first slot of a result of [`matching`].
#[inline]
fn first(matching: u64) -> usize {
    matching.trailing_zeros() as usize / 8 % SLOTS
}

/// The entry in a slot.
#[inline]
fn entry_in(bucket: &Bucket, slot: usize) -> u32 {
    bucket[NUMBERS + slot % SLOTS]
}

/// Where a slot's tag is: word, and first bit in it.
#[inline]
fn tag_position(slot: usize) -> (usize, usize) {
    (slot % 2 * 2 + slot / 4, slot / 2 % 2 * 16)
}

fn set(bucket: &mut Bucket, slot: usize, tag: u64, entry: u32) {
    let (word, shift) = tag_position(slot);
    bucket[word] = bucket[word] & !(0xffff << shift) | (tag as u32) << shift;
    bucket[NUMBERS + slot] = entry;
}

fn tag_in(bucket: &Bucket, slot: usize) -> u64 {
    let (word, shift) = tag_position(slot);
    u64::from(bucket[word] >> shift & 0xffff)
}

/// See the module's description.
pub(in crate::flow) struct Buckets {
    words: Vec<u32>,
    /// First word of the first bucket, which is aligned to a cache line.
    start: u8,
    /// Address of the first bucket.
    base: usize,
    /// Number of buckets less one.
    mask: u32,
}

impl Buckets {
    /// `buckets` empty buckets, rounded up to a power of two.
    pub(in crate::flow) fn new(buckets: usize) -> Self {
        let buckets = buckets.next_power_of_two();
        let words = vec![0u32; (buckets + 1) * WORDS];
        let address = words.as_ptr().addr();
        let start = (address / size_of::<u32>()).wrapping_neg() % WORDS;
        let base = address + start * size_of::<u32>();
        // Entries have 32 bits, and there are no more buckets than entries.
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

    /// The address of the first bucket, and the mask of bucket numbers. They allow a prefetch of a
    /// home bucket without access to the index.
    pub(in crate::flow) fn location(&self) -> [usize; 2] {
        [self.base, self.mask as usize]
    }

    /// Prefetches the home bucket of `hash`.
    #[inline]
    pub(in crate::flow) fn prefetch(&self, hash: u64) {
        prefetch_address(self.base.wrapping_add(self.home(hash) * size_of::<Bucket>()));
    }

    /// The entry in the first slot of the home bucket whose tag matches.
    #[inline]
    pub(in crate::flow) fn candidate(&self, hash: u64) -> Option<u32> {
        let bucket = self.bucket(self.home(hash));
        let matching = matching(bucket, tag_of(hash));
        (matching != 0).then(|| entry_in(bucket, first(matching)))
    }

    /// Bucket and slot of the first entry whose tag matches and which `is_same` accepts.
    #[inline]
    fn find(&self, hash: u64, mut is_same: impl FnMut(u32) -> bool) -> Option<(usize, usize)> {
        let wanted = tag_of(hash);
        let mut at = self.home(hash);
        for _ in 0..self.buckets() {
            let bucket = self.bucket(at);
            let mut left = matching(bucket, wanted);
            while left != 0 {
                let slot = first(left);
                if tag_in(bucket, slot) == wanted && is_same(entry_in(bucket, slot)) {
                    return Some((at, slot));
                }
                left &= left - 1;
            }
            if bucket[OVERFLOWED] == 0 {
                return None;
            }
            at = self.after(at);
        }
        None
    }

    /// Whether there may be an entry with this hash: its tag is in its home bucket, or an entry
    /// overflowed that bucket.
    #[inline]
    pub(in crate::flow) fn may_have(&self, hash: u64) -> bool {
        let (bucket, tag) = (self.bucket(self.home(hash)), tag_of(hash));
        matches(half(bucket, 0), tag)
            | matches(half(bucket, 1), tag)
            | u64::from(bucket[OVERFLOWED])
            != 0
    }

    /// The first entry with this hash that `is_same` accepts.
    #[inline(always)]
    pub(in crate::flow) fn get(&self, hash: u64, is_same: impl FnMut(u32) -> bool) -> Option<u32> {
        // For an absent entry the home bucket nearly always suffices.
        if self.may_have(hash) { self.get_likely(hash, is_same) } else { None }
    }

    #[inline(never)]
    fn get_likely(&self, hash: u64, is_same: impl FnMut(u32) -> bool) -> Option<u32> {
        let (at, slot) = self.find(hash, is_same)?;
        Some(entry_in(self.bucket(at), slot))
    }

    /// Inserts an entry. There must be a free slot.
    pub(in crate::flow) fn insert(&mut self, hash: u64, entry: u32) {
        let mut at = self.home(hash);
        loop {
            let bucket = self.bucket_mut(at);
            let free = matching(bucket, 0);
            if free != 0 {
                return set(bucket, first(free), tag_of(hash), entry);
            }
            bucket[OVERFLOWED] += 1;
            at = self.after(at);
        }
    }

    /// Removes an entry; false if it is not there.
    pub(in crate::flow) fn remove(&mut self, hash: u64, entry: u32) -> bool {
        // It is nearly always the first with its tag in its home bucket.
        let home = self.home(hash);
        let bucket = self.bucket_mut(home);
        let matching = matching(bucket, tag_of(hash));
        let slot = first(matching);
        if matching != 0 && entry_in(bucket, slot) == entry && tag_in(bucket, slot) == tag_of(hash)
        {
            set(bucket, slot, 0, 0);
            return true;
        }
        let Some((found, slot)) = self.find(hash, |e| e == entry) else { return false };
        set(self.bucket_mut(found), slot, 0, 0);
        let mut at = home;
        while at != found {
            self.bucket_mut(at)[OVERFLOWED] -= 1;
            at = self.after(at);
        }
        true
    }

    /// The entries in a bucket.
    pub(in crate::flow) fn entries(&self, at: usize) -> impl Iterator<Item = u32> + use<> {
        let bucket = *self.bucket(at);
        (0..SLOTS)
            .filter(move |&slot| tag_in(&bucket, slot) != 0)
            .map(move |s| entry_in(&bucket, s))
    }

    /// Whether no entry, and no overflow count, is left.
    #[cfg(test)]
    pub(in crate::flow) fn is_zero(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }
}
