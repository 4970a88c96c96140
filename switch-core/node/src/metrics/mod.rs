//! Counters of a node in Prometheus' text format, version 0.0.4.
//!
//! Called by whatever serves `/metrics`, on the node's thread. The number of series depends on workers, policies and
//! Service ports, never on pods, addresses or connections; a series ends with its object.

mod dns;
mod histogram;
#[expect(
    clippy::disallowed_types,
    reason = "measurements of the control plane, behind a lock held for an addition; no packet path takes it"
)]
mod meters;
mod resolver;
mod text;

use podswitch_core::action::DropReason;
use podswitch_core::control::{ControlPlane, PolicyCount, ServiceTotal};

use crate::stats::{PortStats, Stats, WorkerStats};
use text::Text;

pub use meters::Meters;
pub use resolver::{Count, ResolverCounters};

/// The value of `Content-Type` that goes with [`Node::metrics`](crate::Node::metrics).
pub const METRICS_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Counts of policies and Services, as they have series: without those that counted nothing.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ObjectCounts {
    /// Of policy rules.
    pub policies: Vec<PolicyCount>,
    /// Of Service ports, over all backends.
    pub services: Vec<ServiceTotal>,
}

impl ObjectCounts {
    pub(crate) fn read(control: &ControlPlane) -> Self {
        Self { policies: control.policy_counts(), services: control.service_totals() }
    }
}

/// Bytes of a line about an object, about.
const LINE: usize = 128;

impl Stats {
    /// The counters, those of `objects` and the measurements as Prometheus reads them.
    pub fn to_prometheus(&self, objects: &ObjectCounts, meters: &Meters) -> String {
        let mut text = Text::with_room((objects.policies.len() + objects.services.len()) * LINE);
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        text.family("podswitch_build_info", "gauge", "Version of the switch.").sample(&version, 1);
        text.one("podswitch_epoch", "gauge", "Epoch of the state in force.", self.epoch);
        text.one("podswitch_pods", "gauge", "Pods attached.", self.pods);
        text.one("podswitch_connections", "gauge", "Connections alive.", self.connections);
        let (name, help) = ("podswitch_connections_limit", "Connections that there may be.");
        text.one(name, "gauge", help, self.connection_limit);
        let (name, help) = ("podswitch_connections_opened_total", "Connections opened.");
        text.one(name, "counter", help, self.opened);
        self.frames(&mut text);
        text.family("podswitch_drops_total", "counter", "Frames dropped, by reason.");
        for reason in DropReason::ALL {
            let count = self.drops.get(reason.name()).copied().unwrap_or_default();
            text.sample(&[("reason", reason.name()), ("class", reason.class().name())], count);
        }
        self.workers(&mut text);
        self.ports(&mut text);
        objects.policies(&mut text);
        objects.services(&mut text);
        meters.write(&mut text);
        dns::write(&mut text, &self.dns, meters);
        text.into_string()
    }

    fn workers(&self, text: &mut Text) {
        type Value = fn(&WorkerStats) -> String;
        let families: [(&str, &str, Value); 6] = [
            (
                "podswitch_worker_busy_seconds_total",
                "Time in rounds that moved frames, by worker.",
                |worker| worker.busy_seconds.to_string(),
            ),
            ("podswitch_worker_received_total", "Frames received, by worker.", |worker| {
                worker.received.to_string()
            }),
            ("podswitch_worker_dropped_total", "Frames dropped, by worker.", |worker| {
                worker.dropped.to_string()
            }),
            ("podswitch_worker_bursts_total", "Bursts received, by worker.", |worker| {
                worker.bursts.to_string()
            }),
            ("podswitch_worker_hits_total", "Packets that hit the flow table.", |worker| {
                worker.hits.to_string()
            }),
            ("podswitch_worker_misses_total", "Packets that took the slow path.", |worker| {
                worker.misses.to_string()
            }),
        ];
        let names: Vec<String> = (0..self.workers.len()).map(|index| index.to_string()).collect();
        for (name, help, value) in families {
            text.family(name, "counter", help);
            for (index, worker) in names.iter().zip(&self.workers) {
                text.sample(&[("worker", index)], value(worker));
            }
        }
    }

    fn ports(&self, text: &mut Text) {
        type Value = fn(&PortStats) -> u64;
        let families: [(&str, &str, Value); 4] = [
            ("podswitch_port_rx_packets_total", "Frames that ports received.", |p| p.rx_packets),
            ("podswitch_port_rx_bytes_total", "Bytes that ports received.", |p| p.rx_bytes),
            ("podswitch_port_tx_packets_total", "Frames that ports sent.", |p| p.tx_packets),
            ("podswitch_port_tx_bytes_total", "Bytes that ports sent.", |p| p.tx_bytes),
        ];
        for (name, help, value) in families {
            text.family(name, "counter", help);
            for (kind, port) in &self.ports {
                text.sample(&[("kind", kind)], value(port));
            }
        }
    }

