//! `status`.

use serde_json::Value;

use super::ask::Target;
use super::table::text;
use crate::{Done, print};

/// A command without arguments of its own.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
}

/// Show the switch's state, and any problems.
pub(crate) fn status(args: &Args, json: bool) -> Done {
    let status: Value = args.target.client()?.get("/v1/status")?;
    if json {
        print::json(&status);
        return Ok(());
    }
    let field = |name: &str| text(&status[name]);
    print::line(format_args!("node         {} (podswitch {})", field("node"), field("version")));
    print::line(format_args!("epoch        {}", field("epoch")));
    print::line(format_args!("pods         {}", field("pods")));
    let (connections, limit) = (field("connections"), field("connection_limit"));
    print::line(format_args!("connections  {connections} of {limit}"));
    print::line(format_args!(
        "frames       {} received, {} dropped",
        field("received"),
        field("dropped")
    ));
    for worker in status["workers"].as_array().into_iter().flatten() {
        print::line(format_args!(
            "worker {:<5} {:.1} % busy, {:.1} frames a burst, {} fast path, {} slow path",
            text(&worker["worker"]),
            worker["busy_percent"].as_f64().unwrap_or_default(),
            worker["batch_fill"].as_f64().unwrap_or_default(),
            text(&worker["hits"]),
            text(&worker["misses"]),
        ));
    }
    let mut problems: Vec<String> =
        status["left_out"].as_array().into_iter().flatten().map(text).collect();
    if status["connections_under_pressure"] == true {
        problems.push(
            "the connection table is nearly full: idle and half-open connections are ended".into(),
        );
    }
    match problems.is_empty() {
        true => print::line("problems     none"),
        false => {
            print::line(format_args!("problems     {}", problems.len()));
            problems.iter().for_each(|problem| print::line(format_args!("  {problem}")));
        }
    }
    Ok(())
}
