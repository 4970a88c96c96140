//! Reader of captures, a frame at a time.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use super::classic::Classic;
use super::input::{CaptureError, Got, Input, Record, Step};
use super::pcapng::{self, Section};

#[derive(Debug)]
enum Kind {
    Classic(Classic),
    Next(Section),
}

/// Reads a capture frame by frame. Ends after an error.
#[derive(Debug)]
pub struct Reader<R> {
    input: Input<R>,
    kind: Kind,
    done: bool,
    truncated_at: Option<u64>,
    last_time: u64,
}

/// Opens a capture.
///
/// # Errors
/// The file cannot be read, or is not a capture.
pub fn read_capture(path: &Path) -> Result<Reader<BufReader<File>>, CaptureError> {
    Reader::new(BufReader::with_capacity(1 << 16, File::open(path)?))
}

impl<R: Read> Reader<R> {
    /// Reads a capture from `inner`, which should be buffered.
    ///
    /// # Errors
    /// It cannot be read, or is not a capture.
    pub fn new(inner: R) -> Result<Self, CaptureError> {
        let mut input = Input { inner, offset: 0 };
        let mut magic = [0; 4];
        if input.fill(&mut magic)? != Got::All {
            return Err(CaptureError::NotACapture(Vec::new()));
        }
        let kind = if magic == pcapng::SECTION {
            let mut total = [0; 4];
            if input.fill(&mut total)? != Got::All {
                return Err(input.malformed("the section header is cut off"));
            }
            Kind::Next(Section::open(&mut input, total)?)
        } else {
            Kind::Classic(Classic::open(&mut input, magic)?)
        };
        Ok(Self { input, kind, done: false, truncated_at: None, last_time: 0 })
    }

    /// Offset of the last record if the file ends within it. That record is left out, as tcpdump does.
    /// Known when the iterator has ended.
    pub fn truncated_at(&self) -> Option<u64> {
        self.truncated_at
    }

    fn advance(&mut self) -> Result<Option<Record>, CaptureError> {
        let step = match &mut self.kind {
            Kind::Classic(classic) => classic.next(&mut self.input)?,
            Kind::Next(section) => section.next(&mut self.input, self.last_time)?,
        };
        match step {
            Step::Record(record) => {
                self.last_time = record.time_ns;
                Ok(Some(record))
            }
            Step::End => Ok(None),
            Step::CutOff(at) => {
                self.truncated_at = Some(at);
                Ok(None)
            }
        }
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Result<Record, CaptureError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let item = self.advance().transpose();
        self.done = !matches!(item, Some(Ok(_)));
        item
    }
}
