//! What the node has counted, and who is told.

use podswitch_core::control::ControlPlane;

use super::Node;
use crate::inspect::{PodInfo, Status};
use crate::pods::Pods;
use crate::stats::{Stats, Workers};
use crate::totals::Totals;

impl Node {
    /// The counters, all workers together. Written down first, where they are kept for the next run.
    pub fn stats(&self) -> Stats {
        let stats = self.read_stats();
        self.save_counts(&stats);
        stats
    }

    pub(super) fn read_stats(&self) -> Stats {
        Stats::read(&self.control, self.pods.ports().len(), &self.port_kinds, &self.earlier)
    }

    fn read_pods(&self) -> Vec<PodInfo> {
        let workers = self.control.workers().cloned().collect();
        pod_list(&self.control, &workers, &self.pods, &self.earlier)
    }

    /// What all runs have counted.
    pub(super) fn totals(&self, stats: &Stats) -> Totals {
        Totals::new(stats, &self.read_pods())
    }

    /// Writes counters down before anybody is told: what somebody has seen does not begin again at less after a kill.
    fn save_counts(&self, stats: &Stats) {
        if let Some(kept) = &self.kept {
            kept.save_counts(&self.control, self.totals(stats));
        }
    }

    /// Counters and measurements in Prometheus' text format ([`METRICS_CONTENT_TYPE`](crate::METRICS_CONTENT_TYPE)).
    pub fn metrics(&self) -> String {
        self.stats().to_prometheus(&self.meters)
    }

    /// How the node does.
    pub fn status(&self) -> Status {
        Status::read(&self.control, &self.settings.name, &self.stats())
    }

    /// The pods that are attached, by name.
    pub fn pods(&self) -> Vec<PodInfo> {
        let list = self.read_pods();
        self.save_counts(&self.read_stats());
        list
    }
}

/// The pods that are attached, by name. `workers` may have stopped.
pub(super) fn pod_list(
    control: &ControlPlane,
    workers: &Workers,
    pods: &Pods,
    earlier: &Totals,
) -> Vec<PodInfo> {
    let read = |pod| PodInfo::read(control, workers, pod, earlier);
    let mut list: Vec<_> = pods.list().map(read).collect();
    list.sort_by(|a, b| a.pod.cmp(&b.pod));
    list
}
