//! Nobody has to read the log.

use std::io::Read;
use std::process::Stdio;

use super::*;

/// Bad objects, whose warnings are more than what waits for a reader.
const MANY: usize = 20_000;
const LOST: &str = "lines were lost: nobody read them";

#[test]
fn nobody_has_to_read_and_what_is_lost_is_counted() {
    podswitch_testkit::require_privilege!();
    let world = World::new("lost");
    let many: String =
        (0..MANY).map(|n| SERVICE.replace("name: s,", &format!("name: s{n},"))).collect();
    world.write(&[&many]);
    // With a reader: how many events there are.
    let switch = world.start(&["--log-format", "json"], None);
    switch.says("ready");
    assert_eq!(switch.stop(), Some(0));
    let all = world.log().len();
    assert!(all > MANY);

    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let switch = Running::start_with(
        &world.arguments(&["--log-format", "json"], &mut Vec::new()),
        |command| {
            command.stderr(Stdio::from(writer));
        },
    );
    switch.says("ready");
    // It serves while nobody reads.
    switch.signal(Signal::HUP);
    switch.says("applied");
    // Somebody reads again: that lines were lost comes where they were.
    let mut log = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    let mut has_lost = false;
    while !has_lost {
        let count = reader.read(&mut buffer).expect("read");
        let tail = log.len().saturating_sub(LOST.len());
        log.extend_from_slice(&buffer[..count]);
        has_lost = String::from_utf8_lossy(&log[tail..]).contains(LOST);
    }
    assert_eq!(switch.stop(), Some(0));
    reader.read_to_end(&mut log).expect("read");
    let events = events(&String::from_utf8(log).expect("text"));
    let (lost, said): (Vec<_>, Vec<_>) =
        events.into_iter().partition(|event| event["message"] == LOST);
    let lost: u64 =
        lost.iter().map(|event| event["fields"]["lines"].as_u64().expect("a number")).sum();
    assert!(lost > 0);
    let applied = 1;
    assert_eq!(said.len() + lost as usize, all + applied, "each event was written or counted");
    assert!(said.iter().any(|event| event["message"] == "stop"));

    // Nor does the end wait for a reader.
    let (_reader, writer) = std::io::pipe().expect("a pipe");
    let switch = Running::start_with(&world.arguments(&[], &mut Vec::new()), |command| {
        command.stderr(Stdio::from(writer));
    });
    switch.says("ready");
    assert_eq!(switch.stop(), Some(0));
}
