//! The table under `shuttle`: a table of two shards and little chunks, so that threads meet.
//!
//! `shuttle` rather than `loom`: what is tested is who wins where shards are locked and slots
//! change hands, which takes more steps than can be tried exhaustively. It takes every atomic as
//! sequentially consistent; that no more is needed of them than the locks give is said where
//! they are used.

#![allow(dead_code, unreachable_pub, reason = "only what can race is called in this copy")]

mod sync {
    pub(super) use shuttle::sync::atomic::{AtomicU32, AtomicU64};
    pub(super) use shuttle::sync::{Mutex, MutexGuard};
}

const CHUNK: usize = 2;
const SHARDS: usize = 2;
const PORTS: usize = 3;
const ENDS: usize = 1;
const SOURCES: usize = 2;

#[expect(clippy::duplicate_mod, reason = "the same source before other atomics")]
#[path = "ending.rs"]
mod ending;
#[expect(clippy::duplicate_mod, reason = "the same source before other atomics")]
#[path = "facts.rs"]
mod facts;
#[expect(clippy::duplicate_mod, reason = "the same source before other atomics")]
#[path = "packets.rs"]
mod packets;
#[expect(clippy::duplicate_mod, reason = "the same source before other atomics")]
#[path = "slot.rs"]
mod slot;
#[expect(clippy::duplicate_mod, reason = "the same source before other atomics")]
#[path = "tracker.rs"]
mod tracker;

use podswitch_wire::flow_key::{Family, FlowKey, HashKey, proto};
use podswitch_wire::parse::tcp_flags::{ACK, FIN, SYN};
use shuttle::sync::Arc;
use shuttle::thread;

use self::tracker::Tracker;
use super::{
    Account, Charge, ConnectionInfo, ConnectionRef, Created, Direction, Known, Opened, Pinned,
    Place, Refused, SourceNat, TrackerConfig,
};
use crate::flow::tcp::{Segment, TcpState};
use crate::id::PortId;

/// Interleavings that are tried, at random and with few preemptions.
const TRIES: usize = 2000;
const DEPTH: usize = 4;

fn key(n: u16, proto: u8) -> FlowKey {
    let address = |last| {
        let mut a = [0; 16];
        a[..4].copy_from_slice(&[10, 0, 0, last]);
        a
    };
    let (src, dst) = (address(1), address(2));
    FlowKey { src, dst, src_port: n, dst_port: 80, proto, family: Family::V4, zone: 0 }
}

fn pinned(original: FlowKey, origin: u16) -> Pinned {
    Pinned::new(original, PortId(origin))
}

fn model(config: (u32, u32), test: impl Fn(Arc<Tracker>) + Send + Sync + 'static) {
    let (connections, per_port) = config;
    let hash_key = HashKey::new(1);
    let test = Arc::new(move || {
        test(Arc::new(Tracker::new(TrackerConfig { connections, per_port, hash_key })));
    });
    let again = test.clone();
    shuttle::check_random(move || test(), TRIES);
    shuttle::check_pct(move || again(), TRIES, DEPTH);
}

fn list(tracker: &Tracker) -> Vec<ConnectionInfo> {
    let mut list = Vec::new();
    tracker.list(|info| list.push(info));
    list
}

/// Every slot is used or free, every count agrees with what is there, and both keys of every
/// connection lead to it.
fn settled(tracker: &Tracker) -> usize {
    let list = list(tracker);
    assert_eq!(tracker.len(), list.len());
    assert_eq!(tracker.spare() + list.len(), tracker.slots(), "a slot leaked");
    let translated = list.iter().filter(|c| c.pinned.is_translated()).count();
    assert_eq!(tracker.entries(), list.len() + translated, "an entry leaked");
    for port in 0..PORTS as u16 {
        let own = list.iter().filter(|c| c.pinned.origin == PortId(port)).count();
        assert_eq!(tracker.originated(PortId(port)), own as u32);
    }
    for info in &list {
        let place = |key: &FlowKey| tracker.place(key, key.hash(&HashKey::new(1)));
        let [original, reply] = [info.pinned.original, info.pinned.reply]
            .map(|key| tracker.find(place(&key), &key).expect("both keys are there"));
        assert_eq!(original.connection, reply.connection.reversed());
        assert!(tracker.is_alive(original.connection));
    }
    list.len()
}

