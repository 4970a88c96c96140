//! Several workers in one switch: packets arrive at any worker, and workers, ports and
//! configurations change while packets are forwarded.

use podswitch_testkit::rig;

use std::sync::Arc;
use std::time::Duration;

use podswitch_core::action::DropReason::*;
use podswitch_core::config::Config;
use podswitch_core::control::{ControlError, ControlPlane, Options};
use podswitch_core::engine::Limits;
use podswitch_core::flow::tcp::TcpState::{Closed, Established};
use podswitch_core::id::PortId;
use podswitch_core::packet::{Batch, Pool};
use podswitch_core::port::memory::{self, MemoryDevice};
use podswitch_core::port::{Device, Offloads, Port, PortInfo};
use podswitch_core::worker::Worker;
use rig::frames;
use rig::random::Rng;
use rig::*;

const FIN: u8 = 1;
const SYN: u8 = 2;
const ACK: u8 = 16;

/// A segment from pod 0 port 1000 to pod 1 port 80, or back.
fn segment(from: usize, seq: u32, ack: u32, flags: u8) -> Vec<u8> {
    let (src, dst) = (addresses(from)[0], addresses(1 - from)[0]);
    let ports = if from == 0 { (1000, 80) } else { (80, 1000) };
    let message = frames::tcp(src, dst, ports, (seq, ack, flags), b"");
    framed(from, &frames::ip(src, dst, 6, 64, None, &message))
}

/// Received and polled by worker `worker`; must arrive.
fn pass(switch: &mut Switch, worker: usize, (from, seq, ack, flags): (usize, u32, u32, u8)) {
    switch.send_by(worker, from, &segment(from, seq, ack, flags));
    assert_eq!(switch.recv(1 - from).len(), 1);
}

fn counts(switch: &Switch, worker: usize) -> (u64, u64) {
    let counters = switch.workers[worker].engine().counters();
    (counters.hits.get(), counters.misses.get())
}

#[test]
fn one_connection_by_all_ways_through_two_workers() {
    // The worker that receives each segment of a whole connection.
    for ways in 0..1u32 << 7 {
        let mut switch = Switch::with_workers(&config(), 2);
        let segments = [
            (0, 100, 0, SYN),
            (1, 900, 101, SYN | ACK),
            (0, 101, 901, ACK),
            (1, 901, 101, FIN | ACK),
            (0, 101, 902, ACK),
            (0, 101, 902, FIN | ACK),
            (1, 902, 102, ACK),
        ];
        for (n, segment) in segments.into_iter().enumerate() {
            pass(&mut switch, (ways >> n & 1) as usize, segment);
            assert_eq!(switch.control.connections().len(), 1);
        }
        let list = switch.control.connections();
        assert_eq!(list[0].tcp, Some([Closed, Closed]), "{ways:b}");
        assert_eq!(list[0].packets, [4, 3]);
        assert_eq!(switch.dropped(), []);
        switch.assert_adds_up();
    }
}

#[test]
fn each_worker_has_its_own_entries_and_misses_once() {
    let mut switch = Switch::with_workers(&config(), 2);
    for worker in [0, 1] {
        for n in 0..5 {
            switch.send_by(worker, 0, &udp4(0, pod_v4(1), (1000, 53), b"x"));
            switch.send_by(worker, 1, &udp4(1, pod_v4(0), (53, 1000), b"x"));
            assert_eq!((switch.recv(0).len(), switch.recv(1).len()), (1, 1), "{n}");
        }
        assert_eq!(counts(&switch, worker), (8, 2));
    }
    assert_eq!(switch.control.connections().len(), 1);
    // The sweep of each worker reports the packets that the worker has counted.
    switch.pass_slowly(11);
    assert_eq!(switch.control.connections()[0].packets, [10, 10]);
}

/// Both ends send first, and both packets are queued before any worker polls.
#[test]
fn two_first_packets_make_one_connection() {
    for (first, second) in [(0, 1), (1, 0)] {
        let mut switch = Switch::with_workers(&config(), 2);
        switch.ends[0].send_frame(&segment(0, 100, 0, SYN)).unwrap();
        switch.workers[first].poll(switch.now);
        switch.ends[1].send_frame(&segment(1, 900, 0, SYN)).unwrap();
        switch.workers[second].poll(switch.now);
        assert_eq!((switch.recv(0).len(), switch.recv(1).len()), (1, 1));
        assert_eq!(switch.control.connections().len(), 1);
        // It becomes a simultaneous open (RFC 9293 figure 8).
        pass(&mut switch, first, (0, 100, 901, SYN | ACK));
        pass(&mut switch, second, (1, 900, 101, SYN | ACK));
        pass(&mut switch, second, (0, 101, 901, ACK));
        pass(&mut switch, first, (1, 901, 101, ACK));
        assert_eq!(switch.control.connections()[0].tcp, Some([Established; 2]));
        assert_eq!(switch.control.shared().tracker.len(), 1);
    }
}

