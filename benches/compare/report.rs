//! The results as a table for people and as JSON for programs.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::thread;

use serde_json::{Value, json};

use crate::Outcome;
use crate::loads::{self, Load, Sample};
use crate::paths;
use crate::results::{Results, Row, Spread, cost};

/// A sample in a line.
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
    let _ = write!(text, "{} ns/{}", number(cost(sample).process_ns), load.work);
    text
}

/// All rows, grouped by load and figure.
fn rows(results: &Results) -> Vec<Row> {
    let paths: Vec<&'static str> = paths::ALL.iter().map(|kind| kind.name).collect();
    loads::ALL.iter().flat_map(|load| results.rows(load, &paths)).collect()
}

/// See the module's description.
pub(crate) fn table(results: &Results) -> String {
    let mut text = conditions(results);
    let mut group = (String::new(), "");
    for row in rows(results) {
        let name = name(&row);
        if group != (name.clone(), row.figure.unit) {
            let heading = format!("{name}, {}", row.figure.unit);
            let costs = format!("CPU, ns/{}", row.load.work);
            let _ = writeln!(
                text,
                "\n{heading:<35} {:>8} {:>17} {:>9} {:>13}   {costs:<17} {:>8} {:>8} {:>8} {:>9}",
                "median",
                "min … max",
                "× bridge",
                "min … max",
                "process",
                "switch",
                "machine",
                "× bridge"
            );
            group = (name, row.figure.unit);
        }
        line(&mut text, &row);
    }
    for (path, by_reason) in &results.dropped {
        let reasons: Vec<String> = by_reason.iter().map(|(r, n)| format!("{r} {n}")).collect();
        let _ = writeln!(text, "\ndropped by {path}: {}", reasons.join(", "));
    }
    for (path, reason) in &results.left_out {
        let _ = writeln!(text, "\nleft out: {path}: {reason}");
    }
    for failure in &results.failures {
        let _ = writeln!(text, "\nfailed: {failure}");
    }
    text
}

fn line(text: &mut String, row: &Row) {
    let range = |s: Option<Spread>, f: fn(f64) -> String| {
        s.map_or("–".to_owned(), |s| format!("{} … {}", f(s.min), f(s.max)))
    };
    let median = |s: Option<Spread>| s.map_or("–".to_owned(), |s| ratio(s.median));
    let _ = writeln!(
        text,
        "  {:<33} {:>8} {:>17} {:>9} {:>13}   {:17} {:>8} {:>8} {:>8} {:>9}",
        row.path,
        number(row.value.median),
        range(Some(row.value), number),
        median(row.ratio),
        range(row.ratio, ratio),
        "",
        number(row.cost.process_ns),
        number(row.cost.switch_ns),
        number(row.cost.machine_ns),
        median(row.cost_ratio),
    );
}

fn name(row: &Row) -> String {
    match row.figure.name {
        "" => row.load.name.to_owned(),
        figure => format!("{} {figure}", row.load.name),
    }
}

/// What to know to judge the figures by.
fn conditions(results: &Results) -> String {
    let mut text = format!(
        "Linux {}, {} processors; {} rounds of {} s for each load and path\n",
        kernel(),
        processors(),
        results.rounds.len(),
        results.seconds
    );
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

/// See the module's description.
pub(crate) fn json(results: &Results) -> String {
    let rounds: Vec<Value> = results
        .rounds
        .iter()
        .map(
            |r| json!({ "load_averages": r.load, "others_cpus": r.others, "stolen_cpus": r.steal }),
        )
        .collect();
    let rows: Vec<Value> = rows(results)
        .iter()
        .map(|row| {
            json!({
                "path": row.path,
                "load": row.load.name,
                "figure": row.figure.name,
                "unit": row.figure.unit,
                "value": row.value,
                "values": row.values,
                "ratio_to_bridge": row.ratio,
                "cpu_per": row.load.work,
                "cpu": row.cost,
                "cpu_process_ratio_to_bridge": row.cost_ratio,
            })
        })
        .collect();
    let left_out: Vec<Value> = results
        .left_out
        .iter()
        .map(|(path, reason)| json!({ "path": path, "reason": reason }))
        .collect();
    let dropped: BTreeMap<&str, BTreeMap<&str, u64>> = results
        .dropped
        .iter()
        .map(|(path, by_reason)| (*path, by_reason.iter().copied().collect()))
        .collect();
    let all = json!({
        "kernel": kernel(),
        "processors": processors(),
        "seconds": results.seconds,
        "rounds": rounds,
        "rows": rows,
        "dropped": dropped,
        "left_out": left_out,
        "failures": results.failures,
    });
    format!("{all:#}")
}

fn kernel() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    text.trim().to_owned()
}

fn processors() -> usize {
    thread::available_parallelism().map_or(0, usize::from)
}

/// Three digits that say something, no more.
fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn ratio(value: f64) -> String {
    format!("{value:.2}")
}