#[test]
fn both_directions_at_once_make_one() {
    model((4, 4), |tracker| {
        let forth = pinned(key(1, proto::UDP), 0);
        let back = pinned(key(1, proto::UDP).reversed(), 1);
        let other = tracker.clone();
        let other = thread::spawn(move || other.create(&back, 1).unwrap());
        let mine = tracker.create(&forth, 1).unwrap();
        match (mine, other.join().unwrap()) {
            (Created::New(new), Created::Existing(found))
            | (Created::Existing(found), Created::New(new)) => {
                assert_eq!(found.connection, new.reversed());
            }
            both => panic!("{both:?}"),
        }
        assert_eq!(settled(&tracker), 1);
    });
}

#[test]
fn limits_hold_for_both() {
    for config in [(1, 4), (4, 1)] {
        model(config, move |tracker| {
            let other = tracker.clone();
            let other = thread::spawn(move || other.create(&pinned(key(1, proto::UDP), 0), 1));
            let mine = tracker.create(&pinned(key(2, proto::UDP), 0), 1);
            match (mine, other.join().unwrap()) {
                (Ok(_), Err(Refused::Limit(_))) | (Err(Refused::Limit(_)), Ok(_)) => {}
                (Ok(_), Err(Refused::Full)) | (Err(Refused::Full), Ok(_)) => {
                    assert_eq!(config.0, 1)
                }
                both => panic!("{both:?}"),
            }
            assert_eq!(settled(&tracker), 1);
        });
    }
}

