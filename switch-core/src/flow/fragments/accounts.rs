//! Memory accounts of the fragment store, and the order of its datagrams by age: which datagram times
//! out next, and which is dropped to make room.

use super::slot::{Link, NONE, Slot};

/// Number of accounts; accounts beyond that share one. About the number of pods on a node, and quick to
/// search for the largest.
const ACCOUNTS: usize = 256;

/// A list that a slot is in.
#[derive(Clone, Copy)]
enum List {
    Age = 0,
    Account = 1,
}

#[derive(Clone, Copy, Debug)]
struct Ends {
    head: u32,
    tail: u32,
}

const EMPTY: Ends = Ends { head: NONE, tail: NONE };

/// See the module's description.
#[derive(Debug)]
pub(super) struct Accounts {
    limit: usize,
    used: usize,
    charged: Box<[usize; ACCOUNTS]>,
    lists: Box<[Ends; ACCOUNTS]>,
    by_age: Ends,
}

impl Accounts {
    /// Accounts with a total limit of `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            used: 0,
            charged: Box::new([0; ACCOUNTS]),
            lists: Box::new([EMPTY; ACCOUNTS]),
            by_age: EMPTY,
        }
    }

    /// Bytes in use.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// Whether `cost` more bytes are within the limit.
    pub(super) fn has_room(&self, cost: usize) -> bool {
        self.used + cost <= self.limit
    }

    /// The oldest slot.
    pub(super) fn oldest(&self) -> Option<u32> {
        Some(self.by_age.head).filter(|slot| *slot != NONE)
    }

    /// The oldest slot of the account with the highest charge.
    pub(super) fn oldest_of_heaviest(&self) -> Option<u32> {
        let heaviest = (0..ACCOUNTS).max_by_key(|account| self.charged[*account])?;
        Some(self.lists[heaviest].head).filter(|slot| *slot != NONE)
    }

    /// Adds a new slot as the youngest, with its first charge.
    pub(super) fn open(&mut self, slot: u32, slots: &mut [Slot], account: u64, cost: usize) {
        let account = (account.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
        slots[slot as usize].link = Link { account, ..Link::default() };
        self.append(slot, slots);
        self.charge(&mut slots[slot as usize].link, cost);
    }

    /// Charges a slot's account.
    pub(super) fn charge(&mut self, link: &mut Link, cost: usize) {
        link.charged += cost;
        self.charged[usize::from(link.account)] += cost;
        self.used += cost;
    }

    /// Makes a slot the youngest again, with a charge of `cost`.
    pub(super) fn renew(&mut self, slot: u32, slots: &mut [Slot], cost: usize) {
        let account = slots[slot as usize].link.account;
        self.close(slot, slots);
        slots[slot as usize].link = Link { account, ..Link::default() };
        self.append(slot, slots);
        self.charge(&mut slots[slot as usize].link, cost);
    }

    /// Removes a slot and its charge.
    pub(super) fn close(&mut self, slot: u32, slots: &mut [Slot]) {
        let link = slots[slot as usize].link;
        self.charged[usize::from(link.account)] -= link.charged;
        self.used -= link.charged;
        for list in [List::Age, List::Account] {
            let (prev, next) = (link.prev[list as usize], link.next[list as usize]);
            match slots.get_mut(prev as usize) {
                Some(slot) => slot.link.next[list as usize] = next,
                None => self.ends(list, link.account).head = next,
            }
            match slots.get_mut(next as usize) {
                Some(slot) => slot.link.prev[list as usize] = prev,
                None => self.ends(list, link.account).tail = prev,
            }
        }
    }

    fn append(&mut self, slot: u32, slots: &mut [Slot]) {
        let account = slots[slot as usize].link.account;
        for list in [List::Age, List::Account] {
            let ends = self.ends(list, account);
            let last = ends.tail;
            ends.tail = slot;
            if last == NONE {
                ends.head = slot;
            } else {
                slots[last as usize].link.next[list as usize] = slot;
            }
            slots[slot as usize].link.prev[list as usize] = last;
        }
    }

    fn ends(&mut self, list: List, account: u8) -> &mut Ends {
        match list {
            List::Age => &mut self.by_age,
            List::Account => &mut self.lists[usize::from(account)],
        }
    }
}
