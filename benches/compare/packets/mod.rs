//! `--packets`: the cost of a packet of a known flow, compared with Open vSwitch's user-space datapath on this machine
//! in this run. Both poll, and neither uses the kernel: frames come from memory and are discarded. For both, the figure
//! is the processor time of the forwarding thread.

mod ours;
mod ovs;

use std::fmt::Write;
use std::time::Duration;

use crate::Outcome;
use crate::args::Args;
use crate::paths::Missing;
use crate::report::number;
use crate::results::Spread;
use crate::usage::load_averages;
use ours::{Known, Subject};
use ovs::{Datapath, Pipeline};

/// A figure of Open vSwitch, and our figures that are compared with it.
struct Versus {
    pipeline: Pipeline,
    flows: usize,
    ours: &'static [Ours],
}

/// One of our figures. `part`: the maximum part of Open vSwitch's time that it may take, if there is a target.
struct Ours {
    known: Known,
    flows: usize,
    part: Option<f64>,
}

const fn aim(known: Known, flows: usize, of: f64) -> Ours {
    Ours { known, flows, part: Some(1.0 / of) }
}

const fn beside(known: Known, flows: usize) -> Ours {
    Ours { known, flows, part: None }
}

const ALL: &[Versus] = &[
    Versus {
        pipeline: Pipeline::Forward,
        flows: 1_000,
        ours: &[
            aim(Known::Routed { v6: false }, 1_000, 3.0),
            aim(Known::Routed { v6: true }, 1_000, 3.0),
            aim(Known::Routed { v6: false }, 100_000, 3.0),
            aim(Known::Routed { v6: true }, 100_000, 3.0),
        ],
    },
    Versus {
        pipeline: Pipeline::Forward,
        flows: 100_000,
        ours: &[
            beside(Known::Routed { v6: false }, 100_000),
            beside(Known::Routed { v6: true }, 100_000),
        ],
    },
    Versus {
        pipeline: Pipeline::Translate,
        flows: 1_000,
        ours: &[
            beside(Known::Service { full: false, v6: false }, 1_000),
            aim(Known::Service { full: true, v6: false }, 1_000, 15.0),
            aim(Known::Service { full: true, v6: true }, 1_000, 15.0),
            aim(Known::Service { full: true, v6: false }, 100_000, 10.0),
            aim(Known::Service { full: true, v6: true }, 100_000, 10.0),
            aim(Known::Service { full: true, v6: false }, 1_000_000, 6.0),
            aim(Known::Service { full: true, v6: true }, 1_000_000, 6.0),
        ],
    },
    Versus {
        pipeline: Pipeline::Translate,
        flows: 100_000,
        ours: &[
            beside(Known::Service { full: false, v6: false }, 100_000),
            beside(Known::Service { full: true, v6: false }, 100_000),
            beside(Known::Service { full: true, v6: true }, 100_000),
        ],
    },
];

/// Measures all figures and prints a table; false if something failed.
pub(crate) fn run(args: &Args) -> bool {
    let mut good = true;
    println!("{}", ovs::version().unwrap_or_else(|| "no Open vSwitch".to_owned()));
    println!(
        "ns a packet of the forwarding thread's processor time, medians of {} rounds of {} s each",
        args.rounds,
        args.duration().as_secs_f64()
    );
    for versus in ALL {
        let [load, ..] = load_averages();
        println!("\n{:<44} {:>8} {:>17}   load {load:.2}", "", "median", "min … max");
        match measure(args, versus) {
            Ok(text) => print!("{text}"),
            Err(error) => {
                println!("failed: {error}");
                good = false;
            }
        }
    }
    good
}

/// The rows of one Open vSwitch figure and of our figures compared with it.
fn measure(args: &Args, versus: &Versus) -> Outcome<String> {
    let peer = match Datapath::start(versus.pipeline, versus.flows) {
        Ok(peer) => Ok(peer),
        Err(Missing::Unavailable(reason)) => Err(reason),
        Err(Missing::Broken(error)) => return Err(error),
    };
    let mut subjects: Vec<Subject> =
        versus.ours.iter().map(|ours| Subject::new(ours.known, ours.flows)).collect();
    let mut theirs = Vec::new();
    let mut times = vec![Vec::new(); subjects.len()];
    for round in 0..args.rounds {
        if let Ok(peer) = &peer {
            theirs.push(peer.measure(args.duration())?);
        }
        for (subject, times) in subjects.iter_mut().zip(&mut times) {
            times.push(subject.measure(part_of(args.duration())));
        }
        args.progress(format_args!("round {}: {:?} {}", round + 1, versus.pipeline, versus.flows));
    }
    subjects.iter().for_each(Subject::check);
    let mut text = String::new();
    let name = format!("{}, {} flows", versus.pipeline.name(), versus.flows);
    match &peer {
        Ok(_) => row(&mut text, &name, Spread::of(theirs.iter().copied()), ""),
        Err(reason) => {
            let _ = writeln!(text, "{name:<44} SKIPPED: {reason}");
        }
    }
    for (ours, times) in versus.ours.iter().zip(times) {
        let name = format!("  podswitch {}, {} flows", ours.known.name(), ours.flows);
        let ratios = theirs.iter().zip(&times).map(|(theirs, ours)| ours / theirs);
        let remark = Spread::of(ratios).map(|ratio| remark(&ratio, ours.part)).unwrap_or_default();
        row(&mut text, &name, Spread::of(times), &remark);
    }
    Ok(text)
}

/// Our own figures need less time for the same precision, and there are more of them.
fn part_of(duration: Duration) -> Duration {
    duration / 4
}

fn row(text: &mut String, name: &str, times: Option<Spread>, remark: &str) {
    let Some(times) = times else { return };
    let range = format!("{} … {}", number(times.min), number(times.max));
    let _ = writeln!(text, "{name:<44} {:>8} {range:>17}   {remark}", number(times.median));
}

fn remark(ratio: &Spread, part: Option<f64>) -> String {
    let as_part = |ratio: f64| format!("1/{:.1}", 1.0 / ratio);
    let text =
        format!("{} ({} … {})", as_part(ratio.median), as_part(ratio.max), as_part(ratio.min));
    match part {
        None => text,
        Some(part) => {
            let verdict = if ratio.median <= part { "met" } else { "NOT MET" };
            format!("{text}, aimed at 1/{:.0}: {verdict}", 1.0 / part)
        }
    }
}
