//! Paths and their answers.

use std::collections::BTreeMap;

use bytes::Bytes;
use hyper::StatusCode;
use podswitch_node::{METRICS_CONTENT_TYPE, Node};
use serde::Serialize;
use serde_json::json;

use crate::filter::{Filter, protocol};
use crate::trace::{Question, traces};

/// The most flows in one answer.
pub const MAX_FLOWS: usize = 10_000;

/// A request that was understood.
#[derive(Debug)]
pub(crate) enum Wanted {
    /// Asks the node.
    Node(NodeQuestion),
    /// The last drops, and those that come if `follow`.
    Drops { filter: Filter, limit: usize, follow: bool },
    /// Who talks to whom, and what is dropped between them.
    Map,
}

/// A query to the node.
#[derive(Debug)]
pub(crate) enum NodeQuestion {
    Status,
    Pods,
    Flows { filter: Filter, limit: usize },
    Counters,
    Policies,
    Services,
    Trace(Question),
    Metrics,
}

/// An answer in one piece.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) content_type: &'static str,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(mut body) => {
                body.push(b'\n');
                let (status, content_type) = (StatusCode::OK, "application/json");
                Self { status, content_type, body: body.into() }
            }
            Err(error) => Self::error(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        }
    }

    pub(crate) fn error(status: StatusCode, reason: &str) -> Self {
        let body = format!("{}\n", json!({ "error": reason })).into();
        Self { status, content_type: "application/json", body }
    }
}

/// Parameters of a request, each taken at most once.
struct Parameters(BTreeMap<String, String>);

impl Parameters {
    fn read(query: &str) -> Result<Self, String> {
        let mut found = BTreeMap::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            if found.insert(name.to_string(), value.to_string()).is_some() {
                return Err(format!("{name} is given twice"));
            }
        }
        Ok(Self(found))
    }

    fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    fn parse<T: std::str::FromStr>(&mut self, name: &str, what: &str) -> Result<Option<T>, String> {
        let Some(text) = self.take(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| format!("{name}={text}: {what} is expected"))
    }

    fn filter(&mut self) -> Result<Filter, String> {
        let protocol = match self.take("protocol") {
            Some(text) => Some(
                protocol(&text)
                    .ok_or(format!("protocol={text}: TCP, UDP, SCTP, ICMP or a number"))?,
            ),
            None => None,
        };
        Ok(Filter {
            pod: self.take("pod"),
            namespace: self.take("namespace"),
            address: self.parse("address", "an IP address")?,
            port: self.parse("port", "a port")?,
            protocol,
            service: self.take("service"),
            state: None,
            reason: None,
        })
    }

    fn limit(&mut self) -> Result<usize, String> {
        let limit = self.parse("limit", "a number")?.unwrap_or(MAX_FLOWS);
        Ok(limit.min(MAX_FLOWS))
    }

    fn required(&mut self, name: &str) -> Result<String, String> {
        self.take(name).ok_or_else(|| format!("{name} is missing"))
    }

    /// Whatever is left was mistyped.
    fn end(self) -> Result<(), String> {
        match self.0.keys().next() {
            Some(name) => Err(format!("there is no parameter {name} here")),
            None => Ok(()),
        }
    }
}

/// Reads a path with its query.
///
/// # Errors
/// The answer that says what is wrong.
pub(crate) fn read(path: &str, query: &str) -> Result<Wanted, Answer> {
    let bad = |reason: String| Answer::error(StatusCode::BAD_REQUEST, &reason);
    let mut parameters = Parameters::read(query).map_err(bad)?;
    let wanted = wanted(path, &mut parameters).map_err(bad)?;
    let Some(wanted) = wanted else {
        let reason = format!("there is no {path}; see docs/api.md");
        return Err(Answer::error(StatusCode::NOT_FOUND, &reason));
    };
    parameters.end().map_err(bad)?;
    Ok(wanted)
}

