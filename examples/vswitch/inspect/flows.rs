//! `flows`: connections that are alive.

use std::net::IpAddr;

use podswitch_api::Client;
use serde_json::Value;

use super::ask::Target;
use super::table::{bytes, print_rows, text};
use crate::{Done, print};

/// Conditions on flows and drops; all must hold. Those on ends hold if they hold for one of them.
#[derive(clap::Args, Debug, Default)]
pub(super) struct Filters {
    /// One end is this pod (NAMESPACE/NAME).
    #[arg(long, value_name = "POD")]
    pod: Option<String>,
    /// One end is a pod of this namespace.
    #[arg(long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// One end has this address.
    #[arg(long, value_name = "ADDRESS")]
    address: Option<IpAddr>,
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
            ("address", self.address.map(|address| address.to_string())),
            ("port", self.port.map(|port| port.to_string())),
            ("protocol", self.protocol.clone()),
            ("service", self.service.clone()),
        ]
    }
}

/// Connections that the running switch tracks, those with most bytes first.
///
///   vswitch flows --pod shop/web            who talks to it, and whom it talks to
///   vswitch flows --address 10.0.3.7        the same by address
///   vswitch flows --service shop/api --state established
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    filters: Filters,
    /// State of a TCP connection: opening, established, closing, closed or reset.
    #[arg(long, value_name = "STATE", value_parser = ["opening", "established", "closing", "closed", "reset"])]
    state: Option<String>,
    /// The most to show.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: usize,
}

pub(crate) fn run(args: &Args, json: bool) -> Done {
    let mut parameters = args.filters.parameters();
    parameters.push(("state", args.state.clone()));
    parameters.push(("limit", Some(args.limit.to_string())));
    let answer: Value = args.target.client()?.get(&Client::query("/v1/flows", &parameters))?;
    if json {
        print::json(&answer);
        return Ok(());
    }
    let flows = answer["flows"].as_array().map(Vec::as_slice).unwrap_or_default();
    let end = |pod: &Value, address: String, port: &Value| {
        let address = if address.contains(':') { format!("[{address}]") } else { address };
        format!("{} {address}:{}", text(pod), text(port)).trim_start().to_owned()
    };
    let rows: Vec<_> = flows
        .iter()
        .map(|flow| {
            let count = |name: &str| flow[name].as_u64().unwrap_or_default();
            let service = text(&flow["service"]);
            let backend = text(&flow["backend"]);
            [
                protocol(&flow["protocol"]),
                end(&flow["src_pod"], text(&flow["src"]), &flow["sport"]),
                match service.strip_prefix("Service/") {
                    Some(_) => end(&Value::Null, text(&flow["dst"]), &flow["dport"]),
                    None => end(&flow["dst_pod"], text(&flow["dst"]), &flow["dport"]),
                },
                match (service.strip_prefix("Service/"), flow["dst_pod"].as_str()) {
                    (Some(service), Some(pod)) => format!("{service} = {pod} {backend}"),
                    (Some(service), None) => format!("{service} = {backend}"),
                    (None, _) => "-".to_owned(),
                },
                match flow["state"].as_str() {
                    Some(state) => state.to_owned(),
                    None => "-".to_owned(),
                },
                bytes(count("bytes")),
                bytes(count("reply_bytes")),
            ]
        })
        .collect();
    let head = ["PROTO", "CLIENT", "SERVER", "SERVICE", "STATE", "SENT", "ANSWERED"];
    print_rows(head, &rows);
    let total = answer["total"].as_u64().unwrap_or_default();
    if total > rows.len() as u64 {
        print::note(format_args!("{} of {total} are shown", rows.len()));
    }
    Ok(())
}

fn protocol(number: &Value) -> String {
    match number.as_u64() {
        Some(6) => "TCP".into(),
        Some(17) => "UDP".into(),
        Some(132) => "SCTP".into(),
        Some(1) => "ICMP".into(),
        Some(58) => "ICMPv6".into(),
        _ => text(number),
    }
}
