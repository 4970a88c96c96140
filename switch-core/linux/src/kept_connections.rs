//! Files of connections that survive a restart: `connections.N` in the run directory, which must be on tmpfs.
//!
//! Each run has a file of its own, with a higher number. The files of earlier runs are read, and removed when their
//! connections are open again ([`KeptConnections::settle`]). If a run ends before that, the next one finds both files.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use podswitch_core::control::{SavedMemory, SlotMemory};
use rustix::fs::FallocateFlags;
use rustix::time::{ClockId, clock_gettime};

use crate::sys::mapping::Mapping;

const PREFIX: &str = "connections.";
/// The same of a run whose connections another process has taken over.
const RETIRED: &str = "retired-connections.";
/// How many of these are left alone: their runs may take the node back.
const MOST_RETIRED: u64 = 2;
/// Maximum number of files that are read. Each was left by a run that ended before the file was settled.
const MOST: usize = 4;
/// File systems whose pages stay in memory (`statfs(2)`).
const TMPFS: i64 = 0x0102_1994;
const RAMFS: i64 = 0x8584_58f6;

/// The file of this run, and those of earlier ones.
#[derive(Debug)]
pub struct KeptConnections {
    file: File,
    path: PathBuf,
    allocated: usize,
    earlier: Vec<PathBuf>,
    /// The second name of this run's file, while it is handed over.
    second: Option<PathBuf>,
}

/// The state with which the switch starts.
#[derive(Debug)]
pub struct Opened {
    /// This run's file.
    pub files: KeptConnections,
    /// Its memory.
    pub memory: SlotMemory,
    /// Connections of earlier runs, the latest first.
    pub saved: Vec<Box<dyn SavedMemory>>,
}

impl SavedMemory for Mapping {
    fn words(&self) -> &[AtomicU64] {
        Self::words(self)
    }
}

impl KeptConnections {
    /// Opens the files of earlier runs in `folder`, and creates one of `size` bytes for this run. Its memory is
    /// allocated later, with [`allocate`](Self::allocate).
    ///
    /// # Errors
    /// The folder is not on tmpfs, or the file cannot be created.
    pub fn open(folder: &Path, size: usize) -> io::Result<Opened> {
        let kind = rustix::fs::statfs(folder)?.f_type;
        if kind != TMPFS && kind != RAMFS {
            let message = format!("{} is not on tmpfs", folder.display());
            return Err(io::Error::new(io::ErrorKind::Unsupported, message));
        }
        let mut found = numbered(folder, PREFIX)?;
        found.sort_unstable_by(|a, b| b.cmp(a));
        for (_, path) in found.split_off(found.len().min(MOST)) {
            let _ = fs::remove_file(path);
        }
        let number = found.first().map_or(0, |(number, _)| number + 1);
        for (retired, path) in numbered(folder, RETIRED)? {
            if retired + MOST_RETIRED < number {
                let _ = fs::remove_file(path);
            }
        }
        let path = folder.join(format!("{PREFIX}{number}"));
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(&path)?;
        let made = file.set_len(size as u64).and_then(|()| Mapping::shared(file.as_fd(), size));
        let mapping = made.inspect_err(|_| drop(fs::remove_file(&path)))?;
        let saved = found.iter().filter_map(|(_, path)| saved(path)).collect();
        let earlier = found.into_iter().map(|(_, path)| path).collect();
        let memory = SlotMemory { bytes: mapping.leak(), monotonic: monotonic() };
        let files = Self { file, path, allocated: 0, earlier, second: None };
        Ok(Opened { files, memory, saved })
    }

    /// Allocates memory for the first `bytes` bytes.
    ///
    /// # Errors
    /// There is not enough memory.
    pub fn allocate(&mut self, bytes: usize) -> io::Result<()> {
        if bytes > self.allocated {
            let (from, length) = (self.allocated as u64, (bytes - self.allocated) as u64);
            rustix::fs::fallocate(&self.file, FallocateFlags::empty(), from, length)?;
            self.allocated = bytes;
        }
        Ok(())
    }

    /// The files of earlier runs, the latest first, with their present content.
    pub fn read_earlier(&self) -> Vec<Box<dyn SavedMemory>> {
        self.earlier.iter().filter_map(|path| saved(path)).collect()
    }

    /// Removes only this run's file, because an earlier run goes on.
    pub fn abandon(self) {
        let _ = fs::remove_file(&self.path);
    }

