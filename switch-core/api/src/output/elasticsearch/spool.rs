//! Waiting documents: in memory, then in files. If there are too many, the oldest are removed
//! first.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::counts::{Counts, Lost};
use super::options::ElasticsearchOptions;

/// Number of server errors with one document after which the document is lost.
const ATTEMPTS: u8 = 5;

/// The two lines of a document in a bulk.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) text: Vec<u8>,
    failures: u8,
    /// It is also in the file that was read last.
    is_in_file: bool,
}

impl Document {
    pub(super) fn new(text: Vec<u8>) -> Self {
        Self { text, failures: 0, is_in_file: false }
    }

    /// Counts a server error with it. False: there were too many.
    pub(super) fn may_fail_again(&mut self) -> bool {
        self.failures += 1;
        self.failures < ATTEMPTS
    }
}

/// A file of documents, `NUMBER-COUNT.ndjson`.
#[derive(Debug)]
struct Segment {
    path: PathBuf,
    documents: u64,
    bytes: u64,
}

/// Documents in files.
#[derive(Debug)]
struct Files {
    folder: PathBuf,
    limit: u64,
    segments: VecDeque<Segment>,
    bytes: u64,
    next: u64,
    /// The file whose documents are in memory or being sent, and how many of them there are. The
    /// file stays until they have been delivered, so that none is lost if the process is killed.
    read: Option<(Segment, u64)>,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Spool {
    queue: VecDeque<Document>,
    bytes: usize,
    limit: usize,
    /// Number of documents that were taken and not settled yet.
    taken: u64,
    files: Option<Files>,
    counts: Arc<Counts>,
}

impl Spool {
    /// An empty spool, with the documents that an earlier run left in files.
    pub(super) fn open(options: &ElasticsearchOptions, counts: Arc<Counts>) -> io::Result<Self> {
        let files = match &options.spool {
            Some(folder) => Some(Files::open(folder, options.spool_bytes)?),
            None => None,
        };
        let found = files.as_ref().map_or(0, Files::documents);
        counts.add_recovered(found);
        let mut spool = Self {
            queue: VecDeque::new(),
            bytes: 0,
            limit: options.memory,
            taken: 0,
            files,
            counts,
        };
        spool.trim_files();
        spool.count();
        Ok(spool)
    }

    /// Number of documents in memory.
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Adds a document.
    pub(super) fn push(&mut self, document: Document) {
        self.bytes += document.text.len();
        self.queue.push_back(document);
        self.make_room();
    }

    /// Takes the oldest documents, up to a number and to a number of bytes, at least one. Documents
    /// in files follow when memory is empty.
    pub(super) fn take(&mut self, documents: usize, bytes: usize) -> Vec<Document> {
        if self.queue.is_empty() {
            self.read_file();
        }
        let (mut batch, mut size) = (Vec::new(), 0);
        while let Some(next) = self.queue.front() {
            if batch.len() >= documents.max(1)
                || !batch.is_empty() && size + next.text.len() > bytes
            {
                break;
            }
            size += next.text.len();
            batch.extend(self.queue.pop_front());
        }
        self.bytes -= size;
        self.taken += batch.len() as u64;
        batch
    }

    /// Takes back documents that must be sent again.
    pub(super) fn put_back(&mut self, documents: Vec<Document>) {
        self.taken -= documents.len() as u64;
        for document in documents.into_iter().rev() {
            self.bytes += document.text.len();
            self.queue.push_front(document);
        }
        self.make_room();
    }

    /// A document that was taken has been delivered.
    pub(super) fn delivered(&mut self, document: &Document) {
        self.taken -= 1;
        self.counts.add_delivered(1);
        self.is_settled(document);
    }

    /// A document that was taken is lost.
    pub(super) fn refused(&mut self, document: &Document) {
        self.taken -= 1;
        self.counts.add_lost(Lost::Refused, 1);
        self.is_settled(document);
    }

    /// Nothing is sent any more: waiting documents are stored in files, or are lost.
    pub(super) fn close(&mut self) {
        let rest: Vec<_> = self.queue.drain(..).collect();
        self.bytes = 0;
        self.spill(rest, Lost::Shutdown);
        self.trim_files();
        self.count();
    }

    fn make_room(&mut self) {
        if self.bytes > self.limit {
            // Half of memory at a time, so that files are not small. Without files, only as many as
            // necessary are removed.
            let keep = if self.files.is_some() { self.limit / 2 } else { self.limit };
            let mut oldest = Vec::new();
            while self.bytes > keep
                && let Some(document) = self.queue.pop_front()
            {
                self.bytes -= document.text.len();
                oldest.push(document);
            }
            self.spill(oldest, Lost::Spool);
            self.trim_files();
        }
        self.count();
    }

