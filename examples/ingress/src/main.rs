//! An Ingress controller and proxy: reads Kubernetes objects, and routes HTTP by them.

#[cfg(feature = "kubernetes")]
mod api;
mod flags;
mod metrics;
mod run;
mod say;
mod source;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let flags = flags::Flags::parse();
    match if flags.check { run::check(&flags) } else { run::run(&flags) } {
        Ok(code) => code,
        Err(error) => {
            say::note(format_args!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}
