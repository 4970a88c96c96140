//! Connections of a switch that forwards, copied by another one.

use std::time::Duration;

use podswitch_core::control::{ControlPlane, Options, Restored, Running, Saved, memory_size};
use podswitch_core::engine::Limits;
use podswitch_core::flow::connection::{Pinned, Tracker};
use podswitch_core::id::PortId;
use podswitch_linux::kept_connections::{KeptConnections, Opened};
use podswitch_wire::flow_key::{FlowKey, proto};
use podswitch_wire::parse::tcp_flags;

use super::rig::addresses;
use super::rig::services::*;
use super::{Folder, LIMITS, NAMES, ends_of, run};

/// The connections of a switch that still forwards: at the end those that it has then, with their state, and no others.
/// The clients' ports are others, and one client is attached later.
#[test]
fn connections_are_copied_from_a_running_switch() {
    let folder = Folder::new();
    let mut first = run(&folder.0, &config(&[1]), 0, Duration::ZERO);
    let ends: Vec<_> = (4000..4010).map(|port| ends_of(usize::from(port % 2), port)).collect();
    for (client, vip) in &ends[..6] {
        first.open(*client, *vip, 1);
    }
    let mut second = run(&folder.0, &config(&[2, 1]), 1, Duration::ZERO);
    let earlier = second.files.read_earlier().remove(0);
    let mut running = Running::open(earlier).unwrap();
    let control = &second.switch.control;
    assert_eq!(control.copy_running(&mut running), 6);
    assert_eq!(control.copy_running(&mut running), 0);
    // Two end, and their slots and ports may be those of others; four are new. One goes on.
    for (client, vip) in &ends[..2] {
        first.down(*client, *vip, (501, 101, RST | ACK), 1);
    }
    let shared = first.switch.control.shared().clone();
    let over = |tracker: &Tracker| {
        let key = FlowKey::new(ends[0].0.ip(), ends[0].1.ip(), proto::TCP, 4000, 80).unwrap();
        tracker.find_key(&key)
    };
    let ended = over(&shared.tracker).unwrap();
    assert!(shared.tracker.end(ended.connection, &mut ()));
    for (client, vip) in &ends[6..] {
        first.open(*client, *vip, 1);
    }
    let (client, vip) = ends[2];
    first.up(client, vip, Some((101, 501, ACK)), 1);
    first.down(client, vip, (501, 101, ACK | tcp_flags::FIN), 1);
    let (_, restored) = second.switch.control.complete_running(running).unwrap();
    // One was reset, but is known still.
    assert_eq!(restored, Restored { restored: 9, ..Restored::default() });
    let tracker = &second.switch.control.shared().tracker;
    assert!(over(tracker).is_none());
    let states = |tracker: &Tracker, n: usize| {
        let (client, vip) = ends[n];
        let key = FlowKey::new(client.ip(), vip.ip(), proto::TCP, client.port(), vip.port());
        tracker.tcp_states(tracker.find_key(&key.unwrap()).unwrap().connection)
    };
    for n in 1..10 {
        assert_eq!(states(tracker, n), states(&shared.tracker, n), "{n}");
    }
    for (client, vip) in &ends[3..] {
        second.up(*client, *vip, Some((101, 501, ACK)), 1);
        second.down(*client, *vip, (501, 101, ACK), 1);
    }
}

/// A client whose port is attached after the hand-over.
#[test]
fn copied_connections_wait_for_their_ports() {
    let folder = Folder::new();
    let (client, vip) = ends_of(0, 4000);
    let mut first = run(&folder.0, &config(&[1]), 0, Duration::ZERO);
    first.open(client, vip, 1);
    let mut second = run(&folder.0, &config(&[1]), 0, Duration::ZERO);
    second.switch.control.name_port(PortId(0), "pod default/another");
    let mut running = Running::open(second.files.read_earlier().remove(0)).unwrap();
    second.switch.control.copy_running(&mut running);
    let (saved, restored) = second.switch.control.complete_running(running).unwrap();
    assert_eq!(restored, Restored { waiting: 1, ..Restored::default() });
    second.switch.control.name_port(PortId(0), NAMES[0]);
    second.saved = vec![Ok(saved)];
    assert_eq!(second.restore(), Restored { restored: 1, ..Restored::default() });
    second.up(client, vip, Some((101, 501, ACK)), 1);
}

