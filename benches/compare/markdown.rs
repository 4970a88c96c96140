//! The results as a part of a document: the text between two marks is replaced.

use std::env;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use podswitch_benches::document::replace_between;

use crate::machine;
use crate::paths::{self, Group};
use crate::report::{number, ratio};
use crate::results::{Results, Row, Spread};
use crate::targets::{self, Bound};
use crate::{Outcome, svg};

const MARKS: [&str; 2] = ["<!-- compare: begin -->", "<!-- compare: end -->"];

/// Replaces the marked part of `file`, and writes the picture that it shows beside it.
///
/// # Errors
/// The file cannot be read or written, or has no marks; then nothing is written.
pub(crate) fn write(file: &Path, results: &Results) -> Outcome<()> {
    let place = |e: std::io::Error| format!("{}: {e}", file.display());
    let text = fs::read_to_string(file).map_err(place)?;
    let new = replace_between(&text, MARKS, &part(results))
        .ok_or_else(|| format!("{}: no lines {}", file.display(), MARKS.join(" and ")))?;
    let picture = file.with_file_name("compare.svg");
    fs::write(&picture, svg::picture(results))
        .map_err(|e| format!("{}: {e}", picture.display()))?;
    fs::write(file, new).map_err(place)
}

fn part(results: &Results) -> String {
    let mut text = String::new();
    // The first argument is the program; Cargo adds one of its own.
    let arguments: Vec<String> = env::args().skip(1).filter(|a| a != "--bench").collect();
    let _ = writeln!(
        text,
        "`cargo bench --bench compare -- {}`: {} rounds of {} s for each load and path.\n",
        arguments.join(" "),
        results.rounds.len(),
        results.seconds
    );
    conditions(&mut text, results);
    let _ = writeln!(text, "\n![Throughput and latency between two pods](compare.svg)");
    let rows = results.rows();
    let mut groups: Vec<Group> = Vec::new();
    for row in &rows {
        if !groups.contains(&row.group) {
            groups.push(row.group);
        }
    }
    // In the order of the list of paths.
    groups.sort_by_key(|group| paths::ALL.iter().position(|kind| kind.group == *group));
    for group in groups {
        let of_group: Vec<&Row> = rows.iter().filter(|row| row.group == group).collect();
        table(&mut text, group, &of_group);
    }
    reached(&mut text, results);
    for failure in &results.failures {
        let _ = writeln!(text, "\nFailed: {failure}");
    }
    text
}

/// Machine, programs and load.
fn conditions(text: &mut String, results: &Results) {
    let facts = machine::facts();
    let facts: Vec<String> = facts.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    let _ = writeln!(text, "Machine: {}.", facts.join("; "));
    let programs = paths::programs();
    if !programs.is_empty() {
        let _ = writeln!(text, "Programs: {}.", programs.join("; "));
    }
    let of = |value: fn(&crate::results::Round) -> f64| {
        let all = Spread::of(results.rounds.iter().map(value));
        all.map_or(String::new(), |s| {
            format!("{} ({} … {})", two(s.median), two(s.min), two(s.max))
        })
    };
    let _ = writeln!(
        text,
        "Load average at the start of a round: {}; processors busy with other programs: {}; stolen by the hypervisor: {}.",
        of(|round| round.load[0]),
        of(|round| round.others),
        of(|round| round.steal)
    );
    for (path, reason) in &results.left_out {
        let _ = writeln!(text, "Not measured: {path} ({reason}).");
    }
}

/// A line for each figure, a column for each path.
fn table(text: &mut String, group: Group, rows: &[&Row]) {
    let baseline = group.baseline();
    let title = group.title();
    let (first, rest) = title.split_at(1);
    let _ = writeln!(text, "\n### {}{rest}\n", first.to_uppercase());
    let _ = writeln!(
        text,
        "`{baseline}`: its values. Others: ratios to it in the same round. Median (lowest … highest).\n"
    );
    let is_measured = |name: &str| rows.iter().any(|row| row.path == name);
    let columns: Vec<&str> = [baseline]
        .into_iter()
        .chain(paths::ALL.iter().map(|kind| kind.name).filter(|name| *name != baseline))
        .filter(|name| is_measured(name))
        .collect();
    let _ = writeln!(text, "| load | {} |", columns.join(" | "));
    let _ = writeln!(text, "| --- |{}", " --- |".repeat(columns.len()));
    let mut done: Vec<(&str, &str)> = Vec::new();
    for row in rows {
        let figure = (row.load.name, row.figure.name);
        if done.contains(&figure) {
            continue;
        }
        done.push(figure);
        let better = if row.figure.more_is_better { "" } else { "; lower is better" };
        let name = [figure.0, figure.1].join(" ");
        let _ = write!(text, "| {}, {}{better} |", name.trim_end(), row.figure.unit);
        for column in &columns {
            let this = rows
                .iter()
                .find(|row| row.path == *column && (row.load.name, row.figure.name) == figure);
            let cell = match this {
                None => String::new(),
                Some(row) if *column == baseline => spread(row.value, number),
                Some(row) => row.ratio.map_or_else(
                    || format!("{} {}", spread(row.value, number), row.figure.unit),
                    |s| spread(s, ratio),
                ),
            };
            let _ = write!(text, " {cell} |");
        }
        text.push('\n');
    }
}

fn reached(text: &mut String, results: &Results) {
    let all = targets::reached(results);
    if all.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n### Targets\n\n| load | path | compared with | target | ratio | |");
    let _ = writeln!(text, "| --- | --- | --- | --- | --- | --- |");
    for reached in &all {
        let target = reached.target;
        let bound = match target.bound {
            Bound::AtLeast(bound) => format!("≥ {bound:.1}"),
            Bound::AtMost(bound) => format!("≤ {bound:.1}"),
        };
        let load = [target.load, target.figure].join(" ");
        let outcome = if reached.is_met() { "met" } else { "missed" };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {bound} | {} | {outcome} |",
            load.trim_end(),
            target.path,
            target.versus,
            spread(reached.ratio, ratio)
        );
    }
}

fn spread(s: Spread, format: fn(f64) -> String) -> String {
    format!("{} ({} … {})", format(s.median), format(s.min), format(s.max))
}

fn two(value: f64) -> String {
    format!("{value:.2}")
}
