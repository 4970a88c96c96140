//! An Ingress controller and proxy: reads Kubernetes objects, and routes HTTP by them.

mod flags;
mod metrics;
mod run;
mod source;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let flags = flags::Flags::parse();
    match if flags.check { run::check(&flags) } else { run::run(&flags) } {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
