//! The node's counters, and queries for them.

use super::Node;
use crate::inspect::{PodInfo, Status};
use crate::metrics::ObjectCounts;
use crate::stats::Stats;
use crate::totals::Totals;

impl Node {
    /// The counters, all workers together. Written down first, where they are kept for the next run.
    pub fn stats(&self) -> Stats {
        let stats = self.read_stats();
        self.save_counts();
        stats
    }

    fn read_stats(&self) -> Stats {
        let pods = self.pods.ports().len();
        let mut stats = Stats::read(&self.control, pods, &self.port_kinds);
        self.earlier.add_to(&mut stats);
        stats
    }

    fn read_pods(&self) -> Vec<PodInfo> {
        let workers = self.control.workers().cloned().collect();
        PodInfo::list(&self.control, &workers, &self.pods)
    }

    /// The counters without those of policies and Services, of which there may be hundreds of thousands.
    fn read_frames(&self) -> Stats {
        let pods = self.pods.ports().len();
        let mut stats = Stats::without_objects(&self.control, pods, &self.port_kinds);
        self.earlier.add_to(&mut stats);
        stats
    }

    /// What all runs have counted.
    pub(super) fn totals(&self) -> Totals {
        Totals::new(&self.read_frames(), &self.read_pods(), self.pods.waiting_counts())
    }

    /// Writes counters before a caller gets them, so that they do not fall after a kill. If that takes long, as with very
    /// many Services, it is not done each time: see [`Kept`](crate::kept::Kept).
    fn save_counts(&self) {
        if let Some(kept) = &self.kept {
            kept.save_read(&self.control, self.clock, || self.totals());
        }
    }

    /// Counters and measurements in Prometheus' text format ([`METRICS_CONTENT_TYPE`](crate::METRICS_CONTENT_TYPE)).
    pub fn metrics(&self) -> String {
        // What is saved is read later than what is returned: it is not less.
        let objects = ObjectCounts::read(&self.control);
        let stats = self.read_frames();
        self.save_counts();
        stats.to_prometheus(&objects, &self.meters)
    }

    /// How the node does.
    pub fn status(&self) -> Status {
        Status::read(&self.control, &self.settings.name, &self.stats())
    }

    /// The pods that are attached, by name.
    pub fn pods(&self) -> Vec<PodInfo> {
        let list = self.read_pods();
        self.save_counts();
        list
    }
}
