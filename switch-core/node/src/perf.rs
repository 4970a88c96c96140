//! How the workers spend their time: polls, bursts, paths of packets, sleeps and pauses.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use podswitch_core::action::DropReason;
use podswitch_core::control::ControlPlane;
use podswitch_core::time::Instant;
use podswitch_core::worker::{BURST_CLASSES, Load, LoadMeter, WorkerHandle};
use serde::Serialize;

/// Names of the classes of burst sizes.
const BURST_NAMES: [&str; BURST_CLASSES] = ["1", "2", "3-4", "5-8", "9-16", "17-32", "33-64"];
/// How long the longest pause is remembered.
const PAUSES_KEPT: Duration = Duration::from_secs(60);

/// The workers' counters at one time. Two readings give a [`Perf`].
#[derive(Clone, Debug)]
pub struct PerfReading {
    node: String,
    at: Instant,
    workers: Vec<WorkerReading>,
}

#[derive(Clone, Debug)]
struct WorkerReading {
    meter: Arc<LoadMeter>,
    load: Load,
    counts: Counts,
}

/// Counters of a worker that show which path its packets took.
#[derive(Clone, Debug, Default)]
struct Counts {
    received: u64,
    fast_path: u64,
    admissions: u64,
    reevaluated: u64,
    kept: u64,
    drops: BTreeMap<&'static str, u64>,
}

/// The workers' activity between two readings, or since they started.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Perf {
    /// Name of the node.
    pub node: String,
    /// Time between the readings, in seconds. `None`: since the workers started.
    pub seconds: Option<f64>,
    /// One entry for each worker.
    pub workers: Vec<WorkerPerf>,
}

/// A worker's activity.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct WorkerPerf {
    /// Index of the worker.
    pub worker: usize,
    /// Share of time in polls that moved frames, in percent.
    pub busy_percent: f64,
    /// Share of time asleep in the kernel, in percent. The rest is polling without frames.
    pub asleep_percent: f64,
    /// Polls of all ports.
    pub polls: u64,
    /// Polls that found no frame.
    pub empty_polls: u64,
    /// Bursts received, of up to 64 frames from one port.
    pub bursts: u64,
    /// Average frames in a burst.
    pub burst_mean: f64,
    /// Bursts by number of frames: `1`, `2`, `3-4`, `5-8`, `9-16`, `17-32`, `33-64`.
    pub burst_sizes: BTreeMap<&'static str, u64>,
    /// Frames received, including those that a port lost before they were read.
    pub packets: u64,
    /// Packets that took the fast path: their flow entry was current.
    pub fast_path: u64,
    /// Frames that took the slow path, by reason.
    pub slow_path: SlowPath,
    /// Dropped frames by reason.
    pub drops: BTreeMap<&'static str, u64>,
    /// Flow entries that were revalidated after a configuration change that does not affect them.
    /// Their packets took the fast path.
    pub kept: u64,
    /// Duration of polls that moved frames.
    pub poll_time: PollTime,
    /// Sleeps in the kernel.
    pub sleeps: u64,
    /// What ended the sleeps.
    pub woken_by: WakeReasons,
    /// The longest time between two polls without a sleep. Frames that arrived during it were
    /// delayed. At most the last minute is covered.
    pub longest_pause: Option<LongestPause>,
}

/// Frames that took the slow path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SlowPath {
    /// Packets that went through admission: first packets of connections, packets of connections
    /// without an entry in this worker, and segments that open or reset a connection.
    pub admissions: u64,
    /// Flows that were re-evaluated because something that they depend on had changed. Included in
    /// `admissions`.
    pub reevaluated: u64,
    /// ARP, neighbour discovery, fragments, ICMP errors, layer 2, and frames that were dropped
    /// before admission.
    pub other: u64,
}

/// Duration of polls, in nanoseconds. The quantiles are powers of two: upper bounds, at most twice
/// the exact value. Zero: there was no such poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PollTime {
    /// Mean.
    pub mean_ns: u64,
    /// Upper bound of half of the polls.
    pub p50_ns: u64,
    /// Upper bound of 99 of 100 polls.
    pub p99_ns: u64,
    /// Upper bound of all polls.
    pub max_ns: u64,
}

/// What ended sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WakeReasons {
    /// A port had frames.
    pub port: u64,
    /// The control plane sent a command: a publish, or a port that was attached or detached.
    pub command: u64,
    /// The sleep timed out.
    pub timeout: u64,
}

/// The longest time between two polls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LongestPause {
    /// How long, in nanoseconds.
    pub ns: u64,
    /// The worker's activity during it: `frames`, `commands`, `publish`, `sweep` (timeouts),
    /// `growth` (of the flow table). Empty: none; the kernel ran other tasks on its core.
    pub doing: Vec<&'static str>,
}

