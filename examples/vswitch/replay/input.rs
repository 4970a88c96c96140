//! Merges captures by time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

use podswitch_core::id::PortId;
use podswitch_core::port::pcap::{self, CaptureError, Reader};

use super::setup::Setup;
use crate::failure::Failure;
use crate::print;

/// `--in PORT=FILE`.
#[derive(Clone, Debug)]
pub(super) struct Source {
    port: String,
    file: PathBuf,
}

impl Source {
    /// Parses the option's value.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((port, file)) if !port.is_empty() && !file.is_empty() => {
                Ok(Self { port: port.to_owned(), file: file.into() })
            }
            _ => Err("it is not PORT=FILE".to_owned()),
        }
    }
}

/// A frame to be received.
#[derive(Debug)]
pub(super) struct Frame {
    /// The port that receives it.
    pub(super) port: PortId,
    /// Its number within its capture, from 1.
    pub(super) number: u64,
    /// Nanoseconds since 1970; never less than the time of the preceding frame.
    pub(super) time: u64,
    /// The frame.
    pub(super) bytes: Vec<u8>,
}

/// A capture, with its next frame read.
struct Capture {
    port: PortId,
    file: PathBuf,
    reader: Reader<BufReader<File>>,
    next: Option<Frame>,
    /// Frames read.
    count: u64,
    /// Time of the latest.
    time: u64,
}

/// All captures. See the module's description.
pub(super) struct Merged {
    captures: Vec<Capture>,
    /// Time of the next frame and number of the capture, the earliest on top.
    order: BinaryHeap<Reverse<(u64, usize)>>,
    as_ethernet: bool,
    faults: Vec<String>,
}

impl Merged {
    /// Opens the captures.
    pub(super) fn open(
        sources: &[Source],
        setup: &Setup,
        as_ethernet: bool,
    ) -> Result<Self, Failure> {
        let mut merged = Self {
            captures: Vec::new(),
            order: BinaryHeap::new(),
            as_ethernet,
            faults: Vec::new(),
        };
        for source in sources {
            let port = setup.find(&source.port).ok_or_else(|| unknown(source, setup))?;
            let reader =
                pcap::read_capture(&source.file).map_err(|e| unreadable(&source.file, &e))?;
            let file = source.file.clone();
            let at = merged.captures.len();
            merged.captures.push(Capture { port, file, reader, next: None, count: 0, time: 0 });
            merged.read(at)?;
        }
        Ok(merged)
    }

    /// The next frame by time. Among equal times, the order of the captures decides.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, Failure> {
        let Some(Reverse((_, at))) = self.order.pop() else { return Ok(None) };
        let frame = self.captures[at].next.take();
        self.read(at)?;
        Ok(frame)
    }

    /// Errors that prevented captures from being read completely.
    pub(super) fn faults(&self) -> &[String] {
        &self.faults
    }

    /// Reads the next frame of a capture, if there is one.
    fn read(&mut self, at: usize) -> Result<(), Failure> {
        let capture = &mut self.captures[at];
        match capture.reader.next() {
            Some(Ok(record)) => {
                if record.link_type != pcap::ETHERNET && !self.as_ethernet {
                    let (file, link) = (capture.file.display(), record.link_type);
                    return Err(Failure::Input(format!(
                        "{file}: its frames are of link type {link}, not Ethernet ({}); \
                         with --as-ethernet they are taken for Ethernet frames",
                        pcap::ETHERNET
                    )));
                }
                capture.count += 1;
                // A clock may be set back during a capture; the time of the replay never runs back.
                capture.time = capture.time.max(record.time_ns);
                let (port, number, time) = (capture.port, capture.count, capture.time);
                capture.next = Some(Frame { port, number, time, bytes: record.frame });
                self.order.push(Reverse((time, at)));
            }
            // The frames before remain valid, and so do the other captures.
            Some(Err(error)) => {
                let (file, count) = (capture.file.display(), capture.count);
                self.faults.push(format!("{file}: {error}; it was read up to frame {count}"));
            }
            None => {
                if let Some(offset) = capture.reader.truncated_at() {
                    let (file, count) = (capture.file.display(), capture.count);
                    print::note(format_args!(
                        "{file}: cut off in the frame after frame {count}, at byte {offset}"
                    ));
                }
            }
        }
        Ok(())
    }
}

fn unreadable(file: &std::path::Path, error: &CaptureError) -> Failure {
    Failure::Input(format!("{}: {error}", file.display()))
}

fn unknown(source: &Source, setup: &Setup) -> Failure {
    let mut names = setup.ports().join(", ");
    const MANY: usize = 2000;
    if let Some((cut, _)) = names.char_indices().nth(MANY) {
        names.replace_range(cut.., "…");
    }
    Failure::Input(format!("there is no port {:?}; this node has {names}", source.port))
}
