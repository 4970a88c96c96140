//! What all runs have counted, as a run leaves it to the next.

use std::collections::BTreeMap;

use podswitch_core::action::DropReason;
use serde::{Deserialize, Serialize};

use crate::inspect::PodInfo;
use crate::pods::PodCounts;
use crate::stats::{PortStats, Stats};

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
    pods: BTreeMap<String, PodCounts>,
}

impl Totals {
    /// What these counters and pods show now. `waiting`: what earlier runs counted for pods that are not attached yet.
    pub(crate) fn new(
        stats: &Stats,
        pods: &[PodInfo],
        waiting: &BTreeMap<String, PodCounts>,
    ) -> Self {
        let pods = pods.iter().map(|info| (info.pod.clone(), info.counts()));
        let waiting = waiting.iter().map(|(pod, counts)| (pod.clone(), *counts));
        Self { pods: waiting.chain(pods).collect(), ..Self::from(stats) }
    }

    fn numbers(&mut self) -> [&mut u64; 10] {
        [
            &mut self.received,
            &mut self.forwarded,
            &mut self.consumed,
            &mut self.originated,
            &mut self.copies,
            &mut self.hits,
            &mut self.misses,
            &mut self.kept,
            &mut self.judged_again,
            &mut self.opened,
        ]
    }

    /// What was counted since these were as `before`.
    pub(crate) fn since(mut self, before: &Self) -> Self {
        let mut earlier = before.clone();
        for (now, before) in self.numbers().into_iter().zip(earlier.numbers()) {
            *now = now.saturating_sub(*before);
        }
        for (name, now) in &mut self.drops {
            *now = now.saturating_sub(before.drops.get(name).copied().unwrap_or(0));
        }
        for (kind, now) in &mut self.ports {
            *now = now.less(before.ports.get(kind).copied().unwrap_or_default());
        }
        for (pod, now) in &mut self.pods {
            *now = now.less(before.pods.get(pod).copied().unwrap_or_default());
        }
        self
    }

    /// Adds what was counted besides, but for pods.
    pub(crate) fn add(&mut self, more: &Self) {
        let mut more = more.clone();
        for (sum, more) in self.numbers().into_iter().zip(more.numbers()) {
            *sum = sum.saturating_add(*more);
        }
        for (name, more) in more.drops {
            let sum = self.drops.entry(name).or_default();
            *sum = sum.saturating_add(more);
        }
        for (kind, more) in more.ports {
            self.ports.entry(kind).or_default().add(more);
        }
    }

    /// The counts of pods, which are left out of these from now on.
    pub(crate) fn take_pods(&mut self) -> BTreeMap<String, PodCounts> {
        std::mem::take(&mut self.pods)
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
