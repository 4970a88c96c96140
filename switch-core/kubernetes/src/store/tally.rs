//! Counts the objects of each kind that were added, changed and removed.

use hashbrown::HashMap;
use podswitch_core::id::Cookie;

use super::Store;
use crate::kind::Kind;

/// Changes of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KindChanges {
    /// New objects.
    pub added: usize,
    /// Objects whose content changed.
    pub changed: usize,
    /// Deleted objects.
    pub removed: usize,
}

impl KindChanges {
    /// Whether there are no changes.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Objects that were added, changed and removed, by kind, whether they can be used or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ObjectChanges([KindChanges; Kind::ALL.len()]);

impl ObjectChanges {
    /// The changes of one kind.
    pub fn of(&self, kind: Kind) -> KindChanges {
        self.0[kind as usize]
    }

    /// The kinds with changes.
    pub fn iter(&self) -> impl Iterator<Item = (Kind, KindChanges)> {
        let all = Kind::ALL.into_iter().map(|kind| (kind, self.of(kind)));
        all.filter(|(_, changes)| !changes.is_empty())
    }
}

/// Objects that were changed, and whether they existed before.
pub(super) type Touched = HashMap<Cookie, (Kind, bool)>;

impl Store {
    /// Records an object before it changes.
    pub(super) fn touch(&mut self, object: &Cookie, kind: Kind, was_there: bool) {
        if let Some(touched) = &mut self.touched {
            touched.entry_ref(object).or_insert((kind, was_there));
        }
    }

    /// The objects that were added, changed and removed since the last call, at a cost proportional
    /// to their number. The first call returns nothing and starts the counting.
    pub fn take_object_changes(&mut self) -> ObjectChanges {
        let mut changes = ObjectChanges::default();
        for (object, (kind, was_there)) in
            self.touched.replace(Touched::new()).into_iter().flatten()
        {
            let of_kind = &mut changes.0[kind as usize];
            match (was_there, self.objects.contains_key(&object)) {
                (false, true) => of_kind.added += 1,
                (true, true) => of_kind.changed += 1,
                (true, false) => of_kind.removed += 1,
                // It was added and deleted again.
                (false, false) => {}
            }
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Object;
    use crate::options::Options;

    fn pod(name: &str, address: &str) -> Object {
        let json = format!(
            r#"{{"metadata":{{"namespace":"a","name":"{name}"}},"spec":{{"nodeName":"n"}},"status":{{"podIP":"{address}"}}}}"#
        );
        Object::decode(Kind::Pod, &json).unwrap()
    }

    fn pods(store: &mut Store) -> (usize, usize, usize) {
        let changes = store.take_object_changes();
        let KindChanges { added, changed, removed } = changes.of(Kind::Pod);
        let others = changes.iter().filter(|(kind, _)| *kind != Kind::Pod).count();
        assert_eq!(others, 0);
        (added, changed, removed)
    }

    #[test]
    fn each_object_counts_once() {
        let mut store = Store::new(Some("n"), Options::default());
        store.upsert(&pod("early", "10.0.0.1"));
        assert_eq!(pods(&mut store), (0, 0, 0), "counting begins");
        store.upsert(&pod("early", "10.0.0.1"));
        assert_eq!(pods(&mut store), (0, 0, 0), "nothing changed");
        // Added and then changed: counts as added. Changed twice: counts as changed. Added and
        // deleted: does not count.
        store.upsert(&pod("new", "10.0.0.2"));
        store.upsert(&pod("new", "10.0.0.3"));
        store.upsert(&pod("early", "10.0.0.4"));
        store.upsert(&pod("early", "10.0.0.5"));
        store.upsert(&pod("short", "10.0.0.6"));
        store.delete(&Cookie::new("Pod/a/short"));
        store.delete(&Cookie::new("Pod/a/never"));
        assert_eq!(pods(&mut store), (1, 1, 0));
        store.delete(&Cookie::new("Pod/a/new"));
        store.upsert(&pod("bad", "10.0.0.256"));
        assert_eq!(pods(&mut store), (1, 0, 1), "an unusable object counts as well");
        assert_eq!(pods(&mut store), (0, 0, 0));
    }

    #[test]
    fn undone_changes_do_not_count() {
        let mut store = Store::new(Some("n"), Options::default());
        store.upsert(&pod("a", "10.0.0.1"));
        store.take_object_changes();
        store.upsert(&pod("b", "10.0.0.2"));
        store.begin();
        store.upsert(&pod("a", "10.0.0.3"));
        store.upsert(&pod("c", "10.0.0.4"));
        store.take_back();
        assert_eq!(pods(&mut store), (1, 0, 0), "only the changes before");
    }
}