/// One ends what another has just made, and makes it again, while a third makes others.
#[test]
fn creating_and_ending_leak_nothing() {
    model((4, 3), |tracker| {
        let threads: Vec<_> = (0..3)
            .map(|n| {
                let tracker = tracker.clone();
                thread::spawn(move || {
                    for _ in 0..2 {
                        let forth = key(n % 2, proto::UDP);
                        let mine = if n == 2 { forth.reversed() } else { forth };
                        match tracker.create(&pinned(mine, n), 1) {
                            Ok(made) => {
                                let connection = match made {
                                    Created::New(connection) => connection,
                                    Created::Existing(known) => known.connection,
                                };
                                tracker.touch(connection, 10, 1);
                                tracker.end(connection);
                            }
                            Err(Refused::Full | Refused::Limit(_)) => {}
                            // The other direction of one that is on its way out.
                            Err(Refused::Collision) => {}
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        assert_eq!(settled(&tracker), 0);
    });
}

/// Translated, so that each is in two shards: two of opposite order, and one that has the same answers
/// as another.
#[test]
fn translated_connections_come_and_go_in_two_shards() {
    model((4, 3), |tracker| {
        let to = |n: u16| FlowKey { src_port: 100 + n, ..key(0, proto::UDP) }.reversed();
        let threads: Vec<_> = [(1, 2), (2, 1), (3, 2)]
            .into_iter()
            .zip(0..)
            .map(|((from, to_whom), origin)| {
                let tracker = tracker.clone();
                let pinned = Pinned { reply: to(to_whom), ..pinned(key(from, proto::UDP), origin) };
                thread::spawn(move || {
                    for _ in 0..2 {
                        match tracker.create(&pinned, 1) {
                            Ok(Created::New(new)) => {
                                let place =
                                    |key: &FlowKey| tracker.place(key, key.hash(&HashKey::new(1)));
                                let reply = tracker.find(place(&pinned.reply), &pinned.reply);
                                let reply = reply.expect("it is there");
                                assert_eq!(reply.connection, new.reversed());
                                assert_eq!(reply.pinned, pinned);
                                assert!(tracker.end(new));
                                assert!(
                                    tracker
                                        .find(place(&pinned.original), &pinned.original)
                                        .is_none()
                                );
                            }
                            Err(Refused::Collision | Refused::Full) => {}
                            made => panic!("{made:?}"),
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        assert_eq!(settled(&tracker), 0);
    });
}

/// What is on its way out stands in nobody's way.
#[test]
fn what_ends_is_made_anew_at_once() {
    model((4, 4), |tracker| {
        let Ok(Created::New(first)) = tracker.create(&pinned(key(1, proto::UDP), 0), 1) else {
            panic!("new");
        };
        let other = tracker.clone();
        let ends = thread::spawn(move || assert!(other.end(first)));
        match tracker.create(&pinned(key(1, proto::UDP), 0), 1).unwrap() {
            Created::New(again) => {
                assert_ne!(again, first);
                ends.join().unwrap();
                assert!(tracker.is_alive(again));
                assert_eq!(settled(&tracker), 1);
            }
            Created::Existing(found) => {
                assert_eq!(found.connection, first);
                ends.join().unwrap();
                assert_eq!(settled(&tracker), 0);
            }
        }
    });
}

#[test]
fn a_connection_ends_once() {
    model((4, 4), |tracker| {
        let Ok(Created::New(new)) = tracker.create(&pinned(key(1, proto::UDP), 0), 1) else {
            panic!("new");
        };
        let threads: Vec<_> = (0..3)
            .map(|n| {
                let tracker = tracker.clone();
                thread::spawn(move || match n {
                    0 => usize::from(tracker.end(new)),
                    1 => usize::from(tracker.end(new.reversed())),
                    _ => tracker.sweep(0, tracker.slots(), 10_000, false),
                })
            })
            .collect();
        let ended: usize = threads.into_iter().map(|t| t.join().unwrap()).sum();
        assert_eq!(ended, 1);
        assert!(!tracker.touch(new, 10, 1), "no more packets for it");
        assert_eq!(settled(&tracker), 0);
    });
}

fn segment(seq: u32, ack: u32, flags: u8) -> Segment {
    let more = u32::from(flags & (SYN | FIN) != 0);
    Segment { seq, end: seq + more, ack, window: 1000, flags }
}

/// What a worker does with a segment.
fn packet(tracker: &Tracker, connection: ConnectionRef, segment: Segment) {
    if segment.is_plain() {
        assert!(tracker.touch_tcp(connection, &segment, 60, 1));
    } else {
        tracker.control_segment(connection, &segment, None, 60, 1);
    }
}

/// The two directions at two workers: whatever the order, states only grow, and end where they
/// would with one worker.
#[test]
fn two_directions_at_once_reach_the_same_states() {
    model((4, 4), |tracker| {
        let Ok(Created::New(new)) = tracker.create(&pinned(key(1, proto::TCP), 0), 1) else {
            panic!("new");
        };
        let (client, server) = (new, new.reversed());
        packet(&tracker, client, segment(100, 0, SYN));
        packet(&tracker, server, segment(900, 101, SYN | ACK));
        // The client's last word of the handshake passes while the server sends already.
        let other = tracker.clone();
        let other = thread::spawn(move || {
            packet(&other, server, segment(901, 101, ACK));
            packet(&other, server, segment(901, 101, FIN | ACK));
        });
        packet(&tracker, client, segment(101, 901, ACK));
        packet(&tracker, client, segment(101, 901, FIN | ACK));
        other.join().unwrap();
        let closing = Some([TcpState::Closing; 2]);
        assert_eq!(tracker.tcp_states(client), closing);
        let other = tracker.clone();
        let other = thread::spawn(move || packet(&other, server, segment(902, 102, ACK)));
        packet(&tracker, client, segment(102, 902, ACK));
        other.join().unwrap();
        assert_eq!(tracker.tcp_states(client), Some([TcpState::Closed; 2]));
    });
}
