//! Files and folders: finds manifests, and reads their texts.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Largest file, in bytes: 150,000 pods of five kilobytes each.
const MAX_FILE: u64 = 1 << 30;
/// Maximum depth of folders below the given one.
const MAX_FOLDERS: usize = 32;

/// The manifests cannot be read. An object that can be read but is invalid gets a
/// [`Record`](crate::Record) instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A file or folder cannot be read.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        #[source]
        error: io::Error,
    },
    /// A file changed while it was read: it is being written.
    #[error("{}: the file changed while it was read", path.display())]
    Changing {
        /// The file.
        path: PathBuf,
    },
    /// A file that contained objects ends where its last document should begin, or is empty: it was
    /// not written completely.
    #[error("{}: the file is truncated: {message}", path.display())]
    Cut {
        /// The file.
        path: PathBuf,
        /// What is missing.
        message: String,
    },
    /// A file is neither YAML nor JSON, or exceeds a limit.
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

/// Metadata that change when a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    numbers: (u64, u64, u64),
    times: [(i64, i64); 2],
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            numbers: (metadata.dev(), metadata.ino(), metadata.len()),
            times: [
                (metadata.mtime(), metadata.mtime_nsec()),
                (metadata.ctime(), metadata.ctime_nsec()),
            ],
        }
    }

    /// That of the file at `path`.
    pub(super) fn at(path: &Path) -> Result<Self, LoadError> {
        metadata(path).map(|metadata| Self::of(&metadata))
    }

    /// Whether the file was written long enough before `now` that a later write would change its
    /// times: some file systems have a resolution of one or two seconds.
    pub(super) fn is_settled(&self, now: SystemTime) -> bool {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.times.iter().all(|(seconds, _)| seconds + 3 < now as i64)
    }
}

/// The manifests at `path`: a file with any name, or those of a folder: every `*.yaml`, `*.yml` and
/// `*.json` in it and in its subfolders, sorted by name. Hidden files and folders are skipped,
/// including those of a mounted ConfigMap (`..data`); links are followed.
pub(super) fn find(path: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let mut files = Vec::new();
    if metadata(path)?.is_dir() {
        list(path, 0, &mut HashSet::new(), &mut files)?;
    } else {
        files.push(path.to_owned());
    }
    Ok(files)
}

/// Reads a file and checks that it does not change meanwhile.
pub(super) fn read(path: &Path) -> Result<(String, Stamp), LoadError> {
    let fail = |error| LoadError::Io { path: path.to_owned(), error };
    let mut file = fs::File::open(path).map_err(fail)?;
    let before = Stamp::of(&file.metadata().map_err(fail)?);
    let mut text = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(&mut file, MAX_FILE + 1), &mut text).map_err(fail)?;
    if text.len() as u64 > MAX_FILE {
        return Err(fail(io::ErrorKind::FileTooLarge.into()));
    }
    // A file without a fixed length (a pipe) is complete at its end.
    let regular = file.metadata().is_ok_and(|metadata| metadata.is_file());
    let after = Stamp::of(&file.metadata().map_err(fail)?);
    if regular && (before != after || after.numbers.2 != text.len() as u64) {
        return Err(LoadError::Changing { path: path.to_owned() });
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
    Ok((text, after))
}

fn metadata(path: &Path) -> Result<fs::Metadata, LoadError> {
    fs::metadata(path).map_err(|error| LoadError::Io { path: path.to_owned(), error })
}

/// Collects the manifests of a folder. `seen`: the resolved names of the folders already listed,
/// since links may form loops.
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
            // Regular files only: opening a pipe would block until there is a writer.
            Ok(entry) if entry.is_file() && manifest => files.push(path),
            Ok(_) => {}
            // Others may be dead links, or be deleted meanwhile.
            Err(_) if !manifest => {}
            Err(error) => return Err(LoadError::Io { path, error }),
        }
    }
    Ok(())
}
