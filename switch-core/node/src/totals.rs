//! What all runs have counted, as a run leaves it to the next.

use std::collections::BTreeMap;

use podswitch_core::action::DropReason;
use podswitch_core::control::ControlPlane;
use podswitch_core::id::PortId;
use serde::{Deserialize, Serialize};

use crate::attachment::PodAttachment;
use crate::inspect::PodInfo;
use crate::stats::{PortStats, Stats, Workers};

/// See the module's description.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Totals {
    received: u64,
    forwarded: u64,
    consumed: u64,
    originated: u64,
    copies: u64,
    hits: u64,
    misses: u64,
    kept: u64,
    judged_again: u64,
    opened: u64,
    /// By the reason's name.
    drops: BTreeMap<String, u64>,
    /// By kind.
    ports: BTreeMap<String, PortStats>,
    /// By pod, of those that are attached.
    pods: BTreeMap<String, PodTotals>,
}

/// What a pod has sent and received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct PodTotals {
    sent_packets: u64,
    sent_bytes: u64,
    received_packets: u64,
    received_bytes: u64,
    dropped: u64,
}

impl Totals {
    /// What these counters and pods show now.
    pub(crate) fn new(stats: &Stats, pods: &[PodInfo]) -> Self {
        let pods = pods.iter().map(|info| {
            let totals = PodTotals {
                sent_packets: info.sent_packets,
                sent_bytes: info.sent_bytes,
                received_packets: info.received_packets,
                received_bytes: info.received_bytes,
                dropped: info.dropped,
            };
            (info.pod.clone(), totals)
        });
        Self { pods: pods.collect(), ..Self::from(stats) }
    }

    /// The pods that are attached, by name, with these counts added. `workers` may have stopped.
    pub(crate) fn with_pods<'a>(
        &self,
        control: &ControlPlane,
        workers: &Workers,
        pods: impl Iterator<Item = (&'a PodAttachment, PortId)>,
    ) -> Vec<PodInfo> {
        let mut list: Vec<_> =
            pods.map(|(pod, port)| PodInfo::read(control, workers, pod, port)).collect();
        list.iter_mut().for_each(|info| self.add_to_pod(info));
        list.sort_by(|a, b| a.pod.cmp(&b.pod));
        list
    }

    fn add_to_pod(&self, info: &mut PodInfo) {
        let Some(earlier) = self.pods.get(&info.pod) else { return };
        let sums = [
            (&mut info.sent_packets, earlier.sent_packets),
            (&mut info.sent_bytes, earlier.sent_bytes),
            (&mut info.received_packets, earlier.received_packets),
            (&mut info.received_bytes, earlier.received_bytes),
            (&mut info.dropped, earlier.dropped),
        ];
        sums.into_iter().for_each(|(sum, earlier)| *sum = sum.saturating_add(earlier));
    }

    /// Adds what earlier runs have counted.
    pub(crate) fn add_to(&self, stats: &mut Stats) {
        let add = |sum: &mut u64, earlier: u64| *sum = sum.saturating_add(earlier);
        add(&mut stats.received, self.received);
        add(&mut stats.forwarded, self.forwarded);
        add(&mut stats.consumed, self.consumed);
        add(&mut stats.originated, self.originated);
        add(&mut stats.copies, self.copies);
        add(&mut stats.hits, self.hits);
        add(&mut stats.misses, self.misses);
        add(&mut stats.kept, self.kept);
        add(&mut stats.judged_again, self.judged_again);
        add(&mut stats.opened, self.opened);
        for reason in DropReason::ALL {
            if let Some(count) = self.drops.get(reason.name()).filter(|count| **count > 0) {
                add(stats.drops.entry(reason.name()).or_default(), *count);
                add(&mut stats.dropped, *count);
            }
        }
        for kind in PORT_KINDS {
            if let Some(earlier) = self.ports.get(kind) {
                stats.ports.entry(kind).or_default().add(*earlier);
            }
        }
    }
}

impl From<&Stats> for Totals {
    fn from(stats: &Stats) -> Self {
        Self {
            received: stats.received,
            forwarded: stats.forwarded,
            consumed: stats.consumed,
            originated: stats.originated,
            copies: stats.copies,
            hits: stats.hits,
            misses: stats.misses,
            kept: stats.kept,
            judged_again: stats.judged_again,
            opened: stats.opened,
            drops: stats.drops.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect(),
            ports: stats.ports.iter().map(|(kind, port)| ((*kind).to_owned(), *port)).collect(),
            pods: BTreeMap::new(),
        }
    }
}

/// Kinds of ports.
const PORT_KINDS: [&str; 5] = ["pod", "host", "tunnel", "uplink", "bridge"];
