//! `applied` says what was added, changed and removed.

use super::*;

const GOOD: &str = "---\n{apiVersion: v1, kind: Service, metadata: {name: good, namespace: a}, \
                    spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}\n";

/// The fields of an event that say what changed.
fn names(event: &Value) -> Vec<&str> {
    let fields = event["fields"].as_object().expect("fields");
    let others = ["epoch", "duration_ms", "left_out", "objects"];
    fields.keys().map(String::as_str).filter(|name| !others.contains(name)).collect()
}

#[test]
fn applied_counts_what_was_added_changed_and_removed() {
    podswitch_testkit::require_privilege!();
    let world = World::new("changes");
    let (x, y) = (pod("x", 2, ""), pod("y", 3, ""));
    world.write(&[&x, GOOD]);
    let switch = world.start(&["--log-format", "json", "--json"], None);
    let ready = switch.event("ready");
    assert!(ready.get("changes").is_none(), "{ready}");
    let open = DENY.replace("podSelector: {}", "podSelector: {}, ingress: [{}]");
    let other_port = GOOD.replace("port: 80", "port: 81");
    let moved = x.replace("10.1.0.2", "10.1.0.4");
    for (parts, expected) in [
        (vec![&*x, GOOD, &y, DENY], vec![("pods", "added"), ("networkpolicies", "added")]),
        (vec![&x, GOOD, &y, &open], vec![("networkpolicies", "changed")]),
        (
            vec![&moved, &other_port, DENY],
            vec![
                ("pods", "changed"),
                ("pods", "removed"),
                ("services", "changed"),
                ("networkpolicies", "changed"),
            ],
        ),
        // One that cannot be used is new all the same, and says why in an event of its own.
        (
            vec![&moved, SERVICE],
            vec![("services", "added"), ("services", "removed"), ("networkpolicies", "removed")],
        ),
        (vec![&moved, SERVICE], vec![]),
    ] {
        world.write(&parts);
        if expected.is_empty() {
            switch.signal(Signal::HUP);
        }
        let applied = switch.event("applied");
        let mut counts = serde_json::Map::new();
        for (kind, change) in &expected {
            let of_kind =
                counts.entry(*kind).or_insert(json!({"added": 0, "changed": 0, "removed": 0}));
            of_kind[change] = json!(1);
        }
        assert_eq!(
            applied.get("changes").cloned().unwrap_or(json!({})),
            Value::Object(counts),
            "{parts:?}"
        );
        let mut wanted: Vec<String> =
            expected.iter().map(|(kind, change)| format!("{kind}_{change}")).collect();
        wanted.sort();
        let event = world.logs("applied", |event| {
            event["fields"]["epoch"] == applied["epoch"] && names(event) == wanted
        });
        let fields = &event["fields"];
        assert!(wanted.iter().all(|name| fields[name] == 1), "{event}");
        assert!(fields["duration_ms"].is_f64(), "{event}");
        let objects = fields["objects"].as_str().map(|names| names.split(',').count());
        let count = (!expected.is_empty()).then_some(expected.len());
        assert_eq!(objects, count, "each is named: {event}");
        let renamed = expected == [("networkpolicies", "changed")];
        assert!(!renamed || fields["objects"] == "~NetworkPolicy/a/deny", "{event}");
    }
    assert_eq!(switch.stop(), Some(0));
}
