//! How a publish changes one kind.

/// How what is in force of one kind differs from what was in force.
#[derive(Debug)]
pub(crate) struct Difference<O> {
    /// As they were.
    pub(crate) removed: Vec<O>,
    /// Those that came, or are others than before.
    pub(crate) changed: Vec<Changed<O>>,
}

/// An object that came or is another than before.
#[derive(Debug)]
pub(crate) struct Changed<O> {
    pub(crate) before: Option<O>,
    pub(crate) after: O,
}

impl<O> Difference<O> {
    pub(crate) fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.changed.is_empty()
    }

    /// All that differ, as they were.
    pub(crate) fn before(&self) -> impl Iterator<Item = &O> {
        self.removed.iter().chain(self.changed.iter().filter_map(|c| c.before.as_ref()))
    }

    /// All that differ, as they are.
    pub(crate) fn after(&self) -> impl Iterator<Item = &O> {
        self.changed.iter().map(|c| &c.after)
    }

    /// All that differ, as they were and as they are.
    pub(crate) fn all(&self) -> impl Iterator<Item = &O> {
        self.before().chain(self.after())
    }
}
