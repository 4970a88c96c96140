//! Objects as values, for programs that read other kinds than [`Store`](crate::Store) does. Read
//! again whenever a file changes; a file that cannot be read keeps its last content.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use hashbrown::{HashMap, HashSet};
use serde_json::Value;

use super::folder::{self, LoadError, Stamp};
use super::parse;
use crate::object::{Found, find_item, listed};
use crate::report::{Record, Source};

/// An object as written.
#[derive(Clone, Debug, PartialEq)]
pub struct ValueObject {
    /// Where it was read.
    pub source: Source,
    /// `apiVersion`; items of a typed list have the list's.
    pub version: String,
    /// `kind`.
    pub kind: String,
    /// The whole object.
    pub value: Value,
}

/// The files of a folder, or one file, and the objects in them.
#[derive(Debug)]
pub struct Values {
    path: PathBuf,
    files: HashMap<PathBuf, File>,
    errors: Vec<String>,
}

#[derive(Debug)]
struct File {
    stamp: Stamp,
    settled: bool,
    text: String,
    objects: Vec<ValueObject>,
    records: Vec<Record>,
}

impl Values {
    /// The file or folder at `path`; nothing has been read yet.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), files: HashMap::new(), errors: Vec::new() }
    }

    /// Reads the files that changed. Returns whether an object or record changed.
    ///
    /// # Errors
    /// The folder cannot be listed; nothing is changed. An error of one file is one of
    /// [`errors`](Self::errors), and the file's last content stays.
    pub fn load(&mut self) -> Result<bool, LoadError> {
        #[expect(clippy::disallowed_methods, reason = "compared with the times of files")]
        let now = SystemTime::now();
        let found: HashSet<PathBuf> = folder::find(&self.path)?.into_iter().collect();
        let before = self.files.len();
        self.files.retain(|path, _| found.contains(path));
        let mut is_changed = self.files.len() != before;
        let mut errors = Vec::new();
        for path in found {
            let known = self.files.get(&path);
            let is_same = known.is_some_and(|file| {
                file.settled && Stamp::at(&path).is_ok_and(|stamp| stamp == file.stamp)
            });
            if is_same {
                continue;
            }
            let (text, stamp) = match folder::read(&path) {
                Ok(read) => read,
                Err(error) => {
                    errors.push(error.to_string());
                    continue;
                }
            };
            if let Some(file) = self.files.get_mut(&path)
                && file.text == text
            {
                (file.stamp, file.settled) = (stamp, stamp.is_settled(now));
                continue;
            }
            match objects(&path, &text) {
                Ok((objects, records)) => {
                    let settled = stamp.is_settled(now);
                    self.files.insert(path, File { stamp, settled, text, objects, records });
                    is_changed = true;
                }
                Err(error) => errors.push(error.to_string()),
            }
        }
        errors.sort();
        self.errors = errors;
        Ok(is_changed)
    }

    /// The objects, by file and document.
    pub fn objects(&self) -> Vec<&ValueObject> {
        let mut objects: Vec<_> = self.files.values().flat_map(|file| &file.objects).collect();
        objects.sort_by_key(|object| (&object.source.file, object.source.document));
        objects
    }

    /// Records about values that are not objects.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.files.values().flat_map(|file| &file.records)
    }

    /// What is wrong with files whose content could not be read by the last load.
    pub fn errors(&self) -> &[String] {
        &self.errors
    }
}

fn objects(path: &Path, text: &str) -> Result<(Vec<ValueObject>, Vec<Record>), LoadError> {
    let file: Arc<Path> = path.into();
    let (mut objects, mut records) = (Vec::new(), Vec::new());
    for part in parse::split(path, text)? {
        let source = parse::source(&file, &part);
        let value = parse::value(&file, text, &part)?;
        let list = part.list.as_deref().and_then(|(version, kind)| listed(version, kind));
        flatten(value, &source, list, &mut objects, &mut records);
    }
    Ok((objects, records))
}

/// The objects in a value: one, or the items of a list.
fn flatten(
    mut value: Value,
    source: &Source,
    listed_as: Option<(&str, &str)>,
    objects: &mut Vec<ValueObject>,
    records: &mut Vec<Record>,
) {
    if value.is_null() {
        return;
    }
    let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    let named = match (text("apiVersion"), text("kind"), listed_as) {
        (version, Some(kind), _) => Some((version.unwrap_or_default(), kind)),
        (_, None, Some((version, kind))) => Some((version.to_owned(), kind.to_owned())),
        (_, None, None) => None,
    };
    let Some((version, kind)) = named else {
        return find_item(value, Some(source), None, &mut |found| {
            if let Found::Nothing(record) = found {
                records.push(record);
            }
        });
    };
    if kind.ends_with("List")
        && let Some(Value::Array(items)) = value.get_mut("items").map(Value::take)
    {
        for item in items {
            flatten(item, source, listed(&version, &kind), objects, records);
        }
        return;
    }
    objects.push(ValueObject { source: source.clone(), version, kind, value });
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_that_cannot_be_read_keeps_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.yaml");
        let list = "{apiVersion: v1, kind: List, items: [\
                    {apiVersion: v1, kind: Secret, metadata: {name: a}}, \
                    {apiVersion: x/v1, kind: Other, metadata: {name: b}}]}";
        fs::write(&file, list).unwrap();
        let mut values = Values::new(folder.path());
        assert!(values.load().unwrap());
        let kinds = |values: &Values| -> Vec<String> {
            values.objects().iter().map(|object| object.kind.clone()).collect()
        };
        assert_eq!(kinds(&values), ["Secret", "Other"]);
        assert!(!values.load().unwrap(), "nothing has changed");

        fs::write(&file, "kind: [").unwrap();
        assert!(!values.load().unwrap(), "an error alone changes no object");
        assert_eq!(values.errors().len(), 1);
        fs::write(folder.path().join("b.yaml"), "{apiVersion: v1, kind: Third}\n---\n7\n").unwrap();
        assert!(values.load().unwrap());
        assert_eq!(kinds(&values), ["Secret", "Other", "Third"]);
        assert_eq!((values.errors().len(), values.records().count()), (1, 1));
        assert!(values.errors()[0].contains("a.yaml"), "{:?}", values.errors());

        fs::remove_file(&file).unwrap();
        assert!(values.load().unwrap());
        assert_eq!((kinds(&values).len(), values.errors().len()), (1, 0));
    }
}
