//! The last good state on disk, for a start without an API server: a file to which changes are
//! appended, in the thin form of objects. The cost is proportional to the change. A separate thread
//! writes it, so a slow or full disk delays nothing. A file that may have gaps is removed and never
//! loaded.
//!
//! A line is `+NAME<TAB>JSON` (an object), `!NAME<TAB>JSON` (a policy with a field of the wrong
//! type; its last good version stays in force and is kept, too), or `-NAME` (deleted).

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use hashbrown::HashMap;
use podswitch_core::id::Cookie;
use podswitch_kubernetes::{Kind, Object};

/// Bytes that are buffered before they are sent to the thread.
const CHUNK: usize = 64 << 10;
/// Chunks in the queue.
const QUEUE: usize = 256;
/// The file is compacted once it has grown to twice its size plus this many bytes.
const SLACK: u64 = 16 << 20;
/// Longest line.
const MAX_LINE: u64 = 8 << 20;

enum Job {
    Append(String),
    /// Every existing object has been appended: the file is complete from now on.
    Complete,
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Saved {
    folder: Option<PathBuf>,
    node: String,
    endpoints: Vec<String>,
    buffer: String,
    jobs: Option<SyncSender<Job>>,
    /// A write failed: the file has gaps.
    broken: Arc<AtomicBool>,
}

impl Saved {
    /// Opens the saved state in `folder` and begins a new file beside the old one. Without a
    /// folder, or if it is not writable, nothing is saved.
    pub(crate) fn open(folder: Option<&Path>, node: &str) -> Self {
        let mut saved = Self {
            folder: folder.map(Path::to_owned),
            node: node.to_owned(),
            endpoints: Vec::new(),
            buffer: String::new(),
            jobs: None,
            broken: Arc::default(),
        };
        let Some(folder) = folder else { return saved };
        if let Ok(text) = read_small(&folder.join("api-servers")) {
            saved.endpoints = text.lines().map(str::to_owned).collect();
        }
        let broken = saved.broken.clone();
        saved.jobs = Writer::create(folder, node).ok().and_then(|mut writer| {
            let (sender, jobs) = sync_channel(QUEUE);
            let run = move || {
                if writer.run(&jobs).is_err() {
                    broken.store(true, Relaxed);
                }
                if broken.load(Relaxed) {
                    writer.remove();
                }
            };
            let thread = std::thread::Builder::new().name("podswitch-state".into()).spawn(run);
            thread.ok().map(|_| sender)
        });
        saved
    }

    /// The last known endpoints of the API servers, `HOST:PORT`.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.endpoints.clone()
    }

    /// Saves the endpoints of the API servers. Returns whether they changed.
    pub(crate) fn set_endpoints(&mut self, endpoints: &[String]) -> bool {
        if self.endpoints == endpoints {
            return false;
        }
        self.endpoints = endpoints.to_vec();
        if let Some(folder) = &self.folder {
            let (new, path) = (folder.join("api-servers.new"), folder.join("api-servers"));
            // If this fails, only a start that cannot use the Service is affected.
            let _ = fs::write(&new, endpoints.join("\n")).and_then(|()| fs::rename(&new, &path));
        }
        true
    }

    /// Saves an object.
    pub(crate) fn put(&mut self, object: &Object) {
        if self.jobs.is_none() {
            return;
        }
        // An object of any other kind that cannot be read is left out of the state as well.
        match object.to_json() {
            Some(json) => {
                let mark = if object.is_well_formed() { '+' } else { '!' };
                self.line(format_args!("{mark}{}\t{json}\n", object.name()));
            }
            None => self.delete(object.name()),
        }
    }

    /// Records a deleted object.
    pub(crate) fn delete(&mut self, name: &Cookie) {
        if self.jobs.is_some() {
            self.line(format_args!("-{name}\n"));
        }
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        use std::fmt::Write as _;
        let _ = self.buffer.write_fmt(line);
        if self.buffer.len() >= CHUNK {
            self.flush();
        }
    }

    /// Sends the buffered lines to the thread.
    pub(crate) fn flush(&mut self) {
        if !self.buffer.is_empty() {
            let chunk = std::mem::take(&mut self.buffer);
            self.send(Job::Append(chunk));
        }
    }

    /// Every existing object has been saved: the file is the complete state from now on.
    pub(crate) fn first_complete(&mut self) {
        self.flush();
        self.send(Job::Complete);
    }

    fn send(&mut self, job: Job) {
        if let Some(jobs) = &self.jobs
            && jobs.try_send(job).is_err()
        {
            // The thread is too slow, or the disk is full. No state is better than one with gaps;
            // the thread removes the file.
            self.broken.store(true, Relaxed);
            self.jobs = None;
        }
    }

    /// Whether changes are being saved.
    #[cfg(test)]
    fn is_kept(&self) -> bool {
        self.jobs.is_some() && !self.broken.load(Relaxed)
    }

