//! The protocol between two ends in this process. Neither can end the other here; what happens to processes is tested with
//! the program.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, mpsc};
use std::thread;

use podswitch_core::port::DeviceFiles;

use super::*;
use crate::boot::boot_id;

/// Both ends, after the hello and the files: `count` of two devices.
fn prepared(count: usize) -> (Successor, Predecessor) {
    let (one, other) = Channel::pair().unwrap();
    let (begins, begun) = mpsc::channel();
    let joins = thread::spawn(move || {
        let mut predecessor = Predecessor::over(other).unwrap();
        begins.send(()).unwrap();
        let files = predecessor.receive_devices("n1").unwrap();
        let mut keys = files.close_rest();
        keys.sort();
        assert_eq!(keys, ["one", "two"]);
        send(predecessor.channel_for_tests(), &Message::Freeze).unwrap();
        predecessor
    });
    // The hello must come soon after the connection: the thread runs by then.
    begun.recv().unwrap();
    let successor = Successor::accept(one, "n1").unwrap();
    assert_eq!(successor.other_format(), None);
    let file = || Arc::new(OwnedFd::from(File::open("/dev/null").unwrap()));
    let files =
        |key: &str| DeviceFiles { key: key.into(), files: (0..count).map(|_| file()).collect() };
    let nothing_more = || Ok(Vec::new());
    successor.prepare(&[files("one"), files("two")], || true, nothing_more).unwrap();
    (successor, joins.join().unwrap())
}

#[test]
fn one_of_the_two_forwards() {
    let (successor, predecessor) = prepared(1);
    let joins = thread::spawn(move || {
        // The answer to the Freeze that was sent above.
        let (message, files) = receive(predecessor.channel_for_tests(), SILENCE * 60).unwrap();
        assert!(matches!(message, Message::Frozen));
        let token = predecessor::Token::from(files.into_iter().next().unwrap());
        token.take().unwrap();
        predecessor.forwarding();
        assert!(predecessor.wait_until_gone(SILENCE * 60));
    });
    successor.commit(SILENCE * 60).unwrap();
    successor.gone();
    joins.join().unwrap();
}

#[test]
fn who_is_silent_finds_no_token() {
    let (successor, predecessor) = prepared(1);
    let error = successor.commit(Duration::from_millis(20)).unwrap_err();
    assert!(matches!(error, HandoverError::Silent), "{error}");
    let (_, files) = receive(predecessor.channel_for_tests(), SILENCE).unwrap();
    let token = predecessor::Token::from(files.into_iter().next().unwrap());
    assert!(matches!(token.take(), Err(HandoverError::TooLate)));
}

#[test]
fn who_has_ended_does_not_forward() {
    // More than go into one message.
    let (successor, predecessor) = prepared(300);
    drop(predecessor);
    let error = successor.commit(SILENCE * 60).unwrap_err();
    assert!(matches!(error, HandoverError::Ended), "{error}");
}

#[test]
fn another_format_is_known_on_both_sides() {
    let (one, other) = Channel::pair().unwrap();
    let version = "9".to_owned();
    let (boot, node) = (boot_id(), "n1".to_owned());
    send(&other, &Message::Hello { format: 7, boot, version, node, features: Vec::new() }).unwrap();
    let successor = Successor::accept(one, "n1").unwrap();
    assert_eq!((successor.other_format(), successor.version()), (Some(7), "9"));
    let (one, other) = Channel::pair().unwrap();
    send(&one, &Message::Files { format: 8, files: Vec::new(), more: false, features: Vec::new() })
        .unwrap();
    let mut predecessor = Predecessor::over(other).unwrap();
    predecessor.receive_devices("n1").unwrap();
    assert_eq!(predecessor.other_format(), Some(8));
}

/// What each version sends that was in use, by its format: today's code understands it. Where a later version of the same
/// format says more, the earlier one's messages are not taken out.
#[test]
fn messages_of_earlier_versions_are_understood() {
    // Format 1, before and with features.
    const SENT: [&str; 11] = [
        r#"{"step":"hello","format":1,"boot":"b","version":"0.1.0","node":"n1"}"#,
        r#"{"step":"hello","format":1,"boot":"b","version":"0.1.0","node":"n1","features":["shared files","stopping","settle"]}"#,
        r#"{"step":"refused","reason":"it is of another boot"}"#,
        r#"{"step":"files","format":1,"files":[["tap 1 eth0",2]],"more":true}"#,
        r#"{"step":"files","format":1,"files":[],"more":false,"features":["settle"]}"#,
        r#"{"step":"settle"}"#,
        r#"{"step":"freeze"}"#,
        r#"{"step":"frozen"}"#,
        r#"{"step":"forwarding"}"#,
        r#"{"step":"gone"}"#,
        r#"{"step":"stopping"}"#,
    ];
    for text in SENT {
        let message: Message = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&message).unwrap(), text, "raise the format's number");
    }
    // A later version's, of the same format.
    let more = r#"{"step":"files","format":1,"files":[],"more":false,"of_later":{"any":[7]}}"#;
    assert!(matches!(serde_json::from_str(more), Ok(Message::Files { more: false, .. })));
}

