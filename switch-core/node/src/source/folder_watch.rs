//! Notices that manifests changed, by looking at them now and then: names, sizes, times and file
//! numbers. That sees what file events miss: links that are put elsewhere, as in a mounted
//! ConfigMap, and folders on network file systems.

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, Metadata};
use std::hash::{Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use podswitch_core::time::Clock;

/// Time between two looks, at least; and how much longer it is than a look takes, so that a large
/// folder does not keep the processor busy.
const PAUSE: Duration = Duration::from_millis(500);
const SHARE: u32 = 200;
/// How long nothing may change before a change counts as done, and how often that is awaited.
const SETTLE: Duration = Duration::from_millis(50);
const LOOKS: usize = 20;
/// Deepest folder looked into; the loader goes no deeper.
const DEPTH: usize = 32;

/// See the module's description.
#[derive(Debug)]
pub struct FolderWatch {
    path: PathBuf,
    seen: u64,
    pause: Duration,
}

impl FolderWatch {
    /// Watches a file or folder as it is now.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), seen: fingerprint(path), pause: PAUSE }
    }

    /// How long to wait before the next look.
    pub fn pause(&self) -> Duration {
        self.pause
    }

    /// Looks. Says so if something changed since it said so last; not before it has settled, or
    /// half of a copied folder would be read.
    pub fn has_changed(&mut self, clock: &Clock) -> bool {
        let before = clock.now();
        let mut now = fingerprint(&self.path);
        self.pause = PAUSE.max(clock.now().since(before) * SHARE);
        if now == self.seen {
            return false;
        }
        for _ in 0..LOOKS {
            thread::sleep(SETTLE);
            let next = fingerprint(&self.path);
            if next == now {
                break;
            }
            now = next;
        }
        self.seen = now;
        true
    }
}

/// A number that is another when anything that the loader reads is.
fn fingerprint(path: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    look(path, 0, &mut hasher);
    hasher.finish()
}

fn look(path: &Path, depth: usize, hasher: &mut DefaultHasher) {
    path.hash(hasher);
    let Ok(metadata) = fs::metadata(path) else { return };
    if !metadata.is_dir() {
        return facts(&metadata).hash(hasher);
    }
    metadata.ino().hash(hasher);
    let Ok(entries) = fs::read_dir(path) else { return };
    let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
    names.retain(|name| !name.as_encoded_bytes().starts_with(b"."));
    names.sort_unstable();
    for name in names {
        if depth < DEPTH {
            look(&path.join(name), depth + 1, hasher);
        }
    }
}

fn facts(metadata: &Metadata) -> (u64, u64, i64, i64) {
    (metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec())
}
