//! Paths and their answers.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hyper::StatusCode;
use podswitch_dns::{Name, record_type, type_number};
use podswitch_node::{
    CaptureRequest, FlowFilter, FlowQuery, FlowSort, METRICS_CONTENT_TYPE, NameView, Node,
    PolicyQuery, ServiceQuery, UnknownName, check_drop_reason, label_query, protocol_number,
};
use podswitch_wire::cidr::Cidr;
use podswitch_wire::flow_key::proto;
use serde::Serialize;
use serde_json::json;

use crate::filter::DropFilter;
use crate::trace::{Question, traces};

/// Maximum number of flows, drops, policy rules or Service ports in one answer.
pub const MAX_FLOWS: usize = 10_000;
/// Maximum number of flows before a page: they are kept in order until it is sent.
pub const MAX_OFFSET: usize = 100_000;
/// Maximum time that `/v1/perf` measures, in seconds.
pub const MAX_PERF_SECONDS: u64 = 60;

/// Maximum number of frames in one capture.
pub const MAX_CAPTURE_FRAMES: u64 = 1_000_000;
/// Maximum duration of a capture, in seconds.
pub const MAX_CAPTURE_SECONDS: u64 = 3600;
/// Seconds between the two samples of rates.
const INTERVALS: std::ops::RangeInclusive<f64> = 0.1..=20.0;

/// A parsed request.
#[derive(Debug)]
pub(crate) enum Wanted {
    /// A query to the node.
    Node(NodeQuestion),
    /// Connections, with rates if there is an interval.
    Flows { query: FlowQuery, interval: Option<Duration> },
    /// The last drops, and new ones if `follow` is set.
    Drops { filter: DropFilter, limit: usize, follow: bool },
    /// The activity of the workers during this number of seconds; 0: since they started.
    Perf { seconds: u64 },
    /// The decisions of policy rules.
    Policies(PolicyQuery),
    /// Service ports with their backends.
    Services(ServiceQuery),
    /// Captured frames, at most this number within this number of seconds.
    Capture { request: CaptureRequest, count: u64, seconds: u64, format: CaptureFormat },
    /// The map of traffic and drops.
    Map,
}

/// How captured frames are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CaptureFormat {
    PcapNg,
    /// A line for each frame.
    Json,
}

/// A query to the node.
#[derive(Debug)]
pub(crate) enum NodeQuestion {
    Status,
    Pods,
    Counters,
    Dns { name: Name, qtype: u16 },
    Trace(Question),
    Metrics,
}

/// An answer that is not a stream.
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

/// Parameters of a request, each used at most once.
struct Parameters {
    given: BTreeMap<String, String>,
    /// Names of the parameters that the path has.
    known: Vec<&'static str>,
}

