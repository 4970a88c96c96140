//! Writer for captures of Ethernet frames with nanosecond timestamps. The output depends only on the
//! input, not on the machine.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use super::{ETHERNET, MAX_RECORD};

/// The file format.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Format {
    /// pcap, little-endian, nanoseconds.
    #[default]
    Pcap,
    /// pcapng, little-endian, nanoseconds, with the direction of each frame.
    PcapNg,
}

/// Direction of a frame, as the switch sees it. Only pcapng stores it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Received by the switch.
    Inbound,
    /// Sent by the switch.
    Outbound,
}

/// Writes a capture, frame by frame.
#[derive(Debug)]
pub struct CaptureWriter<W: Write> {
    inner: W,
    format: Format,
}

impl CaptureWriter<BufWriter<File>> {
    /// Creates the file `path`, or replaces it.
    ///
    /// # Errors
    /// It cannot be created or written.
    pub fn create(path: &Path, format: Format) -> io::Result<Self> {
        Self::new(BufWriter::with_capacity(1 << 16, File::create(path)?), format)
    }
}

impl<W: Write> CaptureWriter<W> {
    /// Writes the file header to `inner`, which should be buffered.
    ///
    /// # Errors
    /// `inner` fails.
    pub fn new(mut inner: W, format: Format) -> io::Result<Self> {
        match format {
            Format::Pcap => {
                inner.write_all(&0xa1b2_3c4du32.to_le_bytes())?;
                inner.write_all(&[2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0])?;
                inner.write_all(&MAX_RECORD.to_le_bytes())?;
                inner.write_all(&ETHERNET.to_le_bytes())?;
            }
            Format::PcapNg => {
                let section = [0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0];
                block(&mut inner, 0x0a0d_0d0a, &[&section, &[0xff; 8]])?;
                // Option 9: timestamps of 10^-9 s; then the end of options.
                let resolution = [9, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0];
                block(&mut inner, 1, &[&[1, 0, 0, 0], &MAX_RECORD.to_le_bytes(), &resolution])?;
            }
        }
        Ok(Self { inner, format })
    }

    /// Writes a frame with the time `time_ns` in nanoseconds since 1970. `original_len`: its length before
    /// truncation.
    ///
    /// # Errors
    /// The file fails, or the frame is longer than [`MAX_RECORD`](super::MAX_RECORD).
    pub fn write(
        &mut self,
        time_ns: u64,
        frame: &[u8],
        original_len: u32,
        direction: Direction,
    ) -> io::Result<()> {
        let Some(captured) = u32::try_from(frame.len()).ok().filter(|len| *len <= MAX_RECORD)
        else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "frame too long for a capture",
            ));
        };
        let original_len = original_len.max(captured);
        match self.format {
            Format::Pcap => {
                let seconds = u32::try_from(time_ns / 1_000_000_000).unwrap_or(u32::MAX);
                let nanos = (time_ns % 1_000_000_000) as u32;
                let mut header = [0; 16];
                for (place, field) in
                    header.chunks_mut(4).zip([seconds, nanos, captured, original_len])
                {
                    place.copy_from_slice(&field.to_le_bytes());
                }
                self.inner.write_all(&header)?;
                self.inner.write_all(frame)
            }
            Format::PcapNg => self.write_enhanced(time_ns, frame, original_len, direction),
        }
    }

    fn write_enhanced(
        &mut self,
        time_ns: u64,
        frame: &[u8],
        original_len: u32,
        direction: Direction,
    ) -> io::Result<()> {
        let mut header = [0; 20];
        let (high, low) = ((time_ns >> 32) as u32, time_ns as u32);
        for (place, field) in
            header.chunks_mut(4).zip([0, high, low, frame.len() as u32, original_len])
        {
            place.copy_from_slice(&field.to_le_bytes());
        }
        let padding = [0; 3];
        let padding = &padding[..frame.len().next_multiple_of(4) - frame.len()];
        // Option 2 (epb_flags): 1 inbound, 2 outbound; then the end of options.
        let way = if direction == Direction::Inbound { 1 } else { 2 };
        let flags = [2, 0, 4, 0, way, 0, 0, 0, 0, 0, 0, 0];
        block(&mut self.inner, 6, &[&header, frame, padding, &flags])
    }

    /// Flushes the underlying writer.
    ///
    /// # Errors
    /// The file fails.
    pub fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }

    /// Flushes and returns the underlying writer.
    ///
    /// # Errors
    /// The file fails.
    pub fn finish(mut self) -> io::Result<W> {
        self.inner.flush()?;
        Ok(self.inner)
    }
}

/// Writes a pcapng block. The parts' lengths sum to a multiple of four.
fn block(out: &mut impl Write, kind: u32, parts: &[&[u8]]) -> io::Result<()> {
    let total = 12 + parts.iter().map(|part| part.len() as u32).sum::<u32>();
    out.write_all(&kind.to_le_bytes())?;
    out.write_all(&total.to_le_bytes())?;
    for part in parts {
        out.write_all(part)?;
    }
    out.write_all(&total.to_le_bytes())
}
