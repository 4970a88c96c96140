//! The level changes while the switch runs.

use std::os::unix::process::CommandExt;
use std::process::Command;

use super::*;

/// Exit status and what it prints.
fn log_level(
    program: &Path,
    socket: &str,
    more: &[&str],
    user: Option<u32>,
) -> (Option<i32>, String) {
    let mut command = Command::new(program);
    command.args(["log-level", "--socket", socket]).args(more);
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    let output = command.output().expect("it starts");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).expect("text"))
}

#[test]
fn the_level_changes_at_run_time() {
    podswitch_testkit::require_privilege!();
    let world = World::new("level");
    world.write(&[]);
    let socket = world.folder.text("ctl.sock");
    let switch = world.start(
        &["--log-format", "json", "--log-level", "warn,state=info", "--control-socket", &socket],
        None,
    );
    switch.says("ready");
    let ask = |more: &[&str]| log_level(program(), &socket, more, None);
    assert_eq!(ask(&[]), (Some(0), "warn,state=info\n".to_owned()));

    let service = |name: &str| SERVICE.replace("name: s,", &format!("name: {name},"));
    world.write(&[&service("before")]);
    switch.says("applied");
    assert_eq!(ask(&["off"]), (Some(0), "off\n".to_owned()));
    world.write(&[&service("silent")]);
    switch.says("applied");
    assert_eq!(ask(&["info,state=warn"]).0, Some(0));
    world.write(&[&service("after")]);
    switch.says("applied");
    // What cannot be changes nothing.
    let (status, text) = ask(&["info,sate=debug"]);
    assert_eq!(status, Some(2));
    assert!(
        text.contains("\"sate\" is not a target") && text.contains("did you mean state?"),
        "{text}"
    );
    assert_eq!(ask(&["--json"]), (Some(0), "{\"directives\":\"info,state=warn\"}\n".to_owned()));
    assert_eq!(switch.stop(), Some(0));

    let log = world.log();
    let messages: Vec<&str> = log.iter().filter_map(|event| event["message"].as_str()).collect();
    let left_out: Vec<&&str> =
        messages.iter().filter(|message| message.starts_with("Service/a/")).collect();
    assert_eq!(
        left_out,
        [&"Service/a/before: the object is left out", &"Service/a/after: the object is left out"],
        "{messages:?}"
    );
    assert_eq!(messages.iter().filter(|message| **message == "applied").count(), 1, "{messages:?}");
    let change = log.iter().find(|event| event["target"] == "log").expect("the change is logged");
    assert_eq!(change["fields"]["now"], "info,state=warn");
}

/// A user of no privilege.
const NOBODY: u32 = 65_534;

#[test]
fn only_root_changes_the_level() {
    podswitch_testkit::require_root!("becomes another user");
    let world = World::new("level-user");
    world.write(&[]);
    let socket = world.folder.text("ctl.sock");
    let group = NOBODY.to_string();
    let switch = world.start(&["--control-socket", &socket, "--control-group", &group], None);
    switch.says("ready");
    // Others may not be able to go where this was built.
    let copy = world.folder.path("vswitch");
    fs::copy(program(), &copy).expect("copied");
    let ask = |more: &[&str]| log_level(&copy, &socket, more, Some(NOBODY));
    assert_eq!(ask(&[]), (Some(0), "info\n".to_owned()), "the group may read");
    let (status, text) = ask(&["debug"]);
    assert_eq!(status, Some(2));
    assert!(text.contains("only root may change the log level"), "{text}");
    assert_eq!(ask(&[]), (Some(0), "info\n".to_owned()));
    assert_eq!(switch.stop(), Some(0));
}
