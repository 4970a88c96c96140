//! Undo: objects in their state before changes that may be refused.

use hashbrown::HashMap;
use podswitch_core::id::Cookie;

use super::tally::Touched;
use super::{Facts, Store};

/// Previous versions of changed objects; `None`: absent.
#[derive(Debug, Default)]
pub(super) struct Journal {
    objects: HashMap<Cookie, Option<Facts>>,
    touched: Option<Touched>,
}

impl Journal {
    /// Records an object before its first change.
    pub(super) fn keep(&mut self, object: &Cookie, facts: Option<&Facts>) {
        self.objects.entry_ref(object).or_insert_with(|| facts.cloned());
    }
}

impl Store {
    /// Starts recording, so that changes can be undone at a cost proportional to what they affect.
    pub fn begin(&mut self) {
        let (objects, touched) = (HashMap::new(), self.touched.clone());
        self.journal = Some(Journal { objects, touched });
    }

    /// Keeps the changes since [`begin`](Self::begin).
    pub fn keep(&mut self) {
        self.journal = None;
    }

    /// Undoes the changes since [`begin`](Self::begin).
    pub fn take_back(&mut self) {
        let Some(journal) = self.journal.take() else { return };
        for (object, facts) in journal.objects {
            self.put(&object, facts);
        }
        self.touched = journal.touched;
    }
}
