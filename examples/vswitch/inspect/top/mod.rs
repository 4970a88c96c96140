//! `top`: shows what has the most traffic now, on a screen that is updated.
//!
//! Samples and keys are plain data (`sample`, `app`). Only `screen` and `terminal` depend on the
//! terminal, and are built with the feature `top`. Without the feature, or without a terminal, one
//! sample is printed.

#[cfg(feature = "top")]
mod app;
mod sample;
#[cfg(feature = "top")]
mod screen;
#[cfg(feature = "top")]
mod terminal;

use std::time::Duration;

use serde_json::{Value, json};

use super::ask::Target;
use super::table::print_columns;
use crate::{Done, print};
use sample::{Cell, Sample, Sampler, TABS, Table};

/// Show continuously what has the most traffic: pods, connections, drops, Services.
///
///   vswitch top                       the screen
///   vswitch top --interval 5          with rates over five seconds
///   vswitch top --once                one sample as text, the default without a terminal
///   vswitch top --once --json         the same for programs
///
/// Keys: tab, arrows or 1 to 4 select the table, s the sort column, / filters by a text, p pauses,
/// q quits. If the switch disappears, top reports it and waits for it to return.
///
/// The screen exists if vswitch was built with `--features top`; otherwise one sample is printed.
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// Seconds between two samples (0.1 to 20).
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    interval: Duration,
    /// Print one sample and end.
    #[arg(long)]
    once: bool,
    /// The most rows of each table with --once.
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: usize,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.1..=20.0).contains(seconds));
    let wrong = || "it is not a number of seconds from 0.1 to 20".to_owned();
    seconds.map(Duration::from_secs_f64).ok_or_else(wrong)
}

pub(crate) fn run(args: &Args, json: bool) -> Done {
    let client = args.target.client()?;
    let has_screen = !args.once && !json && std::io::IsTerminal::is_terminal(&std::io::stdout());
    #[cfg(feature = "top")]
    if has_screen {
        return terminal::run(client, args.interval);
    }
    let mut sampler = Sampler::new();
    sampler.fetch(&client, Duration::from_millis(100))?;
    std::thread::sleep(args.interval);
    let sample = sampler.fetch(&client, args.interval)?;
    match json {
        true => print::json(&as_json(&sample, args.limit)),
        false => print_sample(&sample, args.limit),
    }
    if has_screen {
        print::note("vswitch was built without --features top: there is no screen");
    }
    Ok(())
}

/// The first rows of a table, sorted by its first rate.
fn first(table: &Table, limit: usize) -> Vec<&Vec<Cell>> {
    let column = table.numeric().first().copied().unwrap_or(usize::MAX);
    let mut rows = table.view(column, "");
    rows.truncate(limit);
    rows
}

fn print_sample(sample: &Sample, limit: usize) {
    print::line(&sample.summary);
    for (name, table) in TABS.iter().zip(&sample.tables) {
        let rows = first(table, limit);
        let left_out = table.rows.len() - rows.len() + table.left_out as usize;
        let note = if left_out > 0 { format!(" ({left_out} are left out)") } else { String::new() };
        print::line(format_args!("\n{name}{note}"));
        let rows: Vec<Vec<&str>> =
            rows.iter().map(|row| row.iter().map(|cell| &*cell.text).collect()).collect();
        print_columns(&table.head, &rows);
    }
}

/// Numbers are in base units: bytes per second, seconds.
fn as_json(sample: &Sample, limit: usize) -> Value {
    let rows = |table: &Table| -> Vec<Value> {
        let row = |cells: &Vec<Cell>| {
            let value = |cell: &Cell| cell.value.map_or_else(|| json!(cell.text), |v| json!(v));
            table
                .head
                .iter()
                .zip(cells)
                .map(|(name, cell)| (name.to_lowercase(), value(cell)))
                .collect()
        };
        first(table, limit).into_iter().map(row).collect()
    };
    let tables = TABS.iter().zip(&sample.tables);
    let tables = tables.map(|(name, table)| (name.to_lowercase(), json!(rows(table))));
    Value::Object(tables.chain([("summary".to_owned(), json!(sample.summary))]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_json_sample_has_numbers() {
        let mut sampler = Sampler::new();
        sampler.sample(&sample::tests::answers(1), None);
        let sample = sampler.sample(&sample::tests::answers(2), Some(Duration::from_secs(1)));
        let value = as_json(&sample, 1);
        let pods = value["pods"].as_array().expect("rows");
        assert_eq!((pods.len(), &pods[0]["pod"]), (1, &json!("shop/web")));
        assert_eq!(pods[0]["rate"], 125_000.0);
        assert_eq!(value["drops"][0]["drops/s"], 10.0);
        assert_eq!(value["services"][0]["backend"], "10.1.0.3:8080");
    }

    #[test]
    fn intervals() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert!(seconds("0").is_err() && seconds("21").is_err() && seconds("NaN").is_err());
    }
}
