//! Which objects the API server has, kind by kind, so that those that vanished between two lists are found.

use hashbrown::HashMap;
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
    /// Objects, and in which list each was seen last.
    objects: HashMap<Cookie, u32>,
    number: u32,
    is_complete: bool,
}

impl Lists {
    fn list(&mut self, kind: Kind) -> &mut List {
        self.kinds.entry(kind).or_default()
    }

    /// A list begins.
    pub(crate) fn begin(&mut self, kind: Kind) {
        let list = self.list(kind);
        list.number = list.number.wrapping_add(1);
    }

    /// An object is there.
    pub(crate) fn enter(&mut self, kind: Kind, name: &Cookie) {
        let list = self.list(kind);
        let number = list.number;
        match list.objects.get_mut(name) {
            Some(seen) => *seen = number,
            None => drop(list.objects.insert(name.clone(), number)),
        }
    }

    /// An object was there when the state was kept. A list that is under way may have seen it since.
    pub(crate) fn enter_saved(&mut self, kind: Kind, name: &Cookie) {
        let list = self.list(kind);
        let before = list.number.wrapping_sub(1);
        list.objects.entry(name.clone()).or_insert(before);
    }

    /// An object is gone.
    pub(crate) fn forget(&mut self, kind: Kind, name: &Cookie) {
        self.list(kind).objects.remove(name);
    }

    /// A list has ended. Returns the objects that it did not have.
    pub(crate) fn end(&mut self, kind: Kind) -> Vec<Cookie> {
        let list = self.list(kind);
        list.is_complete = true;
        let number = list.number;
        let gone: Vec<Cookie> =
            list.objects.extract_if(|_, seen| *seen != number).map(|(name, _)| name).collect();
        self.were_complete |= self.are_complete();
        gone
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

    /// Whether every list ended once.
    pub(crate) fn were_complete(&self) -> bool {
        self.were_complete
    }

    /// Whether changes may be published: what was all once may be published while more pods are awaited.
    pub(crate) fn are_publishable(&self) -> bool {
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

    #[test]
    fn what_a_list_does_not_have_is_gone() {
        let (mut lists, kind) = (Lists::default(), Kind::Service);
        let name = |name: &str| Cookie::new(format!("Service/a/{name}"));
        lists.enter_saved(kind, &name("saved"));
        lists.begin(kind);
        lists.enter_saved(kind, &name("late"));
        for it in ["x", "y", "z"] {
            lists.enter(kind, &name(it));
        }
        let mut gone = lists.end(kind);
        gone.sort_by_key(ToString::to_string);
        assert_eq!(gone, [name("late"), name("saved")]);
        // By the watch.
        lists.forget(kind, &name("x"));
        lists.enter(kind, &name("w"));
        lists.begin(kind);
        lists.enter(kind, &name("z"));
        let mut gone = lists.end(kind);
        gone.sort_by_key(ToString::to_string);
        assert_eq!(gone, [name("w"), name("y")]);
    }

    #[test]
    fn all_kinds_are_awaited_once() {
        let mut lists = Lists::default();
        for kind in Kind::ALL {
            assert!(!lists.are_complete() && lists.missing().contains(kind.plural()));
            lists.begin(kind);
            lists.end(kind);
        }
        assert!(lists.are_complete() && lists.were_complete());
        lists.expect(Kind::Pod);
        assert!(!lists.are_complete() && lists.were_complete() && lists.are_publishable());
    }
}
