//! `drops`: which frames were dropped, and why.

use podswitch_api::Client;
use serde_json::Value;

use super::ask::Target;
use super::flows::Filters;
use super::moment::{Moment, moment};
use super::table::text;
use crate::{Done, print};

/// Show the last frames that were dropped: why, between which ends, by which policy.
///
///   vswitch drops                                   the last ones
///   vswitch drops -f --pod shop/web                 new ones as they occur
///   vswitch drops -f --reason policy --namespace shop
///   vswitch drops --since 14:02 --until 14:05       those of a time (UTC)
///
/// Many similar drops are shown as one line with their count. The counts of all lines add up to the
/// switch's counters.
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    filters: Filters,
    /// Only drops for this reason, or of this class: malformed, spoof, policy, service, route, tunnel, limit, state.
    #[arg(long, value_name = "REASON")]
    reason: Option<String>,
    /// Only drops at or after this time: a time of day (14:03, UTC), a date and time
    /// (2026-11-30T14:03:00Z), or a duration before now (10m). The switch keeps the last 10,000
    /// records.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<Moment>,
    /// Only drops before or at this time.
    #[arg(long, value_name = "TIME", value_parser = moment, conflicts_with = "follow")]
    until: Option<Moment>,
    /// Continue with new drops as they occur.
    #[arg(short, long)]
    follow: bool,
    /// Number of the last drops to show.
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: usize,
}

pub(crate) fn run(args: &Args, json: bool) -> Done {
    let mut parameters = args.filters.parameters();
    parameters.push(("reason", args.reason.clone()));
    parameters.push(("since", args.since.map(Moment::parameter)));
    parameters.push(("until", args.until.map(Moment::parameter)));
    parameters.push(("limit", Some(args.limit.to_string())));
    let client = args.target.client()?;
    if !args.follow {
        let answer: Value = client.get(&Client::query("/v1/drops", &parameters))?;
        match json {
            true => print::json(&answer),
            false => {
                let drops = answer["drops"].as_array().into_iter().flatten();
                drops.for_each(|drop| print::line(line(drop)));
            }
        }
        return Ok(());
    }
    parameters.push(("follow", Some("true".to_owned())));
    client.lines(&Client::query("/v1/drops", &parameters), |text| {
        match (json, serde_json::from_str::<Value>(text)) {
            (false, Ok(drop)) => print::line(line(&drop)),
            _ => print::line(text),
        }
        true
    })?;
    Ok(())
}

/// A record as a line of text.
fn line(drop: &Value) -> String {
    match drop["lost"].as_u64() {
        Some(lost) => format!("({lost} records were missed: this reader is too slow)"),
        None => text(&drop["text"]),
    }
}
