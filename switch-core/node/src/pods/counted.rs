//! What a pod has sent and received: all that its port counted since it was attached, and what earlier runs counted.
//! Ports keep the counters of their number for good, and a number is given to another pod later.

use podswitch_core::id::PortId;
use serde::{Deserialize, Serialize};

use crate::stats::Workers;

/// See the module's description.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PodCounts {
    pub(crate) sent_packets: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) received_packets: u64,
    pub(crate) received_bytes: u64,
    pub(crate) dropped: u64,
}

impl PodCounts {
    /// What the port of this number has counted, for whatever pods. `workers` may have stopped.
    pub(crate) fn of_port(workers: &Workers, port: PortId) -> Self {
        let mut sum = Self::default();
        for counters in workers.iter().filter_map(|worker| worker.counters.port(port)) {
            sum.sent_packets += counters.rx_frames.get();
            sum.sent_bytes += counters.rx_bytes.get();
            sum.received_packets += counters.tx_frames.get();
            sum.received_bytes += counters.tx_bytes.get();
            sum.dropped += counters.dropped.get();
        }
        sum
    }

    /// What was counted since `before`.
    pub(crate) fn less(self, before: Self) -> Self {
        self.with(before, u64::saturating_sub)
    }

    fn with(self, other: Self, f: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            sent_packets: f(self.sent_packets, other.sent_packets),
            sent_bytes: f(self.sent_bytes, other.sent_bytes),
            received_packets: f(self.received_packets, other.received_packets),
            received_bytes: f(self.received_bytes, other.received_bytes),
            dropped: f(self.dropped, other.dropped),
        }
    }
}

/// What belongs to a pod of what its port's number has counted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Share {
    /// What the number had counted when the pod was attached.
    pub(super) before: PodCounts,
    /// What earlier runs counted for the pod.
    pub(super) earlier: PodCounts,
}

impl Share {
    /// Adds what was counted for the pod elsewhere.
    pub(crate) fn add(&mut self, more: PodCounts) {
        self.earlier = self.earlier.with(more, u64::saturating_add);
    }

    /// The pod's counts, `now` being the port's.
    pub(crate) fn of(&self, now: PodCounts) -> PodCounts {
        now.with(self.before, u64::saturating_sub).with(self.earlier, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_what_its_port_counted_since_and_earlier_runs() {
        let counts = |n| PodCounts {
            sent_packets: n,
            sent_bytes: 2 * n,
            received_packets: 3 * n,
            received_bytes: 4 * n,
            dropped: 5 * n,
        };
        let share = Share { before: counts(7), earlier: counts(100) };
        assert_eq!(share.of(counts(10)), counts(103));
        assert_eq!(Share::default().of(counts(10)), counts(10));
    }
}
