//! What the node has counted, and who is told.

use super::Node;
use crate::inspect::{PodInfo, Status};
use crate::metrics::ObjectCounts;
use crate::stats::Stats;
use crate::totals::Totals;

impl Node {
    /// The counters, all workers together. Written down first, where they are kept for the next run.
    pub fn stats(&self) -> Stats {
        let stats = self.read_stats();
        self.save_counts(&stats);
        stats
    }

    pub(super) fn read_stats(&self) -> Stats {
        let pods = self.pods.ports().len();
        let mut stats = Stats::read(&self.control, pods, &self.port_kinds);
        self.earlier.add_to(&mut stats);
        stats
    }

    fn read_pods(&self) -> Vec<PodInfo> {
        let workers = self.control.workers().cloned().collect();
        self.earlier.with_pods(&self.control, &workers, self.pods.list())
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
        // What is saved is read later than what is returned: it is not less.
        let objects = ObjectCounts::read(&self.control);
        let mut stats =
            Stats::without_objects(&self.control, self.pods.ports().len(), &self.port_kinds);
        self.earlier.add_to(&mut stats);
        self.save_counts(&stats);
        stats.to_prometheus(&objects, &self.meters)
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
