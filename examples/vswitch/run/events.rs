//! What `run` says while it runs: one line an event, text or JSON.

use podswitch_core::id::Epoch;
use podswitch_node::Stats;
use serde::Serialize;

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
    pub(super) fn stats(&self, stats: &Stats) {
        if self.json {
            self.print("stats", stats);
        } else {
            print::line(format_args!("stats node={} {}", self.node, text(stats)));
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

/// The counters on one line.
fn text(stats: &Stats) -> String {
    let mut text = format!(
        "epoch={} pods={} received={} forwarded={} consumed={} dropped={} originated={} \
         copies={} hits={} misses={} kept={} judged_again={} connections={} busy={:.1}% fill={:.1}",
        stats.epoch,
        stats.pods,
        stats.received,
        stats.forwarded,
        stats.consumed,
        stats.dropped,
        stats.originated,
        stats.copies,
        stats.hits,
        stats.misses,
        stats.kept,
        stats.judged_again,
        stats.connections,
        stats.busy_percent,
        stats.batch_fill,
    );
    for (reason, count) in &stats.drops {
        text.push_str(&format!(" drop.{reason}={count}"));
    }
    for (rule, count) in &stats.policies {
        text.push_str(&format!(" policy.{}={count}", rule.replace(' ', ":")));
    }
    for (port, count) in &stats.services {
        text.push_str(&format!(" service.{}={count}", port.replace(' ', ":")));
    }
    text
}
