//! Counters of a node in Prometheus' text format, version 0.0.4.
//!
//! Called by whatever serves `/metrics`, on its own thread, with a [`Stats`] that was read before. The number of
//! series depends on policies and Service ports, never on pods, addresses or connections.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};

use podswitch_core::action::DropReason;

use crate::Stats;

/// The value of `Content-Type` that goes with [`Stats::to_prometheus`].
pub const METRICS_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

impl Stats {
    /// The counters as Prometheus reads them. `objects` are objects of the source that are not in force as they
    /// are written, by what was done with them (`left_out`, `closed`, `kept_last_good`).
    pub fn to_prometheus(&self, objects: &[(&str, usize)]) -> String {
        let mut text = Text::default();
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        text.family("podswitch_build_info", "gauge", "Version of the switch.").sample(&version, 1);
        text.one("podswitch_epoch", "gauge", "Epoch of the state in force.", self.epoch);
        text.one("podswitch_pods", "gauge", "Pods attached.", self.pods);
        text.one("podswitch_connections", "gauge", "Connections alive.", self.connections);
        let busy = self.busy_percent / 100.0;
        let help = "Share of time in rounds that moved frames, summed over workers, in cores.";
        text.one("podswitch_worker_busy_ratio", "gauge", help, busy);
        text.family(
            "podswitch_objects_left_out",
            "gauge",
            "Objects not in force as they are written.",
        );
        for (action, count) in objects {
            text.sample(&[("action", action)], count);
        }
        self.frames(&mut text);
        text.family("podswitch_drops_total", "counter", "Frames dropped, by reason.");
        for reason in DropReason::ALL {
            let count = self.drops.get(reason.name()).copied().unwrap_or_default();
            text.sample(&[("reason", reason.name()), ("class", reason.class().name())], count);
        }
        self.policies(&mut text);
        self.services(&mut text);
        text.0
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

    /// `POLICY ingress[0]`, or `POLICY ingress` where none of its rules matched.
    fn policies(&self, text: &mut Text) {
        let help = "Decisions by policy rule; without a rule: denied, as none matched.";
        text.family("podswitch_policy_decisions_total", "counter", help);
        for (name, count) in &self.policies {
            let (policy, decided) = name.rsplit_once(' ').unwrap_or((name, ""));
            let (direction, rule) = decided.split_once('[').unwrap_or((decided, ""));
            let rule = rule.trim_end_matches(']');
            text.sample(&[("policy", policy), ("direction", direction), ("rule", rule)], count);
        }
    }

    /// `SERVICE PORT/PROTOCOL BACKEND` or, in place of the backend, `departed`, `rejected`, `dropped`. Backends are
    /// summed: their number has no bound.
    fn services(&self, text: &mut Text) {
        let mut sums: BTreeMap<(&str, &str, &str), u64> = BTreeMap::new();
        for (name, count) in &self.services {
            let mut parts = name.rsplitn(3, ' ');
            let (outcome, port) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
            let result = match outcome {
                "rejected" | "dropped" => outcome,
                _ => "opened",
            };
            *sums.entry((parts.next().unwrap_or(""), port, result)).or_default() += count;
        }
        let help = "Connections by Service port: opened to a backend, rejected or dropped.";
        text.family("podswitch_service_connections_total", "counter", help);
        for ((service, port, result), count) in sums {
            text.sample(&[("service", service), ("port", port), ("result", result)], count);
        }
    }
}

/// The text, and the family that samples belong to.
#[derive(Default)]
struct Text(String, &'static str);

impl Text {
    fn family(&mut self, name: &'static str, kind: &str, help: &str) -> &mut Self {
        // Writing to a String does not fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        self.1 = name;
        self
    }

    fn one(&mut self, name: &'static str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help).sample(&[], value);
    }

    fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(self.1);
        for (index, (label, text)) in labels.iter().enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{before}{label}=\"{}\"", escape(text));
        }
        let after = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{after} {value}");
    }
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_become_series() {
        let policies = [("NetworkPolicy/d/p ingress[3]", 4), ("NetworkPolicy/d/p egress", 2)];
        let services = [
            ("Service/d/s 80/TCP 10.0.0.1:8080", 5),
            ("Service/d/s 80/TCP [fd00::1]:8080", 6),
            ("Service/d/s 80/TCP departed", 1),
            ("Service/d/s 80/TCP rejected", 7),
        ];
        let reason = DropReason::ALL[0];
        let stats = Stats {
            epoch: 9,
            busy_percent: 25.0,
            drops: [(reason.name(), 3)].into(),
            policies: policies.map(|(name, count)| (name.to_owned(), count)).into(),
            services: services.map(|(name, count)| (name.to_owned(), count)).into(),
            ..Stats::default()
        };
        let text = stats.to_prometheus(&[("closed", 2)]);
        for line in [
            "podswitch_epoch 9",
            "podswitch_worker_busy_ratio 0.25",
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

    #[test]
    fn values_of_labels_are_escaped() {
        assert_eq!(escape("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