    /// Loads the state that an earlier run saved.
    pub(crate) fn load(&self, each: &mut dyn FnMut(Object)) {
        let Some(folder) = &self.folder else { return };
        let Ok(file) = File::open(folder.join("state")) else { return };
        let _ = replay(&file, &self.node, &mut |_, line| {
            if let Some((kind, json)) = parse(line)
                && let Ok(object) = Object::decode(kind, json)
            {
                each(object);
            }
        });
    }
}

/// State of the writing thread.
struct Writer {
    folder: PathBuf,
    node: String,
    file: BufWriter<File>,
    is_complete: bool,
    size: u64,
    /// Size after the last compaction.
    live: u64,
}

impl Writer {
    fn create(folder: &Path, node: &str) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let file = new_file(&folder.join("state.new"), node)?;
        let (folder, node) = (folder.to_owned(), node.to_owned());
        Ok(Self { folder, node, file, is_complete: false, size: 0, live: 0 })
    }

    fn run(&mut self, jobs: &Receiver<Job>) -> io::Result<()> {
        while let Ok(job) = jobs.recv() {
            match job {
                Job::Append(text) => {
                    self.file.write_all(text.as_bytes())?;
                    self.file.flush()?;
                    self.size += text.len() as u64;
                }
                Job::Complete if !self.is_complete => {
                    self.file.flush()?;
                    fs::rename(self.folder.join("state.new"), self.folder.join("state"))?;
                    (self.is_complete, self.live) = (true, self.size);
                }
                Job::Complete => {}
            }
            if self.is_complete && self.size > 2 * self.live + SLACK {
                self.rewrite()?;
            }
        }
        Ok(())
    }

    /// Compacts the file: writes only the lines that still count.
    fn rewrite(&mut self) -> io::Result<()> {
        let (path, new) = (self.folder.join("state"), self.folder.join("state.new"));
        let mut file = new_file(&new, &self.node)?;
        let (mut size, mut result) = (0, Ok(()));
        replay(&File::open(&path)?, &self.node, &mut |_, line| {
            size += line.len() as u64;
            if result.is_ok() {
                result = file.write_all(line);
            }
        })?;
        result?;
        file.flush()?;
        fs::rename(&new, &path)?;
        (self.file, self.size, self.live) = (file, size, size);
        Ok(())
    }

    fn remove(&self) {
        let names: &[&str] =
            if self.is_complete { &["state", "state.new"] } else { &["state.new"] };
        for name in names {
            let _ = fs::remove_file(self.folder.join(name));
        }
    }
}

fn new_file(path: &Path, node: &str) -> io::Result<BufWriter<File>> {
    let _ = fs::remove_file(path);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let mut file = BufWriter::new(file);
    file.write_all(header(node).as_bytes())?;
    Ok(file)
}

fn header(node: &str) -> String {
    format!("podswitch state 1 {node}\n")
}

fn read_small(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(1 << 20).read_to_string(&mut text)?;
    Ok(text)
}

/// Calls `each` with every line that counts and its offset, in order. The last line is incomplete
/// if the writer was killed.
fn replay(file: &File, node: &str, each: &mut dyn FnMut(u64, &[u8])) -> io::Result<()> {
    /// Offsets of the last good version of an object, and of a later version that cannot be read.
    type Last = (Option<u64>, Option<u64>);
    let mut last: HashMap<Vec<u8>, Last> = HashMap::new();
    read_lines(file, node, &mut |at, line| {
        let name = line[1..].split(|byte| matches!(byte, b'\t' | b'\n')).next().unwrap_or_default();
        match line[0] {
            b'+' => drop(last.insert(name.to_vec(), (Some(at), None))),
            b'!' => last.entry(name.to_vec()).or_default().1 = Some(at),
            b'-' => drop(last.remove(name)),
            _ => {}
        }
    })?;
    let mut offsets: Vec<u64> =
        last.into_values().flat_map(|(good, bad)| good.into_iter().chain(bad)).collect();
    offsets.sort_unstable();
    let mut offsets = offsets.into_iter().peekable();
    read_lines(file, node, &mut |at, line| {
        if offsets.next_if_eq(&at).is_some() {
            each(at, line);
        }
    })
}

fn read_lines(mut file: &File, node: &str, each: &mut dyn FnMut(u64, &[u8])) -> io::Result<()> {
    use std::io::{Seek as _, SeekFrom};
    file.seek(SeekFrom::Start(0))?;
    let mut reader = BufReader::with_capacity(1 << 18, file);
    let (mut line, mut at) = (Vec::new(), 0);
    loop {
        line.clear();
        let count = reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? as u64;
        if line.last() != Some(&b'\n') {
            return Ok(());
        }
        if at == 0 && line != header(node).as_bytes() {
            return Err(io::Error::other("the state of another node or version"));
        }
        if at > 0 && line.len() > 1 {
            each(at, &line);
        }
        at += count;
    }
}

