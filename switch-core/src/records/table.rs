//! The drops that a worker counts together: a table of rows, and sums for drops that find no free
//! row.

use core::hash::BuildHasher;

use hashbrown::DefaultHashBuilder;

use super::raw::{Alike, RawDrop};
use crate::action::DropReason;
use crate::id::Epoch;
use crate::time::Instant;

/// Number of rows in one worker's table.
pub(super) const ROWS: usize = 1024;
/// Number of rows that are searched for one key.
const PROBES: usize = 8;
/// Number of similar drops that get a record each between two collections. Further ones are counted
/// together.
pub(super) const SINGLES: u8 = 8;

#[derive(Debug)]
struct Row {
    alike: Alike,
    singles: u8,
    /// The drops that got no record of their own.
    together: Option<RawDrop>,
}

/// The drops that found no row: one sum for each reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Other {
    pub(super) count: u64,
    pub(super) bytes: u64,
    pub(super) first: Instant,
    pub(super) last: Instant,
    pub(super) epoch: Epoch,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Table {
    rows: Box<[Option<Row>; ROWS]>,
    others: Box<[Other; DropReason::COUNT]>,
    hasher: DefaultHashBuilder,
    is_empty: bool,
}

impl Table {
    /// An empty table. `hasher` is secret to the process, so that nobody can choose drops that fill
    /// the rows of others.
    pub(super) fn new(hasher: DefaultHashBuilder) -> Self {
        Self {
            rows: Box::new([const { None }; ROWS]),
            others: Box::new([Other::default(); DropReason::COUNT]),
            hasher,
            is_empty: true,
        }
    }

    /// Whether nothing was counted or recorded since the last collection.
    pub(super) fn is_empty(&self) -> bool {
        self.is_empty
    }

    /// Whether a drop gets a record of its own. Counts the records given.
    pub(super) fn is_single(&mut self, drop: &RawDrop) -> bool {
        self.is_empty = false;
        let Some(row) = self.row(&drop.alike) else { return false };
        let is_single = row.singles < SINGLES;
        row.singles += u8::from(is_single);
        is_single
    }

    /// Counts a drop together with similar ones.
    pub(super) fn count(&mut self, drop: RawDrop) {
        self.is_empty = false;
        let Some(row) = self.row(&drop.alike) else {
            let other = &mut self.others[drop.alike.reason as usize];
            if other.count == 0 {
                other.first = drop.first;
            }
            other.last = drop.last;
            other.epoch = drop.epoch;
            other.count += drop.count;
            other.bytes += drop.bytes;
            return;
        };
        match &mut row.together {
            Some(sum) => {
                sum.last = drop.last;
                sum.epoch = drop.epoch;
                sum.count += drop.count;
                sum.bytes += drop.bytes;
            }
            None => row.together = Some(RawDrop { frame: None, ..drop }),
        }
    }

    /// The row for similar drops, or a new one if there is room.
    fn row(&mut self, alike: &Alike) -> Option<&mut Row> {
        let start = self.hasher.hash_one(alike) as usize;
        let places = (0..PROBES).map(|n| (start + n) % ROWS);
        let mut free = None;
        let mut found = None;
        for place in places {
            match &self.rows[place] {
                Some(row) if row.alike == *alike => {
                    found = Some(place);
                    break;
                }
                Some(_) => {}
                None => free = free.or(Some(place)),
            }
        }
        let place = found.or(free)?;
        let row = &mut self.rows[place];
        Some(row.get_or_insert_with(|| Row { alike: alike.clone(), singles: 0, together: None }))
    }

    /// Takes all sums out and leaves the table empty.
    pub(super) fn drain(
        &mut self,
        mut together: impl FnMut(RawDrop),
        mut other: impl FnMut(DropReason, Other),
    ) {
        for row in self.rows.iter_mut() {
            if let Some(sum) = row.take().and_then(|row| row.together) {
                together(sum);
            }
        }
        for (sum, reason) in self.others.iter_mut().zip(DropReason::ALL) {
            let sum = core::mem::take(sum);
            if sum.count > 0 {
                other(*reason, sum);
            }
        }
        self.is_empty = true;
    }
}
