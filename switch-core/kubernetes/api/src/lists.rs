//! Tracks which kinds have been listed, and what each list contained, to find objects that were
//! deleted between two lists.

use hashbrown::{HashMap, HashSet};
use podswitch_core::id::Cookie;
use podswitch_kubernetes::Kind;

/// See the module's description.
#[derive(Debug, Default)]
pub(crate) struct Lists {
    kinds: HashMap<Kind, List>,
    /// Every kind has been listed at least once.
    were_complete: bool,
}

#[derive(Debug, Default)]
struct List {
    /// Objects of the current list. `None`: no list is running, or nothing was known before it.
    seen: Option<HashSet<Cookie>>,
    is_under_way: bool,
    is_complete: bool,
}

impl Lists {
    fn list(&mut self, kind: Kind) -> &mut List {
        self.kinds.entry(kind).or_default()
    }

    /// A list begins. `is_first`: nothing is known of the kind yet, so nothing can have been
    /// deleted.
    pub(crate) fn begin(&mut self, kind: Kind, is_first: bool) {
        let list = self.list(kind);
        (list.seen, list.is_under_way) = ((!is_first).then(HashSet::new), true);
    }

    /// The saved state was loaded: more objects are known than the lists contained. `so_far`: the
    /// objects of this kind that the running list has contained until now, if one is running.
    pub(crate) fn know_more(&mut self, kind: Kind, so_far: HashSet<Cookie>) {
        let list = self.list(kind);
        if list.is_under_way {
            list.seen.get_or_insert(so_far);
        }
    }

    /// Whether an object of the saved state is to be used. An object from a list takes precedence.
    pub(crate) fn is_news(&self, kind: Kind, name: &Cookie) -> bool {
        self.kinds.get(&kind).is_none_or(|list| {
            let is_listed = list.seen.as_ref().is_some_and(|seen| seen.contains(name));
            !list.is_complete && !is_listed
        })
    }

    /// Records an object of a list or watch.
    pub(crate) fn enter(&mut self, kind: Kind, name: &Cookie) {
        if let Some(seen) = &mut self.list(kind).seen {
            seen.insert(name.clone());
        }
    }

    /// A list has ended. Returns the objects that it contained; all other objects of the kind are
    /// gone. `None`: there are no others.
    pub(crate) fn end(&mut self, kind: Kind) -> Option<HashSet<Cookie>> {
        let list = self.list(kind);
        (list.is_complete, list.is_under_way) = (true, false);
        let seen = list.seen.take();
        self.were_complete |= self.are_complete();
        seen
    }

    /// The kind counts as incomplete until its next list ends.
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

    /// Whether every kind has been listed and no further list is awaited.
    pub(crate) fn are_complete(&self) -> bool {
        Kind::ALL.into_iter().all(|kind| self.is_complete(kind))
    }

    /// Whether every kind has been listed at least once. From then on changes may be published,
    /// even while more pods are awaited.
    pub(crate) fn were_complete(&self) -> bool {
        self.were_complete
    }

    /// The kinds that have not been listed, for display.
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
    fn later_lists_find_deleted_objects() {
        let (mut lists, kind) = (Lists::default(), Kind::Service);
        lists.begin(kind, true);
        lists.enter(kind, &name("x"));
        assert_eq!(lists.end(kind), None);
        // By the watch.
        lists.enter(kind, &name("y"));
        // The list was interrupted.
        lists.begin(kind, false);
        lists.enter(kind, &name("x"));
        lists.begin(kind, false);
        lists.enter(kind, &name("z"));
        assert_eq!(lists.end(kind), Some([name("z")].into()));
    }

    #[test]
    fn a_running_list_takes_precedence_over_the_saved_state() {
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
