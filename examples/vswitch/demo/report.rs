//! The demo's results: printed as they arrive as text, or at the end as JSON.

use std::fmt::Display;

use serde::Serialize;

use crate::failure::Failure;
use crate::print;
use crate::signals::Signals;

/// See the module's description.
pub(super) struct Report {
    json: bool,
    signals: Option<Signals>,
    findings: Findings,
    rows: Vec<(&'static str, Result<Figures, String>)>,
}

/// A row of the table at the end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Figures {
    /// One TCP stream, Gbit/s.
    pub(super) stream: f64,
    /// Round trips of small datagrams, µs.
    pub(super) p50: f64,
    pub(super) p99: f64,
}

#[derive(Default, Serialize)]
struct Findings {
    ok: bool,
    checks: Vec<Check>,
    measurements: Vec<Measurement>,
}

#[derive(Serialize)]
struct Check {
    name: String,
    ok: bool,
    /// What failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

#[derive(Serialize)]
struct Measurement {
    name: String,
    value: f64,
    unit: &'static str,
}

impl Report {
    /// An empty report. Without `signals`, signals end the process at once.
    pub(super) fn new(json: bool, signals: Option<Signals>) -> Self {
        let findings = Findings { ok: true, ..Findings::default() };
        Self { json, signals, findings, rows: Vec::new() }
    }

    /// Prints progress.
    pub(super) fn progress(&self, text: impl Display) {
        if self.json {
            print::note(text);
        } else {
            print::line(format_args!("… {text}"));
        }
    }

    /// Records the outcome of a check. An error ends the demo: it was interrupted.
    pub(super) fn check(
        &mut self,
        name: impl Into<String>,
        outcome: Result<(), String>,
    ) -> Result<(), Failure> {
        let (name, ok, detail) = (name.into(), outcome.is_ok(), outcome.err());
        if !self.json {
            match &detail {
                None => print::line(format_args!("✓ {name}")),
                Some(why) => print::line(format_args!("✗ {name}: {why}")),
            }
        }
        self.findings.ok &= ok;
        self.findings.checks.push(Check { name, ok, detail });
        match &self.signals {
            Some(signals) if signals.stopped() => Err(Failure::Setup("interrupted".into())),
            _ => Ok(()),
        }
    }

    /// Records a measurement.
    pub(super) fn measured(&mut self, name: impl Into<String>, value: f64, unit: &'static str) {
        // More digits would not be significant.
        let value = (value * 1000.0).round() / 1000.0;
        let name = name.into();
        if !self.json {
            print::line(format_args!("= {name}: {value} {unit}"));
        }
        self.findings.measurements.push(Measurement { name, value, unit });
    }

    /// Records a row of the table, or the reason why it is missing.
    pub(super) fn row(&mut self, name: &'static str, figures: Result<Figures, String>) {
        match &figures {
            Ok(figures) => {
                self.measured(format!("TCP stream, {name}"), figures.stream, "Gbit/s");
                self.measured(format!("round trip p50, {name}"), figures.p50, "µs");
                self.measured(format!("round trip p99, {name}"), figures.p99, "µs");
            }
            Err(why) => self.progress(format_args!("not measured: {name}: {why}")),
        }
        self.rows.push((name, figures));
    }

    /// Prints text for people.
    pub(super) fn show(&self, text: &str) {
        if !self.json {
            text.lines().for_each(|line| print::line(format_args!("    {line}")));
        }
    }

    /// Whether every check passed.
    pub(super) fn is_good(&self) -> bool {
        self.findings.ok
    }

    /// Prints the summary.
    pub(super) fn summary(&self) {
        let Findings { checks, measurements, .. } = &self.findings;
        if self.json {
            return print::json(&self.findings);
        }
        print::line("");
        for Measurement { name, value, unit } in measurements.iter().filter(|m| !self.in_table(m)) {
            print::line(format_args!("{name}: {value:.3} {unit}"));
        }
        self.table();
        let failed: Vec<_> = checks.iter().filter(|check| !check.ok).collect();
        for check in &failed {
            print::line(format_args!("✗ {}", check.name));
        }
        match failed.len() {
            0 => print::line(format_args!("{} checks, all passed", checks.len())),
            many => print::line(format_args!("{} checks, {many} FAILED", checks.len())),
        }
    }

    fn in_table(&self, measurement: &Measurement) -> bool {
        self.rows.iter().any(|(name, _)| measurement.name.ends_with(name))
    }

    fn table(&self) {
        print::line("");
        let title = "quick figures, a second each, IPv4";
        let [stream, p50, p99] = ["TCP stream", "trip p50", "trip p99"];
        print::line(format_args!("{title:<38} {stream:>12} {p50:>10} {p99:>10}"));
        for (name, figures) in &self.rows {
            match figures {
                Ok(Figures { stream, p50, p99 }) => print::line(format_args!(
                    "{name:<38} {stream:>5.1} Gbit/s {p50:>7.1} µs {p99:>7.1} µs"
                )),
                Err(why) => print::line(format_args!("{name:<38} not measured: {why}")),
            }
        }
        print::line("");
    }
}
