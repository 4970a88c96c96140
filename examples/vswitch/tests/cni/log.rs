//! Calls of the plugin in the log.

use std::fs::File;

use super::*;

#[test]
fn each_call_is_an_event_with_pod_duration_and_outcome() {
    podswitch_testkit::require_tap!();
    let world = World::new("");
    let log = world.folder.path("log");
    let file = File::create(&log).expect("a file");
    let (manifests, run_dir) = (world.folder.text("state"), world.folder.text("run"));
    let netns = world.node.path().display().to_string();
    let arguments = [
        "--node",
        &world.name,
        "--manifests",
        &manifests,
        "--node-netns",
        &netns,
        "--run-dir",
        &run_dir,
        "--log-format",
        "json",
        "--log-level",
        "info,cni=debug",
    ];
    let switch = Running::start_with(&arguments, |command| {
        command.stderr(file);
    });
    switch.says("ready");
    let x = Container::new();
    let added = world.of("ADD", &x, Some("x"), &json!({}));
    assert!(added.ok, "{added:?}");
    assert!(world.of("CHECK", &x, Some("x"), &json!({"prevResult": added.value})).ok);
    let (code, reason) = {
        let again = world.of("ADD", &x, Some("x"), &json!({}));
        let (code, reason) = again.error();
        (code, reason.to_owned())
    };
    world.del(&x);
    assert_eq!(switch.stop(), Some(0));

    let text = fs::read_to_string(&log).expect("a log");
    let events: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let calls: Vec<_> = events.iter().filter(|event| event["fields"]["verb"].is_string()).collect();
    let of =
        |name: &str| calls.iter().map(|event| event["fields"][name].clone()).collect::<Vec<_>>();
    assert_eq!(of("verb"), ["ADD", "CHECK", "ADD", "DEL"]);
    assert_eq!(of("outcome"), ["done", "done", "error", "done"]);
    for event in &calls {
        let fields = &event["fields"];
        assert_eq!((&event["target"], &fields["pod"]), (&"cni".into(), &"a/x".into()), "{event}");
        assert_eq!((&fields["container"], &fields["interface"]), (&json!(x.id), &json!("eth0")));
        assert!(fields["duration_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{event}");
    }
    let levels: Vec<_> = calls.iter().map(|event| event["level"].clone()).collect();
    assert_eq!(levels, ["info", "debug", "warn", "info"]);
    assert_eq!((&of("code")[2], &of("reason")[2]), (&json!(code), &json!(reason)));
}
