//! The results as a table for users.

use std::fmt::Write;

use crate::Outcome;
use crate::loads::{Load, Sample};
use crate::machine;
use crate::paths::{self, Group};
use crate::results::{Results, Row, Spread, cost};
use crate::targets::{self, Bound};

/// Formats one sample as a line.
pub(crate) fn glance(load: &Load, sample: &Outcome<Sample>) -> String {
    let sample = match sample {
        Ok(sample) => sample,
        Err(error) => return format!("failed: {error}"),
    };
    let mut text = String::new();
    for (figure, value) in load.figures.iter().zip(&sample.values) {
        let name = if figure.name.is_empty() { "" } else { " " };
        let _ = write!(text, "{}{name}{} {}, ", figure.name, number(*value), figure.unit);
    }
    let _ = write!(text, "{} ns/{}", number(cost(sample).machine_ns), load.work);
    text
}

/// See the module's description.
pub(crate) fn table(results: &Results) -> String {
    let mut text = conditions(results);
    let rows = results.rows();
    let mut heading = (String::new(), None);
    for row in &rows {
        let this = (name(row), Some(row.group));
        if heading.0 != this.0 {
            head(&mut text, row);
        }
        if heading != this {
            let of_path = |path: &str| rows.iter().any(|r| r.path == path);
            let baseline = row.group.baseline();
            let missing = if of_path(baseline) { "" } else { ", which is not there" };
            let title = row.group.title();
            let _ = writeln!(text, " {title} (ratios to {baseline}{missing})");
            for (path, reason) in skipped(results, row.group) {
                let _ = writeln!(text, "  {path:<33} SKIPPED: {reason}");
            }
            heading = this;
        }
        line(&mut text, row);
    }
    for (path, reason) in &results.left_out {
        // If nothing of a group was measured, it has no rows.
        if !rows.iter().any(|row| row.group == paths::group_of(path)) {
            let _ = writeln!(text, "\n{path}: SKIPPED: {reason}");
        }
    }
    targets(&mut text, results);
    for (path, by_reason) in &results.dropped {
        let reasons: Vec<String> = by_reason.iter().map(|(r, n)| format!("{r} {n}")).collect();
        let _ = writeln!(text, "\ndropped by {path}: {}", reasons.join(", "));
    }
    for failure in &results.failures {
        let _ = writeln!(text, "\nfailed: {failure}");
    }
    text
}

fn skipped(results: &Results, group: Group) -> impl Iterator<Item = &(&'static str, String)> {
    results.left_out.iter().filter(move |(path, _)| paths::group_of(path) == group)
}

fn head(text: &mut String, row: &Row) {
    let heading = format!("{}, {}", name(row), row.figure.unit);
    let costs = format!("CPU, ns/{}", row.load.work);
    let _ = writeln!(
        text,
        "\n{heading:<35} {:>8} {:>17} {:>9} {:>13}   {costs:<17} {:>8} {:>9} {:>9} {:>8}",
        "median", "min … max", "× base", "min … max", "machine", "× base", "accounted", "switch"
    );
}

fn line(text: &mut String, row: &Row) {
    let median = |s: Option<Spread>| s.map_or("–".to_owned(), |s| ratio(s.median));
    let _ = writeln!(
        text,
        "  {:<33} {:>8} {:>17} {:>9} {:>13}   {:17} {:>8} {:>9} {:>9} {:>8}",
        row.path,
        number(row.value.median),
        range(Some(row.value), number),
        median(row.ratio),
        range(row.ratio, ratio),
        "",
        number(row.cost.machine_ns),
        median(row.cost_ratio),
        number(row.cost.accounted_ns),
        number(row.cost.switch_ns),
    );
}

fn range(spread: Option<Spread>, f: fn(f64) -> String) -> String {
    spread.map_or("–".to_owned(), |s| format!("{} … {}", f(s.min), f(s.max)))
}

/// The targets, and whether they were reached.
fn targets(text: &mut String, results: &Results) {
    for (at, reached) in targets::reached(results).iter().enumerate() {
        if at == 0 {
            let _ = writeln!(text, "\naimed at, as the median of ratios in the same round");
        }
        let target = reached.target;
        let bound = match target.bound {
            Bound::AtLeast(bound) => format!("≥ {bound:.1}"),
            Bound::AtMost(bound) => format!("≤ {bound:.1}"),
        };
        let _ = writeln!(
            text,
            "  {:<36} {:<34} × {:<25} {bound} {:>6} {:>13}  {}",
            format!("{} {}", target.load, target.figure),
            target.path,
            target.versus,
            ratio(reached.ratio.median),
            range(Some(reached.ratio), ratio),
            if reached.is_met() { "met" } else { "NOT MET" },
        );
    }
}

fn name(row: &Row) -> String {
    match row.figure.name {
        "" => row.load.name.to_owned(),
        figure => format!("{} {figure}", row.load.name),
    }
}

/// The information that is needed to interpret the figures.
fn conditions(results: &Results) -> String {
    let mut text = String::new();
    for (name, value) in machine::facts() {
        let _ = writeln!(text, "{name}: {value}");
    }
    let (rounds, seconds) = (results.rounds.len(), results.seconds);
    let _ = writeln!(text, "{rounds} rounds of {seconds} s for each load and path");
    for program in programs() {
        let _ = writeln!(text, "{program}");
    }
    for (number, round) in results.rounds.iter().enumerate() {
        let [one, five, fifteen] = round.load;
        let _ = writeln!(
            text,
            "round {}: load averages {one:.2} {five:.2} {fifteen:.2}; busy outside this process \
             {:.2} processors, stolen {:.2}",
            number + 1,
            round.others,
            round.steal
        );
    }
    text
}

/// Versions of the programs that created rules and paths.
pub(crate) fn programs() -> Vec<String> {
    paths::programs()
}

/// Three significant digits.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Two digits after the point.
pub(crate) fn ratio(value: f64) -> String {
    format!("{value:.2}")
}