impl Parameters {
    fn read(query: &str) -> Result<Self, String> {
        let mut found = BTreeMap::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            if found.insert(name.to_string(), value.to_string()).is_some() {
                return Err(format!("{name} is given twice"));
            }
        }
        Ok(Self { given: found, known: Vec::new() })
    }

    fn take(&mut self, name: &'static str) -> Option<String> {
        self.known.push(name);
        self.given.remove(name)
    }

    fn parse<T: std::str::FromStr>(
        &mut self,
        name: &'static str,
        what: &str,
    ) -> Result<Option<T>, String> {
        let Some(text) = self.take(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| format!("{name}={text}: {what} is expected"))
    }

    fn protocol(&mut self) -> Result<Option<u8>, String> {
        let number = self.take("protocol").map(|text| protocol_number(&text)).transpose();
        number.map_err(|unknown| unknown.to_string())
    }

    /// An address or a range.
    fn addresses(&mut self) -> Result<Option<Cidr>, String> {
        let Some(text) = self.take("address") else { return Ok(None) };
        let address = text.parse::<IpAddr>().map(Cidr::host).ok().or_else(|| text.parse().ok());
        let wrong = || format!("address={text}: an IP address or a range (CIDR) is expected");
        address.map(Some).ok_or_else(wrong)
    }

    /// The parameters that flows and drops share.
    fn ends(&mut self) -> Result<FlowFilter, String> {
        let mut filter = FlowFilter::default();
        filter.pod = self.take("pod");
        filter.namespace = self.take("namespace");
        filter.addresses = self.addresses()?;
        filter.port = self.parse("port", "a port")?;
        filter.protocol = self.protocol()?;
        filter.service = self.take("service");
        Ok(filter)
    }

    fn flows(&mut self) -> Result<Wanted, String> {
        let mut filter = self.ends()?;
        filter.state = self.take("state");
        filter.labels = self.take("label").map(|text| label_query(&text)).transpose()?;
        let sort = self.take("sort").map(|name| FlowSort::named(&name)).transpose();
        let sort = sort.map_err(|unknown| unknown.to_string())?.unwrap_or_default();
        let interval = match self.parse::<f64>("interval", "a number of seconds")? {
            Some(seconds) if INTERVALS.contains(&seconds) => Some(Duration::from_secs_f64(seconds)),
            Some(seconds) => {
                let (least, most) = (INTERVALS.start(), INTERVALS.end());
                return Err(format!(
                    "interval={seconds}: it is not from {least} to {most} seconds"
                ));
            }
            None => (sort == FlowSort::Rate).then_some(Duration::from_secs(1)),
        };
        let mut query = FlowQuery::new(filter, sort, self.limit()?);
        query.offset = self.parse("offset", "a number")?.unwrap_or(0);
        if query.offset > MAX_OFFSET {
            return Err(format!("offset={}: at most {MAX_OFFSET}", query.offset));
        }
        Ok(Wanted::Flows { query, interval })
    }

    fn connection(&mut self) -> Result<Question, String> {
        let protocol = self.protocol()?.unwrap_or(proto::TCP);
        Ok(Question {
            from: self.required("from")?,
            to: self.required("to")?,
            port: self.parse("port", "a port")?.unwrap_or(0),
            protocol,
            sport: self.parse("sport", "a port")?.unwrap_or(49_152),
        })
    }

    /// A number from 1 to `most`.
    fn bounded(&mut self, name: &'static str, default: u64, most: u64) -> Result<u64, String> {
        match self.parse(name, "a number")?.unwrap_or(default) {
            number @ 1.. if number <= most => Ok(number),
            number => Err(format!("{name}={number}: from 1 to {most}")),
        }
    }

    fn capture(&mut self) -> Result<Wanted, String> {
        let between = match (self.take("from"), self.take("to")) {
            (Some(from), Some(to)) => Some([from, to]),
            (None, None) => None,
            (Some(_), None) => return Err("to is missing: from and to go together".to_owned()),
            (None, Some(_)) => return Err("from is missing: from and to go together".to_owned()),
        };
        let request = CaptureRequest {
            pod: self.take("pod"),
            between,
            host: self.parse("host", "an IP address")?,
            port: self.parse("port", "a port")?,
            protocol: self.protocol()?,
            drops_only: self.parse("drops", "true or false")?.unwrap_or(false),
            snap_len: self.parse("snaplen", "a number of bytes")?.unwrap_or(0),
        };
        let count = self.bounded("count", 10_000, MAX_CAPTURE_FRAMES)?;
        let seconds = self.bounded("seconds", 10, MAX_CAPTURE_SECONDS)?;
        let format = match self.take("format").as_deref() {
            None | Some("pcapng") => CaptureFormat::PcapNg,
            Some("json") => CaptureFormat::Json,
            Some(name) => {
                return Err(UnknownName::new("format", name, ["pcapng", "json"]).to_string());
            }
        };
        Ok(Wanted::Capture { request, count, seconds, format })
    }

    fn time(&mut self, name: &'static str) -> Result<Option<SystemTime>, String> {
        let Some(text) = self.take(name) else { return Ok(None) };
        let time = humantime::parse_rfc3339_weak(&text);
        time.map(Some).map_err(|_| format!("{name}={text}: a time of RFC 3339 is expected"))
    }

    fn limit(&mut self) -> Result<usize, String> {
        let limit = self.parse("limit", "a number")?.unwrap_or(MAX_FLOWS);
        Ok(limit.min(MAX_FLOWS))
    }

    fn required(&mut self, name: &'static str) -> Result<String, String> {
        self.take(name).ok_or_else(|| format!("{name} is missing"))
    }

    /// An error if a parameter is left: it was mistyped.
    fn end(self) -> Result<(), String> {
        match self.given.keys().next() {
            Some(name) => Err(UnknownName::new("parameter", name, self.known).to_string()),
            None => Ok(()),
        }
    }
}