impl Counts {
    fn read(worker: &WorkerHandle) -> Self {
        let counters = &worker.counters;
        let drops = DropReason::ALL.iter().map(|reason| (reason.name(), counters.dropped(*reason)));
        Self {
            // Read before the counters that it includes, so that the difference is not negative.
            fast_path: counters.hits.get(),
            admissions: counters.misses.get(),
            reevaluated: counters.rederived.get(),
            kept: counters.kept.get(),
            drops: drops.filter(|(_, count)| *count > 0).collect(),
            received: counters.received.get(),
        }
    }

    fn since(&self, earlier: &Self) -> Self {
        let before = |name: &str| earlier.drops.get(name).copied().unwrap_or_default();
        let drops = self.drops.iter().map(|(name, n)| (*name, n.saturating_sub(before(name))));
        Self {
            received: self.received.saturating_sub(earlier.received),
            fast_path: self.fast_path.saturating_sub(earlier.fast_path),
            admissions: self.admissions.saturating_sub(earlier.admissions),
            reevaluated: self.reevaluated.saturating_sub(earlier.reevaluated),
            kept: self.kept.saturating_sub(earlier.kept),
            drops: drops.filter(|(_, count)| *count > 0).collect(),
        }
    }
}

impl PerfReading {
    pub(crate) fn read(control: &ControlPlane, node: &str) -> Self {
        let (node, at) = (node.to_owned(), control.clock().now());
        let workers = control.workers().map(|worker| WorkerReading {
            meter: Arc::clone(&worker.load),
            load: worker.load.read_at(at),
            counts: Counts::read(worker),
        });
        Self { node, at, workers: workers.collect() }
    }

    /// The workers' activity since they started.
    pub fn total(&self) -> Perf {
        let workers = self.workers.iter().enumerate();
        let workers = workers.map(|(index, worker)| {
            let Load { nanos, .. } = worker.load;
            worker.perf(index, &worker.load, worker.counts.clone(), nanos, self.at, PAUSES_KEPT)
        });
        Perf { node: self.node.clone(), seconds: None, workers: workers.collect() }
    }

    /// The workers' activity since an earlier reading of the same node.
    pub fn since(&self, earlier: &PerfReading) -> Perf {
        let time = self.at.since(earlier.at);
        let nanos = time.as_nanos() as u64;
        let workers = self.workers.iter().zip(&earlier.workers).enumerate();
        let workers = workers.map(|(index, (worker, before))| {
            let (load, counts) =
                (worker.load.since(&before.load), worker.counts.since(&before.counts));
            worker.perf(index, &load, counts, nanos, self.at, time)
        });
        let seconds = Some(time.as_secs_f64());
        Perf { node: self.node.clone(), seconds, workers: workers.collect() }
    }
}

impl WorkerReading {
    /// Computes it from counters over `nanos` nanoseconds until `at`.
    fn perf(
        &self,
        worker: usize,
        load: &Load,
        counts: Counts,
        nanos: u64,
        at: Instant,
        window: Duration,
    ) -> WorkerPerf {
        let Counts { received, fast_path, admissions, reevaluated, kept, drops } = counts;
        let percent = |part: u64| (100.0 * part as f64 / nanos.max(1) as f64).min(100.0);
        let pause = self.meter.longest_pause(at, window);
        WorkerPerf {
            worker,
            busy_percent: percent(load.busy_nanos),
            asleep_percent: percent(load.slept_nanos),
            polls: load.rounds + load.empty_polls,
            empty_polls: load.empty_polls,
            bursts: load.bursts,
            burst_mean: load.batch_fill(),
            burst_sizes: BURST_NAMES.into_iter().zip(load.burst_sizes).collect(),
            packets: received,
            fast_path,
            slow_path: SlowPath {
                admissions,
                reevaluated,
                other: received.saturating_sub(fast_path + admissions),
            },
            drops,
            kept,
            poll_time: PollTime {
                mean_ns: load.busy_nanos.checked_div(load.rounds).unwrap_or_default(),
                p50_ns: load.duration_below(0.5),
                p99_ns: load.duration_below(0.99),
                max_ns: load.duration_below(1.0),
            },
            sleeps: load.woken.iter().sum(),
            woken_by: {
                let [port, command, timeout] = load.woken;
                WakeReasons { port, command, timeout }
            },
            longest_pause: pause.map(|pause| LongestPause {
                ns: pause.duration.as_nanos() as u64,
                doing: pause.activity.names().collect(),
            }),
        }
    }
}
