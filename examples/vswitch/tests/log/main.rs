//! The log of `run`: one event a line, refusals with their reasons, levels, and that nobody has to read it.

mod changes;
mod level;
mod lost;

use std::fs::{self, File};
use std::path::Path;
use std::thread;
use std::time::Duration;

use podswitch_linux::NetNs;
use podswitch_vswitch_testkit::running::{Limit, PATIENCE, Running};
use podswitch_vswitch_testkit::{Folder, head, pod, program};
use rustix::process::Signal;
use serde_json::{Value, json};

const SERVICE: &str = "---\n{apiVersion: v1, kind: Service, metadata: {name: s, namespace: a}, spec: {clusterIP: x, ports: [{port: 80}]}}\n";
const DENY: &str = "---\n{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, \
                    metadata: {name: deny, namespace: a}, spec: {podSelector: {}}}\n";

/// A folder of manifests, and a node in a namespace of its own.
struct World {
    folder: Folder,
    node: NetNs,
    name: String,
}

impl World {
    fn new(test: &str) -> Self {
        let name = format!("{test}-{}", std::process::id());
        Self { folder: Folder::new(), node: NetNs::anonymous().expect("a namespace"), name }
    }

    /// Replaces the manifests, in one step.
    fn write(&self, parts: &[&str]) {
        let text = [head(), parts.concat()].concat().replace("n1", &self.name);
        fs::create_dir_all(self.folder.path("state")).expect("made");
        fs::write(self.folder.path("next"), text).expect("written");
        fs::rename(self.folder.path("next"), self.folder.path("state/state.yaml")).expect("moved");
    }

    fn arguments<'a>(&'a self, more: &[&'a str], texts: &'a mut Vec<String>) -> Vec<&'a str> {
        texts.extend([self.folder.text("state"), self.node.path().display().to_string()]);
        let [manifests, netns] = &texts[..] else { unreachable!("two") };
        let own = ["--node", &self.name, "--manifests", manifests, "--node-netns", netns];
        [&own, more].concat()
    }

    /// Starts a switch whose log goes to the file `log`.
    fn start(&self, more: &[&str], variable: Option<&str>) -> Running {
        let log = File::create(self.folder.path("log")).expect("a file");
        Running::start_with(&self.arguments(more, &mut Vec::new()), |command| {
            command.stderr(log);
            if let Some(text) = variable {
                command.env("PODSWITCH_LOG", text);
            }
        })
    }

    fn log(&self) -> Vec<Value> {
        events(&fs::read_to_string(self.folder.path("log")).expect("a log"))
    }

    /// Waits for events of that message that are as wanted.
    #[track_caller]
    fn logs(&self, message: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let limit = Limit::new(PATIENCE);
        while limit.left().is_some() {
            let mut events = self.log().into_iter();
            if let Some(found) = events.find(|event| event["message"] == message && wanted(event)) {
                return found;
            }
            thread::sleep(Duration::from_millis(50));
        }
        panic!("no {message} as wanted: {:#?}", self.log());
    }
}

/// Each line of a log, which is an event with all that it must have.
#[track_caller]
fn events(log: &str) -> Vec<Value> {
    let whole = &log[..log.rfind('\n').map_or(0, |end| end + 1)];
    whole.lines().map(event).collect()
}

#[track_caller]
fn event(line: &str) -> Value {
    let event: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    let text = |name: &str| event[name].as_str().unwrap_or_else(|| panic!("{name}: {line}"));
    let time = text("time");
    assert!(time.len() == 27 && time.ends_with('Z'), "{time}");
    assert!(["error", "warn", "info", "debug"].contains(&text("level")), "{line}");
    assert!(!text("target").is_empty() && !text("message").is_empty(), "{line}");
    assert!(!text("node").is_empty() && event["fields"].is_object(), "{line}");
    assert_eq!(event.as_object().map(|event| event.len()), Some(6), "{line}");
    event
}