#[test]
fn an_entry_of_an_ended_connection_is_a_miss() {
    let mut switch = Switch::with_workers(&config(), 2);
    let open = |switch: &mut Switch| {
        pass(switch, 0, (0, 100, 0, SYN));
        pass(switch, 1, (1, 900, 101, SYN | ACK));
        pass(switch, 0, (0, 101, 901, ACK));
        pass(switch, 1, (1, 901, 101, ACK));
    };
    open(&mut switch);
    // Ended by worker 0 and opened again there; worker 1 still has the old entry.
    pass(&mut switch, 0, (0, 101, 901, 4));
    pass(&mut switch, 0, (0, 500, 0, SYN));
    let (hits, misses) = counts(&switch, 1);
    pass(&mut switch, 1, (1, 3000, 501, ACK));
    assert_eq!(counts(&switch, 1), (hits, misses + 1));
    let list = switch.control.connections();
    assert_eq!(list.len(), 1);
    assert_eq!(list[0].packets, [1, 1], "counted at the new one");
    // The timeout depends on the packets of both directions.
    switch.pass_slowly(8000);
    assert_eq!(switch.control.connections().len(), 0);
    let (hits, misses) = counts(&switch, 1);
    pass(&mut switch, 1, (1, 3000, 501, ACK));
    assert_eq!(counts(&switch, 1), (hits, misses + 1));
}

#[test]
fn workers_are_added_and_removed_while_connections_live() {
    let mut switch = Switch::new(&config());
    pass(&mut switch, 0, (0, 100, 0, SYN));
    let second = switch.control.add_worker().unwrap();
    switch.workers.push(second);
    pass(&mut switch, 1, (1, 900, 101, SYN | ACK));
    pass(&mut switch, 1, (0, 101, 901, ACK));
    pass(&mut switch, 0, (1, 901, 101, ACK));
    assert_eq!(switch.control.connections()[0].tcp, Some([Established; 2]));
    let before = switch.control.workers().count();
    switch.workers.pop();
    switch.control.set_workers(1).unwrap();
    assert_eq!((before, switch.control.workers().count()), (2, 1));
    pass(&mut switch, 0, (0, 101, 901, ACK));
    pass(&mut switch, 0, (1, 901, 101, FIN | ACK));
    assert_eq!(switch.control.connections().len(), 1);
    // The remaining worker sweeps the whole table.
    switch.pass_slowly(3700);
    assert_eq!(switch.control.connections().len(), 0);
}

/// A device with a single queue, as its contract says: only its first end receives.
struct Single(MemoryDevice);

struct Half {
    port: Box<dyn Port>,
    receives: bool,
}

impl Device for Single {
    fn open(&mut self, index: usize, workers: usize) -> std::io::Result<Box<dyn Port>> {
        assert!(index < workers);
        Ok(Box::new(Half { port: self.0.open(index, workers)?, receives: index == 0 }))
    }

    fn info(&self) -> PortInfo {
        self.0.info()
    }
}

impl Port for Half {
    fn rx(&mut self, pool: &mut Pool, batch: &mut Batch) -> std::io::Result<usize> {
        if self.receives { self.port.rx(pool, batch) } else { Ok(0) }
    }

    fn tx(&mut self, pool: &mut Pool, batch: &mut Batch) -> std::io::Result<usize> {
        self.port.tx(pool, batch)
    }

    fn info(&self) -> &PortInfo {
        self.port.info()
    }
}