/// Kind and JSON of a line.
fn parse(line: &[u8]) -> Option<(Kind, &str)> {
    let (name, json) = std::str::from_utf8(line.get(1..)?).ok()?.trim_end().split_once('\t')?;
    let kind = name.split('/').next()?;
    Some((Kind::ALL.into_iter().find(|known| known.name() == kind)?, json))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(kind: Kind, json: &str) -> Object {
        Object::decode(kind, json).unwrap()
    }

    fn pod(name: &str, address: &str) -> Object {
        let json = format!(
            r#"{{"metadata":{{"name":"{name}","namespace":"a","managedFields":[{{"x":1}}]}},
                "spec":{{"nodeName":"n"}},"status":{{"podIPs":[{{"ip":"{address}"}}]}}}}"#
        );
        object(Kind::Pod, &json)
    }

    fn loaded(folder: &Path) -> Vec<String> {
        let mut names = Vec::new();
        let saved = Saved { jobs: None, ..Saved::open(Some(folder).filter(|_| false), "n") };
        let saved = Saved { folder: Some(folder.to_owned()), ..saved };
        saved.load(&mut |object| {
            names.push(format!("{} {}", object.name(), object.to_json().unwrap()))
        });
        names
    }

    fn until(what: impl Fn() -> bool) {
        for _ in 0..1000 {
            if what() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("timed out waiting");
    }

    #[test]
    fn the_last_version_of_each_object_is_saved_and_a_truncated_line_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let mut saved = Saved::open(Some(folder.path()), "n");
        assert!(saved.is_kept());
        for (name, address) in [("x", "10.0.0.1"), ("y", "10.0.0.2"), ("x", "10.0.0.3")] {
            saved.put(&pod(name, address));
        }
        saved.put(&pod("z", "10.0.0.4"));
        saved.delete(&Cookie::new("Pod/a/z"));
        let good = r#"{"metadata":{"name":"p","namespace":"a"},"spec":{"podSelector":{}}}"#;
        saved.put(&object(Kind::NetworkPolicy, good));
        let bad = r#"{"metadata":{"name":"p","namespace":"a"},"spec":{"podSelector":7}}"#;
        saved.put(&object(Kind::NetworkPolicy, bad));
        saved.flush();
        assert!(loaded(folder.path()).is_empty(), "not before the state is complete");
        saved.first_complete();
        until(|| loaded(folder.path()).len() == 4);
        let names = loaded(folder.path());
        assert!(names[0].starts_with("Pod/a/y ") && names[0].contains("10.0.0.2"), "{names:?}");
        assert!(names[1].starts_with("Pod/a/x ") && names[1].contains("10.0.0.3"), "{names:?}");
        assert!(!names[1].contains("managedFields"));
        // Both lines: the store keeps the good version in force.
        assert!(names[2].contains("matchLabels") && names[3].contains(":7"), "{names:?}");
        let mut file = OpenOptions::new().append(true).open(folder.path().join("state")).unwrap();
        file.write_all(b"+Pod/a/cut\t{\"metadata\":{\"na").unwrap();
        assert_eq!(loaded(folder.path()).len(), 4);
        let other = Saved { node: "m".into(), ..Saved::open(None, "m") };
        let other = Saved { folder: Some(folder.path().to_owned()), ..other };
        other.load(&mut |object| panic!("{object:?} of another node"));
    }

    #[test]
    fn a_file_that_has_grown_is_compacted() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(folder.path(), "n").unwrap();
        let (sender, jobs) = sync_channel(QUEUE);
        sender.send(Job::Complete).unwrap();
        for round in 0..40 {
            let mut text = String::new();
            for _ in 0..2 {
                text.push_str(&format!(
                    "+Pod/a/x\t{{\"round\":{round},\"fill\":\"{}\"}}\n",
                    "x".repeat(1 << 20)
                ));
            }
            sender.send(Job::Append(text)).unwrap();
        }
        drop(sender);
        writer.run(&jobs).unwrap();
        let size = fs::metadata(folder.path().join("state")).unwrap().len();
        assert!(size < 3 * SLACK, "{size}");
        let mut last = Vec::new();
        replay(&File::open(folder.path().join("state")).unwrap(), "n", &mut |_, line| {
            last.push(line[..25].to_vec());
        })
        .unwrap();
        assert_eq!(last.len(), 1);
        assert!(last[0].starts_with(b"+Pod/a/x\t{\"round\":39"), "{last:?}");
    }

    #[test]
    fn nothing_is_saved_in_a_folder_that_is_not_writable() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        let mut saved = Saved::open(Some(&folder.path().join("file/below")), "n");
        saved.put(&pod("x", "10.0.0.1"));
        saved.first_complete();
        assert!(!saved.is_kept());
        assert!(saved.set_endpoints(&["192.0.2.1:6443".into()]), "still known in memory");
    }
}
