//! Writer of pcapng sections with several interfaces and comments (draft-ietf-opsawg-pcapng), little-endian.

use std::io::{self, Write};

use super::{ETHERNET, MAX_RECORD};

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const ENHANCED: u32 = 6;

const OPTION_COMMENT: u16 = 1;
/// Longest comment that is written, in bytes.
const MAX_COMMENT: usize = 4096;

/// Direction of a frame, as the switch sees it. Only pcapng stores it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Received by the switch.
    Inbound,
    /// Sent by the switch.
    Outbound,
}

/// An interface of a section, by number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InterfaceId(u32);

impl InterfaceId {
    /// The first one.
    pub(super) const FIRST: Self = Self(0);
}

/// A frame to write.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// Time in nanoseconds since 1970.
    pub time_ns: u64,
    /// The captured bytes.
    pub frame: &'a [u8],
    /// Length of the frame before truncation.
    pub original_len: u32,
    /// Received or sent.
    pub direction: Direction,
    /// The packet comment; none if it is empty.
    pub comment: &'a str,
}

/// Options of a block.
#[derive(Default)]
struct Options(Vec<u8>);

impl Options {
    fn add(&mut self, code: u16, value: &[u8]) {
        let len = value.len().min(usize::from(u16::MAX) - 3) as u16;
        let value = &value[..usize::from(len)];
        self.0.extend_from_slice(&code.to_le_bytes());
        self.0.extend_from_slice(&len.to_le_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn text(&mut self, code: u16, text: &str) {
        if !text.is_empty() {
            let end = text.floor_char_boundary(MAX_COMMENT);
            self.add(code, &text.as_bytes()[..end]);
        }
    }

    /// Followed by the option that ends them; if there are no options, none is needed.
    fn end(mut self) -> Vec<u8> {
        if !self.0.is_empty() {
            self.0.extend_from_slice(&[0; 4]);
        }
        self.0
    }
}

/// Writes one section, block by block. The output depends only on the input, not on the machine.
#[derive(Debug)]
pub struct PcapNgWriter<W: Write> {
    inner: W,
    interfaces: u32,
}

impl<W: Write> PcapNgWriter<W> {
    /// Writes the section's header to `inner`, which should be buffered. `application`: the program that writes the
    /// file; omitted if it is empty.
    ///
    /// # Errors
    /// `inner` fails.
    pub fn new(mut inner: W, application: &str) -> io::Result<Self> {
        let mut options = Options::default();
        options.text(4, application);
        let section = [0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0];
        block(&mut inner, SECTION, &[&section, &[0xff; 8], &options.end()])?;
        Ok(Self { inner, interfaces: 0 })
    }

    /// Adds an Ethernet interface with timestamps in nanoseconds. `snap_len`: maximum bytes of a frame. Name and
    /// description are omitted if they are empty.
    ///
    /// # Errors
    /// `inner` fails.
    pub fn interface(
        &mut self,
        name: &str,
        description: &str,
        snap_len: u32,
    ) -> io::Result<InterfaceId> {
        let mut options = Options::default();
        options.text(2, name);
        options.text(3, description);
        // Timestamps of 10^-9 s.
        options.add(9, &[9]);
        let link_type = ETHERNET.to_le_bytes();
        block(&mut self.inner, INTERFACE, &[&link_type, &snap_len.to_le_bytes(), &options.end()])?;
        self.interfaces += 1;
        Ok(InterfaceId(self.interfaces - 1))
    }

    /// Writes a frame.
    ///
    /// # Errors
    /// `inner` fails, or the frame is longer than [`MAX_RECORD`].
    pub fn packet(&mut self, interface: InterfaceId, packet: &Packet<'_>) -> io::Result<()> {
        let frame = packet.frame;
        let captured = captured_len(frame)?;
        let (high, low) = time(packet.time_ns);
        let original_len = packet.original_len.max(captured);
        let mut header = [0; 20];
        for (place, field) in
            header.chunks_mut(4).zip([interface.0, high, low, captured, original_len])
        {
            place.copy_from_slice(&field.to_le_bytes());
        }
        let padding = [0; 3];
        let padding = &padding[..frame.len().next_multiple_of(4) - frame.len()];
        let mut options = Options::default();
        options.text(OPTION_COMMENT, packet.comment);
        // epb_flags: 1 inbound, 2 outbound.
        let way = if packet.direction == Direction::Inbound { 1u32 } else { 2 };
        options.add(2, &way.to_le_bytes());
        block(&mut self.inner, ENHANCED, &[&header, frame, padding, &options.end()])
    }

    /// Writes an interface's statistics at the time `time_ns`: the number of frames received, and of received frames
    /// that were lost, as far as they are known.
    ///
    /// # Errors
    /// `inner` fails.
    pub fn statistics(
        &mut self,
        interface: InterfaceId,
        time_ns: u64,
        [received, lost]: [Option<u64>; 2],
        comment: &str,
    ) -> io::Result<()> {
        let (high, low) = time(time_ns);
        let mut header = [0; 12];
        for (place, field) in header.chunks_mut(4).zip([interface.0, high, low]) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        let mut options = Options::default();
        options.text(OPTION_COMMENT, comment);
        for (code, count) in [(4, received), (5, lost)] {
            if let Some(count) = count {
                options.add(code, &count.to_le_bytes());
            }
        }
        block(&mut self.inner, STATISTICS, &[&header, &options.end()])
    }

    /// The underlying writer.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.inner
    }

    /// Returns the underlying writer.
    pub fn into_inner(self) -> W {
        self.inner
    }
}

fn time(nanos: u64) -> (u32, u32) {
    ((nanos >> 32) as u32, nanos as u32)
}

/// Writes a block. The parts' lengths sum to a multiple of four.
fn block(out: &mut impl Write, kind: u32, parts: &[&[u8]]) -> io::Result<()> {
    let total = 12 + parts.iter().map(|part| part.len() as u32).sum::<u32>();
    out.write_all(&kind.to_le_bytes())?;
    out.write_all(&total.to_le_bytes())?;
    for part in parts {
        out.write_all(part)?;
    }
    out.write_all(&total.to_le_bytes())
}

/// Length of the captured bytes, as a record stores it.
///
/// # Errors
/// The frame is longer than [`MAX_RECORD`].
pub(super) fn captured_len(frame: &[u8]) -> io::Result<u32> {
    let too_long = || io::Error::new(io::ErrorKind::InvalidInput, "frame too long for a capture");
    u32::try_from(frame.len()).ok().filter(|len| *len <= MAX_RECORD).ok_or_else(too_long)
}