/// Copied while connections begin and end: whatever the copy sees, at the end it has exactly those that there are.
#[test]
fn copies_are_complete_while_connections_come_and_go() {
    let folder = Folder::new();
    let mut first = run(&folder.0, &config(&[1]), 0, Duration::ZERO);
    first.files.allocate(memory_size(LIMITS.connections)).unwrap();
    first.switch.control.allow_memory(u32::MAX);
    let second = run(&folder.0, &config(&[1]), 0, Duration::ZERO);
    let mut running = Running::open(second.files.read_earlier().remove(0)).unwrap();
    let shared = first.switch.control.shared().clone();
    let key = |n: u16| {
        let (client, vip) = ends_of(usize::from(n % 2), 1000 + n % 700);
        FlowKey::new(client.ip(), vip.ip(), proto::UDP, client.port(), 80).unwrap()
    };
    let pinned = |n: u16| {
        let original = key(n);
        let to = addresses(1 + usize::from(n.is_multiple_of(3)))[usize::from(n % 2)];
        let reply = FlowKey::new(to, original.src_addr(), proto::UDP, 8080, original.src_port);
        Pinned { reply: reply.unwrap(), ..Pinned::new(original, PortId(0)) }
    };
    let control = &second.switch.control;
    std::thread::scope(|scope| {
        let changes = scope.spawn(|| {
            for n in 0..30_000 {
                if let Some(known) = shared.tracker.find_key(&key(n)) {
                    shared.tracker.end(known.connection, &mut ());
                }
                shared.tracker.create(&pinned(n + n / 700), 0).unwrap();
            }
        });
        while !changes.is_finished() {
            control.copy_running(&mut running);
        }
    });
    let (_, restored) = control.complete_running(running).unwrap();
    let copy = &control.shared().tracker;
    assert_eq!((restored.restored, copy.len()), (shared.tracker.len(), shared.tracker.len()));
    for n in 0..1400 {
        let of = |tracker: &Tracker| tracker.find_key(&key(n)).map(|known| known.pinned);
        assert_eq!(of(&shared.tracker), of(copy), "{n}");
    }
}

/// How long it takes to restore many connections. Prints a figure: `cargo test --release -- --ignored --nocapture`.
#[test]
#[ignore = "prints a figure"]
#[expect(clippy::disallowed_methods, reason = "measures")]
fn restoring_many() {
    let folder = Folder::new();
    let size = memory_size(Limits::default().connections);
    let open = || {
        let Opened { mut files, memory, saved } = KeptConnections::open(&folder.0, size).unwrap();
        let control = ControlPlane::with_memory(Options::default(), memory).unwrap();
        files.allocate(size).unwrap();
        control.allow_memory(u32::MAX);
        (control, saved)
    };
    let (mut first, _) = open();
    first.name_port(PortId(0), NAMES[0]);
    let tracker = &first.shared().tracker;
    for n in 0..130_000_u32 {
        let [_, a, b, c] = n.to_be_bytes();
        let (client, port) = ([10, a, b, c].into(), 1000 + (n % 50_000) as u16);
        let original = FlowKey::new(client, vip(0), proto::UDP, port, 80).unwrap();
        let reply = FlowKey::new(addresses(1)[0], client, proto::UDP, 8080, port).unwrap();
        let pinned = Pinned { reply, ..Pinned::new(original, PortId(0)) };
        tracker.create(&pinned, 0).unwrap();
    }
    drop(first);
    let (mut second, mut saved) = open();
    second.name_port(PortId(0), NAMES[0]);
    let began = std::time::Instant::now();
    let mut saved = Saved::read(saved.remove(0)).unwrap();
    let read = began.elapsed();
    let restored = second.restore_connections(&mut saved, true);
    println!("{} connections: read {read:?}, restored {:?}", restored.restored, began.elapsed());
    assert_eq!(restored.restored, 130_000);
    let Opened { mut files, memory, .. } = KeptConnections::open(&folder.0, size).unwrap();
    let mut third = ControlPlane::with_memory(Options::default(), memory).unwrap();
    files.allocate(size).unwrap();
    third.allow_memory(u32::MAX);
    third.name_port(PortId(0), NAMES[0]);
    let mut running = Running::open(files.read_earlier().remove(0)).unwrap();
    let began = std::time::Instant::now();
    third.copy_running(&mut running);
    let (copied, began) = (began.elapsed(), std::time::Instant::now());
    let (_, restored) = third.complete_running(running).unwrap();
    println!("copied in {copied:?}, completed in {:?}", began.elapsed());
    assert_eq!(restored.restored, 130_000);
}