/// Reads a path with its query.
///
/// # Errors
/// The error response.
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

/// Reads what a POST to `/v1/trace` is to send.
///
/// # Errors
/// The answer that says what is wrong.
pub(crate) fn read_connection(query: &str) -> Result<Question, Answer> {
    let bad = |reason: String| Answer::error(StatusCode::BAD_REQUEST, &reason);
    let mut parameters = Parameters::read(query).map_err(bad)?;
    let question = parameters.connection().map_err(bad)?;
    parameters.end().map_err(bad)?;
    Ok(question)
}

fn wanted(path: &str, parameters: &mut Parameters) -> Result<Option<Wanted>, String> {
    Ok(Some(Wanted::Node(match path {
        "/v1/status" => NodeQuestion::Status,
        "/v1/pods" => NodeQuestion::Pods,
        "/v1/counters" => NodeQuestion::Counters,
        "/v1/policies" => {
            let mut query = PolicyQuery::new(parameters.limit()?);
            query.containing = parameters.take("containing");
            query.never = parameters.parse("never", "true or false")?.unwrap_or(false);
            query.after = parameters.take("after");
            return Ok(Some(Wanted::Policies(query)));
        }
        "/v1/dns" => dns(parameters)?,
        "/v1/services" => {
            let mut query = ServiceQuery::new(parameters.limit()?);
            query.containing = parameters.take("containing");
            query.never = parameters.parse("never", "true or false")?.unwrap_or(false);
            query.after = parameters.take("after");
            return Ok(Some(Wanted::Services(query)));
        }
        "/metrics" => NodeQuestion::Metrics,
        "/v1/flows" => return parameters.flows().map(Some),
        "/v1/map" => return Ok(Some(Wanted::Map)),
        "/v1/drops" => {
            let reason = parameters.take("reason");
            if let Some(name) = &reason {
                check_drop_reason(name).map_err(|unknown| unknown.to_string())?;
            }
            let (since, until) = (parameters.time("since")?, parameters.time("until")?);
            let filter = DropFilter { ends: parameters.ends()?, reason, since, until };
            let follow = parameters.parse("follow", "true or false")?.unwrap_or(false);
            return Ok(Some(Wanted::Drops { filter, limit: parameters.limit()?, follow }));
        }
        "/v1/capture" => return Ok(Some(parameters.capture()?)),
        "/v1/perf" => {
            let seconds = parameters.parse("seconds", "a number of seconds")?.unwrap_or(0);
            if seconds > MAX_PERF_SECONDS {
                return Err(format!("seconds={seconds}: at most {MAX_PERF_SECONDS}"));
            }
            return Ok(Some(Wanted::Perf { seconds }));
        }
        "/v1/trace" => NodeQuestion::Trace(parameters.connection()?),
        _ => return Ok(None),
    })))
}

/// A name, or an address for its PTR records.
fn dns(parameters: &mut Parameters) -> Result<NodeQuestion, String> {
    let text = parameters.required("name")?;
    let (name, default) = match text.parse::<IpAddr>() {
        Ok(address) => (Name::reverse(address), record_type::PTR),
        Err(_) => {
            let name = Name::parse(&text).map_err(|error| format!("name={text}: {error}"))?;
            (name, record_type::A)
        }
    };
    let qtype = parameters.take("type").map(|text| {
        type_number(&text).ok_or_else(|| format!("type={text}: a type of records is expected"))
    });
    Ok(NodeQuestion::Dns { name, qtype: qtype.transpose()?.unwrap_or(default) })
}

