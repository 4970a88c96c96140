//! Taking back: what objects were before a change that may turn out to be refused.

use hashbrown::HashMap;
use podswitch_core::id::Cookie;

use super::{Facts, Store};

/// Objects that were changed since, as they were; `None`: not there.
#[derive(Debug, Default)]
pub(super) struct Journal(HashMap<Cookie, Option<Facts>>);

impl Journal {
    /// Keeps what an object was when it is touched for the first time.
    pub(super) fn keep(&mut self, object: &Cookie, facts: Option<&Facts>) {
        self.0.entry_ref(object).or_insert_with(|| facts.cloned());
    }
}

impl Store {
    /// From now on changes can be taken back, at the cost of what they touch.
    pub fn begin(&mut self) {
        self.journal = Some(Journal::default());
    }

    /// Keeps the changes since [`begin`](Self::begin).
    pub fn keep(&mut self) {
        self.journal = None;
    }

    /// Takes back the changes since [`begin`](Self::begin).
    pub fn take_back(&mut self) {
        let Some(journal) = self.journal.take() else { return };
        for (object, facts) in journal.0 {
            self.put(&object, facts);
        }
    }
}
