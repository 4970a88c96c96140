//! The last list of objects of one kind, so that an equal part of the next list costs only a
//! comparison of pointers.

use std::mem::take;

use hashbrown::hash_map::Entry;
use hashbrown::{HashMap, HashSet};

use super::object::Object;
use crate::publish::fault;
use crate::publish::left_out::LeftOut;

/// The changes of a list: objects to upsert, and keys to delete.
pub(super) type Staged<O> = Vec<(<O as Object>::Key, Option<O>)>;

/// See the module's description.
#[derive(Debug)]
pub(super) struct List<O: Object> {
    objects: Vec<O>,
    /// There were single changes after the list, or two of its objects have the same key: the
    /// objects of the next list are compared with the desired objects one by one.
    is_stale: bool,
    /// Objects with the key of another desired object.
    duplicates: Vec<(O::Key, LeftOut)>,
    before: Option<Before<O>>,
}

/// The list before the publish.
#[derive(Debug)]
struct Before<O: Object> {
    /// Index, previous objects, and number of objects there now.
    splice: Option<(usize, Vec<O>, usize)>,
    is_stale: bool,
    duplicates: Vec<(O::Key, LeftOut)>,
}

impl<O: Object> Default for List<O> {
    fn default() -> Self {
        Self { objects: Vec::new(), is_stale: false, duplicates: Vec::new(), before: None }
    }
}

impl<O: Object> List<O> {
    pub(super) fn duplicates(&self) -> &[(O::Key, LeftOut)] {
        &self.duplicates
    }

    /// Duplicates found by this publish.
    pub(super) fn new_duplicates(&self) -> impl Iterator<Item = &LeftOut> {
        let before = self.before.as_ref().map_or(&[][..], |before| &before.duplicates);
        let is_new = self.before.is_some();
        let found = self
            .duplicates
            .iter()
            .filter(move |(_, d)| is_new && !before.iter().any(|(_, known)| known == d));
        found.map(|(_, left_out)| left_out)
    }

    /// Notes a single change of the object of this key: the list is outdated.
    pub(super) fn outdate(&mut self, key: &O::Key) {
        let (is_stale, duplicates) = (self.is_stale, &self.duplicates);
        self.before.get_or_insert_with(|| Before {
            splice: None,
            is_stale,
            duplicates: duplicates.clone(),
        });
        self.is_stale = true;
        self.duplicates.retain(|(of, _)| of != key);
    }

    /// Replaces the list. `wanted`: the desired objects at present.
    pub(super) fn replace(&mut self, new: &[O], wanted: &HashMap<O::Key, O>) -> Staged<O> {
        let (front, back) = if self.is_stale { (0, 0) } else { self.shared(new) };
        let middle = &new[front..new.len() - back];
        let old = front..self.objects.len() - back;
        if !self.is_stale && middle.is_empty() && old.is_empty() {
            return Vec::new();
        }
        let gone: HashSet<O::Key> = match self.is_stale {
            true => wanted.keys().cloned().collect(),
            false => self.objects[old.clone()].iter().map(O::key).collect(),
        };
        let (list, mut unique) = Unique::of(middle);
        if list.iter().any(|(key, _)| wanted.contains_key(key) && !gone.contains(key)) {
            // It has the key of an object in the shared part.
            self.is_stale = true;
            return self.replace(new, wanted);
        }
        let len = middle.len();
        let (at, taken) = (old.start, self.objects.splice(old, middle.iter().cloned()).collect());
        self.before = Some(Before {
            splice: Some((at, taken, len)),
            is_stale: self.is_stale,
            duplicates: take(&mut self.duplicates),
        });
        self.is_stale = unique.found;
        self.duplicates = take(&mut unique.duplicates);
        let mut staged: Staged<O> = Vec::new();
        staged
            .extend(gone.into_iter().filter(|k| !unique.places.contains_key(k)).map(|k| (k, None)));
        staged.extend(list.into_iter().map(|(key, object)| (key, Some(object))));
        staged
    }

    /// Number of objects that both lists share at the front and at the back.
    fn shared(&self, new: &[O]) -> (usize, usize) {
        let shared = |(a, b): &(&O, &O)| a.is_shared(b);
        let front = self.objects.iter().zip(new).take_while(shared).count();
        let (old, new) = (&self.objects[front..], &new[front..]);
        (front, old.iter().rev().zip(new.iter().rev()).take_while(shared).count())
    }

    pub(super) fn commit(&mut self) {
        self.before = None;
    }

    pub(super) fn undo(&mut self) {
        let Some(before) = self.before.take() else { return };
        if let Some((at, objects, len)) = before.splice {
            self.objects.splice(at..at + len, objects);
        }
        self.is_stale = before.is_stale;
        self.duplicates = before.duplicates;
    }
}

/// Objects with different keys.
struct Unique<O: Object> {
    places: HashMap<O::Key, usize>,
    duplicates: Vec<(O::Key, LeftOut)>,
    found: bool,
}

impl<O: Object> Unique<O> {
    /// One object for each key of `list`, in its order.
    fn of(list: &[O]) -> (Vec<(O::Key, O)>, Self) {
        let mut unique = Self { places: HashMap::new(), duplicates: Vec::new(), found: false };
        let mut objects: Vec<(O::Key, O)> = Vec::with_capacity(list.len());
        for object in list {
            let key = object.key();
            match unique.places.entry(key.clone()) {
                Entry::Vacant(place) => {
                    place.insert(objects.len());
                    objects.push((key, object.clone()));
                }
                Entry::Occupied(place) => {
                    unique.found = true;
                    let (_, first) = &mut objects[*place.get()];
                    if let Some(both) = first.merged(object) {
                        *first = both;
                    } else {
                        if object.precedence() > first.precedence() {
                            *first = object.clone();
                        }
                        unique
                            .duplicates
                            .push((key, fault::duplicate(&object.cookie(), O::DUPLICATE)));
                    }
                }
            }
        }
        (objects, unique)
    }
}
