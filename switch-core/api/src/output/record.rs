//! A record of any kind.

use std::sync::Arc;
use std::time::SystemTime;

use humantime::format_rfc3339_micros;
use podswitch_node::{DroppedFrames, Event, FlowChange, FlowsLeftOut, RecordedFlow};
use serde::{Serialize, Serializer};

/// A record for outputs. Serializes as one flat object with its kind as `type`: `drop`, `flow_opened`, `flow_updated`,
/// `flow_closed` or `flows_left_out`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Record {
    /// A connection.
    Flow(Box<RecordedFlow>),
    /// Dropped frames.
    Drop(Box<DroppedFrames>),
    /// Connections without records.
    LeftOut {
        /// Their number.
        counts: FlowsLeftOut,
        /// When this was noticed.
        time: SystemTime,
        /// The node that saw them.
        node: Arc<str>,
    },
}

impl Record {
    /// The record of an event of the node called `node`.
    ///
    /// # Errors
    /// Returns the event if it has no record.
    pub fn of(event: Event, node: &Arc<str>) -> Result<Self, Event> {
        match event {
            Event::FlowOpened(flow) | Event::FlowUpdated(flow) | Event::FlowClosed(flow) => {
                Ok(Self::Flow(flow))
            }
            Event::Dropped(frames) => Ok(Self::Drop(frames)),
            Event::FlowsLeftOut(counts) => {
                #[expect(
                    clippy::disallowed_methods,
                    reason = "people look records up by the time of day"
                )]
                let time = SystemTime::now();
                Ok(Self::LeftOut { counts, time, node: Arc::clone(node) })
            }
            event => Err(event),
        }
    }

    /// Its kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Flow(flow) => match flow.record.change {
                FlowChange::Opened => "flow_opened",
                FlowChange::Updated => "flow_updated",
                FlowChange::Closed(_) => "flow_closed",
            },
            Self::Drop(_) => "drop",
            Self::LeftOut { .. } => "flows_left_out",
        }
    }
}

#[derive(Serialize)]
struct Tagged<'a, T> {
    r#type: &'static str,
    #[serde(flatten)]
    record: &'a T,
}

#[derive(Serialize)]
struct LeftOut<'a> {
    time: String,
    node: &'a str,
    opened: u64,
    closed: u64,
    packets: u64,
    bytes: u64,
}

impl Serialize for Record {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let r#type = self.kind();
        match self {
            Self::Flow(record) => Tagged { r#type, record: &**record }.serialize(serializer),
            Self::Drop(record) => Tagged { r#type, record: &**record }.serialize(serializer),
            Self::LeftOut { counts, time, node } => {
                let FlowsLeftOut { opened, closed, packets, bytes, .. } = *counts;
                let time = format_rfc3339_micros(*time).to_string();
                let record = &LeftOut { time, node, opened, closed, packets, bytes };
                Tagged { r#type, record }.serialize(serializer)
            }
        }
    }
}
