//! `drops`: which frames were dropped, and why.

use podswitch_api::Client;
use serde_json::Value;

use super::ask::Target;
use super::flows::Filters;
use super::table::text;
use crate::{Done, print};

/// The last frames that the running switch dropped: why, between whom, and by which policy.
///
///   vswitch drops                                   the last ones
///   vswitch drops -f --pod shop/web                 those that come
///   vswitch drops -f --reason policy --namespace shop
///
/// Many drops that are alike are shown as one line with their number. The numbers of all lines sum up
/// to the switch's counters.
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
    /// Go on with what comes.
    #[arg(short, long)]
    follow: bool,
    /// How many of the last ones to show.
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: usize,
}

pub(crate) fn run(args: &Args, json: bool) -> Done {
    let mut parameters = args.filters.parameters();
    parameters.push(("reason", args.reason.clone()));
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
    if let Some(lost) = drop["lost"].as_u64() {
        return format!("({lost} records were missed: this reader is too slow)");
    }
    let mut line = text(&drop["time"]);
    let count = drop["count"].as_u64().unwrap_or(1);
    if count != 1 {
        line += &format!(" {count} times");
    }
    line += &format!(" {}", text(&drop["reason"]));
    for name in ["protocol", "tcp_flags"] {
        if let Some(text) = drop[name].as_str() {
            line += &format!(" {text}");
        }
    }
    match (&drop["src"], &drop["dst"]) {
        (src @ Value::Object(_), dst @ Value::Object(_)) => {
            line += &format!(" {} -> {}", end(src), end(dst));
        }
        _ => match (drop["pod"].as_str(), drop["port"].as_u64()) {
            (Some(pod), _) => line += &format!(" from {pod}"),
            (None, Some(port)) => line += &format!(" from port {port}"),
            (None, None) => line += " (others, counted together)",
        },
    }
    if let Some(service) = drop["service"].as_str() {
        line += &format!(", {service}");
    }
    if let Some(backend) = drop["backend"].as_str() {
        line += &format!(" = {backend}");
    }
    if let Some(policy) = drop["policy"].as_str() {
        line +=
            &format!(", denied by {policy} {}[{}]", text(&drop["direction"]), text(&drop["rule"]));
    } else if drop["isolated_by"].is_array() {
        let (direction, policies) = (text(&drop["direction"]), text(&drop["isolated_by"]));
        line += &format!(", no {direction} rule allows it; isolated by {policies}");
    } else if let Some(object) = drop["object"].as_str() {
        line += &format!(", by {object}");
    }
    line
}

fn end(end: &Value) -> String {
    let address = text(&end["address"]);
    let place = match end["port"].as_u64() {
        Some(port) if address.contains(':') => format!("[{address}]:{port}"),
        Some(port) => format!("{address}:{port}"),
        None => address,
    };
    match (end["namespace"].as_str(), end["pod"].as_str(), end["node"].as_str()) {
        (Some(namespace), Some(pod), _) => format!("{namespace}/{pod} {place}"),
        (_, _, Some(node)) => format!("node/{node} {place}"),
        _ => place,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_record_becomes_a_line() {
        let drop = json!({
            "time": "2026-11-30T09:00:00.000001Z", "count": 3, "reason": "policy_ingress", "protocol": "TCP",
            "tcp_flags": "S", "src": {"address": "10.0.0.1", "namespace": "shop", "pod": "web"},
            "dst": {"address": "fd00::2", "port": 80, "node": "n2"}, "direction": "ingress",
            "isolated_by": ["NetworkPolicy/shop/a", "NetworkPolicy/shop/b"],
        });
        assert_eq!(
            line(&drop),
            "2026-11-30T09:00:00.000001Z 3 times policy_ingress TCP S shop/web 10.0.0.1 -> \
             node/n2 [fd00::2]:80, no ingress rule allows it; isolated by NetworkPolicy/shop/a NetworkPolicy/shop/b"
        );
        let other = json!({"time": "t", "count": 2, "reason": "no_route"});
        assert_eq!(line(&other), "t 2 times no_route (others, counted together)");
        assert!(line(&json!({"lost": 7})).starts_with("(7 records were missed"));
    }
}
