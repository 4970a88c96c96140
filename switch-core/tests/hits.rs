//! Packets of known flows: which of them update their connection, and when.

use podswitch_testkit::rig;

use std::time::Duration;

use podswitch_core::packet::BATCH;
use podswitch_wire::flow_key::{FlowKey, proto};
use rig::*;

fn datagram(v6: bool) -> Vec<u8> {
    if v6 { udp6(0, pod_v6(1), (1000, 53), b"x") } else { udp4(0, pod_v4(1), (1000, 53), b"x") }
}

/// Sends this many in one burst; all must arrive.
fn burst(switch: &mut Switch, frame: &[u8], count: usize) {
    for _ in 0..count {
        switch.ends[0].send_frame(frame).unwrap();
    }
    switch.workers[0].poll(switch.now);
    assert_eq!(switch.recv(1).len(), count);
}

fn counts(switch: &Switch) -> (u64, u64) {
    (switch.count(|c| c.hits.get()), switch.count(|c| c.misses.get()))
}

#[test]
fn of_a_burst_of_one_new_flow_only_the_first_misses() {
    for v6 in [false, true] {
        let mut switch = Switch::new(&config());
        burst(&mut switch, &datagram(v6), BATCH);
        assert_eq!(counts(&switch), (BATCH as u64 - 1, 1));
        switch.assert_adds_up();
    }
}

#[test]
fn no_packet_stays_uncounted() {
    for v6 in [false, true] {
        let mut switch = Switch::new(&config());
        let frame = datagram(v6);
        let mut sent = 0;
        for n in 0..50 {
            burst(&mut switch, &frame, 1 + n % 7);
            sent += 1 + n as u64 % 7;
            // The current state is published again from time to time, and time passes in between.
            if n % 10 == 9 {
                switch.control.apply(&config()).unwrap();
            } else {
                switch.pass(Duration::from_millis(300));
            }
        }
        switch.pass_slowly(11);
        let list = switch.control.connections();
        assert_eq!(list.len(), 1);
        assert_eq!(list[0].packets, [sent, 0]);
        assert_eq!(list[0].bytes, [sent * frame.len() as u64, 0]);
    }
}

#[test]
fn packets_that_only_an_entry_counts_keep_their_connection_alive() {
    let mut switch = Switch::new(&config());
    for _ in 0..400 {
        burst(&mut switch, &datagram(false), 2);
        switch.pass(Duration::from_secs(1));
    }
    assert_eq!(counts(&switch).1, 1, "one connection all the time");
    switch.pass_slowly(140);
    assert!(switch.control.connections().is_empty(), "silence ends it");
}

/// Apart from its own timeout and a change of state, a worker need not notice the end of a UDP
/// connection at once, but it does so within a second.
#[test]
fn an_ended_connection_is_noticed_within_a_second() {
    let mut switch = Switch::new(&config());
    burst(&mut switch, &datagram(false), 3);
    let [a, b] = [pod_v4(0), pod_v4(1)].map(Into::into);
    let key = FlowKey::new(a, b, proto::UDP, 1000, 53).unwrap();
    let shared = switch.control.shared().clone();
    let hash = shared.tracker.index_hash(&key, key.hash(&shared.hash_key));
    let known = shared.tracker.find(hash, &key).unwrap();
    assert!(shared.tracker.end(known.connection, &mut ()));
    switch.pass(Duration::from_secs(1));
    burst(&mut switch, &datagram(false), 3);
    assert_eq!(counts(&switch), (4, 2));
    assert_eq!(shared.tracker.len(), 1, "another one");
}
