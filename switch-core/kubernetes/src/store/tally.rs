//! Counts the objects of each kind that were added, changed and removed, and names some.

use std::collections::BTreeSet;
use std::fmt;

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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectChanges {
    counts: [KindChanges; Kind::ALL.len()],
    named: BTreeSet<Named>,
}

/// Number of objects that are named, so that a log line stays readable.
const NAMED: usize = 10;

/// A changed object. Those come first that people change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Named {
    rank: u8,
    object: String,
    /// `+`, `~` or `-`.
    sign: char,
}

/// The order in which kinds are named: what people write first, what controllers write last.
fn rank(kind: Kind) -> u8 {
    match kind {
        Kind::NetworkPolicy | Kind::ClusterNetworkPolicy => 0,
        Kind::Service => 1,
        Kind::Namespace | Kind::Node | Kind::ServiceCidr => 2,
        Kind::Pod => 3,
        Kind::EndpointSlice => 4,
    }
}

impl ObjectChanges {
    /// The changes of one kind.
    pub fn of(&self, kind: Kind) -> KindChanges {
        self.counts[kind as usize]
    }

    /// The number of objects that were added, changed or removed.
    pub fn total(&self) -> usize {
        self.counts.iter().map(|of| of.added + of.changed + of.removed).sum()
    }

    /// The names of at most ten objects, separated by commas, each after `+` (added), `~` (changed)
    /// or `-` (removed); then the number of the others. Policies come first, then Services. `None`:
    /// nothing changed.
    pub fn names(&self) -> Option<impl fmt::Display> {
        let names: Vec<String> =
            self.named.iter().map(|named| format!("{}{}", named.sign, named.object)).collect();
        let others = self.total() - names.len();
        let others = if others > 0 { format!(",and {others} more") } else { String::new() };
        (!names.is_empty()).then(|| names.join(",") + &others)
    }

    fn add(&mut self, kind: Kind, object: &Cookie, sign: char) {
        let of_kind = &mut self.counts[kind as usize];
        *match sign {
            '+' => &mut of_kind.added,
            '~' => &mut of_kind.changed,
            _ => &mut of_kind.removed,
        } += 1;
        self.named.insert(Named { rank: rank(kind), object: object.to_string(), sign });
        if self.named.len() > NAMED {
            self.named.pop_last();
        }
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
            match (was_there, self.objects.contains_key(&object)) {
                (false, true) => changes.add(kind, &object, '+'),
                (true, true) => changes.add(kind, &object, '~'),
                (true, false) => changes.add(kind, &object, '-'),
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
    fn some_are_named() {
        let mut store = Store::new(Some("n"), Options::default());
        store.upsert(&pod("a", "10.0.0.1"));
        store.upsert(&pod("b", "10.0.0.2"));
        assert!(store.take_object_changes().names().is_none());
        store.upsert(&pod("a", "10.0.0.3"));
        store.delete(&Cookie::new("Pod/a/b"));
        let policy = r#"{"metadata":{"namespace":"z","name":"p"},"spec":{"podSelector":{}}}"#;
        store.upsert(&Object::decode(Kind::NetworkPolicy, policy).unwrap());
        let names = |store: &mut Store| store.take_object_changes().names().unwrap().to_string();
        assert_eq!(names(&mut store), "+NetworkPolicy/z/p,~Pod/a/a,-Pod/a/b");
        for number in 10..30 {
            store.upsert(&pod(&format!("n{number}"), &format!("10.0.0.{number}")));
        }
        store.delete(&Cookie::new("NetworkPolicy/z/p"));
        let names = names(&mut store);
        assert!(names.starts_with("-NetworkPolicy/z/p,+Pod/a/n10,"), "{names}");
        assert!(names.ends_with(",+Pod/a/n18,and 11 more"), "{names}");
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
