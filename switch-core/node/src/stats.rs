//! The counters of a node, all workers together.

use std::collections::BTreeMap;

use podswitch_core::action::DropReason;
use podswitch_core::control::ControlPlane;
use serde::Serialize;

/// Counters of all workers, since they began.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// The state in force.
    pub epoch: u32,
    /// Pods attached.
    pub pods: usize,
    /// Frames received: those forwarded, consumed and dropped.
    pub received: u64,
    /// Frames forwarded.
    pub forwarded: u64,
    /// Frames that the switch itself took: ARP, ND, echo to the gateway.
    pub consumed: u64,
    /// Frames dropped.
    pub dropped: u64,
    /// Frames that the switch made.
    pub originated: u64,
    /// Further copies of frames: flooding, fragments.
    pub copies: u64,
    /// Packets that hit a flow table.
    pub hits: u64,
    /// Packets that needed the slow path.
    pub misses: u64,
    /// Known flows that a change was found not to concern.
    pub kept: u64,
    /// Known flows that were re-evaluated after a change.
    pub judged_again: u64,
    /// Connections alive.
    pub connections: usize,
    /// Share of time that workers spent in rounds that moved frames, in percent of one core each.
    pub busy_percent: f64,
    /// Frames to a burst.
    pub batch_fill: f64,
    /// Dropped frames by reason.
    pub drops: BTreeMap<&'static str, u64>,
    /// Decisions by policy rule: `POLICY ingress[0]`, or `POLICY ingress` where none of its rules
    /// matched.
    pub policies: BTreeMap<String, u64>,
    /// Connections by Service port: `SERVICE PORT/PROTOCOL BACKEND` opened to that backend, or
    /// `departed` for backends that are gone, `rejected`, `dropped`.
    pub services: BTreeMap<String, u64>,
}

impl Stats {
    /// Reads the counters of `control`, which has `pods` pods attached.
    pub(crate) fn read(control: &ControlPlane, pods: usize) -> Self {
        let mut stats = Self {
            epoch: control.snapshot().epoch.0,
            pods,
            connections: control.shared().tracker.len(),
            ..Self::default()
        };
        stats.read_objects(control);
        stats.read_workers(control);
        stats
    }

    fn read_objects(&mut self, control: &ControlPlane) {
        for count in control.policy_counts() {
            let rule = count.rule.map_or_else(String::new, |rule| format!("[{rule}]"));
            let name = format!("{} {}{rule}", count.policy, count.direction);
            self.policies.insert(name, count.decided);
        }
        for count in control.service_counts() {
            let name = format!("{} {}/{}", count.service, count.port, count.protocol);
            let others = [
                ("departed", count.departed),
                ("rejected", count.rejected),
                ("dropped", count.dropped),
            ];
            let backends = count.opened.iter().map(|(backend, n)| (backend.to_string(), *n));
            let others = others.into_iter().filter(|(_, n)| *n > 0);
            for (what, n) in backends.chain(others.map(|(what, n)| (what.to_owned(), n))) {
                // Two ports of one number are two protocols; two host ports of one pod are not.
                *self.services.entry(format!("{name} {what}")).or_default() += n;
            }
        }
    }

    fn read_workers(&mut self, control: &ControlPlane) {
        let (mut frames, mut bursts) = (0, 0);
        for worker in control.workers() {
            let counters = &worker.counters;
            self.received += counters.received.get();
            self.forwarded += counters.forwarded.get();
            self.consumed += counters.consumed.get();
            self.dropped += counters.dropped_total();
            self.originated += counters.originated.get();
            self.copies += counters.copies.get();
            self.hits += counters.hits.get();
            self.misses += counters.misses.get();
            self.kept += counters.kept.get();
            self.judged_again += counters.rederived.get();
            let load = worker.load.read();
            self.busy_percent += 100.0 * load.busy_share();
            frames += load.frames;
            bursts += load.bursts;
            for reason in DropReason::ALL {
                let count = counters.dropped(*reason);
                if count > 0 {
                    *self.drops.entry(reason.name()).or_default() += count;
                }
            }
        }
        self.batch_fill = if bursts == 0 { 0.0 } else { frames as f64 / bursts as f64 };
    }
}
