//! The command line.

use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use crate::loads::Load;
use crate::paths::{Group, Kind};

/// Compare data paths between two pods on this machine: TCP streams, small packets, round trips and
/// new connections, with processor time, as ratios to the kernel's own paths.
///
/// Needs root, or a system that lets ordinary users make user namespaces. Progress goes to the
/// standard error, the table to the standard output.
///
/// Exit status: 0 if everything that this machine supports was measured, 1 if a measurement failed,
/// 2 if nothing could be measured.
#[derive(clap::Parser, Debug)]
#[command(name = "compare")]
pub(crate) struct Args {
    /// Seconds that each load runs over each path in each round.
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// Number of rounds. Each round runs every load over every path.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) rounds: u16,
    /// Write JSON with every sample to FILE; "-" writes it to the standard output instead of the
    /// table.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write the medians as a bar chart (SVG).
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Replace the part of a Markdown document between the lines `<!-- compare: begin -->` and
    /// `<!-- compare: end -->` by the results, with machine, load and spread; write compare.svg
    /// beside it.
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Measure only paths whose name contains PATTERN ("tap", "/1000"); "=NAME" selects the path
    /// with exactly this name. Give several with commas, or repeat the option.
    #[arg(long, value_name = "PATTERN", value_delimiter = ',')]
    paths: Vec<String>,
    /// Measure only loads whose name contains PATTERN ("tcp_stream", "ipv6"), with the same syntax.
    #[arg(long, value_name = "PATTERN", value_delimiter = ',')]
    loads: Vec<String>,
    /// Measure only combinations whose "PATH LOAD" contains PATTERN, such as "bridge round_trip".
    /// If repeated, one of the patterns must match.
    #[arg(long, value_name = "PATTERN")]
    only: Vec<String>,
    /// Run every load over every path, including loads whose result does not depend on the number of
    /// Services, and other numbers of connections at a time, which are otherwise measured only if
    /// loads are named.
    #[arg(long)]
    all: bool,
    /// Measure only the cost of a packet of a known flow, and compare it with Open vSwitch with
    /// DPDK.
    #[arg(long)]
    pub(crate) packets: bool,
    /// List paths and loads, and measure nothing.
    #[arg(long)]
    pub(crate) list: bool,
    /// Cargo passes it to benchmarks.
    #[arg(long, hide = true)]
    bench: bool,
    /// Cargo and others pass it to tests.
    #[arg(long, hide = true)]
    test: bool,
    /// The same as --only, in the form in which `cargo bench` passes its filter.
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
    pub(crate) fn wants(&self, path: &str, group: Group, load: &Load) -> bool {
        let text = format!("{path} {}", load.name);
        let mut only = self.only.iter().chain(&self.filter).peekable();
        // The number of Services affects only new connections.
        let says_something = match group {
            Group::Services(count) if count > 1 => load.opens_connections,
            // This server listens on a port of its own, which is not a Service port.
            Group::Services(_) => load.needs.is_none(),
            Group::OneNode | Group::TwoNodes(_) => true,
        };
        let named = !self.loads.is_empty() || only.peek().is_some();
        (self.all || says_something)
            && (self.all || named || !load.on_request)
            && matches(&self.paths, path)
            && matches(&self.loads, load.name)
            && (only.peek().is_none() || only.any(|pattern| text.contains(pattern.as_str())))
    }

    /// Whether anything over a kind of path is to be measured.
    pub(crate) fn wants_any(&self, kind: &Kind) -> bool {
        crate::loads::ALL.iter().any(|load| self.wants(kind.name, kind.group, load))
    }

    /// Prints progress.
    pub(crate) fn progress(&self, text: impl Display) {
        eprintln!("{text}");
    }
}

fn matches(patterns: &[String], name: &str) -> bool {
    let has = |pattern: &String| match pattern.strip_prefix('=') {
        Some(whole) => name == whole,
        None => name.contains(pattern.as_str()),
    };
    patterns.is_empty() || patterns.iter().any(has)
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("a number from 0.1 to 3600".to_owned()),
    }
}
