//! One copy of each text, however many objects say it.

use std::sync::Arc;

use hashbrown::HashSet;
use podswitch_policy::rule::Labels;

use crate::api::meta::Texts;

/// Texts that were seen. 150,000 pods share a few thousand label values.
#[derive(Default)]
pub(crate) struct Names(HashSet<Arc<str>>);

impl Names {
    /// The shared copy of `text`.
    pub(crate) fn get(&mut self, text: &str) -> Arc<str> {
        self.0.get_or_insert_with(text, |text| text.into()).clone()
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
}
