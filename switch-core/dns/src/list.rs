//! A list of which most have one item, which is where the list is.

use std::ops::Deref;

/// See the module's description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum List<T> {
    One(T),
    Many(Box<[T]>),
}

impl<T> From<Vec<T>> for List<T> {
    fn from(mut items: Vec<T>) -> Self {
        match items.pop() {
            Some(only) if items.is_empty() => Self::One(only),
            last => {
                items.extend(last);
                Self::Many(items.into())
            }
        }
    }
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self::Many(Box::default())
    }
}

impl<T> Deref for List<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::One(item) => std::slice::from_ref(item),
            Self::Many(items) => items,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_kept() {
        for count in 0..4 {
            let items: Vec<_> = (0..count).collect();
            assert_eq!(*List::from(items.clone()), items);
        }
    }
}