/// Answers a query. Runs on the node's thread, and only reads.
pub(crate) fn answer(node: &Node, question: &NodeQuestion) -> Answer {
    match question {
        NodeQuestion::Status => Answer::json(&node.status()),
        NodeQuestion::Pods => Answer::json(&json!({ "pods": node.pods() })),
        NodeQuestion::Counters => Answer::json(&node.stats()),
        NodeQuestion::Dns { name, qtype } => match &node.snapshot().names {
            Some(names) => Answer::json(&NameView::of(&names.zone, name, *qtype)),
            None => {
                let reason = "this switch answers for no names (--dns off)";
                Answer::error(StatusCode::NOT_FOUND, reason)
            }
        },
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
            ("/v1/status", "pod=a/b", 400, "there is no parameter pod\""),
            ("/v1/flows", "serivce=a/b", 400, "no parameter serivce; did you mean service?"),
            ("/v1/flows", "sort=byte", 400, "there is no order byte; did you mean bytes?"),
            ("/v1/flows", "interval=0", 400, "interval=0: it is not from 0.1 to 20 seconds"),
            ("/v1/flows", "interval=NaN", 400, "interval=NaN: it is not from"),
            ("/v1/flows", "label=a%3D%40", 400, "label selector a=@: "),
            ("/v1/flows", "offset=100001", 400, "offset=100001: at most 100000"),
            ("/v1/drops", "reason=polcy", 400, "no drop reason polcy; did you mean policy?"),
            ("/v1/flows", "port=70000", 400, "port=70000: a port is expected"),
            ("/v1/flows", "address=10.0.0", 400, "address=10.0.0: an IP address or a range"),
            ("/v1/flows", "pod=a%2Fb&pod=c", 400, "pod is given twice"),
            ("/v1/flows", "protocol=tcpp", 400, "there is no protocol tcpp; did you mean TCP?"),
            ("/v1/drops", "follow=maybe", 400, "follow=maybe: true or false is expected"),
            ("/v1/drops", "since=14:03", 400, "since=14:03: a time of RFC 3339 is expected"),
            ("/v1/trace", "from=a/b", 400, "to is missing"),
            ("/v1/capture", "from=a%2Fb", 400, "to is missing: from and to go together"),
            ("/v1/capture", "count=0", 400, "count=0: from 1 to 1000000"),
            ("/v1/capture", "seconds=3601", 400, "seconds=3601: from 1 to 3600"),
            ("/v1/capture", "protocol=tcpp", 400, "there is no protocol tcpp; did you mean TCP?"),
            ("/v1/capture", "format=pcap", 400, "no format pcap; did you mean pcapng?"),
            ("/v1/capture", "snaplen=x", 400, "snaplen=x: a number of bytes is expected"),
            ("/v1/policies", "never=1", 400, "never=1: true or false is expected"),
            ("/v1/policies", "nevr=true", 400, "no parameter nevr; did you mean never?"),
            ("/v1/dns", "", 400, "name is missing"),
            ("/v1/dns", "name=a..b", 400, "name=a..b: "),
            ("/v1/dns", "name=a.b&type=AX", 400, "type=AX: a type of records is expected"),
            ("/v1/services", "never=1", 400, "never=1: true or false is expected"),
            ("/v1/services", "limit=-1", 400, "limit=-1: a number is expected"),
            ("/v1/services", "befor=x", 400, "no parameter befor"),
            ("/v1/perf", "seconds=61", 400, "seconds=61: at most 60"),
            ("/v1/perf", "seconds=-1", 400, "seconds=-1: a number of seconds is expected"),
        ] {
            let (code, body) = error(path, query);
            assert_eq!(code, status, "{path}?{query}");
            assert!(body.contains(says), "{body}");
        }
    }

    #[test]
    fn filters_are_read() {
        let query = "pod=shop%2Fweb&protocol=udp&port=53&limit=7&offset=14&state=closing&label=app%3Dweb&sort=age";
        let Ok(Wanted::Flows { query, interval: None }) = read("/v1/flows", query) else {
            panic!("flows");
        };
        let filter = query.filter;
        assert_eq!((query.limit, query.offset, query.sort), (7, 14, FlowSort::Age));
        assert_eq!(filter.pod.as_deref(), Some("shop/web"));
        assert_eq!((filter.protocol, filter.port), (Some(17), Some(53)));
        assert_eq!(filter.state.as_deref(), Some("closing"));
        assert_eq!(filter.labels, label_query("app=web").ok());
        let interval = |query| match read("/v1/flows", query) {
            Ok(Wanted::Flows { interval, .. }) => interval,
            other => panic!("{other:?}"),
        };
        assert_eq!(interval("interval=0.5"), Some(Duration::from_millis(500)));
        assert_eq!(interval("sort=rate"), Some(Duration::from_secs(1)));
        let Ok(Wanted::Drops { filter, follow, .. }) =
            read("/v1/drops", "follow=true&reason=policy&address=fd00::/64")
        else {
            panic!("drops");
        };
        assert!(follow);
        assert_eq!(filter.reason.as_deref(), Some("policy"));
        assert_eq!(filter.ends.addresses, "fd00::/64".parse().ok());
    }
}
