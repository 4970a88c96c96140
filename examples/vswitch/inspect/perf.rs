//! `perf`: shows how the workers spend their time.

use std::time::Duration;

use podswitch_api::{Client, MAX_PERF_SECONDS};
use serde_json::Value;

use super::ask::Target;
use super::table::text;
use crate::{Done, print};

/// Show how busy the workers are: polls, bursts, fast and slow path, sleeps, pauses.
///
///   vswitch perf                  the next two seconds
///   vswitch perf --seconds 30     the next 30
///   vswitch perf --seconds 0      everything since the switch began
///
/// A worker polls its ports as long as there are frames, and sleeps when there are none. Its load
/// is therefore "busy", not its share of the CPU. The larger the bursts, the closer a worker is to
/// its limit of 64. Quantiles of the poll time are powers of two: upper bounds, at most twice the
/// exact value.
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// How long to measure, in seconds, at most 60. 0: since the switch started.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=MAX_PERF_SECONDS))]
    seconds: u64,
}

pub(crate) fn run(args: &Args, json: bool) -> Done {
    let parameters = [("seconds", Some(args.seconds.to_string()))];
    let time = Duration::from_secs(args.seconds);
    let answer: Value =
        args.target.client()?.get_after(&Client::query("/v1/perf", &parameters), time)?;
    if json {
        print::json(&answer);
        return Ok(());
    }
    match answer["seconds"].as_f64() {
        Some(seconds) => print::line(format_args!("{}, {seconds:.1} s", text(&answer["node"]))),
        None => print::line(format_args!("{}, since the switch began", text(&answer["node"]))),
    }
    for worker in answer["workers"].as_array().into_iter().flatten() {
        lines(worker).iter().for_each(print::line);
    }
    Ok(())
}

/// A worker's figures.
fn lines(worker: &Value) -> Vec<String> {
    let count = |value: &Value| value.as_u64().unwrap_or_default();
    let percent = |name: &str| worker[name].as_f64().unwrap_or_default();
    let mut lines = vec![format!(
        "worker {}: {:.1} % busy, {:.1} % asleep",
        text(&worker["worker"]),
        percent("busy_percent"),
        percent("asleep_percent")
    )];
    let mut line = |name: &str, text: String| lines.push(format!("  {name:<14} {text}"));
    line(
        "polls",
        format!("{}, {} of them empty", text(&worker["polls"]), text(&worker["empty_polls"])),
    );
    let poll = &worker["poll_time"];
    if count(&poll["max_ns"]) > 0 {
        let time = |name: &str| duration(count(&poll[name]));
        let (mean, p50, p99) = (time("mean_ns"), time("p50_ns"), time("p99_ns"));
        line(
            "time of a poll",
            format!("mean {mean}, p50 < {p50}, p99 < {p99}, all < {}", time("max_ns")),
        );
    }
    let bursts = count(&worker["bursts"]);
    line("bursts", format!("{bursts}, {:.1} frames on average", percent("burst_mean")));
    if bursts > 0 {
        // The API returns them by name; sort them by size here.
        for name in ["1", "2", "3-4", "5-8", "9-16", "17-32", "33-64"] {
            let of_class = count(&worker["burst_sizes"][name]);
            let share = 100.0 * of_class as f64 / bursts as f64;
            let bar = "#".repeat((share / 2.5).round() as usize);
            line("", format!("{name:>5} {share:5.1} % {bar}").trim_end().to_owned());
        }
    }
    let slow = &worker["slow_path"];
    line("packets", text(&worker["packets"]));
    line("fast path", text(&worker["fast_path"]));
    line(
        "slow path",
        format!(
            "{} through admission ({} re-evaluated after a change), {} other (ARP, ND, fragments, errors)",
            text(&slow["admissions"]),
            text(&slow["reevaluated"]),
            text(&slow["other"])
        ),
    );
    let drops: Vec<String> = worker["drops"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(reason, count)| format!("{} {reason}", text(count)))
        .collect();
    line("drops", if drops.is_empty() { "none".to_owned() } else { drops.join(", ") });
    let woken = &worker["woken_by"];
    line(
        "sleeps",
        format!(
            "{}; woken by a port {}, by a command {}, by timeout {}",
            text(&worker["sleeps"]),
            text(&woken["port"]),
            text(&woken["command"]),
            text(&woken["timeout"])
        ),
    );
    let pause = &worker["longest_pause"];
    if let Some(ns) = pause["ns"].as_u64() {
        let doing = match text(&pause["doing"]) {
            doing if doing.is_empty() => {
                "nothing: the kernel ran other tasks on its core".to_owned()
            }
            doing => doing,
        };
        line("longest pause", format!("{} ({doing})", duration(ns)));
    }
    lines
}

/// A duration with a unit such that at most four digits precede the decimal point.
fn duration(nanos: u64) -> String {
    match nanos {
        0..10_000 => format!("{nanos} ns"),
        10_000..10_000_000 => format!("{:.1} us", nanos as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} ms", nanos as f64 / 1e6),
        _ => format!("{:.1} s", nanos as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn durations_have_units() {
        let texts = [999, 16_384, 2_097_152, 33_000_000, 12_000_000_000].map(duration);
        assert_eq!(texts, ["999 ns", "16.4 us", "2097.2 us", "33.0 ms", "12.0 s"]);
    }

    #[test]
    fn a_worker_is_formatted_as_lines() {
        let worker = json!({
            "worker": 1, "busy_percent": 12.34, "asleep_percent": 80.0, "polls": 10, "empty_polls": 4,
            "bursts": 8, "burst_mean": 3.0, "burst_sizes": {"1": 6, "33-64": 2}, "packets": 24,
            "fast_path": 20, "slow_path": {"admissions": 3, "reevaluated": 1, "other": 1},
            "drops": {"policy_ingress": 2}, "kept": 0,
            "poll_time": {"mean_ns": 700, "p50_ns": 1024, "p99_ns": 16384, "max_ns": 16384},
            "sleeps": 3, "woken_by": {"port": 2, "command": 1, "timeout": 0},
            "longest_pause": {"ns": 1_500_000, "doing": []}
        });
        let lines = lines(&worker);
        assert_eq!(lines[0], "worker 1: 12.3 % busy, 80.0 % asleep");
        let text = lines.join("\n");
        for line in [
            "  polls          10, 4 of them empty",
            "  time of a poll mean 700 ns, p50 < 1024 ns, p99 < 16.4 us, all < 16.4 us",
            "      1  75.0 % ##############################",
            "      2   0.0 %\n",
            "  33-64  25.0 % ##########",
            "  drops          2 policy_ingress",
            "  sleeps         3; woken by a port 2, by a command 1, by timeout 0",
            "  longest pause  1500.0 us (nothing: the kernel ran other tasks on its core)",
        ] {
            assert!(text.contains(line), "{line:?} is not in\n{text}");
        }
    }
}
