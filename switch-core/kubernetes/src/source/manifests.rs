//! Manifests that are read once.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use podswitch_core::id::Cookie;
use podswitch_dns::facts::Facts;

use super::folder::{self, LoadError};
use super::parse;
use crate::dns::facts;
use crate::object::{Body, Found, Loaded};
use crate::options::Options;
use crate::report::{Fault, Record, Source};
use crate::state::Compiled;
use crate::store::Store;

/// The objects of a file or folder, as written.
#[derive(Clone, Debug, Default)]
pub struct Manifests {
    /// By their names in a store.
    objects: Vec<Loaded>,
    /// Definitions so far, by name.
    defined: HashMap<Cookie, (usize, Source)>,
    said: Vec<Record>,
    others: Others,
}

impl Manifests {
    /// Reads `path`: a file with any name, or a folder: every `*.yaml`, `*.yml` and `*.json` in it
    /// and in its subfolders, sorted by name. Hidden files and folders are skipped, including those
    /// of a mounted ConfigMap (`..data`); links are followed.
    ///
    /// # Errors
    /// A file cannot be read, or is neither YAML nor JSON.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        let mut manifests = Self::default();
        let files = folder::find(path)?;
        if files.is_empty() {
            manifests.said.push(none_in(path));
        }
        for file in files {
            let (text, _) = folder::read(&file)?;
            manifests.add(&file, &text)?;
        }
        Ok(manifests)
    }

    /// Reads the text of a manifest, as if it were the file `name`.
    ///
    /// # Errors
    /// The text is neither YAML nor JSON.
    pub fn parse(name: &Path, text: &str) -> Result<Self, LoadError> {
        let mut manifests = Self::default();
        manifests.add(name, text)?;
        Ok(manifests)
    }

    fn add(&mut self, path: &Path, text: &str) -> Result<(), LoadError> {
        let file: Arc<Path> = path.into();
        for part in parse::split(path, text)? {
            let source = parse::source(&file, &part);
            parse::parse(&file, text, &part, &mut |found| match found {
                Found::Object(object) => {
                    let new = || (0, source.clone());
                    let (count, first) =
                        self.defined.entry(object.cookie.clone()).or_insert_with(new);
                    *count += 1;
                    let object = if *count == 1 { *object } else { again(*object, *count, first) };
                    self.objects.push(object);
                }
                Found::Other { kind, version } => self.others.add(kind, version, Some(&source)),
                Found::Nothing(record) => self.said.push(record),
            })?;
        }
        Ok(())
    }

    /// What the objects say of names, with the object that says it, in the order of the manifests.
    pub fn name_facts(&self, options: &Options) -> impl Iterator<Item = (&str, Facts)> {
        let objects = self.objects();
        objects.filter_map(move |it| Some((it.cookie.as_str(), facts(it, options)?)))
    }

    /// The objects as written.
    fn objects(&self) -> impl Iterator<Item = &Loaded> {
        self.objects.iter()
    }

    /// Compiles the manifests for the node `node`; without a node no pod is local. Objects that
    /// cannot be used are left out, or isolate what they select: see [`Compiled::records`].
    pub fn compile(&self, node: Option<&str>, options: &Options) -> Compiled {
        self.compile_into(&mut Store::new(node, options.clone()))
    }

    /// Like [`compile`](Self::compile), for the node of `store`, which afterwards has exactly these
    /// objects. The last valid version of a policy depends on the previous content.
    pub fn compile_into(&self, store: &mut Store) -> Compiled {
        for object in &self.objects {
            store.upsert_loaded(object);
        }
        let there: HashSet<&Cookie> = self.objects.iter().map(|object| &object.cookie).collect();
        store.retain(|name| there.contains(name));
        let mut compiled = store.compiled();
        compiled.records.extend(self.said.iter().cloned());
        compiled.records.extend(self.others.records());
        in_order(&mut compiled.records);
        compiled
    }
}

/// An object that was already defined, at `first`: it is not used, but isolates what it selects. It
/// has its own name in a store.
pub(super) fn again(mut object: Loaded, number: usize, first: &Source) -> Loaded {
    let fault = Fault {
        field: "metadata.name".to_owned(),
        reason: format!("is defined already, at {first}"),
    };
    object.body = match object.body {
        Body::Good(meta, it) | Body::Again(_, meta, it) => Body::Again(fault, meta, it),
        Body::Bad(_, value) => Body::Bad(fault, value),
    };
    object.cookie = Cookie::new(format!("{}#{number}", object.cookie));
    object
}

/// The note that a folder contains no manifests.
pub(super) fn none_in(path: &Path) -> Record {
    Record::general(format!("no manifests in {}", path.display()))
}

/// Sorts records by file and document; those without a file come last.
pub(super) fn in_order(records: &mut [Record]) {
    records.sort_by(|a, b| {
        let place = |r: &Record| {
            let origin = r.origin.as_ref();
            (origin.is_none(), origin.map(|origin| (origin.file.clone(), origin.document)))
        };
        place(a).cmp(&place(b))
    });
}

/// Objects of unsupported kinds: the number of each kind, and where the first one was.
#[derive(Clone, Debug, Default)]
pub(super) struct Others(BTreeMap<(String, String), (usize, Option<Source>)>);

impl Others {
    pub(super) fn add(&mut self, kind: String, version: String, origin: Option<&Source>) {
        let (count, _) = self.0.entry((kind, version)).or_insert((0, origin.cloned()));
        *count += 1;
    }

    pub(super) fn remove(&mut self, kind: &str, version: &str) {
        let key = (kind.to_owned(), version.to_owned());
        if let Some((count, _)) = self.0.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&key);
            }
        }
    }

    /// A note for each kind.
    pub(super) fn records(&self) -> impl Iterator<Item = Record> + '_ {
        self.0.iter().map(|((kind, version), (count, first))| {
            let (kind, version) = (kind.escape_debug(), version.escape_debug());
            let others = match count {
                1 => String::new(),
                count => format!(" (and {} more of that kind)", count - 1),
            };
            let reason = format!("ignored: {kind} of {version} is not a supported kind{others}");
            Record { origin: first.clone(), ..Record::general(reason) }
        })
    }
}
