//! Interned strings: one copy of each, however many objects contain it.

use std::sync::Arc;

use hashbrown::HashSet;
use podswitch_policy::rule::Labels;

use crate::api::meta::Texts;

/// Known strings. 150,000 pods share a few thousand label values.
#[derive(Debug, Default)]
pub(crate) struct Names {
    texts: HashSet<Arc<str>>,
    /// The pods of a ReplicaSet have the same labels.
    labels: HashSet<Labels>,
    labels_in_use: usize,
    /// Number of strings when unused ones were last freed.
    in_use: usize,
}

impl Names {
    /// The shared copy of `text`.
    pub(crate) fn get(&mut self, text: &str) -> Arc<str> {
        self.texts.get_or_insert_with(text, |text| text.into()).clone()
    }

    /// The shared copy of a string. If there is none, this one becomes it.
    pub(crate) fn share(&mut self, text: Arc<str>) -> Arc<str> {
        self.texts.get_or_insert(text).clone()
    }

    /// The shared copy of labels, with shared strings.
    pub(crate) fn labels<'a>(&mut self, pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Labels {
        let labels = Labels::new(pairs.map(|(key, value)| (self.get(key), self.get(value))));
        self.labels.get_or_insert(labels).clone()
    }

    /// Labels with shared strings.
    pub(crate) fn texts(&mut self, texts: Option<&Texts>) -> Labels {
        let pairs = texts.into_iter().flatten();
        self.labels(pairs.map(|(key, value)| (&**key, value.as_deref().unwrap_or_default())))
    }

    /// Frees unused strings once they may be half of all: objects come and go while the switch
    /// runs.
    pub(crate) fn free_unused(&mut self) {
        if self.labels.len() > 2 * self.labels_in_use + 1024 {
            self.labels.retain(Labels::is_shared);
            self.labels_in_use = self.labels.len();
        }
        if self.texts.len() > 2 * self.in_use + 1024 {
            self.texts.retain(|text| Arc::strong_count(text) > 1);
            self.in_use = self.texts.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unused_strings_are_freed() {
        let mut names = Names::default();
        let kept = names.get("kept");
        let kept_labels = names.labels([("a", "b")].into_iter());
        for number in 0..5000 {
            names.labels([("key", &*format!("passing-{number}"))].into_iter());
            names.free_unused();
        }
        assert!(names.texts.len() < 3000, "{}", names.texts.len());
        assert!(names.labels.len() < 3000, "{}", names.labels.len());
        assert!(names.labels([("a", "b")].into_iter()) == kept_labels && kept_labels.is_shared());
        assert!(Arc::ptr_eq(&kept, &names.get("kept")));
    }
}
