//! Reading captures: a frame at a time, whatever the file claims.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use super::MAX_RECORD;
use super::pcapng::{self, Section};

/// A frame of a capture.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Record {
    /// When it was captured, in nanoseconds since 1970. The least that the file has for frames
    /// without a time of their own: that of the frame before.
    pub time_ns: u64,
    /// Link type (LINKTYPE_ value), [`ETHERNET`](super::ETHERNET) for frames as the switch has
    /// them.
    pub link_type: u32,
    /// The bytes that were captured.
    pub frame: Vec<u8>,
    /// Bytes that the frame had on the wire; may be more than were captured.
    pub original_len: u32,
}

/// What keeps a capture from being read on.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file cannot be opened or read.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// Neither pcap nor pcapng.
    #[error("not a capture: begins with {0:02x?}")]
    NotACapture(Vec<u8>),
    /// Compressed; to be unpacked first.
    #[error("a compressed file, not a capture")]
    Compressed,
    /// A version of the format that nobody knows.
    #[error("unknown version {major}.{minor} of the capture format")]
    Version {
        /// Major version.
        major: u16,
        /// Minor version.
        minor: u16,
    },
    /// The file contradicts itself.
    #[error("malformed at byte {offset}: {what}")]
    Malformed {
        /// Where the part at fault begins.
        offset: u64,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// Byte order of a file's fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Order {
    Little,
    Big,
}

impl Order {
    pub(super) fn u16(self, bytes: &[u8]) -> u16 {
        let bytes = [bytes[0], bytes[1]];
        match self {
            Self::Little => u16::from_le_bytes(bytes),
            Self::Big => u16::from_be_bytes(bytes),
        }
    }

    pub(super) fn u32(self, bytes: &[u8]) -> u32 {
        let bytes = [bytes[0], bytes[1], bytes[2], bytes[3]];
        match self {
            Self::Little => u32::from_le_bytes(bytes),
            Self::Big => u32::from_be_bytes(bytes),
        }
    }

    pub(super) fn u64(self, bytes: &[u8]) -> u64 {
        let (a, b) = (u64::from(self.u32(bytes)), u64::from(self.u32(&bytes[4..])));
        match self {
            Self::Little => b << 32 | a,
            Self::Big => a << 32 | b,
        }
    }
}

/// The input with its position.
#[derive(Debug)]
pub(super) struct Input<R> {
    inner: R,
    pub(super) offset: u64,
}

/// How much of a part was there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Got {
    All,
    Part,
    Nothing,
}

impl<R: Read> Input<R> {
    pub(super) fn fill(&mut self, buffer: &mut [u8]) -> io::Result<Got> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.inner.read(&mut buffer[filled..]) {
                Ok(0) if filled == 0 => return Ok(Got::Nothing),
                Ok(0) => return Ok(Got::Part),
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.offset += filled as u64;
        Ok(Got::All)
    }

    /// Reads `len` bytes into `buffer`, growing it as they come: a length that the file does
    /// not hold costs no memory.
    pub(super) fn take(&mut self, len: usize, buffer: &mut Vec<u8>) -> io::Result<Got> {
        buffer.clear();
        let got = (&mut self.inner).take(len as u64).read_to_end(buffer)?;
        self.offset += got as u64;
        Ok(match got {
            _ if got == len => Got::All,
            0 => Got::Nothing,
            _ => Got::Part,
        })
    }

    pub(super) fn skip(&mut self, len: u64) -> io::Result<Got> {
        let got = io::copy(&mut (&mut self.inner).take(len), &mut io::sink())?;
        self.offset += got;
        Ok(if got == len { Got::All } else { Got::Part })
    }

    pub(super) fn malformed(&self, what: &'static str) -> CaptureError {
        CaptureError::Malformed { offset: self.offset, what }
    }
}

/// Facts from a pcap file's header.
#[derive(Clone, Copy, Debug)]
struct Classic {
    order: Order,
    /// Nanoseconds in a unit of the timestamps' fraction.
    unit: u64,
    link_type: u32,
    minor: u16,
    /// Bytes of a record's header: 16, and 24 in Kuznetzov's variant.
    header: usize,
}

#[derive(Debug)]
enum Kind {
    Classic(Classic),
    Next(Section),
}

/// Reads a capture frame by frame. After an error, and after the end, there is nothing more.
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
/// The file cannot be read, or is none.
pub fn read_capture(path: &Path) -> Result<Reader<BufReader<File>>, CaptureError> {
    Reader::new(BufReader::with_capacity(1 << 16, File::open(path)?))
}

impl<R: Read> Reader<R> {
    /// Reads a capture from `inner`, which should be buffered.
    ///
    /// # Errors
    /// It cannot be read, or is no capture.
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

    /// Where the last record begins, if the file ends within it. It is left out, as tcpdump
    /// does; known once the iterator has ended.
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

/// What came next.
#[derive(Debug)]
pub(super) enum Step {
    Record(Record),
    End,
    CutOff(u64),
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

impl Classic {
    fn open<R: Read>(input: &mut Input<R>, magic: [u8; 4]) -> Result<Self, CaptureError> {
        let (order, unit, header) = match u32::from_be_bytes(magic) {
            0xa1b2_c3d4 => (Order::Big, 1000, 16),
            0xd4c3_b2a1 => (Order::Little, 1000, 16),
            0xa1b2_3c4d => (Order::Big, 1, 16),
            0x4d3c_b2a1 => (Order::Little, 1, 16),
            0xa1b2_cd34 => (Order::Big, 1000, 24),
            0x34cd_b2a1 => (Order::Little, 1000, 24),
            value if value >> 16 == 0x1f8b || value == 0x28b5_2ffd || value >> 8 == 0x42_5a68 => {
                return Err(CaptureError::Compressed);
            }
            _ => return Err(CaptureError::NotACapture(magic.to_vec())),
        };
        let mut rest = [0; 20];
        if input.fill(&mut rest)? != Got::All {
            return Err(input.malformed("the file header is cut off"));
        }
        let (major, minor) = (order.u16(&rest), order.u16(&rest[2..]));
        if major != 2 || minor > 4 {
            return Err(CaptureError::Version { major, minor });
        }
        // The upper bits say whether there is an FCS.
        let link_type = order.u32(&rest[16..]) & 0x03ff_ffff;
        Ok(Self { order, unit, link_type, minor, header })
    }

    fn next<R: Read>(&self, input: &mut Input<R>) -> Result<Step, CaptureError> {
        let start = input.offset;
        let mut header = [0; 24];
        match input.fill(&mut header[..self.header])? {
            Got::All => {}
            Got::Part => return Ok(Step::CutOff(start)),
            Got::Nothing => return Ok(Step::End),
        }
        let field = |n: usize| self.order.u32(&header[4 * n..]);
        let (mut captured, mut original_len) = (field(2), field(3));
        // The two changed places in version 2.3, where some files have them the old way round.
        if self.minor < 3 || (self.minor == 3 && captured > original_len) {
            (captured, original_len) = (original_len, captured);
        }
        if captured > MAX_RECORD {
            let what = "a record longer than any frame";
            return Err(CaptureError::Malformed { offset: start, what });
        }
        let mut frame = Vec::new();
        if input.take(captured as usize, &mut frame)? != Got::All {
            return Ok(Step::CutOff(start));
        }
        let time_ns = u64::from(field(0)) * 1_000_000_000 + u64::from(field(1)) * self.unit;
        Ok(Step::Record(Record { time_ns, link_type: self.link_type, frame, original_len }))
    }
}
