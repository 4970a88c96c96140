//! Capture files: reader and writer for `replay` and tests, and a wrapper that records the traffic of a
//! port.
//!
//! Reading and writing are for the threads of the control plane. [`Recorded`] wraps a port on a
//! worker's thread: it copies frames into a bounded queue, and a thread of the [`Recorder`] writes
//! them. The worker never waits for a file.
//!
//! Formats: pcap (draft-ietf-opsawg-pcap) with microseconds or nanoseconds in either byte order
//! and Kuznetzov's variant, and pcapng (draft-ietf-opsawg-pcapng). Captures are untrusted input: lengths
//! are checked against the bytes that the file contains.

mod classic;
mod input;
mod pcapng;
mod read;
mod record;
mod write;
mod write_ng;

pub use input::{CaptureError, Record};
pub use read::{Reader, read_capture};
pub use record::{Recorded, Recorder, RecorderCounters};
pub use write::{CaptureWriter, Format};
pub use write_ng::{Direction, InterfaceId, Packet, PcapNgWriter};

/// The link type of Ethernet frames, without preamble and usually without FCS
/// (LINKTYPE_ETHERNET).
pub const ETHERNET: u32 = 1;

/// Length of the longest frame that is read, as in libpcap (MAXIMUM_SNAPLEN).
pub const MAX_RECORD: u32 = 262_144;

#[cfg(test)]
mod tests;
