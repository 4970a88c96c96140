//! What happens on a node, as typed values.
//!
//! Parts of the node put events into a queue ([`Reporter`]); the [`Node`](crate::Node) passes them
//! to the embedder's sink at the end of each of its calls. Workers never call the sink: what they
//! drop they write down without locks, in bounded memory.

mod dropped;
mod drops;
mod event;
mod failure;
mod flows;
mod recorded_flow;
mod sink;

pub use dropped::DroppedFrames;
pub(crate) use drops::DropReader;
pub use event::Event;
pub use failure::Failure;
pub(crate) use flows::FlowReader;
pub use recorded_flow::RecordedFlow;
pub(crate) use sink::Reporter;
pub use sink::{EventSink, channel};
