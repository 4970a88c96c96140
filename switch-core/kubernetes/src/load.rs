//! Reading manifests: a file, or a folder with all that is in it.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::object::Collection;
use crate::refusal::{Note, Source};
use crate::text;

/// Largest file, in bytes: 150,000 pods of five kilobytes each.
const MAX_FILE: u64 = 1 << 30;
/// Deepest folder below the one named.
const MAX_FOLDERS: usize = 32;

/// The manifests cannot be read at all. An object that can be read and is wrong is a
/// [`crate::Refusal`] instead.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file or folder cannot be read.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        #[source]
        error: io::Error,
    },
    /// A file is neither YAML nor JSON, or goes beyond a bound.
    #[error("{}{}: {message}", path.display(), position(*line, *column))]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, from 1, if known.
        line: Option<usize>,
        /// Column, from 1, if known.
        column: Option<usize>,
        /// What is wrong.
        message: String,
    },
}

fn position(line: Option<usize>, column: Option<usize>) -> String {
    match (line, column) {
        (Some(line), Some(column)) => format!(":{line}:{column}"),
        (Some(line), None) => format!(":{line}"),
        (None, _) => String::new(),
    }
}

/// The objects of a file or folder, read but not yet judged.
#[derive(Clone, Debug, Default)]
pub struct Manifests {
    pub(crate) found: Collection,
    pub(crate) notes: Vec<Note>,
}

impl Manifests {
    /// Reads `path`: a file, whatever its name, or a folder: every `*.yaml`, `*.yml` and `*.json`
    /// in it and in the folders in it, by name. Hidden files and folders are passed over, and
    /// with them the inner workings of a mounted ConfigMap (`..data`); links are followed.
    ///
    /// # Errors
    /// A file cannot be read, or is neither YAML nor JSON.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        let mut manifests = Self::default();
        if metadata(path)?.is_dir() {
            let mut files = Vec::new();
            let mut seen = HashSet::new();
            list(path, 0, &mut seen, &mut files)?;
            if files.is_empty() {
                let text = format!("no manifests in {}", path.display());
                manifests.notes.push(Note { origin: None, text });
            }
            for file in files {
                manifests.read_file(&file)?;
            }
        } else {
            manifests.read_file(path)?;
        }
        Ok(manifests)
    }

    /// Reads the text of a manifest, as if it were the file `name`.
    ///
    /// # Errors
    /// The text is neither YAML nor JSON.
    pub fn parse(name: &Path, text: &str) -> Result<Self, LoadError> {
        let mut manifests = Self::default();
        manifests.read_text(name, text)?;
        Ok(manifests)
    }

    fn read_file(&mut self, path: &Path) -> Result<(), LoadError> {
        let fail = |error| LoadError::Io { path: path.to_owned(), error };
        let file = fs::File::open(path).map_err(fail)?;
        let mut text = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, MAX_FILE + 1), &mut text).map_err(fail)?;
        if text.len() as u64 > MAX_FILE {
            return Err(fail(io::ErrorKind::FileTooLarge.into()));
        }
        let text = String::from_utf8(text).map_err(|error| {
            let line = 1 + error.as_bytes()[..error.utf8_error().valid_up_to()]
                .iter()
                .filter(|&&byte| byte == b'\n')
                .count();
            LoadError::Syntax {
                path: path.to_owned(),
                line: Some(line),
                column: None,
                message: "the file is not UTF-8 text".to_owned(),
            }
        })?;
        self.read_text(path, &text)
    }

    fn read_text(&mut self, path: &Path, text: &str) -> Result<(), LoadError> {
        let json = path.extension().is_some_and(|extension| extension == "json");
        let file: Arc<Path> = path.into();
        text::parse(text, json, &mut |text::Document { index, line, value }| {
            self.found.add(value, &Source { file: file.clone(), document: index, line });
        })
        .map_err(|error| LoadError::Syntax {
            path: path.to_owned(),
            line: error.line,
            column: error.column,
            message: error.message,
        })
    }
}

fn metadata(path: &Path) -> Result<fs::Metadata, LoadError> {
    fs::metadata(path).map_err(|error| LoadError::Io { path: path.to_owned(), error })
}

/// Collects the manifests of a folder. `seen`: the folders that were listed, by their true names,
/// since links may lead in circles.
fn list(
    folder: &Path,
    depth: usize,
    seen: &mut HashSet<PathBuf>,
    files: &mut Vec<PathBuf>,
) -> Result<(), LoadError> {
    let fail = |error| LoadError::Io { path: folder.to_owned(), error };
    if !seen.insert(folder.canonicalize().map_err(fail)?) {
        return Ok(());
    }
    if depth > MAX_FOLDERS {
        let message = format!("folders are nested deeper than {MAX_FOLDERS}");
        return Err(fail(io::Error::other(message)));
    }
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder).map_err(fail)? {
        entries.push(entry.map_err(fail)?.file_name());
    }
    entries.sort();
    for name in entries {
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = folder.join(name);
        let manifest = path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
        match fs::metadata(&path) {
            Ok(entry) if entry.is_dir() => list(&path, depth + 1, seen, files)?,
            // Only regular files: to open a pipe would wait for whoever writes it.
            Ok(entry) if entry.is_file() && manifest => files.push(path),
            Ok(_) => {}
            // What is no manifest may be a dead link or vanish meanwhile.
            Err(_) if !manifest => {}
            Err(error) => return Err(LoadError::Io { path, error }),
        }
    }
    Ok(())
}
