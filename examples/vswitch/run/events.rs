//! What `run` says while it runs: one line an event, text or JSON.

use std::collections::BTreeMap;

use podswitch_core::action::DropReason;
use podswitch_core::id::Epoch;
use serde::Serialize;

use crate::node::Node;
use crate::print;

/// See the module's description.
pub(super) struct Events<'a> {
    pub(super) node: &'a str,
    pub(super) json: bool,
}

/// An event for programs.
#[derive(Serialize)]
struct Line<'a, T: Serialize> {
    event: &'a str,
    node: &'a str,
    #[serde(flatten)]
    more: T,
}

#[derive(Serialize)]
struct At {
    epoch: u32,
}

#[derive(Serialize)]
struct Nothing {}

impl Events<'_> {
    /// The first state is in force.
    pub(super) fn ready(&self, epoch: Epoch) {
        self.epoch("ready", epoch);
    }

    /// A new state is in force.
    pub(super) fn applied(&self, epoch: Epoch) {
        self.epoch("applied", epoch);
    }

    /// A new state was refused.
    pub(super) fn refused(&self) {
        if self.json {
            self.print("refused", Nothing {});
        } else {
            print::line(format_args!("refused node={}", self.node));
        }
    }

    /// The counters.
    pub(super) fn stats(&self, node: &Node) {
        let stats = Stats::of(node);
        if self.json {
            self.print("stats", stats);
        } else {
            print::line(format_args!("stats node={} {}", self.node, stats.text()));
        }
    }

    fn epoch(&self, event: &str, epoch: Epoch) {
        if self.json {
            self.print(event, At { epoch: epoch.0 });
        } else {
            print::line(format_args!("{event} node={} epoch={epoch}", self.node));
        }
    }

    fn print(&self, event: &str, more: impl Serialize) {
        print::json(&Line { event, node: self.node, more });
    }
}

/// Counters of all workers.
#[derive(Default, Serialize)]
struct Stats {
    epoch: u32,
    pods: usize,
    received: u64,
    forwarded: u64,
    consumed: u64,
    dropped: u64,
    originated: u64,
    copies: u64,
    hits: u64,
    misses: u64,
    /// Known flows that a change was found not to concern, and those judged again because it may.
    kept: u64,
    judged_again: u64,
    connections: usize,
    /// Share of time that workers spent in rounds that moved frames, in percent of one core
    /// each, since they began.
    busy_percent: f64,
    /// Frames to a burst.
    batch_fill: f64,
    drops: BTreeMap<&'static str, u64>,
    /// Decisions by policy rule: `POLICY ingress[0]`, or `POLICY ingress` where none of its rules
    /// matched.
    policies: BTreeMap<String, u64>,
    /// Connections by Service port: `SERVICE PORT/PROTOCOL BACKEND` opened to that backend, or
    /// `departed` for backends that are gone, `rejected`, `dropped`.
    services: BTreeMap<String, u64>,
}

impl Stats {
    fn of(node: &Node) -> Self {
        let control = node.control();
        let mut stats = Self {
            epoch: node.snapshot().epoch.0,
            pods: node.ports().len(),
            connections: control.shared().tracker.len(),
            ..Self::default()
        };
        for count in control.policy_counts() {
            let rule = count.rule.map_or_else(String::new, |rule| format!("[{rule}]"));
            let name = format!("{} {}{rule}", count.policy, count.direction);
            stats.policies.insert(name, count.decided);
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
                *stats.services.entry(format!("{name} {what}")).or_default() += n;
            }
        }
        let (mut frames, mut bursts) = (0, 0);
        for worker in control.workers() {
            let counters = &worker.counters;
            stats.received += counters.received.get();
            stats.forwarded += counters.forwarded.get();
            stats.consumed += counters.consumed.get();
            stats.dropped += counters.dropped_total();
            stats.originated += counters.originated.get();
            stats.copies += counters.copies.get();
            stats.hits += counters.hits.get();
            stats.misses += counters.misses.get();
            stats.kept += counters.kept.get();
            stats.judged_again += counters.rederived.get();
            let load = worker.load.read();
            stats.busy_percent += 100.0 * load.busy_share();
            frames += load.frames;
            bursts += load.bursts;
            for reason in DropReason::ALL {
                let count = counters.dropped(*reason);
                if count > 0 {
                    *stats.drops.entry(reason.name()).or_default() += count;
                }
            }
        }
        stats.batch_fill = if bursts == 0 { 0.0 } else { frames as f64 / bursts as f64 };
        stats
    }

    fn text(&self) -> String {
        let mut text = format!(
            "epoch={} pods={} received={} forwarded={} consumed={} dropped={} originated={} \
             copies={} hits={} misses={} kept={} judged_again={} connections={} busy={:.1}% fill={:.1}",
            self.epoch,
            self.pods,
            self.received,
            self.forwarded,
            self.consumed,
            self.dropped,
            self.originated,
            self.copies,
            self.hits,
            self.misses,
            self.kept,
            self.judged_again,
            self.connections,
            self.busy_percent,
            self.batch_fill,
        );
        for (reason, count) in &self.drops {
            text.push_str(&format!(" drop.{reason}={count}"));
        }
        for (rule, count) in &self.policies {
            text.push_str(&format!(" policy.{}={count}", rule.replace(' ', ":")));
        }
        for (port, count) in &self.services {
            text.push_str(&format!(" service.{}={count}", port.replace(' ', ":")));
        }
        text
    }
}
