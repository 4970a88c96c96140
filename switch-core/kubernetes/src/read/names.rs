//! One copy of each text, however many objects have it.

use std::sync::Arc;

use hashbrown::HashSet;
use podswitch_policy::rule::Labels;

use crate::api::meta::Texts;

/// Known texts. 150,000 pods share a few thousand label values.
#[derive(Debug, Default)]
pub(crate) struct Names {
    texts: HashSet<Arc<str>>,
    /// Number of texts when unused ones were last freed.
    in_use: usize,
}

impl Names {
    /// The shared copy of `text`.
    pub(crate) fn get(&mut self, text: &str) -> Arc<str> {
        self.texts.get_or_insert_with(text, |text| text.into()).clone()
    }

    /// Labels of shared texts.
    pub(crate) fn labels<'a>(&mut self, pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Labels {
        Labels::new(pairs.map(|(key, value)| (self.get(key), self.get(value))))
    }

    /// Labels of shared texts.
    pub(crate) fn texts(&mut self, texts: Option<&Texts>) -> Labels {
        let pairs = texts.into_iter().flatten();
        self.labels(pairs.map(|(key, value)| (&**key, value.as_deref().unwrap_or_default())))
    }

    /// Frees unused texts once they may be half of all: objects come and go while the switch runs.
    pub(crate) fn free_unused(&mut self) {
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
    fn unused_texts_are_freed() {
        let mut names = Names::default();
        let kept = names.get("kept");
        for number in 0..5000 {
            names.get(&format!("passing-{number}"));
            names.free_unused();
        }
        assert!(names.texts.len() < 3000, "{}", names.texts.len());
        assert!(Arc::ptr_eq(&kept, &names.get("kept")));
    }
}
