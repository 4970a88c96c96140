//! Flow entries change no verdict (threat T-C2): the same packets in the same order through a
//! switch that uses its flow table, and through one that must evaluate every packet again, leave
//! with the same bytes, and are dropped for the same reasons.

use podswitch_testkit::rig;

use std::time::Duration;

use podswitch_core::action::DropReason;
use podswitch_core::config::Config;
use podswitch_core::id::Epoch;
use podswitch_core::packet::{Offload, Packet};
use rig::traffic::{PORTS, Traffic, states};
use rig::*;

/// The frames that left, and the drops.
type Seen = (Vec<Frame>, Vec<(u16, DropReason)>);

/// A frame and its ingress port.
type Frame = (usize, Vec<u8>, Offload);

fn send(switch: &mut Switch, (port, frame, offload): &Frame) -> Seen {
    let mut packet = Packet::from_frame(frame);
    packet.offload = *offload;
    switch.send_packet(*port, packet);
    let mut out = Vec::new();
    for port in 0..PORTS {
        while let Some(packet) = switch.ends[port].recv() {
            out.push((port, packet.bytes().to_vec(), packet.offload));
        }
    }
    (out, switch.dropped())
}

/// Packets that may be sent again.
const RECENT: usize = 32;

/// A new packet, or one that passed lately: unchanged, by another port, or with a few bytes
/// changed.
fn next(traffic: &mut Traffic, passed: &[Frame]) -> Frame {
    if passed.is_empty() || traffic.rng.chance(40) {
        let (port, packet) = traffic.next();
        return (port, packet.bytes().to_vec(), packet.offload);
    }
    let (mut port, mut frame, offload) = traffic.rng.pick(passed).clone();
    match traffic.rng.below(10) {
        0 => port = traffic.rng.below(PORTS),
        1 | 2 if !frame.is_empty() => traffic.spoil(&mut frame),
        _ => {}
    }
    (port, frame, offload)
}

/// The number of hits.
fn run(seed: u64, config: &Config, packets: usize) -> u64 {
    let mut switches = [Switch::new(config), Switch::new(config)];
    let mut traffic = Traffic::new(seed);
    let mut passed: Vec<Frame> = Vec::new();
    for n in 0..packets {
        let frame = next(&mut traffic, &passed);
        switches[1].forget(config);
        let [cached, uncached] = switches.each_mut().map(|s| send(s, &frame));
        assert_eq!(cached, uncached, "seed {seed}, packet {n}: {frame:02x?}");
        if frame.0 <= HOST && !cached.0.is_empty() && cached.1.is_empty() {
            passed.truncate(RECENT - 1);
            let at = traffic.rng.below(passed.len() + 1);
            passed.insert(at, frame);
        }
        if traffic.rng.chance(5) {
            let time = Duration::from_millis(traffic.rng.below(20_000) as u64);
            switches.iter_mut().for_each(|s| s.pass(time));
            assert_eq!(switches[0].dropped(), switches[1].dropped());
        }
    }
    // Packets counted in entries update the connection within one round of the sweep.
    switches.iter_mut().for_each(|s| s.pass_slowly(11));
    let connections = |s: &Switch| {
        let mut list = s.control.connections();
        // One of the two has published more often.
        list.iter_mut().for_each(|c| c.opened.epoch = Epoch::default());
        let mut list: Vec<_> = list.iter().map(|c| format!("{c:?}")).collect();
        list.sort_unstable();
        list
    };
    assert_eq!(connections(&switches[0]), connections(&switches[1]), "seed {seed}");
    let [cached, uncached] = &switches;
    assert_eq!(uncached.count(|c| c.hits.get()), 0);
    cached.count(|c| c.hits.get())
}

#[test]
fn flow_entries_change_no_verdict() {
    let mut hits = Vec::new();
    for (n, config) in states().iter().enumerate() {
        hits.push((0..4).map(|seed| run(100 * n as u64 + seed, config, 3000)).sum::<u64>());
    }
    assert!(hits.iter().all(|&n| n > 1500), "the table was of little use: {hits:?}");
}
