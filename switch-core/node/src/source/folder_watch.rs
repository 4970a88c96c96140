//! Detects changes of manifests by polling names, sizes, times and inode numbers. Polling detects
//! what file events miss: links that are retargeted, as in a mounted ConfigMap, and folders on
//! network file systems. File events add one thing: they show that a writer has not closed a file
//! yet.

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, Metadata};
use std::hash::{Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use podswitch_core::time::Clock;
use podswitch_linux::writers::Writers;

/// Least time between two polls, and the least ratio of that time to the duration of a poll, so
/// that a large folder does not keep the CPU busy.
const PAUSE: Duration = Duration::from_millis(500);
const SHARE: u32 = 200;
/// The same while a change waits for its writer.
const SHORT_PAUSE: Duration = Duration::from_millis(100);
/// How long nothing may change before a change counts as complete, and how often that is checked.
const SETTLE: Duration = Duration::from_millis(50);
const MAX_SETTLE_CHECKS: usize = 20;
/// How long to wait for a writer that does not write: it may hold the file open forever.
const IDLE_WRITER: Duration = Duration::from_secs(30);
/// Depth of the deepest folder that is polled. The loader goes no deeper.
const DEPTH: usize = 32;

/// See the module's description.
#[derive(Debug)]
pub struct FolderWatch {
    path: PathBuf,
    seen: u64,
    pause: Duration,
    /// `None`: the system provides no file events. A change then counts as complete once it has
    /// settled.
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

    /// How long to wait before the next poll.
    pub fn pause(&self) -> Duration {
        self.pause
    }

    /// Polls. Returns true if something changed since it last returned true, but only after the
    /// change has settled and its writers have closed their files. Otherwise half a file or half of
    /// a copied folder would be read.
    pub fn has_changed(&mut self, clock: &Clock) -> bool {
        let before = clock.now();
        let mut now = self.fingerprint();
        self.pause = PAUSE.max(clock.now().since(before) * SHARE);
        if now == self.seen {
            return false;
        }
        for _ in 0..MAX_SETTLE_CHECKS {
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

    /// Makes the next poll report a change in any case: the manifests could not be read, and may be
    /// valid by then.
    pub fn rescan(&mut self) {
        self.seen = !self.seen;
        self.pause = SHORT_PAUSE;
    }

    fn is_being_written(&mut self) -> bool {
        let Some(writers) = &mut self.writers else { return false };
        let path = &self.path;
        let concerns = |file: &Path| file == path || file.starts_with(path) && !is_hidden(file);
        writers.open_files().any(|(file, idle)| concerns(file) && idle < IDLE_WRITER)
    }

    /// A value that changes when anything that the loader reads changes.
    fn fingerprint(&mut self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let mut folders = Vec::new();
        scan(&self.path, 0, &mut hasher, &mut folders);
        if let Some(writers) = &mut self.writers {
            // If the watched path is a file, it may be replaced by a rename in its folder.
            let parent = self.path.parent().filter(|_| folders.is_empty());
            let parent =
                parent.map(|path| if path == Path::new("") { Path::new(".") } else { path });
            for folder in folders.iter().map(PathBuf::as_path).chain(parent) {
                // Changes in a folder that cannot be watched count as complete once they have
                // settled.
                let _ = writers.add(folder);
            }
        }
        hasher.finish()
    }
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// Hashes what is at `path`, and collects the folders below it.
fn scan(path: &Path, depth: usize, hasher: &mut DefaultHasher, folders: &mut Vec<PathBuf>) {
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
            scan(&path.join(name), depth + 1, hasher, folders);
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
                watch.rescan();
                assert!(watch.has_changed(&clock));
                // Replaced atomically.
                fs::write(folder.join(".new"), "c: 3\n").unwrap();
                fs::rename(folder.join(".new"), &path).unwrap();
                assert!(watch.has_changed(&clock));
            }
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}
