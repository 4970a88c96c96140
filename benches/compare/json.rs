//! The results in machine-readable form.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::machine;
use crate::report;
use crate::results::{Results, Row};
use crate::targets::{self, Bound};

/// All results, including every sample.
pub(crate) fn text(results: &Results) -> String {
    let rounds: Vec<Value> = results
        .rounds
        .iter()
        .map(
            |r| json!({ "load_averages": r.load, "others_cpus": r.others, "stolen_cpus": r.steal }),
        )
        .collect();
    let rows: Vec<Value> = results.rows().iter().map(row).collect();
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
    let facts: BTreeMap<&str, String> = machine::facts().into_iter().collect();
    let all = json!({
        "kernel": machine::kernel(),
        "processors": machine::processors(),
        "machine": facts,
        "programs": report::programs(),
        "seconds": results.seconds,
        "rounds": rounds,
        "rows": rows,
        "targets": targets(results),
        "dropped": dropped,
        "left_out": left_out,
        "failures": results.failures,
    });
    format!("{all:#}")
}

fn row(row: &Row) -> Value {
    json!({
        "group": row.group.title(),
        "path": row.path,
        "load": row.load.name,
        "figure": row.figure.name,
        "unit": row.figure.unit,
        "value": row.value,
        "values": row.values,
        "baseline": row.group.baseline(),
        "ratio_to_baseline": row.ratio,
        "cpu_per": row.load.work,
        "cpu": row.cost,
        "cpu_machine_ratio_to_baseline": row.cost_ratio,
    })
}

fn targets(results: &Results) -> Vec<Value> {
    let value = |reached: targets::Reached| {
        let (bound, is_met, target) = (reached.target.bound, reached.is_met(), reached.target);
        let (at_least, at_most) = match bound {
            Bound::AtLeast(ratio) => (Some(ratio), None),
            Bound::AtMost(ratio) => (None, Some(ratio)),
        };
        json!({
            "load": target.load,
            "figure": target.figure,
            "path": target.path,
            "versus": target.versus,
            "at_least": at_least,
            "at_most": at_most,
            "ratio": reached.ratio,
            "met": is_met,
        })
    };
    targets::reached(results).into_iter().map(value).collect()
}
