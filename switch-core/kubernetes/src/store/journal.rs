//! Undo: objects as they were before changes that may be refused.

use hashbrown::HashMap;
use podswitch_core::id::Cookie;

use super::{Facts, Store};

/// Changed objects as they were; `None`: absent.
#[derive(Debug, Default)]
pub(super) struct Journal(HashMap<Cookie, Option<Facts>>);

impl Journal {
    /// Keeps an object as it is before its first change.
    pub(super) fn keep(&mut self, object: &Cookie, facts: Option<&Facts>) {
        self.0.entry_ref(object).or_insert_with(|| facts.cloned());
    }
}

impl Store {
    /// Starts recording, so that changes can be undone at the cost of what they touch.
    pub fn begin(&mut self) {
        self.journal = Some(Journal::default());
    }

    /// Keeps the changes since [`begin`](Self::begin).
    pub fn keep(&mut self) {
        self.journal = None;
    }

    /// Undoes the changes since [`begin`](Self::begin).
    pub fn take_back(&mut self) {
        let Some(journal) = self.journal.take() else { return };
        for (object, facts) in journal.0 {
            self.put(&object, facts);
        }
    }
}