/// For any set of workers, exactly one of them receives from each device.
#[test]
fn a_single_queue_always_has_a_receiver() {
    let mut control = ControlPlane::new(Options::default());
    let mut workers: Vec<Worker> = (0..3).map(|_| control.add_worker().unwrap()).collect();
    let mut ends = Vec::new();
    for n in 0..4 {
        let (device, end) = memory::pair(format!("port{n}"), 64, Offloads::ALL);
        control.attach(Box::new(Single(device))).unwrap();
        ends.push(end);
    }
    control.apply(&config()).unwrap();
    let now = podswitch_core::time::Instant::from_secs(1);
    let check = |workers: &mut Vec<Worker>, spread: usize| {
        let mut busy = vec![0; workers.len()];
        for (from, to) in [(0, 1), (1, 2), (2, 0)] {
            ends[from].send_frame(&udp4(from, pod_v4(to), (1, 2), b"x")).unwrap();
        }
        for (worker, busy) in workers.iter_mut().zip(&mut busy) {
            *busy = worker.poll(now);
        }
        assert_eq!(busy.iter().sum::<usize>(), 3, "{busy:?}");
        assert_eq!(busy.iter().filter(|&&n| n > 0).count(), spread, "{busy:?}");
        assert!(ends[..3].iter().all(|end| end.recv_frame().is_some()));
    };
    check(&mut workers, 3);
    for left in [2, 1] {
        workers.truncate(left);
        control.set_workers(left).unwrap();
        check(&mut workers, left);
    }
    workers.push(control.add_worker().unwrap());
    check(&mut workers, 1);
    // First no worker, then another one.
    workers.clear();
    control.set_workers(0).unwrap();
    workers.push(control.add_worker().unwrap());
    check(&mut workers, 1);
}

#[test]
fn every_worker_sweeps_its_share_of_the_table() {
    let limits = Limits { connections: 7000, ..Limits::default() };
    let options = Options { limits, ..Options::default() };
    let mut switch = Switch::with(&config(), 3, options);
    for n in 0..3000u16 {
        switch.send_by(usize::from(n % 3), 0, &udp4(0, pod_v4(1), (n, 53), b"x"));
    }
    assert_eq!(switch.control.shared().tracker.len(), 3000);
    switch.pass_slowly(120 + 12);
    assert_eq!(switch.control.shared().tracker.len(), 0);
    assert_eq!(switch.control.shared().tracker.originated(PortId(0)), 0);
    for worker in &switch.workers {
        assert_eq!(worker.engine().flows().len(), 0);
    }
}

/// Workers compare times that other workers have recorded: a worker that is added hours later must
/// not begin at zero, otherwise everything would seem idle since then.
#[test]
fn workers_have_one_clock() {
    let mut switch = Switch::with_workers(&config(), 1);
    let late = switch.control.add_worker().unwrap();
    assert_eq!(late.clock(), switch.workers[0].clock());
    assert_eq!(late.clock(), switch.control.clock());
}

/// The fragments of a datagram arrive at different workers; the datagram is forwarded complete.
#[test]
fn fragments_may_arrive_at_different_workers() {
    let mut config = config();
    allow_udp(&mut config, &[53]);
    for ways in 0..8usize {
        let mut switch = Switch::with_workers(&config, 2);
        for (family, port) in [(0, 53), (1, 53), (0, 54), (1, 54)] {
            let (src, dst) = (addresses(0)[family], addresses(1)[family]);
            let message = frames::udp(src, dst, (1000, port), &[7; 2500]);
            let pieces = frames::fragments((src, dst), 17, 5, &message, &[1200, 800]);
            for (n, piece) in [2, 0, 1].map(|n| (n, &pieces[n])) {
                switch.send_by(ways >> n & 1, 0, &framed(0, piece));
            }
            let (arrived, dropped) = (switch.recv(1).len(), switch.dropped());
            match port {
                53 => assert_eq!((arrived, dropped.len()), (3, 0), "{ways:b}"),
                _ => assert_eq!((arrived, dropped), (0, vec![(0, PolicyIngress); 3])),
            }
        }
        // The remaining fragments are dropped by one of them, once.
        let (src, dst) = (addresses(0)[0], addresses(1)[0]);
        let message = frames::udp(src, dst, (1000, 53), &[7; 2500]);
        let first = &frames::fragments((src, dst), 17, 6, &message, &[1200])[0];
        switch.send_by(ways & 1, 0, &framed(0, first));
        switch.pass(Duration::from_secs(6));
        assert_eq!(switch.dropped(), [(0, FragmentTimeout)]);
        switch.assert_adds_up();
        for worker in &switch.workers {
            assert_eq!(worker.pool().outstanding(), (0, 0));
        }
    }
}

#[test]
fn an_epoch_is_acknowledged_when_every_worker_has_seen_it() {
    let mut switch = Switch::with_workers(&config(), 2);
    let now = switch.now;
    let first = switch.control.snapshot().epoch;
    assert!(!switch.control.is_acknowledged(first));
    switch.workers[0].poll(now);
    assert!(!switch.control.is_acknowledged(first));
    switch.workers[1].poll(now);
    assert!(switch.control.is_acknowledged(first));
    let second = switch.control.apply(&config()).unwrap();
    assert!(second > first);
    switch.workers[1].poll(now);
    let not_yet = switch.control.wait(second, Duration::ZERO);
    assert!(matches!(not_yet, Err(ControlError::NotAcknowledged(e)) if e == second));
    switch.workers[0].poll(now);
    switch.control.wait(second, Duration::ZERO).unwrap();
    assert!(switch.control.is_acknowledged(first), "a later one includes an earlier one");
}