#[test]
fn bad_objects_are_one_event_each_with_the_reason() {
    podswitch_testkit::require_privilege!();
    let world = World::new("log");
    world.write(&[SERVICE, &pod("x", 2, "podswitch.io/netns: /nowhere")]);
    let switch = world.start(
        &["--log-format", "json", "--json", "--hash-key", "0123456789abcdef0123456789abcdef"],
        None,
    );
    switch.event("ready");
    let event = world.logs("Service/a/s: the object is left out", |_| true);
    assert_eq!((&event["level"], &event["target"]), (&"warn".into(), &"state".into()));
    assert_eq!(event["node"], *world.name);
    let fields = &event["fields"];
    for (name, value) in [
        ("kind", "Service"),
        ("namespace", "a"),
        ("name", "s"),
        ("field", "spec.clusterIP"),
        ("action", "left_out"),
    ] {
        assert_eq!(fields[name], value, "{event}");
    }
    assert!(fields["reason"].as_str().is_some_and(|reason| reason.contains("\"x\"")), "{event}");
    assert!(fields["file"].as_str().is_some_and(|file| file.contains("state.yaml:")), "{event}");
    world.logs("start", |event| {
        let fields = &event["fields"];
        let arguments = fields["arguments"].as_str().unwrap_or_default();
        fields["version"] == env!("CARGO_PKG_VERSION")
            && fields["workers"] == 1
            && fields["log_level"] == "info"
            && arguments.contains("--hash-key ...")
            && !arguments.contains("0123")
    });
    world.logs("ready", |event| event["fields"]["left_out"] == 1);
    let pod_event = |event: &Value| event["fields"]["pod"] == "a/x" && event["level"] == "warn";
    let limit = Limit::new(PATIENCE);
    while !world.log().iter().any(pod_event) {
        assert!(limit.left().is_some(), "{:#?}", world.log());
        thread::sleep(Duration::from_millis(50));
    }
    // A policy that becomes unusable after it was good.
    world.write(&[DENY]);
    switch.event("applied");
    world.write(&[&DENY.replace("podSelector", "podselector")]);
    switch.event("applied");
    world.logs("NetworkPolicy/a/deny: its last good version stays in force", |event| {
        event["level"] == "warn" && event["fields"]["reason"].is_string()
    });
    // Manifests that cannot be read: the refusal has its reason, in the log and in the answer.
    world.write(&["---\n{kind: [\n"]);
    let refused = switch.event("refused");
    assert!(
        refused["reasons"][0]["reason"].as_str().is_some_and(|text| text.contains("state.yaml")),
        "{refused}"
    );
    world.logs("the state is refused; the one in force stays", |event| {
        event["level"] == "error"
            && event["fields"]["reason"].as_str().is_some_and(|text| text.contains("state.yaml"))
    });
    assert_eq!(switch.stop(), Some(0));
    let log = world.log();
    let last = log.last().expect("a log");
    assert_eq!(
        (&last["message"], &last["fields"]["keeps_interfaces"]),
        (&"stop".into(), &false.into())
    );
}

#[test]
fn a_refused_state_names_object_field_and_reason_in_each_event() {
    podswitch_testkit::require_privilege!();
    let world = World::new("strict");
    world.write(&[]);
    let switch = world.start(&["--log-format", "json", "--json", "--strict"], None);
    switch.event("ready");
    world.write(&[SERVICE, &DENY.replace("podSelector: {}", "podSelector: [x]")]);
    let refused = switch.event("refused");
    assert_eq!(refused["reasons"].as_array().map(Vec::len), Some(2), "{refused}");
    for (object, field) in
        [("Service/a/s", "spec.clusterIP"), ("NetworkPolicy/a/deny", "spec.podSelector[0]")]
    {
        let event = world.logs(&format!("the state is refused for {object}"), |_| true);
        let fields = &event["fields"];
        let name = [&fields["kind"], &fields["namespace"], &fields["name"]]
            .map(|part| part.as_str().expect("a text"));
        assert_eq!((name.join("/"), &fields["field"]), (object.to_owned(), &field.into()));
        assert!(event["level"] == "error" && fields["reason"].is_string(), "{event}");
    }
    assert_eq!(switch.stop(), Some(0));
    // At the start the program ends by it, and the last line is in the log, too.
    let switch = world.start(&["--log-format", "json", "--strict"], None);
    world.logs("the state is refused for Service/a/s", |event| event["level"] == "error");
    drop(switch);
}

#[test]
fn text_has_time_level_node_target_and_fields() {
    podswitch_testkit::require_privilege!();
    let world = World::new("text");
    world.write(&[SERVICE]);
    let switch = world.start(&[], Some("warn"));
    // What programs rely on is as it was.
    assert_eq!(switch.says("ready"), format!("ready node={} epoch=1 left_out=1", world.name));
    assert_eq!(switch.stop(), Some(0));
    let log = fs::read_to_string(world.folder.path("log")).expect("a log");
    assert_eq!(log.lines().count(), 1, "{log}");
    let (time, rest) = log.split_once(' ').expect("a time");
    assert_eq!(time.len(), 27);
    let start = format!(
        "WARN  {} state: Service/a/s: the object is left out kind=Service namespace=a name=s field=spec.clusterIP reason=\"",
        world.name
    );
    assert!(rest.starts_with(&start), "{log}");
}

#[test]
fn levels_that_cannot_be_are_refused() {
    let run = |arguments: &[&str], variable: &str| {
        let mut command = std::process::Command::new(program());
        command.args(["run", "--node", "n", "--manifests", "/nowhere"]).args(arguments);
        let output = command.env("PODSWITCH_LOG", variable).output().expect("it starts");
        (output.status.code(), String::from_utf8(output.stderr).expect("text"))
    };
    let (status, text) = run(&["--log-level", "info,cny=debug"], "");
    assert_eq!(status, Some(2));
    assert!(text.contains("did you mean cni?"), "{text}");
    let (status, text) = run(&[], "loud");
    assert_eq!(status, Some(2));
    assert!(text.contains("PODSWITCH_LOG: \"loud\" is not a level"), "{text}");
    // The flag goes before the environment; what cannot be read ends the program as it did.
    let (status, text) = run(&["--log-level", "error", "--log-format", "json"], "debug");
    assert_eq!(status, Some(2));
    let events = events(&text);
    assert_eq!(events.len(), 1, "{text}");
    assert!(
        events[0]["fields"]["reason"].as_str().is_some_and(|reason| reason.contains("/nowhere")),
        "{text}"
    );
}
