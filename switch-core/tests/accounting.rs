//! For any input on any port, while ports and configurations change: every frame ends as forwarded,
//! consumed or dropped with a reason, nothing panics and no buffer is lost.

use podswitch_testkit::rig;

use std::collections::HashMap;
use std::time::Duration;

use podswitch_core::action::DropReason;
use podswitch_core::control::Options;
use podswitch_core::engine::Limits;
use podswitch_core::id::PortId;
use podswitch_core::packet::{Batch, Pool, PoolConfig};
use podswitch_core::port::memory;
use podswitch_core::port::{Offloads, Port, PortInfo, wrap};
use rig::random::Rng;
use rig::traffic::{PORTS, Traffic, states};
use rig::*;

/// Counters that must agree at any time.
fn check(switch: &Switch, seed: u64) {
    switch.assert_adds_up();
    let received = switch.count(|c| c.received.get());
    let by_port = |of: fn(&podswitch_core::stats::PortCounters) -> u64| {
        switch.count(|c| (0..PORTS).filter_map(|n| c.port(PortId(n as u16)).map(of)).sum())
    };
    assert_eq!(received, by_port(|p| p.rx_frames.get()), "seed {seed}");
    let dropped = switch.count(|c| c.dropped_total());
    assert_eq!(dropped, by_port(|p| p.dropped.get()), "seed {seed}");
    let mut told: HashMap<DropReason, u64> = HashMap::new();
    for (_, reason) in switch.drops.lock().unwrap().iter() {
        *told.entry(*reason).or_default() += 1;
    }
    for &reason in DropReason::ALL {
        let counted = switch.count(|c| c.dropped(reason));
        assert_eq!(told.get(&reason).copied().unwrap_or(0), counted, "{reason:?}, seed {seed}");
    }
    let sent = switch.count(|c| {
        let made = c.originated.get() + c.copies.get();
        (c.forwarded.get() + made).wrapping_sub(c.originated_lost.get())
    });
    assert_eq!(sent, by_port(|p| p.tx_frames.get()), "seed {seed}: what left was counted");
}

/// Replaces the device of a port: frames in its queues are lost.
fn reattach(switch: &mut Switch, port: usize, rng: &mut Rng) {
    switch.control.detach(PortId(port as u16)).unwrap();
    if rng.chance(50) {
        for worker in &mut switch.workers {
            worker.poll(switch.now);
        }
    }
    let offloads = if rng.chance(50) { Offloads::ALL } else { Offloads::NONE };
    let (device, end) = memory::pair(format!("again{port}"), 32, offloads);
    let id = switch.control.attach(Box::new(device)).unwrap();
    assert_eq!(id.index(), port, "the free number");
    switch.ends[port] = end;
}

fn run(seed: u64, workers: usize, steps: usize) -> HashMap<DropReason, u64> {
    let states = states();
    let limits = Limits { connections: 300, connections_per_port: 200, flows: 400, fdb: 32 };
    let pool = PoolConfig { small: 200, large: 8 };
    let options = Options { limits, pool, ..Options::default() };
    let mut switch = Switch::with(&states[0], workers, options);
    let mut traffic = Traffic::new(seed);
    for _ in 0..steps {
        for _ in 0..traffic.rng.below(40) {
            let (port, packet) = traffic.next();
            // If a queue is full, the frame was never received.
            let _ = switch.ends[port].send(packet);
        }
        let worker = traffic.rng.below(workers);
        switch.workers[worker].poll(switch.now);
        let rng = &mut traffic.rng;
        match rng.below(60) {
            0 => drop(switch.control.apply(rng.pick(&states)).unwrap()),
            1 => reattach(&mut switch, rng.below(PORTS), rng),
            2 => switch.pass(Duration::from_secs(rng.below(400) as u64)),
            3..=20 => switch.pass(Duration::from_millis(rng.below(500) as u64)),
            _ => {}
        }
        // A slow reader: queues are full at times.
        if traffic.rng.chance(20) {
            (0..PORTS).for_each(|port| drop(switch.recv(port)));
        }
    }
    while switch.workers.iter_mut().map(|w| w.poll(switch.now)).sum::<usize>() > 0 {}
    for worker in &mut switch.workers {
        worker.finish(switch.now);
    }
    check(&switch, seed);
    for worker in &switch.workers {
        assert_eq!(worker.pool().outstanding(), (0, 0), "buffers lost, seed {seed}");
    }
    let reasons = DropReason::ALL.iter().map(|&r| (r, switch.count(|c| c.dropped(r))));
    reasons.filter(|&(_, n)| n > 0).collect()
}

#[test]
fn random_traffic_adds_up() {
    let mut seen: HashMap<DropReason, u64> = HashMap::new();
    for seed in 0..12 {
        for (reason, n) in run(seed, 1 + seed as usize % 2, 400) {
            *seen.entry(reason).or_default() += n;
        }
    }
    // The random traffic must reach many different results to be useful.
    use DropReason::*;
    for reason in [
        Ipv4Checksum,
        SpoofedMac,
        SpoofedIp,
        SpoofedArp,
        SpoofedNeighbour,
        MartianSource,
        PolicyIngress,
        UnknownPod,
        TtlExceeded,
        MtuExceeded,
        VlanNotAllowed,
        Hairpin,
        BridgeReserved,
        TxFull,
        FragmentTimeout,
        IcmpUnrelated,
        TcpInvalidState,
        TcpOutOfWindow,
        OffloadInvalid,
        EndpointNotReady,
        EndOfInput,
    ] {
        assert!(seen.contains_key(&reason), "{reason:?} never happened: {seen:?}");
    }
}

/// A port that loses a frame with each burst that it receives.
struct Leaky {
    port: Box<dyn Port>,
    lost: u64,
}

impl Port for Leaky {
    fn rx(&mut self, pool: &mut Pool, batch: &mut Batch) -> std::io::Result<usize> {
        let count = self.port.rx(pool, batch)?;
        self.lost += u64::from(count > 0);
        Ok(count)
    }

    fn tx(&mut self, pool: &mut Pool, batch: &mut Batch) -> std::io::Result<usize> {
        self.port.tx(pool, batch)
    }

    fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    fn info(&self) -> &PortInfo {
        self.port.info()
    }

    fn is_always_polled(&self) -> bool {
        true
    }
}

#[test]
fn frames_lost_by_a_port_are_counted_and_reported() {
    let mut switch = Switch::with(&config(), 1, Options::default());
    switch.control.detach(PortId(0)).unwrap();
    let (device, end) = memory::pair("leaky", 32, Offloads::ALL);
    let device = wrap(device, |port, _| Box::new(Leaky { port, lost: 0 }));
    assert_eq!(switch.control.attach(Box::new(device)).unwrap(), PortId(0));
    switch.ends[0] = end;
    for n in 1..=5 {
        switch.send(0, &udp4(0, pod_v4(1), (1, 2), b"x"));
        assert_eq!(switch.recv(1).len(), 1);
        assert_eq!(switch.dropped(), [(0, DropReason::RxLost)]);
        assert_eq!(switch.count(|c| c.received.get()), 2 * n);
        assert_eq!(switch.count(|c| c.dropped(DropReason::RxLost)), n);
        assert_eq!(switch.count(|c| c.port(PortId(0)).unwrap().dropped.get()), n);
    }
    switch.assert_adds_up();
}