    fn frames(&self, text: &mut Text) {
        let counters = [
            ("podswitch_frames_received_total", "Frames received.", self.received),
            ("podswitch_frames_forwarded_total", "Frames forwarded.", self.forwarded),
            ("podswitch_frames_consumed_total", "Frames for the switch itself.", self.consumed),
            ("podswitch_frames_dropped_total", "Frames dropped.", self.dropped),
            ("podswitch_frames_originated_total", "Frames that the switch made.", self.originated),
            ("podswitch_frame_copies_total", "Further copies of frames.", self.copies),
            ("podswitch_flow_hits_total", "Packets that hit a flow table.", self.hits),
            ("podswitch_flow_misses_total", "Packets that took the slow path.", self.misses),
            ("podswitch_flows_kept_total", "Known flows that no change concerned.", self.kept),
            ("podswitch_flows_reevaluated_total", "Known flows re-evaluated.", self.judged_again),
        ];
        for (name, help, value) in counters {
            text.one(name, "counter", help, value);
        }
    }
}

impl ObjectCounts {
    fn policies(&self, text: &mut Text) {
        let help = "Decisions by policy rule; without a rule: denied, as none matched.";
        text.family("podswitch_policy_decisions_total", "counter", help);
        for PolicyCount { policy, direction, rule, decided } in &self.policies {
            let rule = rule.map_or_else(String::new, |rule| rule.to_string());
            let direction = direction.to_string();
            let labels = [("policy", &**policy), ("direction", &direction), ("rule", &rule)];
            text.sample(&labels, decided);
        }
    }

    fn services(&self, text: &mut Text) {
        let help = "Connections by Service port: opened to a backend, rejected or dropped.";
        text.family("podswitch_service_connections_total", "counter", help);
        for total in &self.services {
            let port = format!("{}/{}", total.port, total.protocol);
            let results = [
                ("opened", total.opened),
                ("rejected", total.rejected),
                ("dropped", total.dropped),
            ];
            for (result, count) in results.into_iter().filter(|(_, count)| *count > 0) {
                let labels = [("service", &*total.service), ("port", &port), ("result", result)];
                text.sample(&labels, count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use podswitch_policy::rule::{Direction, Protocol};

    use super::*;

    #[test]
    fn counters_become_series() {
        let policy = |direction, rule, decided| PolicyCount {
            policy: "NetworkPolicy/d/p".into(),
            direction,
            rule,
            decided,
        };
        let objects = ObjectCounts {
            policies: vec![
                policy(Direction::Ingress, Some(3), 4),
                policy(Direction::Egress, None, 2),
            ],
            services: vec![ServiceTotal {
                service: "Service/d/s".into(),
                protocol: Protocol::Tcp,
                port: 80,
                opened: 12,
                rejected: 7,
                dropped: 0,
            }],
        };
        let reason = DropReason::ALL[0];
        let stats = Stats {
            epoch: 9,
            workers: vec![WorkerStats { busy_seconds: 0.25, hits: 8, ..WorkerStats::default() }],
            ports: [("pod", PortStats { rx_bytes: 60, ..PortStats::default() })].into(),
            drops: [(reason.name(), 3)].into(),
            ..Stats::default()
        };
        let meters = Meters::default();
        meters.set_objects(&[("closed", 2)]);
        meters.published(Duration::from_millis(3));
        meters.cni("ADD", 0, Duration::from_millis(40));
        meters.cni("<script>", 4, Duration::from_millis(1));
        meters.set_ipam_free("ipv4", 250);
        meters.watch_restarted("pods");
        let text = stats.to_prometheus(&objects, &meters);
        for line in [
            "podswitch_epoch 9",
            "podswitch_worker_busy_seconds_total{worker=\"0\"} 0.25",
            "podswitch_worker_hits_total{worker=\"0\"} 8",
            "podswitch_port_rx_bytes_total{kind=\"pod\"} 60",
            "podswitch_publish_seconds_bucket{le=\"0.0025\"} 0",
            "podswitch_publish_seconds_bucket{le=\"0.005\"} 1",
            "podswitch_publish_seconds_count 1",
            "podswitch_state_stale_seconds 0",
            "podswitch_watch_restarts_total{kind=\"pods\"} 1",
            "podswitch_cni_seconds_count{verb=\"ADD\",code=\"0\"} 1",
            "podswitch_cni_seconds_count{verb=\"other\",code=\"4\"} 1",
            "podswitch_ipam_free{family=\"ipv4\"} 250",
            "podswitch_objects_left_out{action=\"closed\"} 2",
            "podswitch_policy_decisions_total{policy=\"NetworkPolicy/d/p\",direction=\"ingress\",rule=\"3\"} 4",
            "podswitch_policy_decisions_total{policy=\"NetworkPolicy/d/p\",direction=\"egress\",rule=\"\"} 2",
            "podswitch_service_connections_total{service=\"Service/d/s\",port=\"80/TCP\",result=\"opened\"} 12",
            "podswitch_service_connections_total{service=\"Service/d/s\",port=\"80/TCP\",result=\"rejected\"} 7",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        let (name, class) = (reason.name(), reason.class().name());
        let drop = format!("podswitch_drops_total{{reason=\"{name}\",class=\"{class}\"}} 3\n");
        assert!(text.contains(&drop), "{drop}");
        // Every series has its type before it, and a family is in one piece.
        let mut families = Vec::new();
        for line in text.lines() {
            match line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' ')) {
                Some((name, kind)) => {
                    assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
                    assert!(!families.contains(&name), "{name}");
                    families.push(name);
                }
                None if line.starts_with("# HELP ") => {}
                None => assert!(line.starts_with(families.last().expect("a type")), "{line}"),
            }
        }
    }
}