fn wanted(path: &str, parameters: &mut Parameters) -> Result<Option<Wanted>, String> {
    Ok(Some(Wanted::Node(match path {
        "/v1/status" => NodeQuestion::Status,
        "/v1/pods" => NodeQuestion::Pods,
        "/v1/counters" => NodeQuestion::Counters,
        "/v1/policies" => NodeQuestion::Policies,
        "/v1/services" => NodeQuestion::Services,
        "/metrics" => NodeQuestion::Metrics,
        "/v1/flows" => {
            let state = parameters.take("state");
            let filter = Filter { state, ..parameters.filter()? };
            NodeQuestion::Flows { filter, limit: parameters.limit()? }
        }
        "/v1/map" => return Ok(Some(Wanted::Map)),
        "/v1/drops" => {
            let reason = parameters.take("reason");
            let filter = Filter { reason, ..parameters.filter()? };
            let follow = parameters.parse("follow", "true or false")?.unwrap_or(false);
            return Ok(Some(Wanted::Drops { filter, limit: parameters.limit()?, follow }));
        }
        "/v1/trace" => {
            let text = parameters.take("protocol").unwrap_or_else(|| "TCP".into());
            let number = protocol(&text)
                .ok_or(format!("protocol={text}: TCP, UDP, SCTP, ICMP or a number"))?;
            NodeQuestion::Trace(Question {
                from: parameters.required("from")?,
                to: parameters.required("to")?,
                port: parameters.parse("port", "a port")?.unwrap_or(0),
                protocol: number,
                sport: parameters.parse("sport", "a port")?.unwrap_or(49_152),
            })
        }
        _ => return Ok(None),
    })))
}

/// Answers a question. Runs on the node's thread: it only reads.
pub(crate) fn answer(node: &Node, question: &NodeQuestion) -> Answer {
    match question {
        NodeQuestion::Status => Answer::json(&node.status()),
        NodeQuestion::Pods => Answer::json(&json!({ "pods": node.pods() })),
        NodeQuestion::Counters => Answer::json(&node.stats()),
        NodeQuestion::Policies => Answer::json(&json!({ "policies": node.stats().policies })),
        NodeQuestion::Services => Answer::json(&json!({ "services": node.stats().services })),
        NodeQuestion::Flows { filter, limit } => {
            let mut flows = node.flows();
            flows.retain(|flow| filter.takes_flow(flow));
            let total = flows.len();
            flows.sort_by_key(|flow| std::cmp::Reverse(flow.bytes + flow.reply_bytes));
            flows.truncate(*limit);
            Answer::json(&json!({ "total": total, "flows": flows }))
        }
        NodeQuestion::Trace(question) => match traces(node, question) {
            Ok(traces) => Answer::json(&json!({ "traces": traces })),
            Err(reason) => Answer::error(StatusCode::NOT_FOUND, &reason),
        },
        NodeQuestion::Metrics => Answer {
            status: StatusCode::OK,
            content_type: METRICS_CONTENT_TYPE,
            body: node.metrics().into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(path: &str, query: &str) -> (u16, String) {
        let answer = read(path, query).expect_err("refused");
        (answer.status.as_u16(), String::from_utf8(answer.body.to_vec()).unwrap())
    }

    #[test]
    fn bad_requests_name_the_parameter() {
        for (path, query, status, says) in [
            ("/v1/nothing", "", 404, "there is no /v1/nothing"),
            ("/v1/status", "pod=a/b", 400, "there is no parameter pod here"),
            ("/v1/flows", "port=70000", 400, "port=70000: a port is expected"),
            ("/v1/flows", "address=10.0.0", 400, "address=10.0.0: an IP address is expected"),
            ("/v1/flows", "pod=a%2Fb&pod=c", 400, "pod is given twice"),
            ("/v1/flows", "protocol=tcpp", 400, "protocol=tcpp: TCP, UDP"),
            ("/v1/drops", "follow=maybe", 400, "follow=maybe: true or false is expected"),
            ("/v1/trace", "from=a/b", 400, "to is missing"),
        ] {
            let (code, body) = error(path, query);
            assert_eq!(code, status, "{path}?{query}");
            assert!(body.contains(says), "{body}");
        }
    }

    #[test]
    fn filters_are_read() {
        let Ok(Wanted::Node(NodeQuestion::Flows { filter, limit })) =
            read("/v1/flows", "pod=shop%2Fweb&protocol=udp&port=53&limit=7&state=closing")
        else {
            panic!("flows");
        };
        assert_eq!(limit, 7);
        assert_eq!(filter.pod.as_deref(), Some("shop/web"));
        assert_eq!((filter.protocol, filter.port), (Some(17), Some(53)));
        assert_eq!(filter.state.as_deref(), Some("closing"));
        let Ok(Wanted::Drops { filter, follow, .. }) =
            read("/v1/drops", "follow=true&reason=policy&address=fd00::1")
        else {
            panic!("drops");
        };
        assert!(follow);
        assert_eq!(filter.reason.as_deref(), Some("policy"));
        assert_eq!(filter.address, Some("fd00::1".parse().unwrap()));
    }
}
