//! Network policy on the wire: real frames through `vswitch replay`, judged as `explain` says,
//! while states change under connections that live.

mod changes;
mod connections;
mod replayed;
mod same_verdict;
mod via_service;

use podswitch_vswitch_testkit::cases;

/// Frames by the thousand, judged for every `step`th case: `differences` says how many there were,
/// and which were not treated as they should be.
#[track_caller]
fn all_agree(step: usize, differences: fn(&cases::Case) -> (usize, Vec<String>)) {
    let (mut frames, mut wrong) = (0, Vec::new());
    for case in cases::all().iter().step_by(step) {
        let (count, mut bad) = differences(case);
        frames += count;
        bad.truncate(3);
        wrong.extend(bad);
    }
    println!("{frames} frames");
    assert!(frames > 50_000);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
