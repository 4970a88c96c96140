//! A map of traffic: connections and drops, summed for each pair of ends, for a graphical display.
//!
//! An end is a pod (`namespace/name`), a Service (`service/namespace/name`), a node (`node/NAME`) or `world`, in the
//! form that `/v1/trace` accepts. A connection through a Service is two edges: to the Service, and from it to the
//! backend.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use podswitch_node::{DroppedFrames, End, Flow, Node};
use serde::Serialize;

/// Maximum number of edges in an answer. Edges with drops and those with most bytes have precedence.
const MAX_EDGES: usize = 2_000;
/// Maximum number of drop reasons for an edge.
const MAX_REASONS: usize = 8;
/// Time over which the rate of drops is measured.
const RATE_TIME: Duration = Duration::from_secs(10);

/// The answer under construction.
pub(crate) struct Map {
    node: String,
    epoch: u32,
    /// The node of each end that is on a node.
    ends: BTreeMap<String, Option<String>>,
    edges: BTreeMap<(String, String), Sums>,
}

#[derive(Default)]
struct Sums {
    connections: u64,
    packets: u64,
    bytes: u64,
    reply_packets: u64,
    reply_bytes: u64,
    drops: u64,
    recent: u64,
    reasons: Vec<Reason>,
}

/// The answer.
#[derive(Serialize)]
pub(crate) struct Drawn {
    node: String,
    epoch: u32,
    ends: Vec<Shown>,
    edges: Vec<Edge>,
    /// Number of edges that were left out.
    left_off: usize,
}

#[derive(Serialize)]
struct Shown {
    id: String,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
}

#[derive(Serialize)]
struct Edge {
    from: String,
    to: String,
    /// `allow`: there are connections; `deny`: frames were dropped and there are no connections; `both`.
    verdict: &'static str,
    connections: u64,
    packets: u64,
    bytes: u64,
    reply_packets: u64,
    reply_bytes: u64,
    /// Number of dropped frames in the records that are kept.
    drops: u64,
    /// Their rate, in frames a second over the last 10 s.
    drop_rate: f64,
    reasons: Vec<Reason>,
}

#[derive(Serialize)]
struct Reason {
    reason: &'static str,
    /// The deciding object and rule as text; empty if only the reason is known.
    why: String,
    count: u64,
    /// Port of the server and protocol of one of the connections or drops, to trace it.
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<u8>,
}

impl Map {
    /// Adds the connections of a node, by ends. Runs on the node's thread, and only reads.
    pub(crate) fn of(node: &Node) -> Self {
        let snapshot = node.snapshot();
        let local = snapshot.node.to_string();
        let mut map = Self {
            epoch: snapshot.epoch.0,
            ends: BTreeMap::new(),
            edges: BTreeMap::new(),
            node: local.clone(),
        };
        map.ends.insert(format!("node/{local}"), Some(local.clone()));
        for pod in node.pods() {
            map.ends.insert(pod.pod, Some(local.clone()));
        }
        for flow in node.flows() {
            let server = flow.backend.map_or((flow.dst, flow.dport), |b| (b.ip(), b.port()));
            let from = map.end(&End::named(flow.src, flow.sport, Some(&snapshot)));
            let to = map.end(&End::named(server.0, server.1, Some(&snapshot)));
            match flow.service.as_deref().and_then(service_id) {
                Some(service) => {
                    map.ends.entry(service.clone()).or_default();
                    map.edges.entry((from, service.clone())).or_default().add(&flow);
                    map.edges.entry((service, to)).or_default().add(&flow);
                }
                None => map.edges.entry((from, to)).or_default().add(&flow),
            }
        }
        map
    }

    /// Adds drops.
    pub(crate) fn add_drops(&mut self, drops: &[Arc<DroppedFrames>]) {
        #[expect(clippy::disallowed_methods, reason = "records have the time of day")]
        let now = SystemTime::now();
        for frames in drops {
            let record = &frames.record;
            let (Some(src), Some(dst)) = (&record.src, &record.dst) else { continue };
            let (from, mut to) = (self.end(src), self.end(dst));
            if let Some(service) = record.service.as_deref().and_then(service_id) {
                self.ends.entry(service.clone()).or_default();
                to = service;
            }
            let sums = self.edges.entry((from, to)).or_default();
            sums.drops += record.count;
            if now.duration_since(frames.last).is_ok_and(|age| age <= RATE_TIME) {
                sums.recent += record.count;
            }
            let why = match (&record.policy, record.isolated_by.is_empty(), &record.object) {
                (Some(policy), _, _) => format!("denied by {policy}"),
                (None, false, _) => format!("isolated by {}", record.isolated_by.join(", ")),
                (None, true, Some(object)) => format!("by {object}"),
                (None, true, None) => String::new(),
            };
            sums.dropped(Reason {
                reason: record.reason.name(),
                why,
                count: record.count,
                port: Some(dst.port),
                protocol: record.protocol,
            });
        }
    }

