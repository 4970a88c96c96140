//! The protocol between two ends in this process. Neither can end the other here; what happens to processes is tested with
//! the program.

use std::fs::File;
use std::os::fd::OwnedFd;
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
        let files = predecessor.greet("n1").unwrap();
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
    successor.prepare(&[files("one"), files("two")], || true).unwrap();
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
    send(&other, &Message::Hello { format: 7, boot, version, node }).unwrap();
    let successor = Successor::accept(one, "n1").unwrap();
    assert_eq!((successor.other_format(), successor.version()), (Some(7), "9"));
    let (one, other) = Channel::pair().unwrap();
    send(&one, &Message::Files { format: 8, files: Vec::new(), more: false }).unwrap();
    let mut predecessor = Predecessor::over(other).unwrap();
    predecessor.greet("n1").unwrap();
    assert_eq!(predecessor.other_format(), Some(8));
}

#[test]
fn others_are_refused_with_the_reason() {
    let refused = |boot: String, node: &str| {
        let (one, other) = Channel::pair().unwrap();
        let (version, node) = ("9".to_owned(), node.to_owned());
        send(&other, &Message::Hello { format: FORMAT, boot, version, node }).unwrap();
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
