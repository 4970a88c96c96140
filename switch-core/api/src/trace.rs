//! Evaluates a possible connection, given the names of its ends.

use std::net::{IpAddr, SocketAddr};

use podswitch_node::{Connection, Node, Outcome};
use podswitch_wire::flow_key::proto;
use serde::Serialize;

/// A query.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    /// Names or addresses of the ends.
    pub(crate) from: String,
    pub(crate) to: String,
    /// Port of the server.
    pub(crate) port: u16,
    /// IP protocol number.
    pub(crate) protocol: u8,
    /// Port of the client. It affects the selection of the backend.
    pub(crate) sport: u16,
}

/// The answer for one pair of addresses.
#[derive(Debug, Serialize)]
pub(crate) struct Trace {
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    port: u16,
    epoch: u32,
    verdict: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backend: Option<SocketAddr>,
    /// The decision as text.
    why: String,
}

/// Answers for each family that both ends have.
///
/// # Errors
/// Why there is no answer: an end is not known, or the ends have no address family in common.
pub(crate) fn traces(node: &Node, question: &Question) -> Result<Vec<Trace>, String> {
    let find = |name: &str| node.addresses(name).map_err(|error| error.to_string());
    let (sources, destinations) = (find(&question.from)?, find(&question.to)?);
    let mut traces = Vec::new();
    for src in sources {
        for dst in destinations.iter().filter(|dst| dst.is_ipv4() == src.is_ipv4()) {
            let (mut protocol, mut dport) = (question.protocol, question.port);
            if matches!(protocol, proto::ICMP | proto::ICMPV6) {
                (protocol, dport) =
                    if src.is_ipv4() { (proto::ICMP, 8) } else { (proto::ICMPV6, 128) };
            }
            let connection = Connection { src, dst: *dst, protocol, sport: question.sport, dport };
            let Some(verdict) = node.explain(&connection) else { continue };
            let (mut reason, mut object, mut backend) = (None, None, None);
            match &verdict.outcome {
                Some(Outcome::Drop { reason: why, object: by }) => {
                    reason = Some(why.name());
                    object = by.as_ref().map(ToString::to_string);
                }
                Some(Outcome::Forward { backend: chosen }) => backend = *chosen,
                _ => {}
            }
            traces.push(Trace {
                from: src,
                to: *dst,
                protocol,
                port: question.port,
                epoch: node.epoch().0,
                verdict: if verdict.is_allowed() { "allow" } else { "deny" },
                reason,
                object,
                backend,
                why: verdict.to_string(),
            });
        }
    }
    match traces.is_empty() {
        true => {
            Err(format!("{} and {} have no address family in common", question.from, question.to))
        }
        false => Ok(traces),
    }
}