    /// The name of an end, which is stored with its node.
    fn end(&mut self, end: &End) -> String {
        let node = end.node.as_ref().map(ToString::to_string);
        let id = match (&end.namespace, &end.pod, &node) {
            (Some(namespace), Some(pod), _) => format!("{namespace}/{pod}"),
            (_, _, Some(node)) => format!("node/{node}"),
            _ => "world".to_owned(),
        };
        if !self.ends.contains_key(&id) {
            self.ends.insert(id.clone(), node);
        }
        id
    }

    /// Builds the answer.
    pub(crate) fn finish(self) -> Drawn {
        let mut edges: Vec<Edge> =
            self.edges.into_iter().map(|((from, to), sums)| sums.edge(from, to)).collect();
        edges.sort_by_key(|edge| std::cmp::Reverse((edge.drops, edge.bytes + edge.reply_bytes)));
        let left_off = edges.len().saturating_sub(MAX_EDGES);
        edges.truncate(MAX_EDGES);
        let ends = self.ends.into_iter().map(|(id, node)| shown(id, node)).collect();
        Drawn { node: self.node, epoch: self.epoch, ends, edges, left_off }
    }
}

impl Sums {
    fn add(&mut self, flow: &Flow) {
        self.connections += 1;
        self.packets += flow.packets;
        self.bytes += flow.bytes;
        self.reply_packets += flow.reply_packets;
        self.reply_bytes += flow.reply_bytes;
    }

    fn dropped(&mut self, new: Reason) {
        let is_same = |known: &Reason| (known.reason, &known.why) == (new.reason, &new.why);
        if let Some(at) = self.reasons.iter().position(is_same) {
            let count = self.reasons[at].count + new.count;
            self.reasons[at] = Reason { count, ..new };
        } else if self.reasons.len() < MAX_REASONS {
            self.reasons.push(new);
        }
    }

    fn edge(self, from: String, to: String) -> Edge {
        let verdict = match (self.connections > 0, self.drops > 0) {
            (true, true) => "both",
            (false, true) => "deny",
            (_, false) => "allow",
        };
        Edge {
            from,
            to,
            verdict,
            connections: self.connections,
            packets: self.packets,
            bytes: self.bytes,
            reply_packets: self.reply_packets,
            reply_bytes: self.reply_bytes,
            drops: self.drops,
            drop_rate: self.recent as f64 / RATE_TIME.as_secs_f64(),
            reasons: self.reasons,
        }
    }
}

/// Converts `Service/namespace/name` to `service/namespace/name`.
fn service_id(cookie: &str) -> Option<String> {
    cookie.strip_prefix("Service/").map(|name| format!("service/{name}"))
}

fn shown(id: String, node: Option<String>) -> Shown {
    let (kind, namespace) = match id.split_once('/') {
        None => ("world", None),
        Some(("node", _)) => ("node", None),
        Some(("service", name)) => ("service", name.split_once('/').map(|(ns, _)| ns.to_owned())),
        Some((namespace, _)) => ("pod", Some(namespace.to_owned())),
    };
    Shown { id, kind, namespace, node }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_have_a_kind_and_a_namespace() {
        let of = |id: &str| {
            let shown = shown(id.to_owned(), None);
            (shown.kind, shown.namespace.unwrap_or_default())
        };
        assert_eq!(of("shop/web"), ("pod", "shop".into()));
        assert_eq!(of("service/shop/api"), ("service", "shop".into()));
        assert_eq!(of("node/n1"), ("node", String::new()));
        assert_eq!(of("world"), ("world", String::new()));
        assert_eq!(service_id("Service/shop/api").as_deref(), Some("service/shop/api"));
    }
}
