//! `compare`: what two pods get from each other over every data path on this machine, in one
//! run, with the same generators: no path (a veth pair), the Linux bridge, and the switch.
//!
//! `cargo bench --bench compare -- --help`. Every path is made at the start, of namespaces
//! without names: whatever way the program ends, nothing stays. Then rounds: in each, every load
//! runs over every path, one straight after the other, so that what disturbs the machine disturbs
//! all of them. `benches/README.md` says what is in the figures and what is not.
//!
//! * `paths`: two pods and what joins them. A new data path is a file there and a line in its list.
//! * `loads`: traffic from the one pod to the other. A new measurement is a file there and a line.
//! * `usage`: processor time.
//! * `results`, `report`: from samples to medians, and to the table.

mod args;
mod loads;
mod paths;
mod report;
mod results;
mod usage;

use std::process::ExitCode;

use clap::Parser;
use switch_core::host::userns::{self, Privilege};

use args::Args;
use results::{Results, Round};

/// What came of it, or what went wrong in words.
type Outcome<T> = Result<T, String>;

fn main() -> ExitCode {
    let args = Args::parse();
    if args.is_test() {
        println!("compare measures under `cargo bench` only");
        return ExitCode::SUCCESS;
    }
    match run(&args) {
        Ok(results) if results.is_complete() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Outcome<Results> {
    // Before any thread: it may start the program again.
    let privilege = userns::ensure_privilege().map_err(|e| e.to_string())?;
    if privilege == Privilege::UserNamespace {
        args.progress("not root: working in a user namespace");
    }
    let mut results = Results::new(args);
    let kinds = paths::ALL.iter().filter(|k| loads::ALL.iter().any(|l| args.wants(k.name, l.name)));
    let mut made = Vec::new();
    for kind in kinds {
        match paths::make(kind) {
            Ok(path) => made.push(path),
            Err(error) => {
                args.progress(format_args!("{} is left out: {error}", kind.name));
                results.left_out(kind.name, error);
            }
        }
    }
    if made.is_empty() {
        return Err("no path to measure: see --help for --only".to_owned());
    }
    for number in 0..usize::from(args.rounds) {
        let round = Round::begin();
        for (place, load) in loads::ALL.iter().enumerate() {
            let first = (number + place) % made.len();
            // Who comes first, and who comes after whom, changes.
            for path in made[first..].iter().chain(&made[..first]) {
                if args.wants(path.name, load.name) {
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
    if args.json {
        println!("{}", report::json(&results));
    } else {
        print!("{}", report::table(&results));
    }
    Ok(results)
}
