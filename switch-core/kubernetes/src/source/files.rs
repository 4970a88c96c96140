//! Manifests that are read again whenever they change, at a cost proportional to the change: files
//! that were not written since are not read, and unchanged parts of files are not parsed.

use std::hash::{BuildHasher as _, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use hashbrown::{HashMap, HashSet};
use podswitch_core::id::Cookie;

use super::folder::{self, LoadError, Stamp};
use super::manifests::{Others, again, in_order, none_in};
use super::parse;
use crate::object::{Found, Loaded};
use crate::report::{Record, Source};
use crate::store::Store;
use crate::text::ends_open;

/// The files of a folder, or one file, and what each defines in a [`Store`].
#[derive(Debug)]
pub struct Files {
    path: PathBuf,
    hasher: RandomState,
    files: HashMap<PathBuf, File>,
    /// Objects that are defined more than once: the unused definitions, by the name of the used
    /// one.
    more: HashMap<Cookie, Vec<Extra>>,
    /// Names under which parts know definitions that have since replaced another one.
    promoted: HashMap<Cookie, Cookie>,
    others: Others,
}

/// An unused definition, and its name in the store.
#[derive(Clone, Debug)]
struct Extra {
    name: Cookie,
    object: Loaded,
}

#[derive(Debug)]
struct File {
    stamp: Stamp,
    settled: bool,
    ends_open: bool,
    parts: Vec<PartState>,
}

/// A part of a file, and what it defines.
#[derive(Clone, Debug, Default)]
struct PartState {
    hash: u64,
    document: usize,
    line: usize,
    /// Names in the store.
    objects: Vec<Cookie>,
    /// Kinds and versions of ignored objects.
    others: Vec<(String, String)>,
    /// Records about values that are not objects.
    said: Vec<Record>,
}

/// State of the files before a load.
struct Undo {
    files: Vec<(PathBuf, Option<File>)>,
    more: HashMap<Cookie, Vec<Extra>>,
    promoted: HashMap<Cookie, Cookie>,
    others: Others,
}

/// Statistics of a load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loading {
    /// Files that were read.
    pub files: usize,
    /// Parts that were parsed: documents, or items of JSON lists.
    pub parsed: usize,
    /// Objects that were upserted or deleted.
    pub objects: usize,
}

/// A file that was read and is not yet in force.
struct Staged {
    path: PathBuf,
    file: File,
    /// Definitions of new parts, by the number of the part.
    found: Vec<(usize, Found)>,
    /// Parts that are no longer in the file.
    gone: Vec<PartState>,
    /// Objects that have moved within the file.
    moved: Vec<(Cookie, Source)>,
}

