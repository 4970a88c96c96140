//! The bundled switch: Kubernetes objects in, traffic switched.
//!
//! `vswitch COMMAND`: each command has its own file or folder, which reads its arguments and does
//! the work. This file contains only what they share. The output is text by default, JSON with
//! `--json`. Exit status: 0 success, 1 a check or verdict failed, 2 bad usage or bad input.

mod check;
mod cluster;
mod demo;
mod dns;
mod explain;
mod failure;
mod hold;
mod inspect;
mod log;
mod output;
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
    #[command(after_help = "Examples:\n  vswitch demo\n  vswitch demo --json")]
    Demo(demo::Args),
    #[command(
        after_help = "Examples:\n  vswitch run --node n1 --manifests DIR --run-dir /run/podswitch/n1\n  vswitch run --kubernetes --node n1\n  vswitch run --node n1 --manifests DIR --output jsonl=/var/log/podswitch.jsonl"
    )]
    Run(Box<run::Args>),
    #[command(after_help = "Examples:\n  vswitch hold --run-dir /run/podswitch/n1")]
    Hold(hold::Args),
    #[command(
        after_help = "Examples:\n  vswitch check --manifests DIR\n  vswitch check --manifests DIR --json"
    )]
    Check(check::Args),
    #[command(
        after_help = "Examples:\n  vswitch explain --manifests DIR --from default/a --to default/b:80\n  vswitch explain --manifests DIR --matrix 80/TCP,53/UDP"
    )]
    Explain(explain::Args),
    #[command(
        after_help = "Examples:\n  vswitch dns api.shop.svc.cluster.local --manifests DIR\n  vswitch dns _http._tcp.api.shop.svc.cluster.local SRV --manifests DIR --json\n  vswitch dns 10.96.0.7 --manifests DIR"
    )]
    Dns(dns::Args),
    #[command(
        after_help = "Examples:\n  vswitch replay --manifests DIR --node n1 --in default/web=web.pcap --out OUT"
    )]
    Replay(replay::Args),
    /// Show the switch's state, and any problems.
    #[command(after_help = "Examples:\n  vswitch status\n  vswitch status --node n1 --json")]
    Status(inspect::StatusArgs),
    /// List the pods that the running switch has attached, with their traffic.
    #[command(after_help = "Examples:\n  vswitch pods\n  vswitch pods shop/web")]
    Pods(inspect::ObjectsArgs),
    Flows(inspect::FlowsArgs),
    Drops(inspect::DropsArgs),
    Top(inspect::TopArgs),
    Trace(inspect::TraceArgs),
    /// Print the running switch's counters, including drops by reason.
    #[command(after_help = "Examples:\n  vswitch counters\n  vswitch counters policy")]
    Counters(inspect::ObjectsArgs),
    /// Count the decisions of each policy rule, including rules that never matched.
    #[command(after_help = "Examples:\n  vswitch policies\n  vswitch policies shop/db\n  \
                            vswitch policies --never     rules that never matched")]
    Policies(inspect::PolicyArgs),
    /// List Service ports with the states of their backends and the connections opened.
    #[command(after_help = "Examples:\n  vswitch services\n  vswitch services shop/api --json\n  \
                            vswitch services --never     ports without a connection")]
    Services(inspect::ServiceArgs),
    Perf(inspect::PerfArgs),
    Capture(inspect::CaptureArgs),
    #[command(after_help = "Examples:\n  vswitch log-level\n  vswitch log-level --help")]
    LogLevel(inspect::LogLevelArgs),
    Bugreport(inspect::BugreportArgs),
    #[command(after_help = "Examples:\n  vswitch preflight\n  vswitch preflight --json")]
    Preflight(preflight::Args),
    #[command(after_help = "Examples:\n  vswitch probe --help")]
    Probe(probe::Args),
    #[command(after_help = "Examples:\n  vswitch uninstall --help")]
    Uninstall(uninstall::Args),
}

/// Runs the command given on the command line.
pub fn main() -> ExitCode {
    let Cli { command, json } = Cli::parse();
    let done = match command {
        Command::Demo(args) => demo::run(&args, json),
        Command::Run(args) => run::run(*args, json),
        Command::Hold(args) => hold::run(&args),
        Command::Check(args) => check::run(&args, json),
        Command::Explain(args) => explain::run(&args, json),
        Command::Dns(args) => dns::run(&args, json),
        Command::Replay(args) => replay::run(&args, json),
        Command::Status(args) => inspect::status(&args, json),
        Command::Pods(args) => inspect::pods(&args, json),
        Command::Flows(args) => inspect::flows(&args, json),
        Command::Drops(args) => inspect::drops(&args, json),
        Command::Top(args) => inspect::top(&args, json),
        Command::Trace(args) => inspect::trace(&args, json),
        Command::Counters(args) => inspect::counters(&args, json),
        Command::Policies(args) => inspect::policies(&args, json),
        Command::Services(args) => inspect::services(&args, json),
        Command::Perf(args) => inspect::perf(&args, json),
        Command::Capture(args) => inspect::capture(&args, json),
        Command::LogLevel(args) => inspect::log_level(&args, json),
        Command::Bugreport(args) => inspect::bugreport(&args, json),
        Command::Preflight(args) => preflight::run(&args, json),
        Command::Probe(args) => probe::run(&args, json),
        Command::Uninstall(args) => uninstall::run(&args),
    };
    let code = match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    };
    output::flush();
    code
}

/// The result of a command.
type Done = Result<(), Failure>;

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_command_has_examples() {
        let cli = Cli::command();
        for command in cli.get_subcommands() {
            let help = command.clone().render_long_help().to_string();
            let example = format!("\n  vswitch {} ", command.get_name());
            let bare = format!("\n  vswitch {}\n", command.get_name());
            assert!(help.contains(&example) || help.contains(&bare), "{help}");
        }
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }
}
