//! The bundled switch: Kubernetes objects in, traffic switched.
//!
//! `vswitch COMMAND`: each command has a file or folder of its own, which reads its arguments and
//! does the work; here is only what they share. Human text by default, `--json` for programs.
//! Exit status: 0 good, 1 a check or verdict failed, 2 bad usage or bad input.

mod check;
mod cluster;
mod demo;
mod explain;
mod failure;
mod inspect;
mod preflight;
mod print;
mod probe;
mod replay;
mod run;
mod signals;
mod state;
mod uninstall;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use failure::Failure;

/// A user-space packet switch for Kubernetes pod networks.
#[derive(Parser, Debug)]
#[command(name = "vswitch", version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print JSON, for programs.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand, Debug)]
enum Command {
    Demo(demo::Args),
    Run(Box<run::Args>),
    Check(check::Args),
    Explain(explain::Args),
    Replay(replay::Args),
    /// Say how the running switch does, and what is wrong with it.
    Status(inspect::StatusArgs),
    /// List the pods that the running switch has attached, with their traffic.
    Pods(inspect::StatusArgs),
    Flows(inspect::FlowsArgs),
    Drops(inspect::DropsArgs),
    Trace(inspect::TraceArgs),
    /// Print the running switch's counters, drops by reason among them.
    Counters(inspect::ObjectsArgs),
    /// Count what each policy rule decided; rules with 0 never matched.
    Policies(inspect::ObjectsArgs),
    /// Count connections by Service port and backend.
    Services(inspect::ObjectsArgs),
    Bugreport(inspect::BugreportArgs),
    Preflight(preflight::Args),
    Probe(probe::Args),
    Uninstall(uninstall::Args),
}

/// Runs the command that the program was started with.
pub fn main() -> ExitCode {
    let Cli { command, json } = Cli::parse();
    let done = match command {
        Command::Demo(args) => demo::run(&args, json),
        Command::Run(args) => run::run(*args, json),
        Command::Check(args) => check::run(&args, json),
        Command::Explain(args) => explain::run(&args, json),
        Command::Replay(args) => replay::run(&args, json),
        Command::Status(args) => inspect::status(&args, json),
        Command::Pods(args) => inspect::pods(&args, json),
        Command::Flows(args) => inspect::flows(&args, json),
        Command::Drops(args) => inspect::drops(&args, json),
        Command::Trace(args) => inspect::trace(&args, json),
        Command::Counters(args) => inspect::counters(&args, json),
        Command::Policies(args) => inspect::policies(&args, json),
        Command::Services(args) => inspect::services(&args, json),
        Command::Bugreport(args) => inspect::bugreport(&args, json),
        Command::Preflight(args) => preflight::run(&args, json),
        Command::Probe(args) => probe::run(&args, json),
        Command::Uninstall(args) => uninstall::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// What a command comes to.
type Done = Result<(), Failure>;
