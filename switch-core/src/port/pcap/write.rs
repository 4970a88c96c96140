//! Writer for captures of Ethernet frames with nanosecond timestamps. The output depends only on the
//! input, not on the machine.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use super::write_ng::{Direction, InterfaceId, Packet, PcapNgWriter, captured_len};
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

/// Writes a capture, frame by frame.
#[derive(Debug)]
pub struct CaptureWriter<W: Write>(Output<W>);

#[derive(Debug)]
enum Output<W: Write> {
    Pcap(W),
    PcapNg(PcapNgWriter<W>),
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
        if format == Format::PcapNg {
            let mut writer = PcapNgWriter::new(inner, "")?;
            writer.interface("", "", MAX_RECORD)?;
            return Ok(Self(Output::PcapNg(writer)));
        }
        inner.write_all(&0xa1b2_3c4du32.to_le_bytes())?;
        inner.write_all(&[2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0])?;
        inner.write_all(&MAX_RECORD.to_le_bytes())?;
        inner.write_all(&ETHERNET.to_le_bytes())?;
        Ok(Self(Output::Pcap(inner)))
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
        let inner = match &mut self.0 {
            Output::Pcap(inner) => inner,
            Output::PcapNg(writer) => {
                let packet = Packet { time_ns, frame, original_len, direction, comment: "" };
                return writer.packet(InterfaceId::FIRST, &packet);
            }
        };
        let captured = captured_len(frame)?;
        let seconds = u32::try_from(time_ns / 1_000_000_000).unwrap_or(u32::MAX);
        let nanos = (time_ns % 1_000_000_000) as u32;
        let mut header = [0; 16];
        let fields = [seconds, nanos, captured, original_len.max(captured)];
        for (place, field) in header.chunks_mut(4).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        inner.write_all(&header)?;
        inner.write_all(frame)
    }

    /// Flushes the underlying writer.
    ///
    /// # Errors
    /// The file fails.
    pub fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Output::Pcap(inner) => inner.flush(),
            Output::PcapNg(writer) => writer.get_mut().flush(),
        }
    }

    /// Flushes and returns the underlying writer.
    ///
    /// # Errors
    /// The file fails.
    pub fn finish(mut self) -> io::Result<W> {
        self.flush()?;
        Ok(match self.0 {
            Output::Pcap(inner) => inner,
            Output::PcapNg(writer) => writer.into_inner(),
        })
    }
}