/// A version without features gets the devices' files, and no others.
#[test]
fn shared_files_go_to_those_who_take_them() {
    for features in [Vec::new(), features()] {
        let (one, other) = Channel::pair().unwrap();
        let (version, node) = ("9".to_owned(), "n1".to_owned());
        let takes = !features.is_empty();
        send(&other, &Message::Hello { format: FORMAT, boot: boot_id(), version, node, features })
            .unwrap();
        let successor = Successor::accept(one, "n1").unwrap();
        assert_eq!((successor.takes_shared_files(), successor.says_stopping()), (takes, takes));
        let null = File::open("/dev/null").unwrap();
        let device = DeviceFiles { key: "one".into(), files: vec![Arc::new(null.into())] };
        let lock = shared_file("lock", device.files[0].as_fd()).unwrap();
        send(&other, &Message::Freeze).unwrap();
        successor.prepare(&[device, lock], || true, || Ok(Vec::new())).unwrap();
        let mut names = Vec::new();
        loop {
            let (message, files) = receive(&other, SILENCE).unwrap();
            let Message::Files { files: keys, more, .. } = message else { panic!("{message:?}") };
            assert_eq!(files.len(), keys.len());
            names.extend(keys.into_iter().map(|(key, _)| key));
            if !more {
                break;
            }
        }
        let all = ["one", "shared lock"];
        assert_eq!(names, all[..if takes { 2 } else { 1 }]);
    }
}

/// What is attached until the predecessor settles is handed over as well.
#[test]
fn files_of_pods_attached_meanwhile_follow() {
    let (one, other) = Channel::pair().unwrap();
    let joins = thread::spawn(move || {
        let mut predecessor = Predecessor::over(other).unwrap();
        let files = predecessor.receive_devices("n1").unwrap();
        assert_eq!(files.take("one").len(), 1);
        predecessor.settle(&files).unwrap();
        assert_eq!(files.close_rest(), ["two"]);
        send(predecessor.channel_for_tests(), &Message::Freeze).unwrap();
        predecessor
    });
    let received = one.receive(SILENCE * 60).unwrap().unwrap();
    let Message::Hello { features, .. } = serde_json::from_slice(&received.text).unwrap() else {
        panic!("{received:?}")
    };
    assert!(features.iter().any(|feature| feature == SETTLES));
    let successor = Successor::for_tests(one, features);
    let file = |key: &str| {
        let null = Arc::new(OwnedFd::from(File::open("/dev/null").unwrap()));
        DeviceFiles { key: key.into(), files: vec![null] }
    };
    let (first, second) = (file("one"), file("two"));
    let all = [first.clone(), second];
    successor.prepare(&[first], || true, || Ok(all.to_vec())).unwrap();
    drop(joins.join().unwrap());
}

#[test]
fn a_successor_says_when_nobody_is_to_follow() {
    let (successor, predecessor) = prepared(1);
    assert_eq!(successor.wait_for_end(Duration::ZERO), SuccessorState::Runs);
    predecessor.stopping();
    assert_eq!(successor.wait_for_end(SILENCE * 60), SuccessorState::Stopped);
}

#[test]
fn others_are_refused_with_the_reason() {
    let refused = |boot: String, node: &str| {
        let (one, other) = Channel::pair().unwrap();
        let (version, node) = ("9".to_owned(), node.to_owned());
        send(&other, &Message::Hello { format: FORMAT, boot, version, node, features: features() })
            .unwrap();
        let error = Successor::accept(one, "n1").unwrap_err().to_string();
        let heard = receive(&other, SILENCE).unwrap_err().to_string();
        assert_eq!(heard, error);
        error
    };
    assert_eq!(refused("before".to_owned(), "n1"), "it is of another boot");
    assert_eq!(refused(boot_id(), "n2"), "this is the switch of node n1, not of n2");
    let (one, other) = Channel::pair().unwrap();
    send(&other, &Message::Freeze).unwrap();
    let error = Successor::accept(one, "n1").unwrap_err();
    assert!(matches!(error, HandoverError::Unexpected(_)), "{error}");
}
