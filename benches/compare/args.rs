//! The command line.

use std::fmt::Display;
use std::time::Duration;

/// Compare data paths between two pods on this machine: TCP streams, small packets, round trips
/// and new connections, with processor time, as ratios to the Linux bridge.
///
/// Needs root, or a system that lets ordinary users make user namespaces. Progress goes to the
/// standard error, the table to the standard output.
///
/// Exit status: 0 all that this machine has what it takes for was measured, 1 a measurement failed,
/// 2 nothing could be measured.
#[derive(clap::Parser, Debug)]
#[command(name = "compare")]
pub(crate) struct Args {
    /// Seconds that each load runs over each path in each round.
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// How often everything is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) rounds: u16,
    /// Print JSON, every sample included, in place of the table.
    #[arg(long)]
    pub(crate) json: bool,
    /// Measure only what has PATTERN in "PATH LOAD", such as "tap", "tcp_stream" or
    /// "bridge round_trip". Given several times: what has any of them.
    #[arg(long, value_name = "PATTERN")]
    only: Vec<String>,
    /// Cargo passes it to benchmarks.
    #[arg(long, hide = true)]
    bench: bool,
    /// Cargo and others pass it to tests.
    #[arg(long, hide = true)]
    test: bool,
    /// The same as --only: what `cargo bench` takes as its filter.
    #[arg(value_name = "PATTERN")]
    filter: Vec<String>,
}

impl Args {
    /// Whether this is a test run: `cargo test --benches` starts benchmarks without `--bench`.
    pub(crate) fn is_test(&self) -> bool {
        self.test || !self.bench
    }

    /// How long each load runs over each path.
    pub(crate) fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    /// Whether a load over a path is to be measured.
    pub(crate) fn wants(&self, path: &str, load: &str) -> bool {
        let text = format!("{path} {load}");
        let mut patterns = self.only.iter().chain(&self.filter).peekable();
        patterns.peek().is_none() || patterns.any(|pattern| text.contains(pattern.as_str()))
    }

    /// Says how far things are.
    pub(crate) fn progress(&self, text: impl Display) {
        eprintln!("{text}");
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("a number from 0.1 to 3600".to_owned()),
    }
}
