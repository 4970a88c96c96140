//! The output of a replay: a capture for each port, `drops.jsonl` and `summary.json`.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use podswitch_core::action::{DropClass, DropReason};
use podswitch_core::id::PortId;
use podswitch_core::port::pcap::{CaptureWriter, Direction, Format};
use serde::Serialize;

use crate::failure::Failure;

/// A line of `drops.jsonl`.
#[derive(Debug)]
pub(super) struct Drop<'a> {
    /// Name of the port that received the frame.
    pub(super) port: &'a str,
    /// The frame's number within its capture.
    pub(super) frame: u64,
    /// The frame's time, nanoseconds since 1970.
    pub(super) time: u64,
    /// Why.
    pub(super) reason: DropReason,
    /// The object that caused the drop.
    pub(super) object: Option<&'a str>,
}

/// `summary.json`.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    /// received = forwarded + consumed + dropped.
    pub(super) received: u64,
    pub(super) forwarded: u64,
    pub(super) consumed: u64,
    pub(super) dropped: u64,
    /// Frames that the switch originated.
    pub(super) originated: u64,
    /// Additional copies of forwarded frames.
    pub(super) copies: u64,
    /// Dropped frames by reason.
    pub(super) drops: BTreeMap<&'static str, u64>,
    /// Frames by port.
    pub(super) ports: BTreeMap<String, PortSummary>,
}

/// Frames of one port.
#[derive(Debug, Serialize)]
pub(super) struct PortSummary {
    pub(super) received: u64,
    pub(super) dropped: u64,
    pub(super) sent: u64,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { received, forwarded, consumed, dropped, originated, copies, .. } = self;
        writeln!(f, "received    {received}")?;
        writeln!(f, "  forwarded {forwarded}")?;
        writeln!(f, "  consumed  {consumed}")?;
        writeln!(f, "  dropped   {dropped}")?;
        for (reason, count) in &self.drops {
            writeln!(f, "    {reason:<26} {count}")?;
        }
        writeln!(f, "originated  {originated}")?;
        writeln!(f, "copies      {copies}")?;
        let wide = self.ports.keys().map(String::len).max().unwrap_or(0).max(4);
        write!(f, "{:<wide$} {:>10} {:>10} {:>10}", "port", "received", "dropped", "sent")?;
        for (port, PortSummary { received, dropped, sent }) in &self.ports {
            write!(f, "\n{port:<wide$} {received:>10} {dropped:>10} {sent:>10}")?;
        }
        Ok(())
    }
}

/// The files being written.
pub(super) struct Output {
    folder: PathBuf,
    captures: Vec<CaptureWriter<Appender>>,
    drops: BufWriter<File>,
}

impl Output {
    /// Creates the files in `folder`, even for ports that send nothing.
    pub(super) fn create(folder: &Path, ports: &[String]) -> Result<Self, Failure> {
        fs::create_dir_all(folder).map_err(|e| failed(folder, &e))?;
        let mut captures = Vec::new();
        for port in ports {
            let path = folder.join(format!("{}.pcap", port.replace('/', "_")));
            let made = Appender::create(&path).and_then(|a| CaptureWriter::new(a, Format::Pcap));
            captures.push(made.map_err(|e| failed(&path, &e))?);
        }
        let path = folder.join("drops.jsonl");
        let drops = File::create(&path).map_err(|e| failed(&path, &e))?;
        let drops = BufWriter::with_capacity(1 << 16, drops);
        Ok(Self { folder: folder.to_owned(), captures, drops })
    }

    /// A frame was sent by `port`.
    pub(super) fn sent(&mut self, port: PortId, time: u64, frame: &[u8]) -> Result<(), Failure> {
        let Some(capture) = self.captures.get_mut(port.index()) else { return Ok(()) };
        let written = capture.write(time, frame, frame.len() as u32, Direction::Outbound);
        written.map_err(|e| failed(&self.folder, &e))
    }

    /// A frame was dropped.
    pub(super) fn dropped(&mut self, drop: &Drop<'_>) -> Result<(), Failure> {
        write_drop(&mut self.drops, drop).map_err(|e| failed(&self.folder, &e))
    }

    /// Flushes the files and writes the totals.
    pub(super) fn finish(mut self, summary: &Summary) -> Result<(), Failure> {
        let result = (|| {
            for capture in self.captures {
                capture.finish()?;
            }
            self.drops.flush()?;
            let mut text = serde_json::to_string_pretty(summary)?;
            text.push('\n');
            fs::write(self.folder.join("summary.json"), text)
        })();
        result.map_err(|e| failed(&self.folder, &e))
    }
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    Failure::Input(format!("{}: cannot be written: {error}", path.display()))
}

/// Times are written digit by digit: a float cannot hold nanoseconds since 1970.
fn write_drop(out: &mut impl Write, drop: &Drop<'_>) -> io::Result<()> {
    let (seconds, nanos) = (drop.time / 1_000_000_000, drop.time % 1_000_000_000);
    let (reason, class) = (drop.reason.name(), drop.reason.class());
    out.write_all(b"{\"port\":")?;
    serde_json::to_writer(&mut *out, drop.port)?;
    write!(out, ",\"frame\":{},\"time\":{seconds}.{nanos:09}", drop.frame)?;
    write!(out, ",\"reason\":\"{reason}\",\"class\":\"{}\"", class.name())?;
    if let Some(object) = drop.object {
        let key = if class == DropClass::Policy { "policy" } else { "object" };
        write!(out, ",\"{key}\":")?;
        serde_json::to_writer(&mut *out, object)?;
    }
    out.write_all(b"}\n")
}

/// A file that is open only while it is written: a node may have more pods than a process may have
/// open files.
struct Appender {
    path: PathBuf,
    buffer: Vec<u8>,
}

impl Appender {
    const ENOUGH: usize = 1 << 18;

    fn create(path: &Path) -> io::Result<Self> {
        File::create(path)?;
        Ok(Self { path: path.to_owned(), buffer: Vec::new() })
    }
}

impl Write for Appender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() >= Self::ENOUGH {
            self.flush()?;
        }
        self.buffer.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.buffer.is_empty() {
            OpenOptions::new().append(true).open(&self.path)?.write_all(&self.buffer)?;
            self.buffer.clear();
        }
        Ok(())
    }
}
