//! `trace`: what happens to a connection, by the state in force.

use podswitch_api::Client;
use serde_json::Value;

use super::ask::Target;
use super::table::text;
use crate::failure::Failure;
use crate::{Done, print};

/// Show what the running switch does with a connection, and why. It sends nothing.
///
///   vswitch trace --from shop/web --to shop/db:5432
///   vswitch trace --from 10.0.3.7 --to service/shop/api:80/TCP
///   vswitch trace --from node/n1 --to shop/web:0/ICMP
///
/// Exit status: 0 allowed, 1 denied, 2 bad usage or an unknown name.
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// The client: NAMESPACE/POD, node/NAME or an address.
    #[arg(long, value_name = "END")]
    from: String,
    /// The server: NAMESPACE/POD, service/NAMESPACE/NAME, node/NAME or an address ([ADDRESS] for IPv6),
    /// and :PORT or :PORT/PROTOCOL.
    #[arg(long, value_name = "END:PORT[/PROTOCOL]", value_parser = server)]
    to: Server,
    /// Port of the client. For a Service, it affects which backend is selected.
    #[arg(long, value_name = "PORT")]
    sport: Option<u16>,
}

/// `--to`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Server {
    end: String,
    port: u16,
    protocol: Option<String>,
}

fn server(text: &str) -> Result<Server, String> {
    let (end, rest) = match text.strip_prefix('[').and_then(|text| text.split_once(']')) {
        Some((address, rest)) => (address, rest.strip_prefix(':').unwrap_or_default()),
        None => match text.rsplit_once(':') {
            Some((end, rest)) if !end.contains(':') => (end, rest),
            Some(_) => {
                return Err("an IPv6 address with a port is written [ADDRESS]:PORT".to_owned());
            }
            None => (text, ""),
        },
    };
    let (port, protocol) = match rest.split_once('/') {
        Some((port, protocol)) => (port, Some(protocol.to_owned())),
        None => (rest, None),
    };
    let port =
        port.parse().map_err(|_| "a port is missing: END:PORT or END:PORT/PROTOCOL".to_owned())?;
    Ok(Server { end: end.to_owned(), port, protocol })
}

pub(crate) fn run(args: &Args, json: bool) -> Done {
    let uri = Client::query(
        "/v1/trace",
        &[
            ("from", Some(args.from.clone())),
            ("to", Some(args.to.end.clone())),
            ("port", Some(args.to.port.to_string())),
            ("protocol", args.to.protocol.clone()),
            ("sport", args.sport.map(|port| port.to_string())),
        ],
    );
    let answer: Value = args.target.client()?.get(&uri)?;
    let traces = answer["traces"].as_array().map(Vec::as_slice).unwrap_or_default();
    if json {
        print::json(&answer);
    } else {
        for trace in traces {
            let (from, to) = (text(&trace["from"]), text(&trace["to"]));
            print::line(format_args!(
                "{from} -> {to} port {} (epoch {})",
                args.to.port,
                text(&trace["epoch"])
            ));
            for line in text(&trace["why"]).lines() {
                print::line(format_args!("  {line}"));
            }
        }
    }
    match traces.iter().all(|trace| trace["verdict"] == "allow") {
        true => Ok(()),
        false => Err(Failure::Checked),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_with_ports() {
        let read = |text| server(text).map(|s| (s.end, s.port, s.protocol.unwrap_or_default()));
        let is = |end: &str, port, protocol: &str| Ok((end.to_owned(), port, protocol.to_owned()));
        assert_eq!(read("shop/db:5432"), is("shop/db", 5432, ""));
        assert_eq!(read("service/shop/api:53/UDP"), is("service/shop/api", 53, "UDP"));
        assert_eq!(read("[fd00::1]:80/TCP"), is("fd00::1", 80, "TCP"));
        assert_eq!(read("10.0.0.1:0/ICMP"), is("10.0.0.1", 0, "ICMP"));
        assert!(read("fd00::1:80").is_err() && read("shop/db").is_err() && read("a:b").is_err());
    }
}