impl Files {
    /// The file or folder at `path`; nothing has been read yet.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            hasher: RandomState::new(),
            files: HashMap::new(),
            more: HashMap::new(),
            promoted: HashMap::new(),
            others: Others::default(),
        }
    }

    /// Reads what changed since the last load, and updates `store`. A store belongs to the files
    /// that it was first loaded from.
    ///
    /// # Errors
    /// A file cannot be read, is being written, is truncated, or is neither YAML nor JSON. Nothing
    /// is changed in this case.
    pub fn load(&mut self, store: &mut Store) -> Result<Loading, LoadError> {
        self.load_if(store, |_, _| Ok(()))
    }

    /// Like [`load`](Self::load), but undoes everything if `accept` returns an error after the
    /// store was updated. The next load reads the changes again.
    ///
    /// # Errors
    /// As [`load`](Self::load), and the error of `accept`. Nothing is changed in this case.
    pub fn load_if<E: From<LoadError>>(
        &mut self,
        store: &mut Store,
        accept: impl FnOnce(&Self, &mut Store) -> Result<(), E>,
    ) -> Result<Loading, E> {
        let (staged, gone) = self.read()?;
        store.begin();
        let (loading, undo) = self.put(store, staged, gone);
        match accept(self, store) {
            Ok(()) => {
                store.keep();
                Ok(loading)
            }
            Err(error) => {
                store.take_back();
                self.take_back(undo);
                Err(error)
            }
        }
    }

    /// Reads what changed, and finds deleted files.
    fn read(&self) -> Result<(Vec<Staged>, Vec<PathBuf>), LoadError> {
        #[expect(clippy::disallowed_methods, reason = "compared with the times of files")]
        let now = SystemTime::now();
        let found = folder::find(&self.path)?;
        let mut staged = Vec::new();
        for path in &found {
            let before = self.files.get(path);
            let unchanged = before.is_some_and(|file| {
                file.settled && Stamp::at(path).is_ok_and(|stamp| stamp == file.stamp)
            });
            if !unchanged {
                staged.push(self.stage(path, before, now)?);
            }
        }
        let found: HashSet<&PathBuf> = found.iter().collect();
        let gone: Vec<PathBuf> =
            self.files.keys().filter(|path| !found.contains(path)).cloned().collect();
        Ok((staged, gone))
    }

    /// Undoes the load.
    fn take_back(&mut self, undo: Undo) {
        for (path, file) in undo.files {
            match file {
                Some(file) => self.files.insert(path, file),
                None => self.files.remove(&path),
            };
        }
        (self.more, self.promoted, self.others) = (undo.more, undo.promoted, undo.others);
    }

    /// Reads the changed parts of a file.
    fn stage(
        &self,
        path: &Path,
        before: Option<&File>,
        now: SystemTime,
    ) -> Result<Staged, LoadError> {
        let (text, stamp) = folder::read(path)?;
        let cut =
            |message: &str| LoadError::Cut { path: path.to_owned(), message: message.to_owned() };
        let defined = before.is_some_and(|file| file.parts.iter().any(|p| !p.objects.is_empty()));
        if defined && text.trim().is_empty() {
            return Err(cut("it is now empty (remove the file to delete its objects)"));
        }
        let ends_open = ends_open(&text);
        if ends_open && before.is_some_and(|file| !file.ends_open) {
            return Err(cut("it ends after ---, where its last document should begin"));
        }
        let mut known: HashMap<u64, Vec<PartState>> = HashMap::new();
        for part in before.iter().flat_map(|file| &file.parts).rev() {
            known.entry(part.hash).or_default().push(part.clone());
        }
        let file: Arc<Path> = path.into();
        let (mut parts, mut found, mut moved) = (Vec::new(), Vec::new(), Vec::new());
        for part in parse::split(path, &text)? {
            let source = parse::source(&file, &part);
            let hash = self.hasher.hash_one((part.text, part.list.as_deref()));
            let mut state = PartState {
                hash,
                document: part.document,
                line: part.line,
                ..PartState::default()
            };
            match known.get_mut(&hash).and_then(Vec::pop) {
                Some(same) => {
                    if (same.document, same.line) != (part.document, part.line) {
                        let objects = same.objects.iter().cloned();
                        moved.extend(objects.map(|object| (object, source.clone())));
                    }
                    state = PartState { document: part.document, line: part.line, ..same };
                    for record in &mut state.said {
                        record.origin = Some(source.clone());
                    }
                }
                None => parse::parse(&file, &text, &part, &mut |it| found.push((parts.len(), it)))?,
            }
            parts.push(state);
        }
        let gone = known.into_values().flatten().collect();
        let settled = stamp.is_settled(now);
        let file = File { stamp, settled, ends_open, parts };
        Ok(Staged { path: path.to_owned(), file, found, gone, moved })
    }

    /// Applies the files that were read.
    fn put(
        &mut self,
        store: &mut Store,
        staged: Vec<Staged>,
        gone: Vec<PathBuf>,
    ) -> (Loading, Undo) {
        let mut undo = Undo {
            files: Vec::new(),
            more: self.more.clone(),
            promoted: self.promoted.clone(),
            others: self.others.clone(),
        };
        let mut loading = Loading { files: staged.len(), ..Loading::default() };
        let mut removed: HashSet<Cookie> = HashSet::new();
        let mut gone_parts: Vec<_> = staged.iter().flat_map(|it| it.gone.clone()).collect();
        for path in gone {
            let file = self.files.remove(&path);
            gone_parts.extend(file.iter().flat_map(|file| file.parts.clone()));
            undo.files.push((path, file));
        }
        for part in gone_parts {
            for (kind, version) in &part.others {
                self.others.remove(kind, version);
            }
            removed.extend(part.objects);
        }
        for Staged { path, mut file, found, moved, .. } in staged {
            for (object, source) in moved {
                store.moved(self.promoted.get(&object).unwrap_or(&object), source);
            }
            let mut parsed = HashSet::new();
            for (at, found) in found {
                parsed.insert(at);
                let part = &mut file.parts[at];
                match found {
                    Found::Object(object) => {
                        loading.objects += 1;
                        part.objects.push(self.upsert(store, *object, &mut removed));
                    }
                    Found::Other { kind, version } => {
                        let source = Source {
                            file: path.as_path().into(),
                            document: part.document,
                            line: part.line,
                        };
                        self.others.add(kind.clone(), version.clone(), Some(&source));
                        part.others.push((kind, version));
                    }
                    Found::Nothing(record) => part.said.push(record),
                }
            }
            loading.parsed += parsed.len();
            let before = self.files.insert(path.clone(), file);
            undo.files.push((path, before));
        }
        loading.objects += removed.len();
        for object in removed {
            self.remove(store, &object);
        }
        (loading, undo)
    }

    /// Adds a definition; returns its name in the store.
    fn upsert(
        &mut self,
        store: &mut Store,
        object: Loaded,
        removed: &mut HashSet<Cookie>,
    ) -> Cookie {
        let name = object.cookie.clone();
        if removed.remove(&name) || store.origin(&name).is_none() {
            store.upsert_loaded(&object);
            return name;
        }
        // Already defined by a part that stays.
        let Some(first) = store.origin(&name).cloned() else { return name };
        let more = self.more.entry(name.clone()).or_default();
        let taken = |number: usize| {
            let name = format!("{name}#{number}");
            more.iter().any(|extra| extra.name.as_str() == name)
                || self.promoted.keys().any(|known| known.as_str() == name)
        };
        let number = (2..).find(|number| !taken(*number)).unwrap_or(2);
        let extra = again(object.clone(), number, &first);
        store.upsert_loaded(&extra);
        let name = extra.cookie;
        more.push(Extra { name: name.clone(), object });
        removed.remove(&name);
        name
    }

    /// Deletes a definition that no part has any more. If there is an unused definition of the same
    /// object, it takes its place.
    fn remove(&mut self, store: &mut Store, known: &Cookie) {
        let name = self.promoted.remove(known).unwrap_or_else(|| known.clone());
        if let Some((first, _)) = name.as_str().rsplit_once('#')
            && let Some(more) = self.more.get_mut(&Cookie::new(first))
            && let Some(at) = more.iter().position(|extra| extra.name == name)
        {
            more.remove(at);
            store.delete(&name);
            return;
        }
        let next = self.more.get_mut(&name).filter(|more| !more.is_empty());
        match next.map(|more| more.remove(0)) {
            Some(next) => {
                store.delete(&next.name);
                store.upsert_loaded(&next.object);
                self.promoted.insert(next.name, name);
            }
            None => {
                self.more.remove(&name);
                store.delete(&name);
            }
        }
    }

    /// Records about the objects of `store` and about values that are not objects, by file and
    /// document.
    pub fn records(&self, store: &mut Store) -> Vec<Record> {
        let mut records = store.records();
        let parts = self.files.values().flat_map(|file| &file.parts);
        records.extend(parts.flat_map(|part| part.said.iter().cloned()));
        records.extend(self.others.records());
        if self.files.is_empty() {
            records.push(none_in(&self.path));
        }
        in_order(&mut records);
        records
    }
}
