//! What happens on a node, as typed values.
//!
//! Parts of the node put events into a queue ([`Reporter`]); the [`Node`](crate::Node) passes them
//! to the embedder's sink at the end of each of its calls. Workers never call the sink: a dropped
//! frame goes into a bounded queue without locks.

mod connections;
mod drops;
mod event;
mod failure;
mod sink;

pub(crate) use connections::FlowReporter;
pub(crate) use drops::DropQueue;
pub use event::{DroppedFrame, Event};
pub use failure::Failure;
pub(crate) use sink::Reporter;
pub use sink::{EventSink, channel};
