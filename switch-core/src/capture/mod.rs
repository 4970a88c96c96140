//! Packet capture of a running switch: copies of frames, with the result of processing each.
//!
//! ```text
//! worker: received burst -> copies of frames that the filter matches, tagged by burst and index
//!         engine         -> a dropped frame's tag finds its copy: the reason
//!         transmission   -> a sent frame's tag finds its copy: forwarded; the sent frame is copied, too
//!         end of poll    -> a bounded queue; copies that do not fit are lost, and counted
//! reader: queues of all workers -> CapturedFrame, with the snapshot that the frame was evaluated with
//! ```
//!
//! While no capture runs, it costs a worker one branch per burst. While one runs, frames are copied on the worker's
//! thread into buffers that the reader returns; a worker never waits for the reader. One capture runs at a time; it
//! ends when its [`CaptureReader`] is dropped.
//!
//! Frames are captured as ports receive and send them: GSO packets unsegmented, with partial checksums, and tunnel
//! packets with their outer headers.

mod filter;
mod frame;
mod queue;
mod reader;
mod tap;

pub use filter::CaptureFilter;
pub use frame::{CaptureOptions, CaptureOutcome, CapturedFrame};
pub use reader::CaptureReader;
