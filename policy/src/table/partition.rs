//! Maps a peer's identity to the row of rules that select it.

use std::sync::Arc;

/// For each identity the row of rules that select it, for stages with the same selectors. Most
/// identities share one row, which is stored once. The others are in an open-addressed table that
/// is at most three quarters full.
#[derive(Clone, Debug)]
pub(crate) struct Partition {
    /// Identity in the upper half, row in the lower; 0: an empty slot. The number of slots is a
    /// power of two with at least one empty, or zero. Behind them the row of all other identities.
    slots: Arc<[u64]>,
}

impl Default for Partition {
    fn default() -> Self {
        Self::new(Self::NOTHING, &[])
    }
}

impl Partition {
    /// The row of identities that no selector matches, and of addresses without an identity.
    pub(crate) const NOTHING: u32 = 0;

    pub(crate) fn new(default: u32, exceptions: &[(u32, u32)]) -> Self {
        let len = match exceptions.len() {
            0 => 0,
            some => (some * 4).div_ceil(3).next_power_of_two(),
        };
        let mut slots = vec![0; len];
        let mask = len.wrapping_sub(1);
        for &(identity, row) in exceptions {
            let mut at = home(identity) & mask;
            while slots[at] != 0 {
                at = (at + 1) & mask;
            }
            slots[at] = u64::from(identity) << 32 | u64::from(row);
        }
        slots.push(u64::from(default));
        Self { slots: slots.into() }
    }

    pub(crate) fn default_row(&self) -> u32 {
        self.slots.last().map_or(Self::NOTHING, |row| *row as u32)
    }

    /// The row of an identity if it is not the default; [`Self::NOTHING`] for identity 0, which
    /// means "none".
    #[inline]
    pub(crate) fn exception(&self, identity: u32) -> Option<u32> {
        if identity == 0 {
            return Some(Self::NOTHING);
        }
        let (_, slots) = self.slots.split_last()?;
        let mask = slots.len().wrapping_sub(1);
        let mut at = home(identity) & mask;
        while let Some(&slot) = slots.get(at) {
            if slot == 0 {
                return None;
            }
            if (slot >> 32) as u32 == identity {
                return Some(slot as u32);
            }
            at = (at + 1) & mask;
        }
        None
    }

    /// The row of an identity.
    pub(crate) fn row(&self, identity: u32) -> u32 {
        self.exception(identity).unwrap_or_else(|| self.default_row())
    }

    /// Identities with a row other than the default one.
    pub(crate) fn exceptions(&self) -> impl Iterator<Item = (u32, u32)> {
        let slots = self.slots.split_last().map_or(&[][..], |(_, slots)| slots);
        let used = slots.iter().filter(|slot| **slot != 0);
        used.map(|slot| ((slot >> 32) as u32, *slot as u32))
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        size_of_val(&*self.slots) + 2 * size_of::<usize>()
    }
}

/// Where the search for an identity begins, before masking.
#[inline]
fn home(identity: u32) -> usize {
    (u64::from(identity).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_exceptions_and_defaults() {
        let exceptions: Vec<_> = (1..2000).step_by(3).map(|i| (i, i % 7)).collect();
        let partition = Partition::new(5, &exceptions);
        for identity in 1..2000 {
            let want = if identity % 3 == 1 { identity % 7 } else { 5 };
            assert_eq!(partition.row(identity), want);
        }
        assert_eq!(partition.row(0), Partition::NOTHING);
        assert_eq!(partition.exceptions().count(), exceptions.len());
        assert_eq!((Partition::new(3, &[]).row(9), Partition::default().row(9)), (3, 0));
    }
}
