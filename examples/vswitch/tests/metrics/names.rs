//! The names: those of the reference are exported, and what rules and dashboard name exists.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use podswitch_node::{Meters, ObjectCounts, Stats};
use serde_json::Value;

use super::tool::{CHART, has, promtool};

/// The text of a node without traffic.
fn text() -> String {
    let meters = Meters::default();
    let mut stats = Stats::default();
    stats.dns.zone = "cluster.local.".into();
    meters.programmed(Duration::from_millis(700));
    meters.watch_restarted("pods");
    meters.set_objects(&[("left_out", 0), ("closed", 1)]);
    stats.to_prometheus(&ObjectCounts::default(), &meters)
}

/// Families with their types.
fn families(text: &str) -> BTreeMap<&str, &str> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types.filter_map(|line| line.split_once(' ')).collect()
}

/// Names of series in an expression.
fn named(expression: &str) -> BTreeSet<&str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = expression.split(|c| !is_part(c));
    words.filter(|word| word.starts_with("podswitch_")).collect()
}

/// The names in an expression that nothing exports.
fn unknown<'a>(expression: &'a str, families: &BTreeMap<&str, &str>) -> Vec<&'a str> {
    let is_known = |name: &str| match families.get(name) {
        Some(kind) => *kind != "histogram",
        None => ["_bucket", "_sum", "_count"].iter().any(|suffix| {
            let base = name.strip_suffix(suffix);
            base.is_some_and(|base| families.get(base) == Some(&"histogram"))
        }),
    };
    named(expression).into_iter().filter(|name| !is_known(name)).collect()
}

#[test]
fn every_metric_of_the_reference_is_there() {
    let text = text();
    let families = families(&text);
    for (name, kind) in [
        ("podswitch_build_info", "gauge"),
        ("podswitch_cni_seconds", "histogram"),
        ("podswitch_connections", "gauge"),
        ("podswitch_connections_opened_total", "counter"),
        ("podswitch_drops_total", "counter"),
        ("podswitch_epoch", "gauge"),
        ("podswitch_flowlog_suppressed_total", "counter"),
        ("podswitch_ipam_free", "gauge"),
        ("podswitch_network_programming_seconds", "histogram"),
        ("podswitch_policy_decisions_total", "counter"),
        ("podswitch_port_rx_bytes_total", "counter"),
        ("podswitch_port_rx_packets_total", "counter"),
        ("podswitch_port_tx_bytes_total", "counter"),
        ("podswitch_port_tx_packets_total", "counter"),
        ("podswitch_publish_seconds", "histogram"),
        ("podswitch_service_connections_total", "counter"),
        ("podswitch_state_stale_seconds", "gauge"),
        ("podswitch_watch_restarts_total", "counter"),
        ("podswitch_worker_busy_seconds_total", "counter"),
    ] {
        assert_eq!(families.get(name), Some(&kind), "{name}");
    }
}

/// The names that a row of the reference's table has in its first column: `a_{b,c}_total` are two.
fn of_row(row: &str) -> Vec<String> {
    let first = row.split('|').nth(1).unwrap_or_default();
    let mut names = vec![];
    for name in first.split('`').skip(1).step_by(2) {
        let mut all = vec![String::new()];
        let mut rest = name;
        while let Some((before, (choice, behind))) =
            rest.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?)))
        {
            let add = |start: &String| {
                choice.split(',').map(|it| format!("{start}{before}{it}")).collect::<Vec<_>>()
            };
            all = all.iter().flat_map(add).collect();
            rest = behind;
        }
        names.extend(all.into_iter().map(|start| start + rest));
    }
    names
}

#[test]
fn the_table_of_the_documentation_has_every_metric_and_no_other() {
    assert_eq!(of_row("| `a_{b,c}_{d,e}`, `f` | `g` |"), ["a_b_d", "a_b_e", "a_c_d", "a_c_e", "f"]);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/observability.md");
    let document = std::fs::read_to_string(path).expect("the documentation");
    let rows = document.lines().filter(|line| line.starts_with("| `podswitch_"));
    let listed = rows.flat_map(|row| {
        let kind = row.split('|').nth(2).unwrap_or_default().trim().to_owned();
        of_row(row).into_iter().map(move |name| (name, kind.clone()))
    });
    let listed: BTreeMap<String, String> = listed.collect();
    let text = text();
    let exported = families(&text).into_iter();
    let exported = exported.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect();
    assert_eq!(listed, exported);
}

#[test]
fn rules_and_dashboard_name_metrics_that_exist() {
    let text = text();
    let families = families(&text);
    let rules = std::fs::read_to_string(format!("{CHART}/rules.yaml")).expect("rules");
    let expressions: Vec<&str> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("expr: ")).collect();
    assert_eq!(expressions.len(), rules.matches("- alert: ").count(), "one line each");
    for expression in expressions {
        assert_ne!(named(expression).len(), 0, "{expression}");
        assert_eq!(unknown(expression, &families), [""; 0], "{expression}");
    }
    let board = std::fs::read_to_string(format!("{CHART}/dashboard.json")).expect("a dashboard");
    let board: Value = serde_json::from_str(&board).expect("JSON");
    let panels = board["panels"].as_array().expect("panels");
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().expect("targets"));
    let mut count = 0;
    for expression in targets.map(|target| target["expr"].as_str().expect("an expression")) {
        assert_eq!(unknown(expression, &families), [""; 0], "{expression}");
        count += 1;
    }
    assert!(count >= panels.len());
    // What the check finds.
    assert_eq!(
        unknown("rate(podswitch_nothing_total[5m])", &families),
        ["podswitch_nothing_total"]
    );
    assert_eq!(unknown("podswitch_publish_seconds > 1", &families), ["podswitch_publish_seconds"]);
}

#[test]
fn promtool_finds_nothing_wrong() {
    if !has("promtool") {
        return;
    }
    promtool(&["check", "metrics"], &text());
    promtool(&["check", "rules", &format!("{CHART}/rules.yaml")], "");
    let tests = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/chart/rules.test.yaml");
    promtool(&["test", "rules", tests], "");
}
