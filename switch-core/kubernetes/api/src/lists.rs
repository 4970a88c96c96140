//! Which kinds have been listed, and what a list has, so that objects that vanished between two lists are found.

use hashbrown::{HashMap, HashSet};
use podswitch_core::id::Cookie;
use podswitch_kubernetes::Kind;

/// See the module's description.
#[derive(Debug, Default)]
pub(crate) struct Lists {
    kinds: HashMap<Kind, List>,
    /// Every list ended once.
    were_complete: bool,
}

#[derive(Debug, Default)]
struct List {
    /// Objects of the list that is under way. `None`: none is, or nothing was known before it.
    seen: Option<HashSet<Cookie>>,
    is_under_way: bool,
    is_complete: bool,
}

impl Lists {
    fn list(&mut self, kind: Kind) -> &mut List {
        self.kinds.entry(kind).or_default()
    }

    /// A list begins. `is_first`: nothing is known of the kind yet, so that nothing can have vanished.
    pub(crate) fn begin(&mut self, kind: Kind, is_first: bool) {
        let list = self.list(kind);
        (list.seen, list.is_under_way) = ((!is_first).then(HashSet::new), true);
    }

    /// More is known from now on than what lists had: the state that was kept. `so_far`: objects of the kind that its
    /// list had, if one is under way.
    pub(crate) fn know_more(&mut self, kind: Kind, so_far: HashSet<Cookie>) {
        let list = self.list(kind);
        if list.is_under_way {
            list.seen.get_or_insert(so_far);
        }
    }

    /// Whether an object of the state that was kept is news: what a list says counts for more.
    pub(crate) fn is_news(&self, kind: Kind, name: &Cookie) -> bool {
        self.kinds.get(&kind).is_none_or(|list| {
            let is_listed = list.seen.as_ref().is_some_and(|seen| seen.contains(name));
            !list.is_complete && !is_listed
        })
    }

    /// An object is there.
    pub(crate) fn enter(&mut self, kind: Kind, name: &Cookie) {
        if let Some(seen) = &mut self.list(kind).seen {
            seen.insert(name.clone());
        }
    }

    /// A list has ended. Returns what it had: what else is known of the kind is gone. `None`: nothing else is.
    pub(crate) fn end(&mut self, kind: Kind) -> Option<HashSet<Cookie>> {
        let list = self.list(kind);
        (list.is_complete, list.is_under_way) = (true, false);
        let seen = list.seen.take();
        self.were_complete |= self.are_complete();
        seen
    }

    /// What is known of a kind is not all that is wanted until its next list ends.
    pub(crate) fn expect(&mut self, kind: Kind) {
        self.list(kind).is_complete = false;
    }

    /// Whether a list of the kind has ended.
    pub(crate) fn is_complete(&self, kind: Kind) -> bool {
        self.kinds.get(&kind).is_some_and(|list| list.is_complete)
    }

    /// Whether all policies are known.
    pub(crate) fn has_policies(&self) -> bool {
        Kind::ALL.into_iter().filter(|kind| kind.is_policy()).all(|kind| self.is_complete(kind))
    }

    /// Whether a list of every kind has ended, and more is not awaited.
    pub(crate) fn are_complete(&self) -> bool {
        Kind::ALL.into_iter().all(|kind| self.is_complete(kind))
    }

    /// Whether every list ended once. Then changes may be published, though more pods may be awaited.
    pub(crate) fn were_complete(&self) -> bool {
        self.were_complete
    }

    /// Kinds that are missing, for people.
    pub(crate) fn missing(&self) -> String {
        let missing = Kind::ALL.into_iter().filter(|kind| !self.is_complete(*kind));
        missing.map(Kind::plural).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> Cookie {
        Cookie::new(format!("Service/a/{name}"))
    }

    #[test]
    fn a_first_list_is_all_and_later_ones_tell_what_is_there() {
        let (mut lists, kind) = (Lists::default(), Kind::Service);
        lists.begin(kind, true);
        lists.enter(kind, &name("x"));
        assert_eq!(lists.end(kind), None);
        // By the watch.
        lists.enter(kind, &name("y"));
        // Cut.
        lists.begin(kind, false);
        lists.enter(kind, &name("x"));
        lists.begin(kind, false);
        lists.enter(kind, &name("z"));
        assert_eq!(lists.end(kind), Some([name("z")].into()));
    }

    #[test]
    fn a_list_that_is_under_way_counts_for_more_than_what_was_kept() {
        let mut lists = Lists::default();
        lists.begin(Kind::Service, true);
        lists.know_more(Kind::Service, [name("listed")].into());
        lists.know_more(Kind::Node, [].into());
        assert!(!lists.is_news(Kind::Service, &name("listed")));
        assert!(lists.is_news(Kind::Service, &name("kept")));
        lists.enter(Kind::Service, &name("later"));
        assert_eq!(lists.end(Kind::Service), Some([name("listed"), name("later")].into()));
        assert!(!lists.is_news(Kind::Service, &name("kept")), "the list has ended");
        assert!(lists.is_news(Kind::Node, &Cookie::new("Node/n")), "none has begun");
    }

    #[test]
    fn all_kinds_are_awaited_once() {
        let mut lists = Lists::default();
        for kind in Kind::ALL {
            assert!(!lists.are_complete() && lists.missing().contains(kind.plural()));
            lists.begin(kind, true);
            lists.end(kind);
        }
        assert!(lists.are_complete() && lists.were_complete());
        lists.expect(Kind::Pod);
        assert!(!lists.are_complete() && lists.were_complete());
    }
}
