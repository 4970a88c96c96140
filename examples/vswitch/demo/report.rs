//! What the demo found: told as it goes to a person, at the end to a program.

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
    /// What went wrong.
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
    /// Nothing found yet. Without `signals` they end the process as they do.
    pub(super) fn new(json: bool, signals: Option<Signals>) -> Self {
        Self { json, signals, findings: Findings { ok: true, ..Findings::default() } }
    }

    /// Says what is going on.
    pub(super) fn progress(&self, text: impl Display) {
        if self.json {
            print::note(text);
        } else {
            print::line(format_args!("… {text}"));
        }
    }

    /// Notes the outcome of a check. An error ends the demo: it was interrupted.
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

    /// Notes a measurement.
    pub(super) fn measured(&mut self, name: impl Into<String>, value: f64, unit: &'static str) {
        // More digits than there is meaning.
        let value = (value * 1000.0).round() / 1000.0;
        let name = name.into();
        if !self.json {
            print::line(format_args!("= {name}: {value} {unit}"));
        }
        self.findings.measurements.push(Measurement { name, value, unit });
    }

    /// Whether every check passed.
    pub(super) fn is_good(&self) -> bool {
        self.findings.ok
    }

    /// Tells what it came to.
    pub(super) fn summary(&self) {
        let Findings { checks, measurements, .. } = &self.findings;
        if self.json {
            return print::json(&self.findings);
        }
        print::line("");
        for Measurement { name, value, unit } in measurements {
            print::line(format_args!("{name:<40} {value:>10.3} {unit}"));
        }
        let failed: Vec<_> = checks.iter().filter(|check| !check.ok).collect();
        for check in &failed {
            print::line(format_args!("✗ {}", check.name));
        }
        match failed.len() {
            0 => print::line(format_args!("{} checks, all passed", checks.len())),
            many => print::line(format_args!("{} checks, {many} FAILED", checks.len())),
        }
    }
}
