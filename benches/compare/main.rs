//! `compare`: the performance between two pods over every data path on this machine, in one run,
//! with the same generators: no path (a veth pair), the kernel's paths (bridge, iptables, nftables,
//! VXLAN), Open vSwitch if it is installed, and the switch.
//!
//! `cargo bench --bench compare -- --help`. Every path is created at the start, from namespaces
//! without names, so nothing stays when the program ends for any reason. Then it runs rounds: in
//! each, every load runs over every path, one directly after the other, so that disturbances of the
//! machine affect all of them. `benches/README.md` describes what the figures include.
//!
//! * `paths`: two pods and the path between them. A new data path is a file there and a line in its
//!   list.
//! * `loads`: traffic from one pod to the other. A new measurement is a file there and a line.
//! * `usage`: processor time.
//! * `results`, `targets`: medians of the samples, and their comparison with the targets.
//! * `packets`: the cost of packets of known flows, compared with Open vSwitch with DPDK.
//! * `report`, `markdown`, `json`, `svg`: output as a table, as a part of a document, in machine-readable form, and as
//!   a picture. `machine`: what may decide the figures.

mod args;
mod json;
mod loads;
mod machine;
mod markdown;
mod packets;
mod paths;
mod report;
mod results;
mod svg;
mod targets;
mod usage;

use std::fs;
use std::path::Path as FilePath;
use std::process::ExitCode;

use clap::Parser;
use podswitch_linux::userns::{self, Privilege};

use args::Args;
use loads::Load;
use paths::{Missing, Path, tools};
use results::{Results, Round};

/// The outcome, or the error as text.
type Outcome<T> = Result<T, String>;

fn main() -> ExitCode {
    let args = Args::parse();
    if args.list {
        list();
        return ExitCode::SUCCESS;
    }
    if args.is_test() {
        println!("compare measures under `cargo bench` only");
        return ExitCode::SUCCESS;
    }
    if args.packets {
        return if packets::run(&args) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    match run(&args) {
        Ok(results) if results.failures.is_empty() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn list() {
    println!("paths:");
    for kind in paths::ALL {
        println!("  {:<32} {}", kind.name, kind.group.title());
    }
    println!("loads:");
    for load in loads::ALL {
        println!("  {}", load.name);
    }
}

fn run(args: &Args) -> Outcome<Results> {
    // Must come before any thread is started: it may execute the program again.
    let privilege = userns::ensure_privilege().map_err(|e| e.to_string())?;
    if privilege == Privilege::UserNamespace {
        args.progress("not root: working in a user namespace");
    }
    let mut results = Results::new(args);
    let made = make(args, &mut results);
    if made.is_empty() {
        return Err("there is no path to measure".to_owned());
    }
    let loads = possible(args);
    for number in 0..usize::from(args.rounds) {
        let round = Round::begin();
        for (place, load) in loads.iter().enumerate() {
            for path in turn(&made, number, number + place) {
                if args.wants(path.name, path.group, load) {
                    let sample = (load.run)(path, args.duration());
                    args.progress(format_args!(
                        "round {}: {} {}: {}",
                        number + 1,
                        load.name,
                        path.name,
                        report::glance(load, &sample)
                    ));
                    results.add(number, path.name, load, sample);
                }
            }
        }
        results.end_round(round);
    }
    for path in &made {
        results.dropped(path.name, path.dropped());
    }
    // Ends switches and removes interfaces before their results are printed.
    drop(made);
    say(args, &results)?;
    Ok(results)
}

/// Prints the table, and writes the requested files.
fn say(args: &Args, results: &Results) -> Outcome<()> {
    match &args.json {
        Some(file) if file == FilePath::new("-") => println!("{}", json::text(results)),
        Some(file) => write(file, &json::text(results))?,
        None => {}
    }
    if let Some(file) = &args.svg {
        write(file, &svg::picture(results))?;
    }
    if let Some(file) = &args.report {
        markdown::write(file, results)?;
    }
    if args.json.as_deref() != Some(FilePath::new("-")) {
        print!("{}", report::table(results));
    }
    Ok(())
}

fn write(file: &FilePath, text: &str) -> Outcome<()> {
    fs::write(file, text).map_err(|e| format!("{}: {e}", file.display()))
}

/// The loads for which this machine has the programs.
fn possible(args: &Args) -> Vec<&'static Load> {
    let is_there = |load: &&Load| match load.needs.map(tools::find) {
        Some(Err(_)) => {
            let program = load.needs.unwrap_or_default();
            args.progress(format_args!("SKIPPED {}: no {program}", load.name));
            false
        }
        _ => true,
    };
    loads::ALL.iter().filter(is_there).collect()
}

/// The requested paths that this machine can run.
fn make(args: &Args, results: &mut Results) -> Vec<Path> {
    let mut made = Vec::new();
    for kind in paths::ALL.iter().filter(|kind| args.wants_any(kind)) {
        match paths::make(kind) {
            Ok(path) => made.push(path),
            Err(Missing::Unavailable(reason)) => {
                args.progress(format_args!("SKIPPED {}: {reason}", kind.name));
                results.left_out(kind.name, reason);
            }
            Err(Missing::Broken(error)) => {
                args.progress(format_args!("{} cannot be made: {error}", kind.name));
                results.failed(format!("{}: {error}", kind.name));
            }
        }
    }
    made
}

/// The paths in an order that changes: each round begins with another path, and every second round
/// runs in reverse order.
fn turn(paths: &[Path], round: usize, first: usize) -> Vec<&Path> {
    let (end, start) = paths.split_at(first % paths.len());
    let mut order: Vec<&Path> = start.iter().chain(end).collect();
    if round % 2 == 1 {
        order.reverse();
    }
    order
}
