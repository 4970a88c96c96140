//! The input of both formats with its position, the byte order of its fields, and the results of
//! reading.

use std::io::{self, Read};

/// A frame of a capture.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Record {
    /// Capture time in nanoseconds since 1970. A frame without a timestamp has the time of the previous frame.
    pub time_ns: u64,
    /// Link type (LINKTYPE_ value); [`ETHERNET`](super::ETHERNET) for Ethernet frames.
    pub link_type: u32,
    /// The captured bytes.
    pub frame: Vec<u8>,
    /// Length of the frame on the wire in bytes; may be more than was captured.
    pub original_len: u32,
}

/// Why a capture cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file cannot be opened or read.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// Neither pcap nor pcapng.
    #[error("not a capture: begins with {0:02x?}")]
    NotACapture(Vec<u8>),
    /// The file is compressed and must be decompressed first.
    #[error("a compressed file, not a capture")]
    Compressed,
    /// An unknown version of the format.
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
        /// Offset of the invalid part.
        offset: u64,
        /// Description of the error.
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
    pub(super) inner: R,
    pub(super) offset: u64,
}

/// How much of a requested part was read.
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

    /// Reads `len` bytes into `buffer`, which grows as they are read: a length beyond the end of the file
    /// costs no memory.
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

/// The result of reading the next item.
#[derive(Debug)]
pub(super) enum Step {
    Record(Record),
    End,
    CutOff(u64),
}
