//! How a publish changes one kind.

/// The difference between the objects of one kind in force before and after.
#[derive(Debug)]
pub(crate) struct Difference<O> {
    /// Removed objects, in their previous version.
    pub(crate) removed: Vec<O>,
    /// New and changed objects.
    pub(crate) changed: Vec<Changed<O>>,
}

/// A new or changed object.
#[derive(Debug)]
pub(crate) struct Changed<O> {
    pub(crate) before: Option<O>,
    pub(crate) after: O,
}

impl<O> Difference<O> {
    pub(crate) fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.changed.is_empty()
    }

    /// The previous versions of all that differ.
    pub(crate) fn before(&self) -> impl Iterator<Item = &O> {
        self.removed.iter().chain(self.changed.iter().filter_map(|c| c.before.as_ref()))
    }

    /// The new versions of all that differ.
    pub(crate) fn after(&self) -> impl Iterator<Item = &O> {
        self.changed.iter().map(|c| &c.after)
    }

    /// The previous and new versions of all that differ.
    pub(crate) fn all(&self) -> impl Iterator<Item = &O> {
        self.before().chain(self.after())
    }
}