#[test]
fn retired_snapshots_are_freed() {
    let mut switch = Switch::with_workers(&config(), 2);
    let now = switch.now;
    switch.pass(Duration::ZERO);
    let old = Arc::downgrade(&switch.control.snapshot());
    for _ in 0..3 {
        switch.control.apply(&config()).unwrap();
    }
    assert!(old.upgrade().is_some(), "both may be using it");
    switch.workers[0].poll(now);
    let skipped = Arc::downgrade(&switch.control.snapshot());
    switch.control.apply(&config()).unwrap();
    assert!(old.upgrade().is_some(), "the other may");
    switch.pass(Duration::ZERO);
    let epoch = switch.control.snapshot().epoch;
    switch.control.wait(epoch, Duration::ZERO).unwrap();
    assert!(old.upgrade().is_none() && skipped.upgrade().is_none());
}

#[test]
fn a_refused_configuration_changes_nothing() {
    let mut switch = Switch::new(&config());
    switch.pass(Duration::ZERO);
    let before = switch.control.snapshot();
    let mut bad = config();
    bad.endpoints.push(bad.endpoints[0].clone());
    assert!(switch.control.apply(&bad).is_err());
    assert!(Arc::ptr_eq(&before, &switch.control.snapshot()));
    switch.send(0, &udp4(0, pod_v4(1), (1000, 53), b"x"));
    assert_eq!(switch.recv(1).len(), 1);
    // The next valid one is not affected by it.
    let epoch = switch.control.apply(&config()).unwrap();
    assert_eq!(epoch.0, before.epoch.0 + 1);
}

/// A device is attached before its pod is known: nothing passes before (N13, T-L1).
#[test]
fn attach_is_fail_closed() {
    let mut before = config();
    before.endpoints.remove(2);
    before.ports.remove(2);
    let mut switch = Switch::with_workers(&before, 2);
    let out = udp4(2, pod_v4(1), (1, 2), b"x");
    let arp = frames::arp(
        1,
        (pod_mac(2), pod_v4(2)),
        (podswitch_wire::addr::Mac::ZERO, [169, 254, 1, 1]),
    );
    let arp = frames::ethernet(podswitch_wire::addr::Mac::BROADCAST, pod_mac(2), 0x0806, &arp);
    for worker in [0, 1] {
        switch.send_by(worker, 2, &out);
        switch.send_by(worker, 2, &arp);
        assert_eq!(switch.dropped(), [(2, EndpointNotReady); 2]);
        switch.send_by(worker, 1, &udp4(1, pod_v4(2), (1, 2), b"x"));
        assert_eq!(switch.dropped(), [(1, UnknownPod)]);
    }
    assert_eq!([2, 3].map(|port| switch.recv(port).len()), [0, 0]);
    // Its port has a role, but no pod is configured for it.
    let mut half = config();
    half.endpoints.remove(2);
    switch.control.apply(&half).unwrap();
    switch.send(2, &out);
    assert_eq!(switch.dropped(), [(2, EndpointNotReady)]);
    // The pod is published together with the policy that isolates it: no packet passes in between.
    let mut isolated = config();
    allow_udp(&mut isolated, &[53]);
    switch.control.apply(&isolated).unwrap();
    switch.send(1, &udp4(1, pod_v4(2), (1, 2), b"x"));
    assert_eq!(switch.dropped(), [(1, PolicyIngress)]);
    assert!(switch.recv(2).is_empty());
    switch.send(1, &udp4(1, pod_v4(2), (1, 53), b"x"));
    assert_eq!(switch.recv(2).len(), 1);
    switch.assert_adds_up();
}

/// A reused port number belongs to another port: no state of the previous port is left (T-L5).
#[test]
fn a_reused_port_number_has_no_old_state() {
    let mut switch = Switch::with_workers(&config(), 2);
    switch.send(0, &udp4(0, pod_v4(2), (1, 2), b"x"));
    assert_eq!(switch.recv(2).len(), 1);
    let mut without = config();
    without.endpoints.remove(2);
    without.ports.remove(2);
    switch.control.apply(&without).unwrap();
    switch.control.detach(PortId(2)).unwrap();
    assert!(switch.control.detach(PortId(2)).is_err());
    switch.pass(Duration::ZERO);
    assert!(switch.ends[2].is_closed());
    let (device, end) = memory::pair("new", 16, Offloads::ALL);
    assert_eq!(switch.control.attach(Box::new(device)).unwrap(), PortId(2));
    switch.ends[2] = end;
    switch.send(0, &udp4(0, pod_v4(2), (1, 2), b"x"));
    assert_eq!(switch.dropped(), [(0, UnknownPod)]);
    switch.control.apply(&config()).unwrap();
    switch.send(0, &udp4(0, pod_v4(2), (1, 2), b"x"));
    assert_eq!(switch.recv(2).len(), 1);
    switch.assert_adds_up();
}