    /// Writes documents to a file. Documents that cannot be written are lost.
    fn spill(&mut self, documents: Vec<Document>, otherwise: Lost) {
        if documents.is_empty() {
            return;
        }
        let written = self.files.as_mut().is_some_and(|files| files.write(&documents).is_ok());
        if !written {
            self.counts.add_lost(otherwise, documents.len() as u64);
        }
        for document in &documents {
            self.is_settled(document);
        }
    }

    /// Removes the oldest files until the others are within the limit.
    fn trim_files(&mut self) {
        let Some(files) = &mut self.files else { return };
        while files.bytes > files.limit
            && let Some(oldest) = files.segments.pop_front()
        {
            files.bytes -= oldest.bytes;
            // If the file cannot be removed, the next run finds it.
            let _ = fs::remove_file(&oldest.path);
            self.counts.add_lost(Lost::Spool, oldest.documents);
        }
    }

    fn is_settled(&mut self, document: &Document) {
        if document.is_in_file
            && let Some(files) = &mut self.files
        {
            files.settle(1);
        }
        self.count();
    }

    /// Reads the oldest file into memory.
    fn read_file(&mut self) {
        let Some(files) = &mut self.files else { return };
        let Some((text, documents)) = files.read() else { return };
        let mut lines = text.split_inclusive(|byte| *byte == b'\n');
        let mut found = 0;
        while found < documents
            && let (Some(action), Some(source)) = (lines.next(), lines.next())
        {
            let mut document = Document::new([action, source].concat());
            document.is_in_file = true;
            self.bytes += document.text.len();
            self.queue.push_back(document);
            found += 1;
        }
        if found < documents {
            // The file was truncated.
            self.counts.add_lost(Lost::Spool, documents - found);
            files.settle(documents - found);
        }
        self.count();
    }

    fn count(&self) {
        let in_files = self.files.as_ref().map_or(0, Files::documents);
        self.counts.set_waiting(self.queue.len() as u64 + self.taken + in_files);
    }
}

impl Files {
    fn open(folder: &Path, limit: u64) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let mut segments = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some((number, documents)) = name.to_str().and_then(numbers) else { continue };
            let (path, bytes) = (entry.path(), entry.metadata()?.len());
            segments.push((number, Segment { path, documents, bytes }));
        }
        segments.sort_by_key(|(number, _)| *number);
        let next = segments.last().map_or(0, |(number, _)| number + 1);
        let segments: VecDeque<Segment> = segments.into_iter().map(|(_, s)| s).collect();
        let bytes = segments.iter().map(|segment| segment.bytes).sum();
        let mut files =
            Self { folder: folder.to_owned(), limit, segments, bytes, next, read: None };
        // Errors of the folder are reported at the start.
        let probe = files.folder.join(".writable");
        fs::write(&probe, b"")?;
        fs::remove_file(&probe)?;
        files.next = next;
        Ok(files)
    }

    /// Number of documents in files that are not in memory.
    fn documents(&self) -> u64 {
        self.segments.iter().map(|segment| segment.documents).sum()
    }

    fn write(&mut self, documents: &[Document]) -> io::Result<()> {
        let name = format!("{:020}-{}.ndjson", self.next, documents.len());
        let (path, part) = (self.folder.join(&name), self.folder.join(".part"));
        let mut file = io::BufWriter::new(fs::File::create(&part)?);
        let mut bytes = 0;
        for document in documents {
            file.write_all(&document.text)?;
            bytes += document.text.len() as u64;
        }
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_data()?;
        fs::rename(&part, &path)?;
        self.next += 1;
        self.bytes += bytes;
        self.segments.push_back(Segment { path, documents: documents.len() as u64, bytes });
        Ok(())
    }

    /// The text of the oldest file, and the number of documents that it should contain.
    fn read(&mut self) -> Option<(Vec<u8>, u64)> {
        if self.read.is_some() {
            return None;
        }
        let segment = self.segments.pop_front()?;
        self.bytes -= segment.bytes;
        let text = fs::read(&segment.path).unwrap_or_default();
        let documents = segment.documents;
        self.read = Some((segment, documents));
        Some((text, documents))
    }

    /// This number of documents of the file that was read no longer need the file.
    fn settle(&mut self, documents: u64) {
        let Some((_, left)) = &mut self.read else { return };
        *left = left.saturating_sub(documents);
        if *left == 0
            && let Some((segment, _)) = self.read.take()
        {
            // If the file cannot be removed, the next run sends it again, which changes nothing.
            let _ = fs::remove_file(segment.path);
        }
    }
}

/// The two numbers in the name of a file.
fn numbers(name: &str) -> Option<(u64, u64)> {
    let (number, documents) = name.strip_suffix(".ndjson")?.split_once('-')?;
    Some((number.parse().ok()?, documents.parse().ok()?))
}
