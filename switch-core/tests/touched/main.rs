//! Invalidation by changes: after each of many random changes of every kind, the next packet of
//! every known flow has the same result as in a switch that evaluates all flows again, to the byte
//! and to the drop reason.
#![allow(clippy::disallowed_types, reason = "tests store what an observer reports")]

mod flows;
use podswitch_testkit::rig;
mod world;

use std::time::Duration;

use flows::{Flow, Seen};
use rig::Switch;
use rig::random::Rng;
use world::World;

const FLOWS: usize = 60;
const ROUNDS: usize = 300;

/// How many flows stayed valid, and how many were re-evaluated, in the switch that tracks what
/// changes affect; and its total number of hits.
fn run(seed: u64) -> [u64; 3] {
    let mut rng = Rng::new(seed);
    let mut world = World::new();
    let mut switches = [Switch::new(&world.config), Switch::new(&world.config)];
    let mut flows: Vec<Flow> = (0..FLOWS).map(|n| Flow::random(&mut rng, n)).collect();
    for round in 0..ROUNDS {
        let before = world.config.clone();
        let changes = world.change(&mut rng);
        let [knowing, asking] = &mut switches;
        let accepted = match &changes {
            Some(changes) => knowing.control.update(changes.clone()),
            None => knowing.control.apply(&world.config),
        };
        if accepted.is_err() {
            world.config = before;
            continue;
        }
        asking.forget(&world.config);
        let time = Duration::from_millis(rng.below(2500) as u64);
        switches.iter_mut().for_each(|switch| switch.pass(time));
        // Some time passes for a few states.
        let share = if rng.chance(30) { 20 } else { 80 };
        for (n, flow) in flows.iter_mut().enumerate() {
            if rng.chance(2) {
                *flow = Flow::random(&mut rng, n);
            }
            if !rng.chance(share) {
                continue;
            }
            for reply in [false, true] {
                let Some((port, frame)) = flow.next(reply) else { continue };
                let [seen, wanted]: [Seen; 2] =
                    switches.each_mut().map(|switch| flows::send(switch, port, &frame));
                assert_eq!(
                    seen, wanted,
                    "seed {seed}, round {round}, after {changes:?}: {flow:?}, reply {reply}"
                );
                flow.learn(&seen, reply);
            }
        }
    }
    let connections = |switch: &Switch| switch.control.connections().len();
    assert_eq!(connections(&switches[0]), connections(&switches[1]));
    switches.iter().for_each(Switch::assert_adds_up);
    let [knowing, asking] = &switches;
    assert_eq!(asking.count(|c| c.kept.get()), 0);
    [knowing.count(|c| c.kept.get()), knowing.count(|c| c.rederived.get()), {
        knowing.count(|c| c.hits.get())
    }]
}

#[test]
fn flows_have_the_result_of_a_full_re_evaluation() {
    let mut sums = [0; 3];
    for seed in 0..12 {
        let counts = run(seed);
        sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }
    let [kept, reevaluated, hits] = sums;
    println!("kept {kept}, re-evaluated {reevaluated}, hits {hits}");
    assert!(kept > 1000 && reevaluated > 1000 && hits > 10_000, "{sums:?}");
}
