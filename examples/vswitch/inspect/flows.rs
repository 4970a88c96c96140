//! `flows`: shows the tracked connections.

use std::time::Duration;

use podswitch_api::Client;
use podswitch_node::protocol_name;
use serde_json::Value;

use super::ask::Target;
use super::table::{bytes, duration, print_rows, rate, text};
use crate::{Done, print};

/// Conditions on flows and drops. All must hold. A condition on an end holds if it holds for either
/// end.
#[derive(clap::Args, Debug, Default)]
pub(super) struct Filters {
    /// One end is this pod (NAMESPACE/NAME).
    #[arg(long, value_name = "POD")]
    pod: Option<String>,
    /// One end is a pod of this namespace.
    #[arg(long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// One end has this address, or an address in this range.
    #[arg(long, value_name = "ADDRESS|CIDR")]
    address: Option<String>,
    /// One end has this port.
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// The protocol: TCP, UDP, SCTP, ICMP, ICMPv6 or a number.
    #[arg(long, value_name = "PROTOCOL")]
    protocol: Option<String>,
    /// It goes through this Service (NAMESPACE/NAME).
    #[arg(long, value_name = "SERVICE")]
    service: Option<String>,
}

impl Filters {
    pub(super) fn parameters(&self) -> Vec<(&'static str, Option<String>)> {
        vec![
            ("pod", self.pod.clone()),
            ("namespace", self.namespace.clone()),
            ("address", self.address.clone()),
            ("port", self.port.map(|port| port.to_string())),
            ("protocol", self.protocol.clone()),
            ("service", self.service.clone()),
        ]
    }
}

/// Show the connections that the running switch tracks, with traffic and policy decisions.
///
///   vswitch flows --pod shop/web                    who talks to it, and whom it talks to
///   vswitch flows --address 10.0.3.7                the same by address, or by range (10.0.3.0/24)
///   vswitch flows --label app=web,tier!=db          the same by labels of pods
///   vswitch flows --service shop/api --state established
///   vswitch flows --sort rate --limit 10            the most traffic now
///   vswitch flows --interval 5 --protocol UDP       with rates over five seconds
///   vswitch flows --sort age --json                 the oldest, for programs
///
/// ALLOWED BY follows from the state in force: the rules that allow the connection at the server's
/// and the client's end, `-` if no policy isolates either, or what denies it now. If the server
/// sees a translated client address (SNAT), both addresses are shown. Counts of UDP and ICMP may be
/// up to ten seconds old.
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    filters: Filters,
    /// One end is a pod with these labels, in kubectl's syntax: KEY=VALUE, KEY!=VALUE, KEY in
    /// (A,B), KEY, !KEY.
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    label: Option<String>,
    /// State of a TCP connection: opening, established, closing, closed or reset.
    #[arg(long, value_name = "STATE")]
    state: Option<String>,
    /// Sort order: bytes, packets, rate (bytes per second) or age.
    #[arg(long, value_name = "ORDER", default_value = "bytes")]
    sort: String,
    /// Show rates over this many seconds (0.1 to 20). Default: one second if sorted by rate,
    /// otherwise no rates.
    #[arg(long, value_name = "SECONDS")]
    interval: Option<f64>,
    /// The most connections to show.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: usize,
    /// Leave out the first N connections of the order: those of earlier pages (at most 100,000).
    #[arg(long, value_name = "N", default_value_t = 0)]
    offset: usize,
}

pub(crate) fn run(args: &Args, json: bool) -> Done {
    let mut parameters = args.filters.parameters();
    parameters.push(("label", args.label.clone()));
    parameters.push(("state", args.state.clone()));
    parameters.push(("sort", Some(args.sort.clone())));
    parameters.push(("interval", args.interval.map(|seconds| seconds.to_string())));
    parameters.push(("limit", Some(args.limit.to_string())));
    parameters.push(("offset", (args.offset > 0).then(|| args.offset.to_string())));
    let answer: Value = args.target.client()?.get(&Client::query("/v1/flows", &parameters))?;
    if json {
        print::json(&answer);
        return Ok(());
    }
    let flows = answer["flows"].as_array().map(Vec::as_slice).unwrap_or_default();
    let has_rates = !answer["interval_seconds"].is_null();
    let rows: Vec<[String; 11]> = flows.iter().map(row).collect();
    let head = [
        "PROTO",
        "CLIENT",
        "SERVER",
        "SERVICE",
        "STATE",
        "AGE",
        "SENT",
        "ANSWERED",
        "RATE",
        "NODES",
        "ALLOWED BY",
    ];
    match has_rates {
        true => print_rows(head, &rows),
        false => {
            let without = |row: [&str; 11]| {
                let [a, b, c, d, e, f, g, h, _, j, k] = row.map(str::to_owned);
                [a, b, c, d, e, f, g, h, j, k]
            };
            let rows: Vec<_> =
                rows.iter().map(|row| without(row.each_ref().map(String::as_str))).collect();
            print_rows(without(head).each_ref().map(String::as_str), &rows);
        }
    }
    let left_out = answer["left_out"].as_u64().unwrap_or_default();
    if left_out > 0 {
        print::note(format_args!(
            "{left_out} of {} connections are left out: --limit, or a narrower filter",
            text(&answer["total"])
        ));
    }
    Ok(())
}

