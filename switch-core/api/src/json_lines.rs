//! Records as lines of JSON in a file that is rotated.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::Serialize;

/// Maximum number of lines that wait for the file; further ones are lost and counted.
const QUEUE: usize = 16_384;
/// How long no write is tried after the file could not be written.
const RETRY: Duration = Duration::from_secs(1);

/// When a file is rotated: `PATH` becomes `PATH.1`, that becomes `PATH.2`, and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rotation {
    /// Size in bytes at which a file is complete.
    pub size: u64,
    /// Number of complete files that are kept.
    pub kept: usize,
}

impl Rotation {
    /// Five files of this size in bytes.
    pub const fn files(size: u64) -> Self {
        Self { size, kept: 4 }
    }
}

impl Default for Rotation {
    /// Five files of 100 MiB.
    fn default() -> Self {
        Self::files(100 << 20)
    }
}

/// Writes records to a file on a thread of its own. The caller never waits: if the disk is too slow, records are lost,
/// and a line `{"type":"lost","count":N}` shows how many are missing at that place.
pub struct JsonLines {
    lines: Option<SyncSender<Vec<u8>>>,
    lost: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for JsonLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JsonLines").field("lost", &self.lost).finish_non_exhaustive()
    }
}

impl JsonLines {
    /// Appends to the file at `path`. `on_thread_start` is called on the writing thread first, to drop privileges.
    ///
    /// # Errors
    /// The file cannot be opened; the thread cannot be started.
    pub fn create(
        path: &Path,
        rotation: Rotation,
        on_thread_start: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let file = Output::open(path, rotation)?;
        let (sender, lines) = sync_channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let thread = std::thread::Builder::new().name("podswitch-jsonl".into()).spawn({
            let lost = Arc::clone(&lost);
            move || {
                on_thread_start();
                write(file, &lines, &lost);
            }
        })?;
        Ok(Self { lines: Some(sender), lost, thread: Some(thread) })
    }

    /// Writes a record.
    pub fn write(&self, record: &impl Serialize) {
        let line = serde_json::to_vec(record);
        let sent = match (line, &self.lines) {
            (Ok(mut line), Some(lines)) => {
                line.push(b'\n');
                lines.try_send(line).is_ok()
            }
            _ => false,
        };
        if !sent {
            self.lost.fetch_add(1, Relaxed);
        }
    }
}

impl Drop for JsonLines {
    /// Waits until all records are in the file.
    fn drop(&mut self) {
        self.lines = None;
        if let Some(thread) = self.thread.take() {
            // If the thread panicked, the panic has been printed.
            let _ = thread.join();
        }
    }
}

fn write(mut file: Output, lines: &Receiver<Vec<u8>>, lost: &AtomicU64) {
    while let Ok(line) = lines.recv() {
        let missing = lost.swap(0, Relaxed);
        let note = match missing {
            0 => Ok(()),
            missing => {
                file.append(format!("{{\"type\":\"lost\",\"count\":{missing}}}\n").as_bytes())
            }
        };
        let not_noted = if note.is_err() { missing } else { 0 };
        let written = note.and_then(|()| file.append(&line));
        if written.is_err() {
            // The disk may be full: new records wait in the queue, and are lost when the queue is full.
            lost.fetch_add(not_noted + 1, Relaxed);
            std::thread::sleep(RETRY);
            file.reopen();
        }
    }
}

/// The file that is being written.
struct Output {
    path: PathBuf,
    rotation: Rotation,
    file: File,
    size: u64,
}

impl Output {
    fn open(path: &Path, rotation: Rotation) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        let size = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), rotation, file, size })
    }

    /// Appends a whole line, or nothing.
    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        if self.size > 0 && self.size + line.len() as u64 > self.rotation.size {
            self.rotate()?;
        }
        if let Err(error) = self.file.write_all(line) {
            // A part of the line may be in the file. If it stayed, the next line would be damaged, too.
            let _ = self.file.set_len(self.size);
            return Err(error);
        }
        self.size += line.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let numbered = |number: usize| match number {
            0 => self.path.clone(),
            number => {
                let mut path = self.path.clone().into_os_string();
                path.push(format!(".{number}"));
                path.into()
            }
        };
        match self.rotation.kept {
            0 => std::fs::remove_file(&self.path)?,
            kept => {
                for number in (0..kept).rev() {
                    match std::fs::rename(numbered(number), numbered(number + 1)) {
                        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                        _ => {}
                    }
                }
            }
        }
        *self = Self::open(&self.path, self.rotation)?;
        Ok(())
    }

    /// Opens the file again if it is time to retry.
    fn reopen(&mut self) {
        if let Ok(opened) = Self::open(&self.path, self.rotation) {
            *self = opened;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A folder that is removed at the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("podswitch-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn lines(&self, name: &str) -> Vec<Value> {
            let text = std::fs::read_to_string(self.0.join(name)).unwrap_or_default();
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn files_are_rotated_and_old_ones_are_removed() {
        let folder = Folder::new("rotation");
        let rotation = Rotation { size: 100, kept: 2 };
        // Each line has 11 bytes: nine of them fit.
        for run in 0..2 {
            let output = JsonLines::create(&folder.0.join("drops"), rotation, || ()).unwrap();
            (0..25).for_each(|n| output.write(&json!({ "n": 1000 + 25 * run + n })));
        }
        let numbers = |name: &str| -> Vec<u64> {
            folder.lines(name).iter().map(|line| line["n"].as_u64().unwrap()).collect()
        };
        let all = [numbers("drops.2"), numbers("drops.1"), numbers("drops")].concat();
        assert_eq!(numbers("drops.1").len(), 9);
        assert_eq!(
            all,
            (1050 - all.len() as u64..1050).collect::<Vec<_>>(),
            "the last ones, in order"
        );
        assert!(!folder.0.join("drops.3").exists());
    }

    #[test]
    fn lost_records_are_counted_in_place() {
        let folder = Folder::new("lost");
        let path = folder.0.join("drops");
        let output = JsonLines::create(&path, Rotation::default(), || ()).unwrap();
        output.lost.fetch_add(3, Relaxed);
        output.write(&json!({"n": 1}));
        drop(output);
        assert_eq!(folder.lines("drops"), [json!({"type": "lost", "count": 3}), json!({"n": 1})]);
        assert!(JsonLines::create(&folder.0, Rotation::default(), || ()).is_err(), "a folder");
    }

    #[test]
    fn a_full_disk_costs_lines_that_are_counted() {
        let (sender, lines) = sync_channel(8);
        let lost = AtomicU64::new(2);
        let path = PathBuf::from("/dev/full");
        let file = Output::open(&path, Rotation::default()).unwrap();
        sender.send(b"{}\n".to_vec()).unwrap();
        drop(sender);
        write(file, &lines, &lost);
        assert_eq!(
            lost.into_inner(),
            3,
            "the earlier ones, which could not be recorded, and the line"
        );
    }
}