    /// Another process is about to go on with the connections, and removes this file when it has read it: gives the file a
    /// second name, under which no run reads it. [`keep`](Self::keep) undoes this.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn prepare_to_retire(&mut self) -> io::Result<()> {
        let number = self.path.extension().unwrap_or_default().to_string_lossy();
        let second = self.path.with_file_name(format!("{RETIRED}{number}"));
        match fs::hard_link(&self.path, &second) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => self.second = Some(second),
        }
        Ok(())
    }

    /// The other process does not go on.
    pub fn keep(&mut self) {
        if let Some(second) = self.second.take() {
            let _ = fs::remove_file(second);
        }
    }

    /// The other process goes on: the next run is not to read this file. Before that,
    /// [`prepare_to_retire`](Self::prepare_to_retire). [`take_back`](Self::take_back) undoes this.
    pub fn retire(&mut self) {
        if let Some(second) = self.second.take() {
            // The other process may have done so.
            let _ = fs::remove_file(&self.path);
            self.path = second;
        }
    }

    /// The process that went on has ended. Returns its file, to be read before it is
    /// [removed](Self::remove_later).
    pub fn take_back(&mut self) -> Option<Box<dyn SavedMemory>> {
        let own: u64 = self.path.extension()?.to_str()?.parse().ok()?;
        let found = numbered(self.path.parent()?, PREFIX).ok()?;
        // Of a process that had none, an older one is found at most.
        let last = found.iter().filter(|(number, _)| *number > own).max_by_key(|found| found.0);
        let memory = last.and_then(|(_, path)| saved(path));
        let number = last.map_or(own, |(number, _)| number + 1);
        let path = self.path.with_file_name(format!("{PREFIX}{number}"));
        if fs::rename(&self.path, &path).is_ok() {
            self.path = path;
            // The others are older now.
            self.earlier = found.into_iter().map(|(_, path)| path).collect();
        }
        memory
    }

    /// Removes this run's file, if it is [retired](Self::retire), or its second name.
    pub fn remove_retired(mut self) {
        self.keep();
        let name = self.path.file_name().and_then(|name| name.to_str());
        if name.is_some_and(|name| name.starts_with(RETIRED)) {
            let _ = fs::remove_file(&self.path);
        }
    }

    /// Removes the files of later runs, which were to take over from this one and do not.
    pub fn remove_later(&self) {
        let own = self.path.extension().and_then(|number| number.to_str()?.parse::<u64>().ok());
        let folder = self.path.parent();
        let (Some(own), Some(Ok(found))) = (own, folder.map(|it| numbered(it, PREFIX))) else {
            return;
        };
        for (_, path) in found.into_iter().filter(|(number, _)| *number > own) {
            let _ = fs::remove_file(path);
        }
    }

    /// Removes the files of earlier runs, because their connections are open again.
    pub fn settle(&mut self) {
        for path in self.earlier.drain(..) {
            let _ = fs::remove_file(path);
        }
    }

    /// Removes all files, because no next run needs them.
    pub fn remove(mut self) {
        self.settle();
        let _ = fs::remove_file(&self.path);
    }
}

/// The files in `folder` whose names begin so, by number.
fn numbered(folder: &Path, prefix: &str) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(prefix)?.parse().ok());
        found.extend(number.map(|number| (number, entry.path())));
    }
    Ok(found)
}

fn saved(path: &Path) -> Option<Box<dyn SavedMemory>> {
    let file = File::open(path).ok()?;
    let length = usize::try_from(file.metadata().ok()?.len()).ok()?;
    Some(Box::new(Mapping::private(file.as_fd(), length).ok()?))
}

/// The system's monotonic clock, which all processes share.
pub fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_on_tmpfs() {
        let error = KeptConnections::open(Path::new("/proc"), 1 << 16).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
    }

    #[test]
    fn a_file_that_was_handed_over_is_not_read_unless_it_is_taken_back() {
        let folder =
            Path::new("/dev/shm").join(format!("podswitch-retired-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let open = || KeptConnections::open(&folder, 1 << 16).unwrap();
        let mut first = open();
        let mut second = open();
        assert_eq!(second.saved.len(), 1);
        first.files.prepare_to_retire().unwrap();
        assert_eq!(open().saved.len(), 2, "nobody goes on yet");
        fs::remove_file(folder.join("connections.2")).unwrap();
        // In either order.
        second.files.settle();
        first.files.retire();
        assert_eq!(open().saved.len(), 1, "the second one's");
        assert!(first.files.take_back().is_some());
        first.files.settle();
        first.files.prepare_to_retire().unwrap();
        first.files.keep();
        let last = open();
        assert_eq!(last.saved.len(), 1, "the first one's");
        last.files.remove();
        let mut last = open();
        last.files.prepare_to_retire().unwrap();
        last.files.retire();
        last.files.remove_retired();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        fs::remove_dir(&folder).unwrap();
    }

    #[test]
    fn earlier_files_are_read_until_settled() {
        let folder = Path::new("/dev/shm").join(format!("podswitch-kept-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let mut first = KeptConnections::open(&folder, 1 << 16).unwrap();
        assert!(first.saved.is_empty());
        first.files.allocate(1 << 16).unwrap();
        first.memory.bytes[70] = 7;
        drop(first);
        for _ in 0..6 {
            let mut next = KeptConnections::open(&folder, 1 << 16).unwrap();
            next.files.allocate(1 << 12).unwrap();
            assert!(next.saved.len() <= MOST);
        }
        let mut last = KeptConnections::open(&folder, 1 << 16).unwrap();
        assert_eq!(last.saved.len(), MOST);
        let word = last.saved[0].words()[8].load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(word, 0, "the latest comes first");
        last.files.settle();
        assert_eq!(numbered(&folder, PREFIX).unwrap().len(), 1);
        last.files.remove();
        assert!(numbered(&folder, PREFIX).unwrap().is_empty());
        fs::remove_dir(&folder).unwrap();
    }
}
