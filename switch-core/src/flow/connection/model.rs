//! The connection table under `shuttle`, with two shards and small chunks so that threads conflict.
//!
//! `shuttle` and not `loom`: the tests are about locks of shards and reuse of slots, with more steps than
//! can be tried exhaustively. `shuttle` treats every atomic as sequentially consistent. Comments at the
//! atomics say why the locks suffice.

#![allow(dead_code, unreachable_pub, reason = "this copy calls only code that can race")]

mod sync {
    pub(super) use shuttle::sync::atomic::{AtomicU32, AtomicU64};
    pub(super) use shuttle::sync::{Mutex, MutexGuard};
}

const CHUNK: usize = 2;
const SHARDS: usize = 2;
const PORTS: usize = 3;
const ENDS: usize = 1;
const SOURCES: usize = 2;

#[expect(clippy::duplicate_mod, reason = "the same source with other atomics")]
#[path = "create.rs"]
mod create;
#[expect(clippy::duplicate_mod, reason = "the same source with other atomics")]
#[path = "ending.rs"]
mod ending;
#[expect(clippy::duplicate_mod, reason = "the same source with other atomics")]
#[path = "facts.rs"]
mod facts;
#[expect(clippy::duplicate_mod, reason = "the same source with other atomics")]
#[path = "list.rs"]
mod list;
#[expect(clippy::duplicate_mod, reason = "the same source with other atomics")]
#[path = "packets.rs"]
mod packets;
#[expect(clippy::duplicate_mod, reason = "the same source with other atomics")]
#[path = "slot.rs"]
mod slot;
#[expect(clippy::duplicate_mod, reason = "the same source with other atomics")]
#[path = "tracker.rs"]
mod tracker;

use podswitch_wire::flow_key::{Family, FlowKey, HashKey, proto};
use podswitch_wire::parse::tcp_flags::{ACK, FIN, SYN};
use shuttle::sync::Arc;
use shuttle::thread;

use self::tracker::Tracker;
use super::{
    Account, Charge, ConnectionInfo, ConnectionRef, Created, Direction, IndexHash, Known, OnEnd,
    Opened, OpenedAt, Pinned, Refused, SourceNat, TrackerConfig,
};
use crate::flow::tcp::{Segment, TcpState};
use crate::id::PortId;

/// Number of interleavings that are tried: random ones, and ones with few preemptions.
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

/// Checks that every slot is used or free, every count is right, and both keys of every connection lead
/// to it. Returns the number of connections.
fn check_consistency(tracker: &Tracker) -> usize {
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
        let hash = |key: &FlowKey| tracker.index_hash(key, key.hash(&HashKey::new(1)));
        let [original, reply] = [info.pinned.original, info.pinned.reply]
            .map(|key| tracker.find(hash(&key), &key).expect("both keys exist"));
        assert_eq!(original.connection, reply.connection.reversed());
        assert!(tracker.is_alive(original.connection));
    }
    list.len()
}

#[test]
fn both_directions_at_once_create_one_connection() {
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
        assert_eq!(check_consistency(&tracker), 1);
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
            assert_eq!(check_consistency(&tracker), 1);
        });
    }
}

/// One thread ends a connection that another has just created, and creates it again, while a third creates others.
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
                                tracker.record(connection, 10, 1);
                                tracker.end(connection, &mut ());
                            }
                            Err(Refused::Full | Refused::Limit(_)) => {}
                            // The other direction of a connection that is being ended.
                            Err(Refused::Collision) => {}
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        assert_eq!(check_consistency(&tracker), 0);
    });
}

/// Translated connections are in two shards each: two in opposite order, and one with the reply key of
/// another.
#[test]
fn translated_connections_are_created_and_ended_in_two_shards() {
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
                                let hash = |key: &FlowKey| {
                                    tracker.index_hash(key, key.hash(&HashKey::new(1)))
                                };
                                let reply = tracker.find(hash(&pinned.reply), &pinned.reply);
                                let reply = reply.expect("it is there");
                                assert_eq!(reply.connection, new.reversed());
                                assert_eq!(reply.pinned, pinned);
                                assert!(tracker.end(new, &mut ()));
                                assert!(
                                    tracker
                                        .find(hash(&pinned.original), &pinned.original)
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
        assert_eq!(check_consistency(&tracker), 0);
    });
}

/// A connection that is being ended does not prevent a new one.
#[test]
fn a_connection_can_be_created_while_its_predecessor_ends() {
    model((4, 4), |tracker| {
        let Ok(Created::New(first)) = tracker.create(&pinned(key(1, proto::UDP), 0), 1) else {
            panic!("new");
        };
        let other = tracker.clone();
        let ends = thread::spawn(move || assert!(other.end(first, &mut ())));
        match tracker.create(&pinned(key(1, proto::UDP), 0), 1).unwrap() {
            Created::New(again) => {
                assert_ne!(again, first);
                ends.join().unwrap();
                assert!(tracker.is_alive(again));
                assert_eq!(check_consistency(&tracker), 1);
            }
            Created::Existing(found) => {
                assert_eq!(found.connection, first);
                ends.join().unwrap();
                assert_eq!(check_consistency(&tracker), 0);
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
                    0 => usize::from(tracker.end(new, &mut ())),
                    1 => usize::from(tracker.end(new.reversed(), &mut ())),
                    _ => tracker.sweep(0, tracker.slots(), 10_000, false, &mut ()),
                })
            })
            .collect();
        let ended: usize = threads.into_iter().map(|t| t.join().unwrap()).sum();
        assert_eq!(ended, 1);
        assert!(!tracker.record(new, 10, 1), "it accepts no more packets");
        assert_eq!(check_consistency(&tracker), 0);
    });
}

fn segment(seq: u32, ack: u32, flags: u8) -> Segment {
    let more = u32::from(flags & (SYN | FIN) != 0);
    Segment { seq, end: seq + more, ack, window: 1000, flags }
}

/// Processes a segment as a worker does.
fn packet(tracker: &Tracker, connection: ConnectionRef, segment: Segment) {
    if segment.is_data() {
        assert!(tracker.record_segment(connection, &segment, 60, 1));
    } else {
        tracker.control_segment(connection, &segment, None, 60, 1);
    }
}

/// The two directions on two workers: in any order, states only increase, and end as with one worker.
#[test]
fn two_directions_at_once_reach_the_same_states() {
    model((4, 4), |tracker| {
        let Ok(Created::New(new)) = tracker.create(&pinned(key(1, proto::TCP), 0), 1) else {
            panic!("new");
        };
        let (client, server) = (new, new.reversed());
        packet(&tracker, client, segment(100, 0, SYN));
        packet(&tracker, server, segment(900, 101, SYN | ACK));
        // The client's last segment of the handshake arrives while the server already sends.
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
