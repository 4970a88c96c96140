//! Packet capture of a running switch: copies of frames, with what became of each.
//!
//! ```text
//! worker: received burst -> copies of frames that the filter takes, tagged by burst and place
//!         engine         -> a dropped frame's tag finds its copy: the reason
//!         transmission   -> a sent frame's tag finds its copy: forwarded; the sent frame is copied, too
//!         end of poll    -> a bounded queue; what does not fit is lost, and counted
//! reader: queues of all workers -> CapturedFrame, with the snapshot that the frame was evaluated with
//! ```
//!
//! Off, it costs a worker one branch a burst. On, frames are copied on the worker's thread into buffers that the
//! reader gives back; a worker never waits for the reader. One capture runs at a time; it ends when its
//! [`CaptureReader`] is dropped.
//!
//! Frames are shown as ports pass them: GSO packets whole, with partial checksums, tunnel packets with their
//! outer headers.

mod filter;
mod frame;
mod queue;
mod reader;
mod tap;

pub use filter::CaptureFilter;
pub use frame::{CaptureOptions, CapturedFrame, Fate};
pub use reader::CaptureReader;