/// A state in which pod 2 is isolated.
fn isolated() -> Config {
    let mut config = config();
    allow_udp(&mut config, &[53]);
    config
}

/// Maximum number of frames that wait for the switch, so that no queue is ever full.
const IN_FLIGHT: usize = 512;

/// Real threads: both directions of many flows at once, through whichever worker is faster, while
/// configurations, workers and a port change. Ends when all frames are accounted for.
#[test]
fn threads_lose_and_duplicate_nothing() {
    const FRAMES: usize = 20_000;
    const FLOWS: usize = 64;
    let mut switch = Switch::with_workers(&config(), 0);
    switch.control.set_workers(2).unwrap();
    let mut rng = Rng::new(1);
    let (mut sent, mut arrived) = (0, 0);
    let mut stalled = 0;
    while arrived < FRAMES {
        while sent < FRAMES && sent - arrived < IN_FLIGHT {
            let flow = rng.below(FLOWS) as u16;
            let (from, ports) = if rng.chance(50) { (0, (flow, 53)) } else { (1, (53, flow)) };
            let frame = match flow % 2 {
                0 => udp4(from, pod_v4(1 - from), ports, b"x"),
                _ => udp6(from, pod_v6(1 - from), ports, b"x"),
            };
            switch.ends[from].send_frame(&frame).unwrap();
            sent += 1;
            match sent % 2000 {
                500 => drop(switch.control.apply(&config()).unwrap()),
                1000 => switch.control.set_workers(1 + rng.below(3)).unwrap(),
                _ => {}
            }
        }
        let before = arrived;
        arrived += switch.recv(0).len() + switch.recv(1).len();
        if arrived == before {
            // Not a limit of speed, but of the time to wait for frames that never arrive.
            stalled += 1;
            assert!(stalled < 100, "{sent} sent, {arrived} arrived, and nothing moves");
            switch.ends[rng.below(2)].wait(Duration::from_millis(200)).unwrap();
        } else {
            stalled = 0;
        }
    }
    let list = switch.control.connections();
    assert_eq!(list.len(), FLOWS, "one for each, no matter who was first");
    let tracker = &switch.control.shared().tracker;
    assert_eq!(tracker.len(), FLOWS);
    let charged: u32 = [0, 1].map(|port| tracker.originated(PortId(port))).iter().sum();
    assert_eq!(charged as usize, FLOWS);
    switch.control.set_workers(2).unwrap();
    let epoch = switch.control.apply(&isolated()).unwrap();
    switch.control.wait(epoch, Duration::from_secs(60)).unwrap();
    switch.control.set_workers(0).unwrap();
}

/// Every packet is evaluated with one state or the other while states are swapped (T-L7):
/// connections that the last acknowledged state denies are not forwarded.
#[test]
fn nothing_passes_that_an_acknowledged_state_denies() {
    let mut switch = Switch::with_workers(&config(), 0);
    switch.control.set_workers(2).unwrap();
    let states = [config(), isolated()];
    for round in 0..40 {
        let allowed = round % 2 == 0;
        let epoch = switch.control.apply(&states[round % 2]).unwrap();
        switch.control.wait(epoch, Duration::from_secs(60)).unwrap();
        let received = |switch: &Switch| switch.count(|c| c.received.get());
        let before = received(&switch);
        for n in 0..50 {
            switch.ends[0].send_frame(&udp4(0, pod_v4(1), (n % 10, 80), b"x")).unwrap();
            switch.ends[0].send_frame(&udp4(0, pod_v4(1), (n % 10, 53), b"x")).unwrap();
        }
        let mut arrived = Vec::new();
        let expected = if allowed { 100 } else { 50 };
        let mut waits = 0;
        while received(&switch) - before < 100 || arrived.len() < expected {
            arrived.extend(switch.recv(1));
            waits += 1;
            assert!(waits < 1000, "{} of {expected} arrived", arrived.len());
            switch.ends[1].wait(Duration::from_millis(20)).unwrap();
        }
        arrived.extend(switch.recv(1));
        let forbidden = arrived.iter().filter(|f| f[37] == 80).count();
        assert_eq!((arrived.len(), forbidden), (expected, if allowed { 50 } else { 0 }));
    }
}
