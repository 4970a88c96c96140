//! Notices that manifests changed, by looking at them now and then: names, sizes, times and file
//! numbers. That sees what file events miss: links that are put elsewhere, as in a mounted
//! ConfigMap, and folders on network file systems. File events tell one thing more: that a writer has
//! not closed a file yet.

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, Metadata};
use std::hash::{Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use podswitch_core::time::Clock;
use podswitch_linux::writers::Writers;

/// Time between two looks, at least; and how much longer it is than a look takes, so that a large
/// folder does not keep the processor busy.
const PAUSE: Duration = Duration::from_millis(500);
const SHARE: u32 = 200;
/// The same while a change waits for its writer.
const SHORT_PAUSE: Duration = Duration::from_millis(100);
/// How long nothing may change before a change counts as done, and how often that is awaited.
const SETTLE: Duration = Duration::from_millis(50);
const LOOKS: usize = 20;
/// How long a writer that does not write is waited for: it may hold the file open for good.
const IDLE_WRITER: Duration = Duration::from_secs(30);
/// Deepest folder looked into; the loader goes no deeper.
const DEPTH: usize = 32;

/// See the module's description.
#[derive(Debug)]
pub struct FolderWatch {
    path: PathBuf,
    seen: u64,
    pause: Duration,
    /// `None`: the system has no file events to give; a change counts as done once it has settled.
    writers: Option<Writers>,
}

impl FolderWatch {
    /// Watches a file or folder as it is now.
    pub fn new(path: &Path) -> Self {
        let mut watch =
            Self { path: path.to_owned(), seen: 0, pause: PAUSE, writers: Writers::new().ok() };
        watch.seen = watch.fingerprint();
        watch
    }

    /// How long to wait before the next look.
    pub fn pause(&self) -> Duration {
        self.pause
    }

    /// Looks. Says so if something changed since it said so last; not before it has settled and its
    /// writers have closed their files, or half of a file or of a copied folder would be read.
    pub fn has_changed(&mut self, clock: &Clock) -> bool {
        let before = clock.now();
        let mut now = self.fingerprint();
        self.pause = PAUSE.max(clock.now().since(before) * SHARE);
        if now == self.seen {
            return false;
        }
        for _ in 0..LOOKS {
            thread::sleep(SETTLE);
            let next = self.fingerprint();
            if next == now {
                break;
            }
            now = next;
        }
        if self.is_being_written() {
            self.pause = SHORT_PAUSE;
            return false;
        }
        self.seen = now;
        true
    }

    /// Has the next look say that something changed, whether or not it did: what was found could not be
    /// read, and may be good by then.
    pub fn look_again(&mut self) {
        self.seen = !self.seen;
        self.pause = SHORT_PAUSE;
    }

    fn is_being_written(&mut self) -> bool {
        let Some(writers) = &mut self.writers else { return false };
        let path = &self.path;
        let concerns = |file: &Path| file == path || file.starts_with(path) && !is_hidden(file);
        writers.open_files().any(|(file, idle)| concerns(file) && idle < IDLE_WRITER)
    }

    /// A number that is another when anything that the loader reads is.
    fn fingerprint(&mut self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let mut folders = Vec::new();
        look(&self.path, 0, &mut hasher, &mut folders);
        if let Some(writers) = &mut self.writers {
            // A file that is watched by itself is put in place in its folder.
            let parent = self.path.parent().filter(|_| folders.is_empty());
            let parent =
                parent.map(|path| if path == Path::new("") { Path::new(".") } else { path });
            for folder in folders.iter().map(PathBuf::as_path).chain(parent) {
                // One that cannot be watched has changes that settle.
                let _ = writers.add(folder);
            }
        }
        hasher.finish()
    }
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// Hashes what is at `path`, and collects the folders that are there.
fn look(path: &Path, depth: usize, hasher: &mut DefaultHasher, folders: &mut Vec<PathBuf>) {
    path.hash(hasher);
    let Ok(metadata) = fs::metadata(path) else { return };
    if !metadata.is_dir() {
        return facts(&metadata).hash(hasher);
    }
    folders.push(path.to_owned());
    metadata.ino().hash(hasher);
    let Ok(entries) = fs::read_dir(path) else { return };
    let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
    names.retain(|name| !name.as_encoded_bytes().starts_with(b"."));
    names.sort_unstable();
    for name in names {
        if depth < DEPTH {
            look(&path.join(name), depth + 1, hasher, folders);
        }
    }
}

fn facts(metadata: &Metadata) -> (u64, u64, i64, i64) {
    (metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_change_waits_for_its_writer() {
        let name = format!("podswitch-watch-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(folder.join("sub")).unwrap();
        let clock = Clock::start();
        for path in [folder.join("a.yaml"), folder.join("sub/b.yaml")] {
            fs::write(&path, "a: 1\n").unwrap();
            for watched in [&folder, &path] {
                let mut watch = FolderWatch::new(watched);
                assert!(!watch.has_changed(&clock));
                let mut file = File::create(&path).unwrap();
                file.write_all(b"a: 1\n").unwrap();
                assert!(!watch.has_changed(&clock), "half of it");
                file.write_all(b"b: 2\n").unwrap();
                assert!(!watch.has_changed(&clock), "not closed");
                drop(file);
                assert!(watch.has_changed(&clock), "{}", watched.display());
                assert!(!watch.has_changed(&clock), "once");
                watch.look_again();
                assert!(watch.has_changed(&clock));
                // Put in place whole.
                fs::write(folder.join(".new"), "c: 3\n").unwrap();
                fs::rename(folder.join(".new"), &path).unwrap();
                assert!(watch.has_changed(&clock));
            }
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}
