//! Name queries that a worker answered, from its queue to records.

use podswitch_dns::Rcode;

use super::record::{CloseReason, FlowChange, FlowRecord, NameQuestion, Names};
use crate::engine::AnsweredQuery;
use crate::flow::connection::{OpenedAt, Pinned};
use crate::id::Epoch;
use crate::snapshot::Snapshot;

/// Longest name in wire form.
const MAX_NAME: usize = podswitch_dns::MAX_NAME;

/// A query as a worker writes it down.
pub(super) struct Answered {
    pinned: Pinned,
    at: OpenedAt,
    name: [u8; MAX_NAME],
    len: u8,
    qtype: u16,
    rcode: Rcode,
    bytes: [u64; 2],
}

impl Answered {
    pub(super) fn of(query: &AnsweredQuery<'_>) -> Self {
        let AnsweredQuery { pinned, at, name, qtype, rcode, bytes } = *query;
        let len = name.len().min(MAX_NAME);
        let mut copy = [0; MAX_NAME];
        copy[..len].copy_from_slice(&name[..len]);
        Self { pinned: *pinned, at, name: copy, len: len as u8, qtype, rcode, bytes }
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.at.epoch
    }

    /// The record of a connection that was over with the answer.
    pub(super) fn record(&self, id: u64, snapshot: Option<&Snapshot>) -> FlowRecord {
        let names = Names::of(&self.pinned, snapshot);
        let name = &self.name[..usize::from(self.len)];
        FlowRecord {
            change: FlowChange::Closed(CloseReason::Answered),
            packets: [1; 2],
            bytes: self.bytes,
            question: Some(NameQuestion {
                name: podswitch_dns::display_name(name),
                qtype: self.qtype,
                rcode: self.rcode,
            }),
            ..names.opened(id, &self.pinned, self.at)
        }
    }
}