/// A connection as a row, including its rate.
fn row(flow: &Value) -> [String; 11] {
    let count = |name: &str| flow[name].as_u64().unwrap_or_default();
    let service = text(&flow["service"]);
    let backend = text(&flow["backend"]);
    let client = end(&flow["src_pod"], &flow["src"], &flow["sport"]);
    let is_service = service.strip_prefix("Service/");
    let server_pod = if is_service.is_some() { &Value::Null } else { &flow["dst_pod"] };
    let rates = ["bytes_per_second", "reply_bytes_per_second"];
    [
        flow["protocol"]
            .as_u64()
            .and_then(|n| n.try_into().ok())
            .map_or_else(String::new, protocol_name),
        match flow["source_nat"].as_str() {
            Some(seen) => format!("{client} as {seen}"),
            None => client,
        },
        end(server_pod, &flow["dst"], &flow["dport"]),
        match (is_service, flow["dst_pod"].as_str()) {
            (Some(service), Some(pod)) => format!("{service} = {pod} {backend}"),
            (Some(service), None) => format!("{service} = {backend}"),
            (None, _) => "-".to_owned(),
        },
        flow["state"].as_str().unwrap_or("-").to_owned(),
        duration(Duration::from_secs(count("age_seconds"))),
        bytes(count("bytes")),
        bytes(count("reply_bytes")),
        rate(rates.iter().filter_map(|name| flow[name].as_f64()).sum()),
        match (flow["src_node"].as_str(), flow["dst_node"].as_str()) {
            (Some(one), Some(other)) if one == other => one.to_owned(),
            (one, other) => format!("{} > {}", one.unwrap_or("-"), other.unwrap_or("-")),
        },
        allowed_by(flow),
    ]
}

/// The pod, if there is one, with address and port.
fn end(pod: &Value, address: &Value, port: &Value) -> String {
    let address = text(address);
    let address = if address.contains(':') { format!("[{address}]") } else { address };
    format!("{} {address}:{}", text(pod), text(port)).trim_start().to_owned()
}

/// The rules that allow a connection, the server's first, or what denies it.
fn allowed_by(flow: &Value) -> String {
    let sides = ["ingress", "egress"].map(|direction| (direction, &flow[direction]));
    if let Some((_, side)) = sides.iter().find(|(_, side)| side["verdict"] == "deny") {
        return format!("denied now: {}", text(&side["why"]));
    }
    let rules: Vec<String> = sides
        .iter()
        .filter(|(_, side)| side["policy"].is_string())
        .map(|(direction, side)| {
            format!("{} {direction}[{}]", text(&side["policy"]), text(&side["rule"]))
        })
        .collect();
    if rules.is_empty() { "-".to_owned() } else { rules.join(", ") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_shows_ends_policy_and_traffic() {
        let flow = json!({
            "protocol": 6, "src": "10.1.0.2", "sport": 4000, "src_pod": "shop/web", "src_node": "n1",
            "dst": "10.96.0.1", "dport": 80, "dst_pod": "shop/db", "dst_node": "n2", "service": "Service/shop/db",
            "backend": "10.1.0.3:8080", "source_nat": "192.0.2.1:40001", "state": "established",
            "bytes": 2048, "reply_bytes": 10, "age_seconds": 61, "bytes_per_second": 1024.0,
            "reply_bytes_per_second": 1024.0, "egress": {"verdict": "allow", "why": "…"},
            "ingress": {"verdict": "allow", "policy": "NetworkPolicy/shop/db", "rule": 0, "why": "…"},
        });
        let expected = [
            "TCP",
            "shop/web 10.1.0.2:4000 as 192.0.2.1:40001",
            "10.96.0.1:80",
            "shop/db = shop/db 10.1.0.3:8080",
            "established",
            "1m1s",
            "2.0 KiB",
            "10 B",
            "16.4 kbit/s",
            "n1 > n2",
            "NetworkPolicy/shop/db ingress[0]",
        ];
        assert_eq!(row(&flow), expected.map(str::to_owned));
        let denied = json!({
            "ingress": {"verdict": "deny", "why": "ingress of Pod/shop/db: deny, isolated by …"},
            "egress": {"verdict": "allow"},
        });
        assert!(allowed_by(&denied).starts_with("denied now: ingress of Pod/shop/db: deny"));
        let outside =
            json!({"protocol": 58, "src": "fd00::1", "sport": 7, "dst": "fd00::2", "dport": 0});
        let row = row(&outside);
        assert_eq!((&*row[0], &*row[1], &*row[3]), ("ICMPv6", "[fd00::1]:7", "-"));
        assert_eq!((&*row[9], &*row[10]), ("- > -", "-"));
    }
}
