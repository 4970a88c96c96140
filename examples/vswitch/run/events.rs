//! The output of `run` while it runs: one line per event, text or JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use podswitch_core::id::Epoch;
use podswitch_kubernetes::{Counts, Kind, KindChanges};
use podswitch_node::Stats;
use podswitch_node::source::Source;
use serde::Serialize;

use crate::failure::{Failure, Refused};
use crate::{log, print};

/// See the module's description.
pub(super) struct Events<'a> {
    pub(super) node: &'a str,
    pub(super) json: bool,
}

/// An event as JSON.
#[derive(Serialize)]
struct Line<'a, T: Serialize> {
    event: &'a str,
    node: &'a str,
    #[serde(flatten)]
    more: T,
}

#[derive(Serialize)]
struct At<'a> {
    epoch: u32,
    /// The state is the last known one: no API server responded.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    stale: bool,
    /// Number of objects that are not in force as written.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    left_out: Vec<LeftOut<'a>>,
    /// Objects that were added, changed and removed, by the plural of their kind.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    changes: BTreeMap<&'static str, Changes>,
}

#[derive(Serialize)]
struct Changes {
    added: usize,
    changed: usize,
    removed: usize,
}

impl From<KindChanges> for Changes {
    fn from(KindChanges { added, changed, removed }: KindChanges) -> Self {
        Self { added, changed, removed }
    }
}

/// An object that is left out, or a policy that is closed or kept at its last version.
#[derive(Serialize)]
struct LeftOut<'a> {
    object: &'a str,
    field: &'a str,
    reason: &'a str,
    action: &'a str,
}

/// The counters, and the number of objects that are not in force as written.
#[derive(Serialize)]
struct AllStats<'a> {
    #[serde(flatten)]
    node: &'a Stats,
    objects_left_out: usize,
    policies_closed: usize,
    policies_kept_last_good: usize,
}

/// Why a state was refused.
#[derive(Serialize)]
struct Reasons {
    reasons: Vec<Refused>,
}

impl Events<'_> {
    /// Reports that the first state is in force.
    pub(super) fn ready(&self, epoch: Epoch, source: &dyn Source) {
        let counts = source.counts();
        tracing::info!(
            target: "run",
            epoch = epoch.0,
            left_out = not_as_written(counts),
            stale = source.is_stale().then_some(true),
            "ready"
        );
        self.epoch("ready", epoch, source);
    }

    /// Reports that a new state is in force.
    pub(super) fn applied(&self, epoch: Epoch, source: &dyn Source, duration: Duration) {
        let duration_ms = log::milliseconds(duration);
        log_applied(epoch, source, duration_ms);
        self.epoch("applied", epoch, source);
    }

    /// Reports that a new state was refused.
    pub(super) fn refused(&self, failure: Failure) {
        if self.json {
            self.print("refused", Reasons { reasons: failure.reasons() });
        } else {
            print::line(format_args!("refused node={}", self.node));
        }
    }

    /// Reports the counters.
    pub(super) fn stats(&self, stats: &Stats, objects: Counts) {
        let Counts { left_out, closed, kept_last_good, .. } = objects;
        if self.json {
            self.print(
                "stats",
                AllStats {
                    node: stats,
                    objects_left_out: left_out,
                    policies_closed: closed,
                    policies_kept_last_good: kept_last_good,
                },
            );
        } else {
            let text = text(stats);
            print::line(format_args!(
                "stats node={} {text} objects.left_out={left_out} policies.closed={closed} \
                 policies.kept_last_good={kept_last_good}",
                self.node
            ));
        }
    }

    fn epoch(&self, event: &str, epoch: Epoch, source: &dyn Source) {
        if self.json {
            let left_out = source.left_out().into_iter().map(|record| LeftOut {
                object: record.object.as_str(),
                field: &record.field,
                reason: &record.reason,
                action: record.action.name(),
            });
            let left_out = left_out.collect();
            let changes = source.object_changes();
            let changes = changes.iter().map(|(kind, of)| (kind.plural(), of.into())).collect();
            self.print(event, At { epoch: epoch.0, stale: source.is_stale(), left_out, changes });
            return;
        }
        let left_out = not_as_written(source.counts());
        let mut more = left_out.map(|count| format!(" left_out={count}")).unwrap_or_default();
        if source.is_stale() {
            more.push_str(" stale");
        }
        print::line(format_args!("{event} node={} epoch={epoch}{more}", self.node));
    }

    fn print(&self, event: &str, more: impl Serialize) {
        print::json(&Line { event, node: self.node, more });
    }
}

/// Logs the changes: one field for each kind and type of change that is not 0.
fn log_applied(epoch: Epoch, source: &dyn Source, duration_ms: f64) {
    let changes = source.object_changes();
    let of = |kind| {
        let KindChanges { added, changed, removed } = changes.of(kind);
        [added, changed, removed].map(|count| (count > 0).then_some(count))
    };
    let [namespaces_added, namespaces_changed, namespaces_removed] = of(Kind::Namespace);
    let [nodes_added, nodes_changed, nodes_removed] = of(Kind::Node);
    let [pods_added, pods_changed, pods_removed] = of(Kind::Pod);
    let [networkpolicies_added, networkpolicies_changed, networkpolicies_removed] =
        of(Kind::NetworkPolicy);
    let [
        clusternetworkpolicies_added,
        clusternetworkpolicies_changed,
        clusternetworkpolicies_removed,
    ] = of(Kind::ClusterNetworkPolicy);
    let [services_added, services_changed, services_removed] = of(Kind::Service);
    let [endpointslices_added, endpointslices_changed, endpointslices_removed] =
        of(Kind::EndpointSlice);
    let [servicecidrs_added, servicecidrs_changed, servicecidrs_removed] = of(Kind::ServiceCidr);
    tracing::info!(
        target: "state",
        epoch = epoch.0,
        namespaces_added, namespaces_changed, namespaces_removed,
        nodes_added, nodes_changed, nodes_removed,
        pods_added, pods_changed, pods_removed,
        networkpolicies_added, networkpolicies_changed, networkpolicies_removed,
        clusternetworkpolicies_added, clusternetworkpolicies_changed, clusternetworkpolicies_removed,
        services_added, services_changed, services_removed,
        endpointslices_added, endpointslices_changed, endpointslices_removed,
        servicecidrs_added, servicecidrs_changed, servicecidrs_removed,
        objects = changes.names().map(tracing::field::display),
        left_out = not_as_written(source.counts()),
        stale = source.is_stale().then_some(true),
        duration_ms,
        "applied"
    );
}

/// The number of objects that are not in force as written, if any.
fn not_as_written(counts: Counts) -> Option<usize> {
    let count = counts.left_out + counts.closed + counts.kept_last_good;
    (count > 0).then_some(count)
}

/// Formats the counters on one line.
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
