//! Detects files that are being written, with inotify, so that no incomplete file is read.
//!
//! Only writers on this machine are seen; those of other machines on a network file system are not.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use podswitch_core::time::{Clock, Instant};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

use crate::{Context, HostError};

/// Watches folders for files that are written. Used by one thread.
#[derive(Debug)]
pub struct Writers {
    queue: OwnedFd,
    clock: Clock,
    folders: HashMap<i32, PathBuf>,
    /// Files that were written to and not closed since, with the time of the last write.
    open: HashMap<PathBuf, Instant>,
}

impl Writers {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// The user's limit of inotify instances (`fs.inotify.max_user_instances`).
    pub fn new() -> Result<Self, HostError> {
        let queue = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)
            .map_err(io::Error::from)
            .context(|| "watch folders (inotify)".to_owned())?;
        Ok(Self { queue, clock: Clock::start(), folders: HashMap::new(), open: HashMap::new() })
    }

    /// Watches the files of another folder, but not those of folders in it. A no-op if the folder
    /// is watched already.
    ///
    /// # Errors
    /// It does not exist, or the user's limit of watches is reached
    /// (`fs.inotify.max_user_watches`).
    pub fn add(&mut self, folder: &Path) -> Result<(), HostError> {
        let flags = WatchFlags::MODIFY
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE
            | WatchFlags::ONLYDIR;
        let watch = inotify::add_watch(&self.queue, folder, flags)
            .map_err(io::Error::from)
            .context(|| format!("watch {} (inotify)", folder.display()))?;
        self.folders.insert(watch, folder.to_owned());
        Ok(())
    }

    /// Files that were written to and not closed, and the time since the last write.
    pub fn open_files(&mut self) -> impl Iterator<Item = (&Path, std::time::Duration)> {
        self.take_events();
        let now = self.clock.now();
        self.open.iter().map(move |(path, last)| (path.as_path(), now.since(*last)))
    }

    fn take_events(&mut self) {
        let now = self.clock.now();
        let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
        let mut reader = Reader::new(&self.queue, &mut buffer);
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::INTR) => continue,
                // No more events.
                Err(_) => break,
            };
            let flags = event.events();
            if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                // Events were lost: assume that no file is open.
                self.open.clear();
            }
            if flags.contains(ReadFlags::IGNORED) {
                self.folders.remove(&event.wd());
            }
            let (Some(folder), Some(name)) = (self.folders.get(&event.wd()), event.file_name())
            else {
                continue;
            };
            let name: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(name.to_bytes());
            let path = folder.join(name);
            if flags.contains(ReadFlags::MODIFY) {
                self.open.insert(path, now);
            } else {
                self.open.remove(&path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Write as _;

    use super::*;

    fn open(writers: &mut Writers) -> Vec<String> {
        let names = writers
            .open_files()
            .map(|(path, _)| path.file_name().unwrap_or_default().to_string_lossy().into_owned());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    #[test]
    fn files_show_from_the_first_write_to_the_close() {
        let name = format!("podswitch-writers-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).unwrap();
        let mut writers = Writers::new().unwrap();
        writers.add(&folder).unwrap();
        writers.add(&folder).unwrap();
        assert!(open(&mut writers).is_empty());
        let mut file = File::create(folder.join("a")).unwrap();
        file.write_all(b"half").unwrap();
        assert_eq!(open(&mut writers), ["a"]);
        fs::write(folder.join("b"), "whole").unwrap();
        assert_eq!(open(&mut writers), ["a"]);
        file.write_all(b" and half").unwrap();
        drop(file);
        assert!(open(&mut writers).is_empty());
        // Truncated, and not written yet.
        let file = File::create(folder.join("a")).unwrap();
        assert_eq!(open(&mut writers), ["a"]);
        // Removed before it was closed.
        fs::remove_file(folder.join("a")).unwrap();
        assert!(open(&mut writers).is_empty());
        drop(file);
        // Moved into place complete.
        fs::rename(folder.join("b"), folder.join("c")).unwrap();
        assert!(open(&mut writers).is_empty());
        fs::remove_dir_all(&folder).unwrap();
        assert!(open(&mut writers).is_empty());
        assert!(writers.add(&folder).is_err());
    }
}
