//! From a peer's identity to the row of rules that select it.

use std::sync::Arc;

/// For each identity the row of rules that select it, in stages that select by the same
/// selectors. Most identities share one row, which is not written down; the others stand in an
/// open-addressed table of at most half load.
#[derive(Clone, Debug, Default)]
pub(crate) struct Partition {
    /// Row of the identities that are not in `slots`.
    default: u32,
    /// Identity in the upper half, row in the lower; 0 is an empty slot. A power of two of them,
    /// or none.
    slots: Arc<[u64]>,
}

impl Partition {
    /// The row of identities that no selector matches, and of addresses without an identity.
    pub(crate) const NOTHING: u32 = 0;

    pub(crate) fn new(default: u32, exceptions: &[(u32, u32)]) -> Self {
        if exceptions.is_empty() {
            return Self { default, slots: Arc::new([]) };
        }
        let mut slots = vec![0; (exceptions.len() * 2).next_power_of_two()];
        let mask = slots.len() - 1;
        for &(identity, row) in exceptions {
            let mut at = home(identity) & mask;
            while slots[at] != 0 {
                at = (at + 1) & mask;
            }
            slots[at] = u64::from(identity) << 32 | u64::from(row);
        }
        Self { default, slots: slots.into() }
    }

    pub(crate) fn default_row(&self) -> u32 {
        self.default
    }

    /// The row of an identity; [`Self::NOTHING`] for identity 0, which stands for "none".
    #[inline]
    pub(crate) fn row(&self, identity: u32) -> u32 {
        if identity == 0 {
            return Self::NOTHING;
        }
        let mask = self.slots.len().wrapping_sub(1);
        let mut at = home(identity) & mask;
        while let Some(&slot) = self.slots.get(at) {
            if slot == 0 {
                break;
            }
            if (slot >> 32) as u32 == identity {
                return slot as u32;
            }
            at = (at + 1) & mask;
        }
        self.default
    }

    /// Identities with a row other than the default one.
    pub(crate) fn exceptions(&self) -> impl Iterator<Item = (u32, u32)> {
        let used = self.slots.iter().filter(|slot| **slot != 0);
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
        assert_eq!(Partition::new(3, &[]).row(9), 3);
    }
}
