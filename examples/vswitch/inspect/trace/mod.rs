//! `trace`: what happens to a connection, by the state in force and, with `--send`, to a packet of it.

mod sent;

use std::path::PathBuf;

use podswitch_api::Client;
use serde_json::Value;

use super::ask::Target;
use super::table::text;
use crate::failure::Failure;
use crate::{Done, print};

/// Show what the running switch does with a connection, and why. Without --send nothing is sent.
///
///   vswitch trace --from shop/web --to shop/db:5432
///   vswitch trace --from 10.0.3.7 --to service/shop/api:80/TCP
///   vswitch trace --from node/n1 --to shop/web:0/ICMP
///   vswitch trace --send --from shop/web --to shop/db:5432
///   ssh -fNL /tmp/n2.sock:/run/podswitch/n2/ctl.sock n2
///   vswitch trace --send --also /tmp/n2.sock --from shop/web --to shop/db:5432
///
/// --send sends the first packet of the connection from a pod of this node for real, and shows where it
/// was received and sent, what each switch did with it, and the answer. The server gets the packet: TCP
/// SYN (the client resets what the server accepts), SCTP INIT, a UDP datagram with a short text, or an
/// ICMP echo request. It needs root, and no other capture may run.
///
/// Exit status: 0 allowed, 1 denied, 2 bad usage or an unknown name. With --send: 0 if the packet was
/// answered or delivered, or left the node for a switch that is not watched; 1 if it was dropped or lost.
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
    /// Send the first packet of the connection, and follow it.
    #[arg(long)]
    send: bool,
    /// Also follow it in the switch with this control socket, such as the server's node's. Can be
    /// repeated.
    #[arg(long, value_name = "PATH", requires = "send")]
    also: Vec<PathBuf>,
    /// Follow it for at most this many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 2, requires = "send", value_parser = clap::value_parser!(u64).range(1..=60))]
    wait: u64,
}

impl Args {
    fn uri(&self, sport: Option<u16>) -> String {
        Client::query(
            "/v1/trace",
            &[
                ("from", Some(self.from.clone())),
                ("to", Some(self.to.end.clone())),
                ("port", Some(self.to.port.to_string())),
                ("protocol", self.to.protocol.clone()),
                ("sport", sport.map(|port| port.to_string())),
            ],
        )
    }
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
    let client = args.target.client()?;
    // The same port for what is calculated and what is sent: it affects the backend.
    let sport = args.sport.or_else(|| args.send.then(sent::source_port));
    let mut answer: Value = client.get(&args.uri(sport))?;
    let traces = answer["traces"].as_array().cloned().unwrap_or_default();
    if !json {
        for trace in &traces {
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
    let is_good = match args.send {
        false => traces.iter().all(|trace| trace["verdict"] == "allow"),
        true => {
            let request = sent::Request {
                from: &args.from,
                port: args.to.port,
                sport,
                uri: args.uri(sport),
                traces: &traces,
                also: &args.also,
                wait: args.wait,
            };
            let ways = sent::send(&client, &request)?;
            match json {
                true => answer["sent"] = Value::Array(ways.iter().map(sent::Way::json).collect()),
                false => ways.iter().for_each(sent::Way::print),
            }
            ways.iter().all(|way| way.result().is_good())
        }
    };
    if json {
        print::json(&answer);
    }
    if is_good { Ok(()) } else { Err(Failure::Checked) }
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
