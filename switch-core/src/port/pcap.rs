//! Captures: read for `replay` and tests, written by `replay`, and the tap-off that copies what
//! passes a port to a capture while traffic flows.
//!
//! Reading and writing are plain code for the control plane's threads. [`Recorded`] is a wrapper
//! round a port on a worker's thread: it copies into a bounded queue, and a thread of the
//! [`Recorder`]'s writes; the worker never waits for a file.
//!
//! Formats: pcap (draft-ietf-opsawg-pcap) with microseconds or nanoseconds in either byte order
//! and Kuznetzov's variant, and pcapng (draft-ietf-opsawg-pcapng). Captures are hostile input:
//! nothing that a file says is believed beyond what it holds.

mod classic;
mod input;
mod pcapng;
mod read;
mod record;
mod write;

pub use input::{CaptureError, Record};
pub use read::{Reader, read_capture};
pub use record::{Recorded, Recorder, RecorderCounters};
pub use write::{CaptureWriter, Direction, Format};

/// The link type of Ethernet frames, without preamble and usually without FCS
/// (LINKTYPE_ETHERNET).
pub const ETHERNET: u32 = 1;

/// The longest frame that is read, as in libpcap (MAXIMUM_SNAPLEN).
pub const MAX_RECORD: u32 = 262_144;

#[cfg(test)]
mod tests;
